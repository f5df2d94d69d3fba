"""ALM: how likely each model finds a chunk's own text, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from xtoken.losses.base import LossResult, SignalKind
from xtoken.losses.checks import check_temperature
from xtoken.losses.columns import floor_of
from xtoken.losses.events import realised_log_probs
from xtoken.losses.loss import Loss
from xtoken.losses.parts import RowsRead
from xtoken.losses.pooling import Rows, segment_sum

if TYPE_CHECKING:
    from xtoken.projection import Projection


class ALM(Loss):
    """Approximate likelihood matching (arXiv 2503.20083), a sum over chunks.

        a = exp(l_T / tau_a), b = exp(l_S / tau_a), l = log-likelihood of the chunk's tokens
        loss = sum over chunks of a log(a / b) + (1 - a) log((1 - a) / (1 - b))

    that is, binary cross-entropy minus the target's own entropy: zero where both agree. It needs
    one number a token from the teacher. There is no factor tau^2.

    Args:
        projection: sizes and masked ids only.
        alm_temperature: tau_a (100): makes the coins' sides comparable for unlikely chunks.

    Raises:
        LossError: an alm_temperature that is not positive.
    """

    kind: ClassVar[str] = "alm"
    accepts: frozenset[SignalKind] = frozenset({"dense", "realised"})

    def __init__(self, projection: Projection, *, alm_temperature: float = 100.0) -> None:
        super().__init__(projection.student_masked, projection.teacher_masked)
        check_temperature(self.kind, alm_temperature, name="alm_temperature")
        self.alm_temperature = float(alm_temperature)

    @property
    def rows(self) -> RowsRead:
        """Every token's probability counts."""
        return "all"

    def block(self, student: Rows, teacher: Rows, state: Any = None) -> LossResult:
        """See `Loss.block`."""
        with torch.no_grad():
            a_log, not_a_log = self._coin(teacher)
        b_log, not_b_log = self._coin(student)
        return self.result(
            a_log.exp() * (a_log - b_log) + not_a_log.exp() * (not_a_log - not_b_log)
        )

    def _coin(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return log a and log(1 - a) of each chunk."""
        if rows.signal == "realised":
            realised_R = rows.logits_RV[:, 0]
        else:
            realised_R = realised_log_probs(rows.logp_RV, rows)
        log_C = segment_sum(realised_R, rows) / self.alm_temperature
        return log_C, (-torch.expm1(log_C)).clamp_min(floor_of(log_C.dtype)).log()
