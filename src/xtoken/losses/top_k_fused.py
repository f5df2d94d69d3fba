"""KL(listed columns, REST) for pooling `first`, fixed weights, from teacher to student."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xtoken.losses.columns import floor_of, pick
from xtoken.losses.projector import Projector


class ListedKL(torch.autograd.Function):
    """Return sum_k m[k] log(m[k] / q[k]) over the listed columns of a row and its REST.

    With q = W^T p, p the student's softmax and `rest[v]` what of v's weights lies in columns that
    are not listed, REST is sum_v rest[v] p[v], and

        d / d logit[v] = p[v] M - sum_k W[v, k] p[v] m[k] / q[k] - rest[v] p[v] m[R] / q[R]

    with M the sum of m. `rest[v]` is one for all but the tokens that a listed column reads and
    those whose weights don't add up to one, so no column is formed that isn't listed: a softmax, a
    sum and a product over the vocabulary, and gathers of W's entries in k columns. REST is a sum
    of what is left, not one minus the listed: it has to be right where it is small.

    Args of `apply`:
        student_NV: logits in which masked ids hold `MASKED`.
        column_NK: int64, the listed columns; none twice among those used.
        m_log_NL: log m, [N, K + 1], REST last; `MASKED` where there is nothing.
        used_NK: bool, which of the columns count.
        projector: W.

    Returns:
        The sum: [N], differentiable in the logits.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student_NV: Tensor,
        column_NK: Tensor,
        m_log_NL: Tensor,
        used_NK: Tensor,
        projector: Projector,
    ) -> Tensor:
        """See the class."""
        N, K = column_NK.shape
        floor = floor_of(student_NV.dtype)
        p_NV = student_NV.softmax(-1)
        flat = p_NV.view(-1)
        m_NL = m_log_NL.exp()

        bag_E, token_E, weight_E = _entries(column_NK, used_NK, projector)
        weight_E = weight_E.to(p_NV.dtype)
        row_E = bag_E.div(K, rounding_mode="floor")
        place_E = row_E * p_NV.shape[1] + token_E
        p_E = flat[place_E]
        q_NK = p_NV.new_zeros(N * K).index_add_(0, bag_E, weight_E * p_E).view(N, K)
        row_sum_V = projector.row_sum(p_NV.dtype)
        short_X = projector.short_X
        if p_NV.dtype != torch.float64:
            short_X = short_X[: projector.coarsely_short]
        lost_NX = pick(p_NV, short_X) * (1.0 - row_sum_V[short_X])
        p_NV.index_add_(1, short_X, lost_NX, alpha=-1)
        # The row itself adds up what several listed columns take of one token.
        flat[place_E] = 0.0
        flat.index_add_(0, place_E, weight_E)
        rest_E = (row_sum_V[token_E] - flat[place_E]).clamp_min_(0.0)
        # Nothing is left where all entries are listed, whatever the sums' rounding says.
        flat[place_E] = 0.0
        flat.index_add_(0, place_E, torch.ones_like(weight_E))
        rest_E[flat[place_E] >= projector.row_entries_V[token_E]] = 0.0
        flat[place_E] = rest_E * p_E

        q_NL = torch.cat([q_NK, p_NV.sum(-1, keepdim=True)], dim=1).clamp_min_(floor)
        total_N = torch.where(m_NL > 0, m_NL * (m_log_NL - q_NL.log()), 0.0).sum(-1)
        if ctx.needs_input_grad[0]:
            mass_N1 = m_NL.sum(-1, keepdim=True)
            slope_NL = mass_N1 - m_NL / q_NL
            gradient_NV = p_NV.mul_(slope_NL[:, -1:])
            listed_E = slope_NL[:, :-1].reshape(-1)[bag_E]
            flat.index_add_(0, place_E, weight_E * p_E * listed_E)
            gradient_NV.index_add_(1, short_X, lost_NX * mass_N1)
            ctx.save_for_backward(gradient_NV)
        return total_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradient that the forward pass found, in place: for one backward pass."""
        (gradient_NV,) = ctx.saved_tensors
        return gradient_NV.mul_(gradients[0].unsqueeze(1)), None, None, None, None


def _entries(
    column_NK: Tensor, used_NK: Tensor, projector: Projector
) -> tuple[Tensor, Tensor, Tensor]:
    """Return W's entries in the used columns: which of the N * K, student id, weight."""
    begin_B = projector.column_offset_R[column_NK].view(-1)
    count_B = projector.column_offset_R[column_NK + 1].view(-1) - begin_B
    count_B = count_B * used_NK.reshape(-1)
    bag_E = torch.repeat_interleave(count_B)
    within_E = torch.arange(len(bag_E), device=bag_E.device) - (count_B.cumsum(0) - count_B)[bag_E]
    entry_E = begin_B[bag_E] + within_E
    return bag_E, projector.column_student_E[entry_E], projector.column_weight_E[entry_E]
