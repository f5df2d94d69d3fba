"""W as gathers and segment sums: what a loss needs of a projection, as tensors on a device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from xtoken.losses.columns import LogBagSum, PickColumns, bag_sum, floor_of, pick, places

if TYPE_CHECKING:
    from xtoken.projection import Projection


class Projector(nn.Module):
    """q = W^T p without a dense V x U, on the R teacher ids ("columns") that W reaches.

    Most of W is a one-to-one match. A *plain* column is reached by one student id of weight 1
    alone, and no other teacher id folds into it: there log q[u] = log p[v], one gather. The
    other columns are *mixed*: sums over a few entries. Plain columns come first, each kind in
    ascending order. Entries of masked ids are left out and the rows that lost some are divided
    by what is left.

    Buffers (not saved with a model), all int64 unless said otherwise:
        reached_R: the teacher id of each column.
        plain_student_P, plain_teacher_P: the pairs of the plain columns.
        mixed_teacher_Y: teacher ids of the mixed columns.
        mixed_student_X: student ids with entries in mixed columns; none is in a plain one.
        student_place_V: each student id's place in the plain ids followed by the mixed ones; the
            place behind them for an id of neither.
        entry_student_E (int32, a place in mixed_student_X), entry_column_E (int32, a place in
            mixed_teacher_Y), entry_weight_E (float32), entry_slot_E: W's entries in mixed
            columns, column by column from entry_offset_Y (int32).
        back_column_E (int32, a place in mixed_teacher_Y), back_order_E (a place among the
            entries above), back_weight_E (float32): the same entries grouped by student id, from
            back_offset_X (int32).
        aligned_W: for each student id its plain teacher id, or any masked one; then
            fold_source_Z. One gather lays the teacher's row out so that it stands beside the
            student's, with what mixed columns add up behind it.
        unaligned_X: the student ids in no plain column, where no teacher id is masked: what
            aligned_W has for these is to be overwritten.
        own_W: the places in aligned_W of the mixed columns' own ids.
        fold_source_Z: the teacher ids whose mass support `full` adds up in each mixed column,
            column by column from fold_offset_Y (int32); fold_entry_Z (int32) counts them.
        column_U: the column that a teacher id's mass goes to under support `full`, -1: none.
        unfolded_X: teacher ids that are not masked and fold nowhere.
        column_student_E, column_weight_E (float32): the student ids and weights of W's entries,
            column by column (plain ones too) from column_offset_R; it has R + 1.
        row_sum_V: float32, the sum of each student id's weights, and row_entries_V how many it
            has: 0 without an entry.
        short_X: student ids, not masked, whose sum isn't one, furthest first: `coarsely_short` of
            them for more reasons than float32's rounding.
    """

    reached_R: Tensor
    plain_student_P: Tensor
    plain_teacher_P: Tensor
    mixed_teacher_Y: Tensor
    mixed_student_X: Tensor
    student_place_V: Tensor
    entry_student_E: Tensor
    entry_column_E: Tensor
    entry_slot_E: Tensor
    entry_offset_Y: Tensor
    entry_weight_E: Tensor
    back_column_E: Tensor
    back_offset_X: Tensor
    back_order_E: Tensor
    back_weight_E: Tensor
    aligned_W: Tensor
    unaligned_X: Tensor
    own_W: Tensor
    fold_source_Z: Tensor
    fold_entry_Z: Tensor
    fold_offset_Y: Tensor
    column_U: Tensor
    unfolded_X: Tensor
    column_student_E: Tensor
    column_weight_E: Tensor
    column_offset_R: Tensor
    row_sum_V: Tensor
    row_entries_V: Tensor
    short_X: Tensor
    student_masked_X: Tensor
    teacher_masked_X: Tensor

    def __init__(self, projection: Projection) -> None:
        super().__init__()
        self.student_size = V = int(projection.student_size)
        self.teacher_size = U = int(projection.teacher_size)
        student_masked = np.asarray(projection.student_masked, dtype=bool)
        teacher_masked = np.asarray(projection.teacher_masked, dtype=bool)
        row, slot, column, weight = _entries(projection, student_masked, teacher_masked)
        reached = np.bincount(column, minlength=U) > 0
        row_entries = np.bincount(row, minlength=V)
        # Of the weights as the losses read them.
        row_sum = np.bincount(row, weights=weight.astype(np.float32), minlength=V)
        short_by = np.where(student_masked, 0.0, np.abs(1.0 - row_sum))
        short = np.argsort(-short_by, kind="stable")
        self.coarsely_short = int((short_by > 1e-6).sum())

        fold = np.asarray(projection.teacher_fold, dtype=np.int64).copy()
        fold[(fold >= 0) & ~reached[np.maximum(fold, 0)]] = -1
        fold[reached] = np.flatnonzero(reached)
        fold[teacher_masked] = -1
        folded_into = np.bincount(fold[fold >= 0], minlength=U) > 1

        single = (np.bincount(column, minlength=U) == 1) & ~folded_into
        is_plain = single[column] & (weight == 1.0)
        order = np.argsort(column[is_plain], kind="stable")
        plain_student, plain_teacher = row[is_plain][order], column[is_plain][order]
        mixed = reached.copy()
        mixed[plain_teacher] = False
        mixed_teacher = np.flatnonzero(mixed)
        place_of_column = np.full(U, -1, dtype=np.int64)
        place_of_column[mixed_teacher] = np.arange(len(mixed_teacher))

        row, slot, weight = row[~is_plain], slot[~is_plain], weight[~is_plain]
        bag = place_of_column[column[~is_plain]]
        order = np.lexsort((row, bag))
        row, slot, weight, bag = row[order], slot[order], weight[order], bag[order]
        mixed_student, source = np.unique(row, return_inverse=True)
        back = np.lexsort((bag, source))

        fold_source = np.flatnonzero(fold >= 0)
        fold_bag = place_of_column[fold[fold_source]]
        fold_source, fold_bag = fold_source[fold_bag >= 0], fold_bag[fold_bag >= 0]
        order = np.argsort(fold_bag, kind="stable")
        fold_source, fold_bag = fold_source[order], fold_bag[order]
        nothing = np.flatnonzero(teacher_masked)[:1]
        aligned = np.full(V, nothing[0] if len(nothing) else 0, dtype=np.int64)
        aligned[plain_student] = plain_teacher
        unaligned = np.full(V, not len(nothing))
        unaligned[plain_student] = False
        own = fold[fold_source] == fold_source

        Y, X = len(mixed_teacher), len(mixed_student)
        self._keep("reached_R", np.concatenate([plain_teacher, mixed_teacher]))
        self._keep("plain_student_P", plain_student)
        self._keep("plain_teacher_P", plain_teacher)
        self._keep("mixed_teacher_Y", mixed_teacher)
        self._keep("mixed_student_X", mixed_student)
        self._keep("student_place_V", places(V, [plain_student, mixed_student]))
        self._keep("entry_student_E", source, np.int32)
        self._keep("entry_column_E", bag, np.int32)
        self._keep("entry_slot_E", slot)
        self._keep("entry_offset_Y", _offsets(bag, Y), np.int32)
        self._keep("entry_weight_E", weight, np.float32)
        self._keep("back_column_E", bag[back], np.int32)
        self._keep("back_offset_X", _offsets(source[back], X), np.int32)
        self._keep("back_order_E", back)
        self._keep("back_weight_E", weight[back], np.float32)
        self._keep("aligned_W", np.concatenate([aligned, fold_source]))
        self._keep("unaligned_X", np.flatnonzero(unaligned))
        self._keep("own_W", V + np.flatnonzero(own))
        self._keep("fold_source_Z", fold_source)
        self._keep("fold_entry_Z", np.arange(len(fold_source)), np.int32)
        self._keep("fold_offset_Y", _offsets(fold_bag, Y), np.int32)
        place_of_column[plain_teacher] = np.arange(len(plain_teacher))
        place_of_column[mixed_teacher] += len(plain_teacher)
        self._keep("column_U", np.where(fold >= 0, place_of_column[np.maximum(fold, 0)], -1))
        self._keep("unfolded_X", np.flatnonzero((fold < 0) & ~teacher_masked))
        self._keep("column_student_E", np.concatenate([plain_student, row]))
        in_column = np.concatenate([np.ones(len(plain_student)), weight])
        self._keep("column_weight_E", in_column, np.float32)
        P, E = len(plain_student), len(in_column)
        self._keep("column_offset_R", np.concatenate([np.arange(P), P + _offsets(bag, Y), [E]]))
        self._keep("row_sum_V", row_sum, np.float32)
        self._keep("row_entries_V", row_entries)
        self._keep("short_X", short[: int((short_by > 0).sum())])
        self._keep("student_masked_X", np.flatnonzero(student_masked))
        self._keep("teacher_masked_X", np.flatnonzero(teacher_masked))

    def _keep(self, name: str, array: np.ndarray, dtype: type = np.int64) -> None:
        tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=dtype))
        self.register_buffer(name, tensor, persistent=False)

    @property
    def columns(self) -> int:
        """R, the number of teacher ids that W reaches."""
        return int(self.reached_R.shape[0])

    def log_project(self, logp_NV: Tensor, weight_E: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return log q on the plain columns [N, P] and on the mixed ones [N, Y].

        Differentiable in `logp_NV` and in `weight_E`, which stands in for the fixed weights of
        the mixed entries (learned W). A q of 0 counts as a tiny number.
        """
        plain_NP, mixed_NX = PickColumns.apply(
            logp_NV, self.student_place_V, self.plain_student_P, self.mixed_student_X
        )
        mixed_NY = LogBagSum.apply(
            mixed_NX,
            self.entry_weight_E if weight_E is None else weight_E,
            self.entry_student_E,
            self.entry_offset_Y,
            self.entry_column_E,
            self.back_column_E,
            self.back_offset_X,
            self.back_order_E,
        )
        return plain_NP, mixed_NY

    def log_fold(self, logp_NU: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the teacher's log-mass on the columns, unreached ids added where they fold.

        [N, P] and [N, Y], and the mass that was folded: [N]; no gradient. Ids that fold nowhere
        are left out, nothing is divided.
        """
        table_ZN = pick(logp_NU, self.fold_source_Z).t().exp().contiguous()
        sum_YN = bag_sum(table_ZN, self.fold_entry_Z, self.fold_offset_Y)
        own_NY = pick(logp_NU, self.mixed_teacher_Y).exp()
        folded_N = (sum_YN.sum(0) - own_NY.sum(1)).clamp_min(0.0)
        mixed_NY = sum_YN.clamp_min_(floor_of(logp_NU.dtype)).log().t().contiguous()
        return pick(logp_NU, self.plain_teacher_P), mixed_NY, folded_N

    def row_sum(self, dtype: torch.dtype) -> Tensor:
        """Return the sum of each student id's weights, in float64 to its last digit: [V]."""
        if dtype != torch.float64:  # which not every device has
            return self.row_sum_V
        weight_E = self.column_weight_E.double()
        return weight_E.new_zeros(self.student_size).index_add_(0, self.column_student_E, weight_E)

    def project(self, p_NV: Tensor) -> Tensor:
        """Return q = W^T p on the columns, no gradient: [N, R]."""
        table_XN = pick(p_NV, self.mixed_student_X).t().contiguous()
        mixed_YN = bag_sum(table_XN, self.entry_student_E, self.entry_offset_Y, self.entry_weight_E)
        return torch.cat([pick(p_NV, self.plain_student_P), mixed_YN.t()], dim=1)


def _offsets(sorted_bag: np.ndarray, bags: int) -> np.ndarray:
    """Return where each bag begins in a sorted list of bag numbers."""
    return np.searchsorted(sorted_bag, np.arange(bags))


def _entries(
    projection: Projection, student_masked: np.ndarray, teacher_masked: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return (row, slot, teacher id, weight) of W's entries between ids that are not masked."""
    indices = np.asarray(projection.indices, dtype=np.int64)
    weights = np.asarray(projection.weights, dtype=np.float64)
    present = (indices >= 0) & (weights > 0) & ~student_masked[:, None]
    lost = present & teacher_masked[np.maximum(indices, 0)]
    present &= ~lost
    damaged = lost.any(axis=1) & present.any(axis=1)
    left = np.where(present, weights, 0.0).sum(axis=1)
    weights = np.where(damaged[:, None], weights / np.where(left > 0, left, 1.0)[:, None], weights)
    row, slot = np.nonzero(present)
    return row, slot, indices[row, slot], weights[row, slot]
