"""L1 between sorted probabilities: the part of ULD, H-KL and GOLD that ignores what tokens are."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


class _SortedL1(torch.autograd.Function):
    """See `sorted_l1`; the gradient is a sign for each student probability (one pass)."""

    @staticmethod
    def forward(ctx: Any, student_CX: Tensor, teacher_CY: Tensor, top_k: int | None) -> Tensor:
        student_CX, order_CX = _sort_with_order(student_CX)
        teacher_CY = _sort(teacher_CY)
        width_X, width_Y = student_CX.shape[1], teacher_CY.shape[1]
        keep_X, keep_Y = (width if top_k is None else min(top_k, width)
                          for width in (width_X, width_Y))  # fmt: skip
        both = min(keep_X, keep_Y)
        # Ascending: the largest stand at the end of each. Beyond `both` one side counts as 0.
        difference = student_CX[:, width_X - both :] - teacher_CY[:, width_Y - both :]
        total_C = difference.abs().sum(-1)
        total_C += student_CX[:, width_X - keep_X : width_X - both].sum(-1)
        total_C += teacher_CY[:, width_Y - keep_Y : width_Y - both].sum(-1)
        sign_CX = torch.zeros_like(student_CX)
        torch.sign(difference, out=sign_CX[:, width_X - both :])
        sign_CX[:, width_X - keep_X : width_X - both] = 1.0
        ctx.save_for_backward(torch.empty_like(sign_CX).scatter_(1, order_CX, sign_CX))
        return total_C

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (sign_CX,) = ctx.saved_tensors
        return sign_CX.mul_(gradients[0].unsqueeze(1)), None, None


def sorted_l1(student_CX: Tensor, teacher_CY: Tensor, top_k: int | None = None) -> Tensor:
    """Return sum_i |s_(i) - t_(i)| over descending order, the shorter padded with zeros: [C].

    Args:
        student_CX, teacher_CY: probabilities, none below 0; gradient to the student only.
        top_k: keep the k largest of each side; None keeps all.

    Source: ULD (arXiv 2402.12030).
    """
    return _SortedL1.apply(student_CX, teacher_CY, top_k)


# numpy sorts with vector instructions, ten times faster than torch does on a CPU. Bits of a
# float32 that is not negative order as an integer does, so that one int64 carries value and place.


def _sort(x_CX: Tensor) -> Tensor:
    """Return each row in ascending order."""
    if x_CX.device.type == "cpu":
        return torch.from_numpy(np.sort(x_CX.numpy(), axis=-1))
    return x_CX.sort(dim=-1).values


def _sort_with_order(x_CX: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row in ascending order, and where each value came from."""
    if x_CX.device.type != "cpu" or x_CX.dtype != torch.float32:
        values_CX, order_CX = x_CX.sort(dim=-1)
        return values_CX, order_CX
    place_X = torch.arange(x_CX.shape[1])
    key_CX = (x_CX.view(torch.int32).long() << 32) | place_X
    key_CX = torch.from_numpy(np.sort(key_CX.numpy(), axis=-1))
    return (key_CX >> 32).int().view(torch.float32), key_CX & 0xFFFFFFFF
