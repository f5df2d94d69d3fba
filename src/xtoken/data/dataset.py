"""Paired examples packed into rows and kept in a few flat arrays.

A row is what a model reads as one sequence: an example, or with packing several whole ones. Per
token it costs about twenty bytes, whatever the number of rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

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


@dataclass
class _Column:
    """Variable-length arrays, one a row: first as a list, then end to end."""

    parts: list[np.ndarray] = field(default_factory=list)

    def joined(self, empty: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (all parts, int64[n + 1] where each begins) and forget the parts."""
        edges = np.zeros(len(self.parts) + 1, np.int64)
        np.cumsum([len(part) for part in self.parts], out=edges[1:])
        joined = np.concatenate([empty, *self.parts])
        self.parts = []
        return joined, edges


class PairedDataset:
    """Rows in memory: `len(dataset)`, `dataset[i] -> Row`. Needs no torch; travels to workers.

    `preview` is the first paired example, with spans and alignments, for showing.
    """

    def __init__(self, rows: Iterable[Row], *, preview: PairedExample | None = None) -> None:
        ids, masks = _Column(), _Column()
        sizes: list[int] = []
        teacher_ids: list[_Column] = []
        teacher_chunks: list[_Column] = []
        teacher_sizes: list[list[tuple[int, int]]] = []
        for row in rows:
            if not sizes:
                count = len(row.teachers)
                teacher_ids = [_Column() for _ in range(count)]
                teacher_chunks = [_Column() for _ in range(count)]
                teacher_sizes = [[] for _ in range(count)]
            ids.parts.append(row.ids)
            masks.parts.append(row.supervised)
            sizes.append(row.text_bytes)
            for index, teacher in enumerate(row.teachers):
                teacher_ids[index].parts.append(teacher.ids)
                teacher_chunks[index].parts.append(teacher.chunks)
                teacher_sizes[index].append((teacher.text_bytes, teacher.aligned_bytes))
        no_ids, no_chunks = np.zeros(0, np.int32), np.zeros((0, 4), np.int32)
        self.preview = preview
        self._ids, self._edges = ids.joined(no_ids)
        self._masks, _ = masks.joined(np.zeros(0, bool))
        self._sizes = np.array(sizes, np.int64)
        self._teacher_ids = [column.joined(no_ids) for column in teacher_ids]
        self._chunks = [column.joined(no_chunks) for column in teacher_chunks]
        self._teacher_sizes = [np.array(pairs, np.int64) for pairs in teacher_sizes]
        self._order = np.arange(len(sizes))

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> Row:
        """Return one row, as views of the data."""
        place = int(self._order[index])
        own = slice(self._edges[place], self._edges[place + 1])
        teachers = []
        for (ids, edges), (chunks, chunk_edges), sizes in zip(
            self._teacher_ids, self._chunks, self._teacher_sizes, strict=True
        ):
            teachers.append(
                TeacherRow(
                    ids[edges[place] : edges[place + 1]],
                    chunks[chunk_edges[place] : chunk_edges[place + 1]],
                    int(sizes[place, 0]),
                    int(sizes[place, 1]),
                )
            )
        return Row(self._ids[own], self._masks[own], int(self._sizes[place]), tuple(teachers))

    def __iter__(self) -> Iterator[Row]:
        return (self[index] for index in range(len(self)))

    @property
    def teachers(self) -> int:
        """The number of teachers."""
        return len(self._teacher_ids)

    def select(self, indices: Sequence[int] | np.ndarray) -> PairedDataset:
        """Return some of the rows, in the given order, without copying them."""
        chosen = object.__new__(PairedDataset)
        chosen.__dict__.update(self.__dict__)
        chosen._order = self._order[np.asarray(indices, np.int64)]
        return chosen

    def split(self, share: float, *, seed: int) -> tuple[PairedDataset, PairedDataset]:
        """Return (the rest, about `share` of the rows drawn at random), both in order.

        Each has at least one row where there are two.
        """
        size = min(max(round(share * len(self)), 1), max(len(self) - 1, 0))
        drawn = np.random.default_rng(seed).permutation(len(self))
        return self.select(np.sort(drawn[size:])), self.select(np.sort(drawn[:size]))

    def statistics(self) -> Statistics:
        """Return totals over the rows."""
        order = self._order
        teachers = []
        for (_, edges), (chunks, chunk_edges), sizes in zip(
            self._teacher_ids, self._chunks, self._teacher_sizes, strict=True
        ):
            kinds = kinds_of(chunks)
            counts = [_total(kinds == kind, chunk_edges, order) for kind in range(4)]
            totals = sizes.reshape(-1, 2)[order].sum(0).tolist()
            tokens = int((edges[order + 1] - edges[order]).sum())
            teachers.append(TeacherStatistics(tokens, *totals, *counts))
        return Statistics(
            rows=len(order),
            tokens=int((self._edges[order + 1] - self._edges[order]).sum()),
            supervised_tokens=_total(self._masks, self._edges, order),
            text_bytes=int(self._sizes[order].sum()),
            teachers=tuple(teachers),
        )


def _total(marks: np.ndarray, edges: np.ndarray, rows: np.ndarray) -> int:
    """Return how many marks lie in the given rows."""
    before = np.zeros(len(marks) + 1, np.int64)
    np.cumsum(marks, out=before[1:])
    return int((before[edges[rows + 1]] - before[edges[rows]]).sum())


@dataclass(frozen=True)
class TeacherStatistics:
    """Totals over one teacher's side; the four kinds count supervised chunks (student:teacher)."""

    tokens: int
    text_bytes: int
    aligned_bytes: int
    one_to_one: int
    one_to_many: int
    many_to_one: int
    many_to_many: int

    @property
    def chunks(self) -> int:
        """Supervised chunks."""
        return self.one_to_one + self.one_to_many + self.many_to_one + self.many_to_many


@dataclass(frozen=True)
class Statistics:
    """Totals over a data set."""

    rows: int
    tokens: int
    supervised_tokens: int
    text_bytes: int
    teachers: tuple[TeacherStatistics, ...]


def kinds_of(chunks: np.ndarray) -> np.ndarray:
    """Return int64[C]: the `ChunkKind` of each row of a chunk table."""
    return (chunks[:, TEACHER_COUNT] > 1) + 2 * (chunks[:, STUDENT_COUNT] > 1)
