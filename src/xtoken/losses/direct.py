"""Direct KL: student and teacher have the same tokenizer, so ids and positions are shared."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from xtoken.errors import LossError
from xtoken.losses.base import Direction, LossResult
from xtoken.losses.divergence import divergence
from xtoken.losses.loss import Loss
from xtoken.losses.pooling import Rows


class Direct(Loss):
    """Plain distillation on equal vocabularies, a sum over chunks (here: positions).

        loss = tau^2 * sum over chunks of KL(p_T || p_S) at the chunk's first position

    With equal tokenizers every chunk is one token on either side.

    Args:
        size: ids of the vocabulary (its real size); logits may have padded columns beyond it.
        masked: bool[size], ids that take part in no distribution (missing ids); None: none.
        direction: `teacher_to_student` (default), `student_to_teacher` or `jsd`.
        temperature: tau, divides both logits.
        jsd_beta: mixture weight under `jsd` (0.5).
    """

    kind: ClassVar[str] = "direct"

    masked_X: Tensor

    def __init__(
        self,
        size: int,
        masked: np.ndarray | None = None,
        *,
        direction: Direction = "teacher_to_student",
        temperature: float = 1.0,
        jsd_beta: float | None = None,
    ) -> None:
        super().__init__(
            size, size, temperature=temperature, direction=direction, jsd_beta=jsd_beta
        )
        masked_V = torch.zeros(size, dtype=torch.bool)
        if masked is not None:
            masked_V = torch.as_tensor(masked, dtype=torch.bool)
            if masked_V.shape != (size,):
                raise LossError(
                    f"direct: masked has shape {tuple(masked_V.shape)}; expected ({size},)."
                )
        self.register_buffer("masked_X", masked_V.nonzero().squeeze(1), persistent=False)

    def block(self, student: Rows, teacher: Rows, state: Any = None) -> LossResult:
        """See `Loss.block`."""
        logp_CV = self.log_probs(student, self.masked_X, "student_logits_NV")
        with torch.no_grad():
            teacher_CV = self.log_probs(teacher, self.masked_X, "teacher_logits_MU")
        per_chunk_C = divergence(teacher_CV, logp_CV, self.direction, self.jsd_beta)
        count = per_chunk_C.new_tensor(float(per_chunk_C.shape[0]))
        return LossResult(self.scale(per_chunk_C), count)
