"""What every loss takes and gives back.

Logits are *rows*: all positions of a batch flattened, `row = b * S + s`. A chunk (an aligned
group of student and teacher tokens with equal bytes) covers consecutive rows on each side; row r
holds the distribution of the token at r + 1. A loss is a sum over chunks, so any split of the
chunks of a batch into parts, each with the rows it needs, adds up to the same value.

Shapes: N student rows, M teacher rows, C chunks, V student vocabulary, U teacher vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

Direction = Literal["teacher_to_student", "student_to_teacher", "jsd"]
Pooling = Literal["first", "chain_rule", "mean"]
Support = Literal["full", "reached", "topk_rest", "topk_batch"]
SignalKind = Literal["dense", "topk", "realised"]


@dataclass(frozen=True)
class Chunks:
    """Supervised chunks of a batch, as ranges of logit rows.

    All tensors int64. `student_start_C[c]` is the row whose logits predict the chunk's first
    student token, `student_count_C[c] >= 1` the number of its tokens; the teacher's likewise.
    `student_target_N[r]` is the id of the token that row r predicts (-1: none), so the realised
    ids of a chunk are `student_target_N[start : start + count]`.

    `note_CX` is a loss's own: what it wrote down about each chunk before the batch was cut up.
    """

    student_start_C: Tensor
    student_count_C: Tensor
    teacher_start_C: Tensor
    teacher_count_C: Tensor
    student_target_N: Tensor
    teacher_target_M: Tensor
    note_CX: Tensor | None = None

    def __len__(self) -> int:
        return int(self.student_start_C.shape[0])

    def map(self, function: Callable[[Tensor], Tensor]) -> Chunks:
        """Apply `function` to every tensor (move to a device, detach, ...)."""
        return Chunks(
            function(self.student_start_C),
            function(self.student_count_C),
            function(self.teacher_start_C),
            function(self.teacher_count_C),
            function(self.student_target_N),
            function(self.teacher_target_M),
            None if self.note_CX is None else function(self.note_CX),
        )

    def to(self, device: torch.device | str) -> Chunks:
        """Return the same chunks on another device."""
        return self.map(lambda tensor: tensor.to(device))

    def select(self, index_C: Tensor | slice) -> Chunks:
        """Return the chunks that `index_C` (mask, positions or slice) picks; rows stay."""
        return Chunks(
            self.student_start_C[index_C],
            self.student_count_C[index_C],
            self.teacher_start_C[index_C],
            self.teacher_count_C[index_C],
            self.student_target_N,
            self.teacher_target_M,
            None if self.note_CX is None else self.note_CX[index_C],
        )


@dataclass
class LossResult:
    """A loss summed over `count` supervised chunks; dividing is the training step's business.

    `total` and `count` are scalars; `total` is float32 (float64 where an input is) and carries the
    gradient, `count` is float32. `metrics` maps a name to (sum, count) pairs of detached scalars,
    to be added up over micro-batches and ranks and divided once, e.g. `kept_mass`.
    """

    total: Tensor
    count: Tensor
    metrics: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
