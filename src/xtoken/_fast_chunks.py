"""Chunks of plain ids where both sides' tokens spell the same bytes: the usual case, fast.

Positions are running sums of byte lengths; the positions where both sides have a token's end cut
the text. Then each chunk's bytes are compared, eight at a time for the many chunks of one short
token on each side. What doesn't fit (bytes that differ, tokens without known bytes, an empty side)
is left to the general form.

At a length of 1,024 the time goes into the number of numpy calls: hence methods rather than
functions, and plain lists for what there is one of for each sequence.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np

from xtoken._chunking import Found, insert_roles, pair_roles, ranges, without
from xtoken._placing import Stream, role_tokens

if TYPE_CHECKING:
    from xtoken.vocab import Vocabulary

WORD = 8
_WORDS: WeakKeyDictionary[Vocabulary, np.ndarray] = WeakKeyDictionary()


def first_words(vocab: Vocabulary) -> np.ndarray:
    """Return uint64[len(vocab)]: each token's first eight bytes, filled up with zeros."""
    words = _WORDS.get(vocab)
    if words is None:
        table = np.zeros((len(vocab), WORD), np.uint8)
        for place in range(WORD):
            longer = np.flatnonzero(vocab.byte_lengths > place)
            table[longer, place] = vocab.flat_bytes[vocab.byte_starts[longer] + place]
        words = table.view(np.uint64).reshape(-1)
        _WORDS[vocab] = words
    return words


def find_equal_chunks(
    student_stream: Stream, teacher_stream: Stream
) -> tuple[Found, list[int], list[int], list[int]] | None:
    """Return (chunks, base, student bytes, teacher bytes), or None: the general form is needed.

    `base` (B + 1 entries) is the first byte position of each sequence; bytes have B entries.
    """
    student, teacher = _Side(student_stream), _Side(teacher_stream)
    if student.has_empty or teacher.has_empty:
        return None
    base = [0]
    for pair in zip(student.totals, teacher.totals, strict=True):
        base.append(base[-1] + max(pair) + 1)
    if len(base) > 2:
        student.shift(base)
        teacher.shift(base)
    student_roles, student_opaque = role_tokens(student_stream.vocab, student.without_bytes(base))
    teacher_roles, teacher_opaque = role_tokens(teacher_stream.vocab, teacher.without_bytes(base))
    if student_opaque or teacher_opaque:
        return None
    student.cut(teacher, base[-1])
    teacher.cut(student, base[-1])

    # Most chunks are one short token on each side: their bytes fit one word.
    chunks = student.last.size
    unsure = np.zeros(chunks + 1, bool)
    np.not_equal(student.words(), teacher.words(), out=unsure[:chunks])
    unsure[:chunks] |= student.length[student.last] > WORD
    unsure[:chunks] |= student.size + teacher.size > 2
    if not np.array_equal(student.bytes(unsure), teacher.bytes(unsure)):
        return None

    byte_stop = student.stop[student.last]
    byte_start = np.empty_like(byte_stop)
    byte_start[:1] = 0
    byte_start[1:] = byte_stop[:-1]
    for chunk, sequence in student.openings:
        byte_start[chunk] = base[sequence]
    found = Found(
        *student.ranges(),
        *teacher.ranges(),
        byte_start,
        byte_stop,
        student.chunk_of_token(),
        teacher.chunk_of_token(),
    )
    if student.at is not None or teacher.at is not None:
        torn = student.torn() | teacher.torn()
        if torn.any():
            found = without(found, torn)
    pairs = pair_roles(student_roles, teacher_roles)
    return insert_roles(found, pairs), base, student.totals, teacher.totals


class _Side:
    """One side's tokens that cover bytes; `at` int64[n] are their indices (None: all tokens).

    `stop` int64[n]: byte positions; `edges` (B + 1 entries): where each sequence begins among them;
    `totals` (B entries): the bytes of each sequence.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.at: np.ndarray | None = None
        self.length, self.ids = stream.length, stream.ids
        self.edges: list[int] = stream.first
        if np.count_nonzero(self.length) < self.length.size:
            self.at = self.length.nonzero()[0]
            self.length, self.ids = self.length[self.at], self.ids[self.at]
            self.edges = self.at.searchsorted(stream.first).tolist()
        self.has_empty = any(a == b for a, b in pairwise(self.edges))
        if not self.has_empty:
            self.stop = self.length.cumsum(dtype=np.int64)
            ends = [0, *(int(self.stop[edge - 1]) for edge in self.edges[1:])]
            self.totals = [b - a for a, b in pairwise(ends)]

    def shift(self, base: list[int]) -> None:
        """Move each sequence's positions to its own base."""
        before = 0
        for sequence, total in enumerate(self.totals):
            own = slice(self.edges[sequence], self.edges[sequence + 1])
            self.stop[own] += base[sequence] - before
            before += total

    def without_bytes(self, base: list[int]) -> list[tuple[int, int, int]]:
        """Return (index, id, position) of the tokens that have no bytes."""
        if self.at is None:
            return []
        tokens = (self.stream.length == 0).nonzero()[0]
        sequences = np.searchsorted(self.stream.first, tokens, side="right") - 1
        ranks = self.at.searchsorted(tokens)
        return [
            (
                token,
                int(self.stream.ids[token]),
                int(self.stop[rank - 1]) if rank > self.edges[sequence] else base[sequence],
            )
            for token, sequence, rank in zip(
                tokens.tolist(), sequences.tolist(), ranks.tolist(), strict=True
            )
        ]

    def cut(self, other: _Side, positions: int) -> None:
        """Cut the tokens where the other side has an end too.

        `first`, `last`, `size` int64[C] are the chunks as ranges of the tokens that cover bytes,
        `chunk` int32[n] the chunk of each (C: none), `openings` the (chunk, sequence) where a
        sequence but the first begins.
        """
        marks = np.zeros(positions, bool)
        marks[other.stop] = True
        closes = marks[self.stop]
        self.last = closes.nonzero()[0]
        self.first = np.empty_like(self.last)
        self.first[:1] = 0
        np.add(self.last[:-1], 1, out=self.first[1:])
        self.chunk = closes.cumsum(dtype=np.int32)
        self.chunk -= closes
        self.openings: list[tuple[int, int]] = []
        self.has_tail = self.totals != other.totals
        counts = self.last.searchsorted(self.edges).tolist()
        for sequence, (begin, end) in enumerate(pairwise(counts)):
            if sequence and end > begin:
                self.openings.append((begin, sequence))
                self.first[begin] = self.edges[sequence]
            if self.totals[sequence] != other.totals[sequence]:
                tail = int(self.last[end - 1]) + 1 if end > begin else self.edges[sequence]
                self.chunk[tail : self.edges[sequence + 1]] = self.last.size
        self.size = self.last - self.first
        self.size += 1

    def words(self) -> np.ndarray:
        """Return the first eight bytes of each chunk's last token."""
        return first_words(self.stream.vocab)[self.ids[self.last]]

    def bytes(self, chunks: np.ndarray) -> np.ndarray:
        """Return the bytes of the marked chunks' tokens (bool[C + 1]), one after the other."""
        tokens = chunks[self.chunk].nonzero()[0]
        source = self.stream.source(tokens if self.at is None else self.at[tokens])
        return self.stream.vocab.flat_bytes[ranges(source, self.length[tokens])]

    def ranges(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the chunks' (start, stop) among all tokens."""
        if self.at is None:
            return self.first, self.last + 1
        return self.at[self.first], self.at[self.last] + 1

    def torn(self) -> np.ndarray:
        """Return bool[C]: a token without bytes (a special) stands inside the chunk's range."""
        if self.at is None:
            return np.zeros(self.last.size, bool)
        return self.at[self.last] - self.at[self.first] >= self.size

    def chunk_of_token(self) -> np.ndarray:
        """Return int32[N], the chunk of every token, -1: none."""
        chunk = self.chunk
        if self.has_tail:
            chunk[chunk == self.last.size] = -1
        if self.at is None:
            return chunk
        everywhere = np.full(self.stream.ids.size, -1, np.int32)
        everywhere[self.at] = chunk
        return everywhere
