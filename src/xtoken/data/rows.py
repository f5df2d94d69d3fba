"""Paired examples as rows: what each model reads as one sequence, and the chunks between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from xtoken.data.pairing import PairedExample, TeacherSide

# Columns of a row's chunk table.
STUDENT_START, STUDENT_COUNT, TEACHER_START, TEACHER_COUNT = range(4)


@dataclass(frozen=True)
class TeacherRow:
    """What one teacher reads for a row.

    `ids` int32[T]; `chunks` int32[C, 4]: the supervised chunks' first token and number of tokens
    on the student's side, then on the teacher's; every first token is at least 1.
    `text_bytes`, `aligned_bytes`: bytes of text that the teacher's tokens cover, and those in
    chunks, supervised or not.
    """

    ids: np.ndarray
    chunks: np.ndarray
    text_bytes: int
    aligned_bytes: int


@dataclass(frozen=True)
class Row:
    """One training sequence.

    `ids` int32[S]; `supervised` bool[S]: the token is a target (never the first); `text_bytes`:
    bytes of text that the student's tokens cover.
    """

    ids: np.ndarray
    supervised: np.ndarray
    text_bytes: int
    teachers: tuple[TeacherRow, ...]


def make_row(examples: Sequence[PairedExample]) -> Row:
    """Join examples into one sequence a side; chunks stay inside their own example.

    A supervised token or chunk at the very start of a sequence has no predecessor and is left
    out. A teacher's tokens behind its last supervised chunk are never looked at and are cut off.
    """
    students = [example.student for example in examples]
    supervised = np.concatenate([encoding.supervised for encoding in students])
    supervised[:1] = False
    starts = np.cumsum([0, *(len(encoding) for encoding in students)])
    teachers = tuple(
        _teacher_row(examples, [example.teachers[index] for example in examples], starts)
        for index in range(len(examples[0].teachers))
    )
    return Row(
        np.concatenate([encoding.ids for encoding in students]).astype(np.int32),
        supervised,
        sum(_text_bytes(encoding.spans) for encoding in students),
        teachers,
    )


def _teacher_row(
    examples: Sequence[PairedExample], sides: Sequence[TeacherSide], student_starts: np.ndarray
) -> TeacherRow:
    teacher_start = 0
    tables = []
    aligned = 0
    for example, side, student_start in zip(examples, sides, student_starts, strict=False):
        table = _supervised_chunks(example, side)
        table[:, STUDENT_START] += student_start
        table[:, TEACHER_START] += teacher_start
        tables.append(table)
        teacher_start += len(side.encoding)
        if side.alignment is None:
            aligned += min(_text_bytes(e.spans) for e in (example.student, side.encoding))
        else:
            aligned += side.alignment.aligned_bytes
    chunks = np.concatenate(tables)
    chunks = chunks[(chunks[:, STUDENT_START] > 0) & (chunks[:, TEACHER_START] > 0)]
    needed = int((chunks[-1:, TEACHER_START] + chunks[-1:, TEACHER_COUNT]).sum())
    ids = np.concatenate([side.encoding.ids for side in sides]).astype(np.int32)
    return TeacherRow(
        ids[: max(needed, 1)],
        chunks,
        sum(_text_bytes(side.encoding.spans) for side in sides),
        aligned,
    )


def _supervised_chunks(example: PairedExample, side: TeacherSide) -> np.ndarray:
    """Return int32[C, 4]: the chunks all of whose tokens are supervised on both sides."""
    alignment = side.alignment
    if alignment is None:
        size = min(len(example.student), len(side.encoding))
        both = example.student.supervised[:size] & side.encoding.supervised[:size]
        tokens = np.flatnonzero(both).astype(np.int32)
        ones = np.ones_like(tokens)
        return np.stack([tokens, ones, tokens, ones], axis=1)
    chosen = alignment.within(example.student.supervised, side.encoding.supervised)
    return np.stack(
        [
            alignment.student_start[chosen],
            (alignment.student_stop - alignment.student_start)[chosen],
            alignment.teacher_start[chosen],
            (alignment.teacher_stop - alignment.teacher_start)[chosen],
        ],
        axis=1,
    )


def _text_bytes(spans: np.ndarray) -> int:
    """Return the bytes that spans in order cover, shared ones once."""
    spans = spans[spans[:, 0] < spans[:, 1]]
    if not len(spans):
        return 0
    reached = np.concatenate([[0], spans[:-1, 1]])
    return int((spans[:, 1] - np.maximum(spans[:, 0], reached)).sum())


def pack(
    examples: Iterable[PairedExample],
    *,
    max_length: int,
    teacher_max_length: int | None = None,
    packing: bool = False,
) -> Iterator[list[PairedExample]]:
    """Group examples into rows, in order: with packing as many as fit, else one each.

    Only behind an example that ends with its document (and its eos) another may follow.
    """
    row: list[PairedExample] = []
    used = np.zeros(0, np.int64)
    limits = np.zeros(0)
    for example in examples:
        sides = [example.student, *(side.encoding for side in example.teachers)]
        sizes = np.array([len(encoding) for encoding in sides])
        if not used.size:
            limit = np.inf if teacher_max_length is None else teacher_max_length
            limits = np.array([max_length, *[limit] * len(example.teachers)])
            used = np.zeros_like(sizes)
        if row and (not packing or not row[-1].closed or bool((used + sizes > limits).any())):
            yield row
            row, used = [], np.zeros_like(sizes)
        row.append(example)
        used += sizes
    if row:
        yield row


def kinds_of(chunks: np.ndarray) -> np.ndarray:
    """Return int64[C]: the `ChunkKind` of each row of a chunk table."""
    return (chunks[:, TEACHER_COUNT] > 1) + 2 * (chunks[:, STUDENT_COUNT] > 1)
