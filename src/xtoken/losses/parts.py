"""Cutting the chunks of several losses into parts that share a stretch of student rows.

Hidden states go through the output head a part at a time, so that each student row is run once
however many losses read it, and no chunk is torn between two parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from xtoken.losses.base import Chunks
from xtoken.losses.pooling import expand_rows
from xtoken.losses.sources import Source


@dataclass(frozen=True)
class Wanted:
    """What one loss reads: its chunks, the first row of each or all, and its teacher."""

    chunks: Chunks
    first: bool
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


def rows_of(start_C: Tensor, count_C: Tensor, first: bool) -> Tensor:
    """Return the rows that are read: the first of each chunk, or all, chunk by chunk."""
    return start_C if first else expand_rows(start_C, count_C)


def cut_parts(student: Source, wanted: list[Wanted], head_rows: int) -> Iterator[Part]:
    """Yield parts of at most `head_rows` rows a side (one chunk at least).

    Sources that hold their logits as a whole keep their row numbers; with nothing else, all is
    one part.
    """
    nothing = torch.zeros(0, dtype=torch.int64)
    whole = student.whole and all(w.teacher is None or w.teacher.whole for w in wanted)
    if whole:
        pieces = [Piece(i, w.chunks, nothing) for i, w in enumerate(wanted)]
        yield Part(nothing, [piece for piece in pieces if len(piece.chunks)])
        return
    orders, starts, needed, bounds = _cuts(student.shape[0], wanted, head_rows)
    before = torch.from_numpy(np.cumsum(needed) - needed)
    for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        pieces = []
        for i, w in enumerate(wanted):
            low, high = np.searchsorted(starts[i], [begin, end])
            if low < high:
                device = w.chunks.student_start_C.device
                chosen = w.chunks.select(torch.from_numpy(orders[i][low:high]).to(device))
                pieces.append(_piece(i, w, chosen, student, before, begin))
        if pieces:
            rows = np.flatnonzero(needed[begin:end]) + begin
            device = pieces[0].chunks.student_start_C.device
            yield Part(torch.from_numpy(rows).to(device), pieces)


def _piece(
    number: int, w: Wanted, chunks: Chunks, student: Source, before_N: Tensor, begin: int
) -> Piece:
    """Count a piece's rows from the part's first."""
    student_start_C, student_target = chunks.student_start_C, chunks.student_target_N
    if not student.whole:
        before_N = before_N.to(student_start_C.device)
        index_R = rows_of(student_start_C, chunks.student_count_C, w.first)
        local_R = before_N[index_R] - before_N[begin]
        student_target = student_target.new_full((int(local_R.max()) + 1,), -1)
        student_target[local_R] = chunks.student_target_N[index_R]
        student_start_C = before_N[student_start_C] - before_N[begin]
    teacher_start_C, teacher_target = chunks.teacher_start_C, chunks.teacher_target_M
    teacher_index_R = teacher_start_C[:0]
    if w.teacher is not None and not w.teacher.whole:
        teacher_index_R = rows_of(teacher_start_C, chunks.teacher_count_C, w.first)
        step_C = torch.ones_like(teacher_start_C) if w.first else chunks.teacher_count_C
        teacher_start_C = step_C.cumsum(0) - step_C
        teacher_target = teacher_target[teacher_index_R]
    local = Chunks(
        student_start_C,
        chunks.student_count_C,
        teacher_start_C,
        chunks.teacher_count_C,
        student_target,
        teacher_target,
    )
    return Piece(number, local, teacher_index_R)


def _cuts(
    N: int, wanted: list[Wanted], head_rows: int
) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray, np.ndarray]:
    """Return each loss's chunk order and sorted starts, the rows needed, and where to cut."""
    orders, starts = [], []
    needed = np.zeros(N, dtype=bool)
    inside = np.zeros(N + 1, dtype=np.int64)  # > 0: within a chunk of which all rows are read
    costs = []
    for w in wanted:
        start = w.chunks.student_start_C.cpu().numpy()
        count = w.chunks.student_count_C.cpu().numpy()
        order = np.argsort(start, kind="stable")
        orders.append(order)
        starts.append(start[order])
        needed[rows_of(w.chunks.student_start_C, w.chunks.student_count_C, w.first).cpu()] = True
        if not w.first:
            np.add.at(inside, start + 1, 1)
            np.add.at(inside, start + count, -1)
        if w.teacher is not None:
            reads = w.chunks.teacher_count_C.cpu().numpy()[order]
            reads = np.ones_like(reads) if w.first else reads
            total = np.concatenate([[0], np.cumsum(reads)])
            costs.append(total[np.searchsorted(starts[-1], np.arange(N + 1))])
    costs.append(np.concatenate([[0], np.cumsum(needed)]))
    allowed = np.flatnonzero(np.cumsum(inside) == 0)  # N is always allowed
    cost = np.stack([c[allowed] for c in costs])
    bounds, at = [0], 0
    while at < len(allowed) - 1:
        furthest = [np.searchsorted(c, c[at] + head_rows, side="right") - 1 for c in cost]
        at = max(min(furthest), at + 1)
        bounds.append(int(allowed[at]))
    return orders, starts, needed, np.array(bounds)
