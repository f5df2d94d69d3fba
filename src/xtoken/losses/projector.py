"""W as gathers and segment sums: what a loss needs of a projection, as tensors on a device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from xtoken.projection import Projection


class Projector(nn.Module):
    """q = W^T p without a dense V x U: entries of W in the order of the teacher ids they reach.

        q[r] = sum over entries e with entry_column[e] = r of entry_weight[e] * p[entry_student[e]]

    Only the R teacher ids that W reaches ("columns") are formed, in ascending order. Entries of
    masked ids are left out and the rows that lost some are divided by what is left.

    Buffers (not saved with a model):
        reached_R: int64, the teacher id of each column.
        column_U: int64, the column of a reached teacher id, -1 elsewhere.
        fold_U: int64, the column that a teacher id's mass goes to under support `full`, -1 if
            it has none.
        entry_student_E, entry_column_E: int64; entry_weight_E: float32. E entries.
        student_masked_X, teacher_masked_X: int64, ids that are in no distribution.
    """

    reached_R: Tensor
    column_U: Tensor
    fold_U: Tensor
    entry_student_E: Tensor
    entry_column_E: Tensor
    entry_weight_E: Tensor
    student_masked_X: Tensor
    teacher_masked_X: Tensor

    def __init__(self, projection: Projection) -> None:
        super().__init__()
        self.student_size = int(projection.student_size)
        self.teacher_size = int(projection.teacher_size)
        student_masked = np.asarray(projection.student_masked, dtype=bool)
        teacher_masked = np.asarray(projection.teacher_masked, dtype=bool)
        row_E, slot_E, column_id_E, weight_E = _entries(projection, student_masked, teacher_masked)
        order = np.lexsort((row_E, column_id_E))
        row_E, slot_E, column_id_E, weight_E = (
            array[order] for array in (row_E, slot_E, column_id_E, weight_E)
        )
        reached, column_E = np.unique(column_id_E, return_inverse=True)
        column = np.full(self.teacher_size, -1, dtype=np.int64)
        column[reached] = np.arange(len(reached))
        fold = np.asarray(projection.teacher_fold, dtype=np.int64)
        fold = np.where((fold >= 0) & ~teacher_masked, column[np.maximum(fold, 0)], -1)
        self._keep("reached_R", reached)
        self._keep("column_U", column)
        self._keep("fold_U", fold)
        self._keep("entry_student_E", row_E)
        self._keep("entry_slot_E", slot_E)
        self._keep("entry_column_E", column_E)
        self.register_buffer(
            "entry_weight_E", torch.from_numpy(weight_E.astype(np.float32)), persistent=False
        )
        self._keep("student_masked_X", np.flatnonzero(student_masked))
        self._keep("teacher_masked_X", np.flatnonzero(teacher_masked))

    def _keep(self, name: str, array: np.ndarray) -> None:
        tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64))
        self.register_buffer(name, tensor, persistent=False)

    @property
    def columns(self) -> int:
        """R, the number of teacher ids that W reaches."""
        return int(self.reached_R.shape[0])

    def project(self, p_NV: Tensor, weight_E: Tensor | None = None) -> Tensor:
        """Return q = W^T p on the reached ids: [N, R], differentiable in p and the weights.

        `weight_E` stands in for the fixed weights (learned W), in the order of the entries.
        """
        weight_E = self.entry_weight_E if weight_E is None else weight_E
        gathered_NE = p_NV.index_select(1, self.entry_student_E) * weight_E.to(p_NV.dtype)
        q_NR = p_NV.new_zeros(p_NV.shape[0], self.columns)
        return q_NR.index_add(1, self.entry_column_E, gathered_NE)

    def fold(self, p_NU: Tensor) -> Tensor:
        """Return the teacher's mass on the reached ids, unreached ids added where they fold."""
        folded = p_NU.new_zeros(p_NU.shape[0], self.columns)
        kept = (self.fold_U >= 0).nonzero().squeeze(1)
        return folded.index_add(1, self.fold_U[kept], p_NU.index_select(1, kept))


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
