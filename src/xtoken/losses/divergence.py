"""Divergences between two measures given as logarithms; they need not sum to one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from xtoken.losses.base import Direction

DIRECTIONS: tuple[Direction, ...] = ("teacher_to_student", "student_to_teacher", "jsd")


def kl_terms(p: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
    """p * (log p - log q) elementwise, with 0 log 0 = 0."""
    return torch.where(p > 0, p * (log_p - log_q), 0.0)


def divergence(
    teacher_log: Tensor, student_log: Tensor, direction: Direction, beta: float = 0.5
) -> Tensor:
    """Divergence over the last dimension between exp(teacher_log) and exp(student_log).

        teacher_to_student: sum T (log T - log S)
        student_to_teacher: sum S (log S - log T)
        jsd:                beta * KL(T || M) + (1 - beta) * KL(S || M), M = beta T + (1-beta) S,
                            where beta = 0 means KL(T || S) and beta = 1 KL(S || T)

    Args:
        teacher_log, student_log: logarithms of the measures, float[..., n]; the entries may sum
            to less than one (a common set, a chain-rule merge), then "KL" can be negative.
        direction: which of the three.
        beta: the mixture weight of `jsd`.

    Returns:
        float[...], nats. Source: generalised JSD as in TRL's GOLD trainer (arXiv 2306.13649).
    """
    if direction == "teacher_to_student" or (direction == "jsd" and beta == 0):
        return kl_terms(teacher_log.exp(), teacher_log, student_log).sum(-1)
    if direction == "student_to_teacher" or (direction == "jsd" and beta == 1):
        return kl_terms(student_log.exp(), student_log, teacher_log).sum(-1)
    mixture_log = torch.logaddexp(teacher_log + math.log(beta), student_log + math.log1p(-beta))
    teacher_part = kl_terms(teacher_log.exp(), teacher_log, mixture_log).sum(-1)
    student_part = kl_terms(student_log.exp(), student_log, mixture_log).sum(-1)
    return beta * teacher_part + (1 - beta) * student_part
