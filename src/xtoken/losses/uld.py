"""ULD: L1 between sorted distributions, whatever the tokens are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch

from xtoken.losses.base import LossResult, Pooling
from xtoken.losses.checks import check_top_k
from xtoken.losses.loss import Loss
from xtoken.losses.pooling import Rows, pool_log_probs
from xtoken.losses.sorted_l1 import sorted_l1

if TYPE_CHECKING:
    from xtoken.projection import Projection


class ULD(Loss):
    """Universal logit distillation (arXiv 2402.12030), a sum over chunks.

        loss = tau^2 * sum over chunks of sum_i |p_S(i) - p_T(i)|, both sorted descending

    The identity of tokens is ignored. The paper pairs positions by their index; here the
    positions are aligned chunks. With pooling `chain_rule` it is TRL's `ULDLoss` with
    `use_extended_uld` and the merge rule `observed`, up to TRL's reading of rows: TRL takes for a
    token the logits *at* its own position under `observed` and the logits before it under
    `bayesian`; rows here are always those that predict the token. (Handing over chunks that
    start one row later, with targets moved likewise, reproduces `observed` to the last digit.)
    TRL's `bayesian` merge keeps a chunk's last distribution instead of its first; nothing here
    reproduces it. TRL divides by chunks and doesn't multiply by tau^2.

    Args:
        projection: sizes and masked ids only.
        temperature: tau, divides both logits.
        pooling: `first` or `chain_rule`.
        top_k: keep the k largest probabilities of each side; None (default) keeps all.

    Raises:
        LossError: a setting out of range.
    """

    kind: ClassVar[str] = "uld"
    poolings: ClassVar[tuple[Pooling, ...]] = ("first", "chain_rule")

    def __init__(
        self,
        projection: Projection,
        *,
        temperature: float = 1.0,
        pooling: Pooling = "first",
        top_k: int | None = None,
    ) -> None:
        super().__init__(
            projection.student_masked,
            projection.teacher_masked,
            temperature=temperature,
            pooling=pooling,
        )
        if top_k is not None:
            size = max(self.student_size, self.teacher_size)
            check_top_k(self.kind, "top_k", top_k, size, "the larger vocabulary")
        self.top_k = top_k

    def block(self, student: Rows, teacher: Rows, state: Any = None) -> LossResult:
        """See `Loss.block`."""
        with torch.no_grad():
            teacher_CU = pool_log_probs(teacher.logp_RV, teacher, self.pooling).exp()
        student_CV = pool_log_probs(student.logp_RV, student, self.pooling).exp()
        return self.result(sorted_l1(student_CV, teacher_CU, self.top_k))
