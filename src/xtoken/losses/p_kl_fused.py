"""KL(p_T || W^T p_S) in one piece, for the default settings of P-KL and Path-KL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xtoken.losses.columns import bag_sum, floor_of, pick
from xtoken.losses.pooling import MASKED
from xtoken.losses.projector import Projector


@dataclass(frozen=True)
class LeftOut:
    """What of a block of logits doesn't count: entries, each once, and whole columns."""

    row: Tensor
    token: Tensor
    columns_X: Tensor

    @classmethod
    def columns(cls, columns_X: Tensor) -> LeftOut:
        """Leave out whole columns alone."""
        none = columns_X[:0]
        return cls(none, none, columns_X)

    @property
    def nothing(self) -> bool:
        """All of it counts."""
        return not (self.row.numel() or self.columns_X.numel())

    def mask_(self, logits_NV: Tensor) -> None:
        """Mask them in place."""
        logits_NV.index_fill_(1, self.columns_X, MASKED)
        logits_NV.index_put_((self.row, self.token), logits_NV.new_tensor(MASKED))

    def mask(self, logits_NV: Tensor) -> Tensor:
        """Return the logits without them (the same tensor if there are none)."""
        if self.nothing:
            return logits_NV
        if self.columns_X.numel():
            logits_NV = logits_NV.index_fill(1, self.columns_X, MASKED)
        return logits_NV.index_put((self.row, self.token), logits_NV.new_tensor(MASKED))

    def log_mass(self, logits_NV: Tensor) -> Tensor:
        """Return log sum exp of what doesn't count: [N], `MASKED` where that is nothing."""
        lost_N = logits_NV.new_full((logits_NV.shape[0],), MASKED)
        if self.columns_X.numel():
            lost_N = pick(logits_NV, self.columns_X).logsumexp(-1)
        picked = logits_NV[self.row, self.token]
        top_N = lost_N.scatter_reduce(0, self.row, picked, "amax")
        sum_N = (lost_N - top_N).exp().index_add(0, self.row, (picked - top_N[self.row]).exp())
        return sum_N.log() + top_N


class ProjectedKL(torch.autograd.Function):
    """Return KL(fold(p_T) || W^T p_S) a row, and more that comes with it.

    With m the folded teacher mass (it sums to one) and q = W^T p,

        d KL / d logit[v] = p[v] - sum_u W[v, u] p[v] m[u] / q[u]

    where a plain column gives m[u] itself, without any division. The value and this gradient
    come from two softmaxes, one gather of the teacher's row and four sums over small groups;
    nothing is kept but the gradient. The formula is the reference's; the pieces are
    `Projector.log_project` and `log_fold`, written out.

    Args of `apply`:
        student_NV, teacher_NU: logits in which masked ids hold `MASKED`. What doesn't count is
            masked in them too, in place.
        projector: W.
        student_out, teacher_out: what doesn't count here, or None.
        picks: (row, column) of student logits that are handed on, or None; their gradient joins
            that of the KL in one pass.
        student_max_N, teacher_max_N: the largest of each row, where it is known.

    Returns:
        The KL, the teacher's mass before folding, log sum exp of student and teacher (without
        the entries left out), all [N]; and the picked logits. Gradient to the first and last.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student_NV: Tensor,
        teacher_NU: Tensor,
        projector: Projector,
        student_out: LeftOut | None = None,
        teacher_out: LeftOut | None = None,
        picks: tuple[Tensor, Tensor] | None = None,
        student_max_N: Tensor | None = None,
        teacher_max_N: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """See the class."""
        floor = floor_of(student_NV.dtype)
        picked = student_NV.new_zeros(0) if picks is None else student_NV[picks]
        if student_out is not None and not student_out.nothing:
            student_out.mask_(student_NV)
            student_max_N = None
        if teacher_out is not None and not teacher_out.nothing:
            teacher_out.mask_(teacher_NU)
            teacher_max_N = None
        p_NV = student_NV.softmax(-1)
        # The teacher's row beside the student's: [:, :V] plain columns, the rest to be added up.
        size = p_NV.shape[1]
        teacher_NW = pick(teacher_NU, projector.aligned_W)
        if projector.unaligned_X.numel():
            teacher_NW.index_fill_(1, projector.unaligned_X, MASKED)
        m_NW = teacher_NW.softmax(-1)
        m_NV = m_NW[:, :size]
        student_sum_N = _log_sum(student_NV, p_NV, student_max_N)
        teacher_sum_N = _log_sum(teacher_NW, m_NW, teacher_max_N)
        difference_NV = teacher_NW[:, :size].sub_(student_NV)
        difference_NV -= (teacher_sum_N - student_sum_N).unsqueeze(1)
        total_N = difference_NV.mul_(m_NV).sum(-1)

        table_XN = pick(p_NV, projector.mixed_student_X).t().contiguous()
        q_YN = bag_sum(
            table_XN, projector.entry_student_E, projector.entry_offset_Y, projector.entry_weight_E
        ).clamp_min_(floor)
        source_ZN = m_NW[:, size:].t().contiguous()
        m_YN = bag_sum(source_ZN, projector.fold_entry_Z, projector.fold_offset_Y)
        own_NY = pick(m_NW, projector.own_W)
        kept_N = 1.0 - (m_YN.sum(0) - own_NY.sum(1)).clamp_min(0.0)
        ratio_YN = m_YN / q_YN
        total_N += (m_YN * ratio_YN.clamp_min(floor).log()).sum(0)

        if ctx.needs_input_grad[0]:
            back_XN = bag_sum(
                ratio_YN, projector.back_column_E, projector.back_offset_X, projector.back_weight_E
            ).mul_(table_XN)
            gradient_NV = p_NV.sub_(m_NV)
            place_NX = projector.mixed_student_X.expand(p_NV.shape[0], -1)
            gradient_NV.scatter_(1, place_NX, table_XN.sub_(back_XN).t())
            if student_out is not None and student_out.row.numel():
                gradient_NV[student_out.row, student_out.token] = 0.0
            ctx.save_for_backward(gradient_NV)
        ctx.picks = picks
        ctx.mark_non_differentiable(kept_N, student_sum_N, teacher_sum_N)
        return total_N, kept_N, student_sum_N, teacher_sum_N, picked

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradient that the forward pass found, in place: for one backward pass."""
        (gradient_NV,) = ctx.saved_tensors
        # A look at a number of the CPU's costs less than a pass over the gradient.
        one = gradient_NV.device.type == "cpu" and bool((gradients[0] == 1.0).all())
        if not one:
            gradient_NV.mul_(gradients[0].unsqueeze(1))
        if ctx.picks is not None and ctx.picks[0].numel():
            gradient_NV.index_put_(ctx.picks, gradients[4], accumulate=True)
        return gradient_NV, *[None] * 7


def _log_sum(logits_NV: Tensor, p_NV: Tensor, max_N: Tensor | None) -> Tensor:
    """log sum exp of rows whose softmax is known: the largest entry has p = exp(max - lse)."""
    max_N = logits_NV.amax(-1) if max_N is None else max_N
    return max_N - p_NV.amax(-1).log()
