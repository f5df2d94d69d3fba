"""What alignment looks up for every token, made once for a pair of vocabularies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np

if TYPE_CHECKING:
    from xtoken.vocab import Vocabulary

WORD = 8


@dataclass(frozen=True)
class PairTables:
    """Arrays over the student's ids, then (from `border` on) the teacher's.

    `length`, `start` int64: byte length, and where the bytes begin in `flat_bytes` (uint8);
    `word` uint64: the first eight bytes, filled up with zeros, so that one comparison serves a
    whole short token.
    """

    border: int
    length: np.ndarray
    start: np.ndarray
    word: np.ndarray
    flat_bytes: np.ndarray


_TABLES: WeakKeyDictionary[Vocabulary, WeakKeyDictionary[Vocabulary, PairTables]] = (
    WeakKeyDictionary()
)


def pair_tables(student: Vocabulary, teacher: Vocabulary) -> PairTables:
    """Return the tables of a pair, kept as long as both vocabularies are."""
    known = _TABLES.get(student)
    if known is None:
        known = _TABLES[student] = WeakKeyDictionary()
    tables = known.get(teacher)
    if tables is None:
        tables = known[teacher] = _make(student, teacher)
    return tables


def _make(student: Vocabulary, teacher: Vocabulary) -> PairTables:
    starts = [student.byte_starts[:-1], teacher.byte_starts[:-1] + student.flat_bytes.size]
    return PairTables(
        len(student),
        np.concatenate([student.byte_lengths, teacher.byte_lengths]).astype(np.int64),
        np.concatenate(starts).astype(np.int64),
        np.concatenate([_first_words(student), _first_words(teacher)]),
        np.concatenate([student.flat_bytes, teacher.flat_bytes]),
    )


def _first_words(vocab: Vocabulary) -> np.ndarray:
    table = np.zeros((len(vocab), WORD), np.uint8)
    for place in range(WORD):
        longer = np.flatnonzero(vocab.byte_lengths > place)
        table[longer, place] = vocab.flat_bytes[vocab.byte_starts[longer] + place]
    return table.view(np.uint64).reshape(-1)
