"""ULD: L1 between sorted distributions, whatever the tokens are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from xtoken.losses.base import LossResult, Pooling
from xtoken.losses.checks import check_top_k
from xtoken.losses.loss import Loss
from xtoken.losses.pooling import Rows, pool_log_probs

if TYPE_CHECKING:
    from xtoken.projection import Projection


def sorted_l1(student_CX: Tensor, teacher_CY: Tensor, top_k: int | None = None) -> Tensor:
    """Return sum_i |s_(i) - t_(i)| over descending order, the shorter padded with zeros: [C].

    `top_k` keeps the k largest of each side; None keeps all.
    """
    student_CX, teacher_CY = (_descending(x, top_k) for x in (student_CX, teacher_CY))
    width = max(student_CX.shape[1], teacher_CY.shape[1])
    student_CX, teacher_CY = (pad(x, (0, width - x.shape[1])) for x in (student_CX, teacher_CY))
    return (student_CX - teacher_CY).abs().sum(-1)


def _descending(x_CX: Tensor, top_k: int | None) -> Tensor:
    if top_k is not None and top_k < x_CX.shape[1]:
        return x_CX.topk(top_k, dim=-1).values
    return x_CX.sort(dim=-1, descending=True).values


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
    """

    kind: ClassVar[str] = "uld"
    poolings: ClassVar[tuple[Pooling, ...]] = ("first", "chain_rule")

    student_masked_X: Tensor
    teacher_masked_X: Tensor

    def __init__(
        self,
        projection: Projection,
        *,
        temperature: float = 1.0,
        pooling: Pooling = "first",
        top_k: int | None = None,
    ) -> None:
        super().__init__(
            projection.student_size,
            projection.teacher_size,
            temperature=temperature,
            pooling=pooling,
        )
        if top_k is not None:
            size = max(self.student_size, self.teacher_size)
            check_top_k(self.kind, "top_k", top_k, size, "the larger vocabulary")
        self.top_k = top_k
        for side in ("student", "teacher"):
            masked = torch.as_tensor(getattr(projection, f"{side}_masked"), dtype=torch.bool)
            self.register_buffer(f"{side}_masked_X", masked.nonzero().squeeze(1), persistent=False)

    def block(self, student: Rows, teacher: Rows, state: Any = None) -> LossResult:
        """See `Loss.block`."""
        logp_CV = pool_log_probs(
            self.log_probs(student, self.student_masked_X, "student_logits_NV"),
            student,
            self.pooling,
        )
        with torch.no_grad():
            logp_CU = pool_log_probs(
                self.log_probs(teacher, self.teacher_masked_X, "teacher_logits_MU"),
                teacher,
                self.pooling,
            )
        per_chunk_C = sorted_l1(logp_CV.exp(), logp_CU.exp(), self.top_k)
        count = per_chunk_C.new_tensor(float(per_chunk_C.shape[0]))
        return LossResult(self.scale(per_chunk_C), count)
