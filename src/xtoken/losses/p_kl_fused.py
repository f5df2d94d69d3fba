"""KL(p_T || W^T p_S) in one piece, for P-KL's default settings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xtoken.losses.columns import bag_sum, floor_of
from xtoken.losses.projector import Projector


class ProjectedKL(torch.autograd.Function):
    """Return KL(fold(p_T) || W^T p_S) a row, and the teacher's mass before folding: [N], [N].

    With m the folded teacher mass (it sums to one) and q = W^T p,

        d KL / d logit[v] = p[v] - sum_u W[v, u] p[v] m[u] / q[u]

    where a plain column gives m[u] itself, without any division. The value and this gradient
    come from two softmaxes, four gathers and three sums over small groups; nothing is kept but
    the gradient. The formula is the reference's; the pieces are `Projector.log_project` and
    `log_fold`, written out.
    """

    @staticmethod
    def forward(
        ctx: Any, student_NV: Tensor, teacher_NU: Tensor, projector: Projector
    ) -> tuple[Tensor, Tensor]:
        """Take logits in which masked ids (and ids that fold nowhere) hold `MASKED`."""
        floor = floor_of(student_NV.dtype)
        p_NV, m_NU = student_NV.softmax(-1), teacher_NU.softmax(-1)
        m_NP = m_NU.index_select(1, projector.plain_teacher_P)
        difference_NP = teacher_NU.index_select(1, projector.plain_teacher_P)
        difference_NP -= student_NV.index_select(1, projector.plain_student_P)
        difference_NP -= (_log_sum(teacher_NU, m_NU) - _log_sum(student_NV, p_NV)).unsqueeze(1)
        total_N = difference_NP.mul_(m_NP).sum(-1)

        table_XN = p_NV.index_select(1, projector.mixed_student_X).t().contiguous()
        q_YN = bag_sum(
            table_XN, projector.entry_student_E, projector.entry_offset_Y, projector.entry_weight_E
        ).clamp_min_(floor)
        source_ZN = m_NU.index_select(1, projector.fold_source_Z).t().contiguous()
        m_YN = bag_sum(source_ZN, projector.fold_entry_Z, projector.fold_offset_Y)
        own_NY = m_NU.index_select(1, projector.mixed_teacher_Y)
        kept_N = 1.0 - (m_YN.sum(0) - own_NY.sum(1)).clamp_min(0.0)
        ratio_YN = m_YN / q_YN
        total_N += (m_YN * ratio_YN.clamp_min(floor).log()).sum(0)

        if ctx.needs_input_grad[0]:
            back_XN = bag_sum(
                ratio_YN, projector.back_column_E, projector.back_offset_X, projector.back_weight_E
            ).mul_(table_XN)
            zero_N1 = p_NV.new_zeros(p_NV.shape[0], 1)
            pull_NX = torch.cat([m_NP, back_XN.t(), zero_N1], dim=1)
            gradient_NV = p_NV.sub_(pull_NX.index_select(1, projector.student_place_V))
            ctx.save_for_backward(gradient_NV)
        ctx.mark_non_differentiable(kept_N)
        return total_N, kept_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Scale the gradient that the forward pass found, in place: for one backward pass."""
        (gradient_NV,) = ctx.saved_tensors
        return gradient_NV.mul_(gradients[0].unsqueeze(1)), None, None


def _log_sum(logits_NV: Tensor, p_NV: Tensor) -> Tensor:
    """log sum exp of rows whose softmax is known: the largest entry has p = exp(max - lse)."""
    return logits_NV.amax(-1) - p_NV.amax(-1).log()
