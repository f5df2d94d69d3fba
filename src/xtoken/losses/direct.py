"""Direct KL: student and teacher have the same tokenizer, so ids and positions are shared."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch

from xtoken.errors import LossError
from xtoken.losses.base import Direction, LossResult
from xtoken.losses.divergence import divergence
from xtoken.losses.loss import Loss
from xtoken.losses.pooling import Rows


class Direct(Loss):
    """Plain distillation (Hinton et al., arXiv 1503.02531), a sum over chunks (here: positions).

        loss = tau^2 * sum over chunks of KL(p_T || p_S) at the chunk's first position

    With equal tokenizers every chunk is one token on either side.

    Args:
        size: ids of the vocabulary (its real size); logits may have padded columns beyond it.
        masked: bool[size], ids that take part in no distribution (missing ids); None: none.
        direction: `teacher_to_student` (default), `student_to_teacher` or `jsd`.
        temperature: tau, divides both logits.
        jsd_beta: mixture weight under `jsd` (0.5).

    Raises:
        LossError: a mask of another size, or a setting out of range.
    """

    kind: ClassVar[str] = "direct"

    def __init__(
        self,
        size: int,
        masked: np.ndarray | None = None,
        *,
        direction: Direction = "teacher_to_student",
        temperature: float = 1.0,
        jsd_beta: float | None = None,
    ) -> None:
        masked = np.zeros(size, dtype=bool) if masked is None else masked
        if masked.shape != (size,):
            raise LossError(f"direct: masked has shape {masked.shape}; expected ({size},).")
        super().__init__(
            masked, masked, temperature=temperature, direction=direction, jsd_beta=jsd_beta
        )

    def block(self, student: Rows, teacher: Rows, state: Any = None) -> LossResult:
        """See `Loss.block`."""
        with torch.no_grad():
            teacher_CV = teacher.logp_RV
        per_chunk_C = divergence(teacher_CV, student.logp_RV, self.direction, self.jsd_beta)
        return self.result(per_chunk_C)
