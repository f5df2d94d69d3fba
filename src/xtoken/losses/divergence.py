"""Divergences between two measures given as logarithms; they need not sum to one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xtoken.errors import LossError
from xtoken.losses.base import Direction
from xtoken.losses.checks import check_beta, check_choice
from xtoken.losses.columns import floor_of

DIRECTIONS: tuple[Direction, ...] = ("teacher_to_student", "student_to_teacher", "jsd")


class _Divergence(torch.autograd.Function):
    """See `divergence`. Keeps one tensor for the way back: the gradient, scaled in place then.

    With s = log S, t = log T and m = log M, the derivatives by s are
    -T, S (s - t + 1) and (1 - beta) S (s - m).
    """

    @staticmethod
    def forward(
        ctx: Any, teacher_log: Tensor, student_log: Tensor, kind: Direction, beta: float
    ) -> Tensor:
        if kind == "teacher_to_student":
            p = teacher_log.exp()
            total = (teacher_log - student_log).mul_(p).sum(-1)
            gradient = p.neg_()
        elif kind == "student_to_teacher":
            p, difference = student_log.exp(), student_log - teacher_log
            gradient = difference.mul_(p)
            total = gradient.sum(-1)
            gradient += p
        else:
            t, s = teacher_log.exp(), student_log.exp()
            mixture_log = torch.lerp(s, t, beta).clamp_min_(floor_of(s.dtype)).log_()
            total = (teacher_log - mixture_log).mul_(t).sum(-1) * beta
            gradient = torch.sub(student_log, mixture_log, out=mixture_log).mul_(s)
            gradient *= 1 - beta
            total += gradient.sum(-1)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return None, gradient.mul_(gradients[0].unsqueeze(-1)), None, None


def divergence(
    teacher_log: Tensor, student_log: Tensor, direction: Direction, beta: float = 0.5
) -> Tensor:
    """Divergence over the last dimension between exp(teacher_log) and exp(student_log).

        teacher_to_student: sum T (log T - log S)
        student_to_teacher: sum S (log S - log T)
        jsd:                beta * KL(T || M) + (1 - beta) * KL(S || M), M = beta T + (1-beta) S,
                            where beta = 0 means KL(T || S) and beta = 1 KL(S || T)

    Args:
        teacher_log, student_log: logarithms of the measures, float[N, n], finite (a large
            negative number stands for -inf); the entries may sum to less than one (a common
            set, a chain-rule merge), then "KL" can be negative. No gradient to the teacher.
        direction: which of the three.
        beta: the mixture weight of `jsd`, 0 to 1.

    Returns:
        float[N], nats; takes one backward pass (a second one is refused by autograd: the saved
        gradient is scaled in place). Source: generalised JSD as in TRL's GOLD trainer (arXiv
        2306.13649).

    Raises:
        LossError: an unknown direction, a beta outside [0, 1], shapes that differ.
    """
    check_choice("divergence", "direction", direction, DIRECTIONS)
    check_beta("divergence", beta)
    if teacher_log.shape != student_log.shape:
        raise LossError(
            f"divergence: teacher_log has shape {tuple(teacher_log.shape)} and student_log "
            f"{tuple(student_log.shape)}; expected equal shapes [N, n]."
        )
    if direction == "jsd" and beta in (0.0, 1.0):
        direction = "teacher_to_student" if beta == 0.0 else "student_to_teacher"
    return _Divergence.apply(teacher_log, student_log, direction, beta)
