"""Rows kept in a few flat arrays: about twenty bytes a token, whatever the number of rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from xtoken.data.pairing import PairedExample
from xtoken.data.rows import Row, TeacherRow, kinds_of


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
