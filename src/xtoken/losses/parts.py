"""Cutting the chunks of several losses into parts that share a stretch of student rows.

Hidden states go through the output head a part at a time, so that each student row is run once
however many losses read it, and no chunk is torn between two parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from xtoken.losses.base import Chunks
from xtoken.losses.pooling import expand_rows
from xtoken.losses.sources import Source

RowsRead = Literal["first", "all", "path"]
Which = Literal["student", "teacher"]


@dataclass(frozen=True)
class Wanted:
    """What one loss reads: its chunks, which of their rows, and its teacher."""

    chunks: Chunks
    rows: RowsRead
    teacher: Source | None


@dataclass(frozen=True)
class Piece:
    """One loss's share of a part: chunks whose rows count from the part's own first row."""

    number: int
    chunks: Chunks
    teacher_index_R: Tensor


@dataclass(frozen=True)
class Part:
    """A stretch of student rows, and each loss's chunks in it."""

    student_index_R: Tensor
    pieces: list[Piece]


def reads_of(rows: RowsRead, side: Which, chunks: Chunks) -> Tensor:
    """Return how many rows are read from each chunk's start on: int64[C]."""
    count_C = chunks.student_count_C if side == "student" else chunks.teacher_count_C
    if rows == "first":
        return torch.ones_like(count_C)
    if rows == "all":
        return count_C
    assert chunks.note_CX is not None
    return chunks.note_CX[:, 0 if side == "student" else 1]


def rows_of(rows: RowsRead, side: Which, chunks: Chunks) -> Tensor:
    """Return the rows that are read, chunk by chunk (under `path` some stand twice)."""
    start_C = chunks.student_start_C if side == "student" else chunks.teacher_start_C
    return start_C if rows == "first" else expand_rows(start_C, reads_of(rows, side, chunks))


def later_rows(side: Which, chunks: Chunks) -> tuple[Tensor, Tensor]:
    """Return the rows beyond each chunk's first that `path` reads, and how many a chunk."""
    start_C = chunks.student_start_C if side == "student" else chunks.teacher_start_C
    later_C = reads_of("path", side, chunks) - 1
    return expand_rows(start_C + 1, later_C), later_C


def cut_parts(student: Source, wanted: list[Wanted], head_rows: int) -> Iterator[Part]:
    """Yield parts of at most `head_rows` rows a side (or one chunk), alike in size.

    Sources that hold their logits as a whole keep their row numbers; with nothing else, all is
    one part.
    """
    nothing = torch.zeros(0, dtype=torch.int64)
    whole = student.whole and all(w.teacher is None or w.teacher.whole for w in wanted)
    if whole:
        pieces = [Piece(i, w.chunks, nothing) for i, w in enumerate(wanted)]
        yield Part(nothing, [piece for piece in pieces if len(piece.chunks)])
        return
    orders, starts, bounds = _cuts(student.shape[0], wanted, head_rows)
    for begin, end in pairwise(bounds):
        chosen: list[tuple[int, Chunks]] = []
        for i, w in enumerate(wanted):
            low, high = np.searchsorted(starts[i], [begin, end])
            if low < high:
                index = torch.from_numpy(orders[i][low:high])
                chosen.append((i, w.chunks.select(index.to(w.chunks.student_start_C.device))))
        if chosen:
            rows = [rows_of(wanted[i].rows, "student", chunks) for i, chunks in chosen]
            index_R = torch.cat(rows).unique()
            yield Part(
                index_R, [_piece(i, wanted[i], chunks, student, index_R) for i, chunks in chosen]
            )


def _piece(number: int, w: Wanted, chunks: Chunks, student: Source, index_R: Tensor) -> Piece:
    """Count a piece's rows from the part's first."""
    found = {}
    if not student.whole:
        found["student_start_C"] = torch.searchsorted(index_R, chunks.student_start_C)
        found["student_target_N"] = chunks.student_target_N[index_R]
    teacher_index_R = index_R[:0]
    if w.teacher is not None and not w.teacher.whole:
        teacher_index_R = rows_of(w.rows, "teacher", chunks).unique()
        found["teacher_start_C"] = torch.searchsorted(teacher_index_R, chunks.teacher_start_C)
        found["teacher_target_M"] = chunks.teacher_target_M[teacher_index_R]
    return Piece(number, replace(chunks, **found), teacher_index_R)


def _cuts(
    N: int, wanted: list[Wanted], head_rows: int
) -> tuple[list[np.ndarray], list[np.ndarray], list[int]]:
    """Return each loss's chunk order and sorted starts, and where to cut the student's rows."""
    orders, starts = [], []
    needed = np.zeros(N, dtype=bool)
    inside = np.zeros(N + 1, dtype=np.int64)  # > 0: within a chunk, between rows that are read
    costs = []
    for w in wanted:
        start = w.chunks.student_start_C.cpu().numpy()
        count = w.chunks.student_count_C.cpu().numpy()
        reads = reads_of(w.rows, "student", w.chunks).cpu().numpy()
        order = np.argsort(start, kind="stable")
        orders.append(order)
        starts.append(start[order])
        needed[rows_of(w.rows, "student", w.chunks).cpu().numpy()] = True
        # A row that is read beyond the chunk's end may be read again in the next part.
        np.add.at(inside, start + 1, 1)
        np.add.at(inside, start + np.minimum(reads, count), -1)
        if w.teacher is not None:
            teacher_reads = reads_of(w.rows, "teacher", w.chunks).cpu().numpy()[order]
            total = np.concatenate([[0], np.cumsum(teacher_reads)])
            costs.append(total[np.searchsorted(starts[-1], np.arange(N + 1))])
    costs.append(np.concatenate([[0], np.cumsum(needed)]))
    allowed = np.flatnonzero(np.cumsum(inside) == 0)  # N is always allowed
    cost = np.stack([c[allowed] for c in costs])
    bounds, at = [0], 0
    while at < len(allowed) - 1:
        # As few parts as will do, of equal size: a head's weight is read for each, and a product
        # of few rows is slow.
        left = max(int(c[-1] - c[at]) for c in cost)
        rows = -(-left // max(-(-left // head_rows), 1))
        furthest = [np.searchsorted(c, c[at] + rows, side="right") - 1 for c in cost]
        at = max(min(furthest), at + 1)
        bounds.append(int(allowed[at]))
    return orders, starts, bounds
