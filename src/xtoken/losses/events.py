"""Events and REST: buckets that both models can fill, chunk by chunk."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from xtoken.losses.base import Direction
from xtoken.losses.columns import floor_of
from xtoken.losses.pooling import MASKED, Rows, segment_sum


def is_forward(direction: Direction, beta: float) -> bool:
    """Whether a divergence is KL(T || S), under either of its names."""
    return direction == "teacher_to_student" or (direction == "jsd" and beta == 0.0)


def divergence_terms(
    teacher_log: Tensor, student_log: Tensor, direction: Direction, beta: float
) -> Tensor:
    """Return the summands of `divergence`, one a bucket: same shape as the inputs."""
    if is_forward(direction, beta):
        return teacher_log.exp() * (teacher_log - student_log)
    if direction == "student_to_teacher" or (direction == "jsd" and beta == 1.0):
        return student_log.exp() * (student_log - teacher_log)
    t, s = teacher_log.exp(), student_log.exp()
    mixture_log = torch.lerp(s, t, beta).clamp_min(floor_of(s.dtype)).log()
    teacher_part = t * (teacher_log - mixture_log)
    return beta * teacher_part + (1 - beta) * s * (student_log - mixture_log)


def realised_log_probs(logp_RV: Tensor, rows: Rows) -> Tensor:
    """Return log p of the token that each row predicts: [R]."""
    return logp_RV.gather(1, rows.target_R.clamp_min(0).unsqueeze(1)).squeeze(1)


def prefix_log_prob(realised_R: Tensor, rows: Rows) -> Tensor:
    """Return each chunk's log-probability of all its tokens but the last: [C]."""
    is_last_R = torch.zeros_like(rows.target_R, dtype=torch.bool)
    is_last_R[rows.start_C + rows.count_C - 1] = True
    return segment_sum(realised_R.masked_fill(is_last_R, 0.0), rows)


def final_events(
    logp_RV: Tensor, rows: Rows, chunk_X: Tensor, bag_E: Tensor, final_E: Tensor
) -> tuple[Tensor, Tensor]:
    """Return log P(prefix) p(final) of each event [E], and log REST of some chunks [X].

    Args:
        logp_RV: log-probabilities of all rows.
        rows: where the block's chunks lie among them.
        chunk_X: the chunks in question.
        bag_E: for each event its chunk, as a place in `chunk_X`.
        final_E: for each event the final token.
    """
    prefix_X = prefix_log_prob(realised_log_probs(logp_RV, rows), rows)[chunk_X]
    last_XV = logp_RV.index_select(0, (rows.start_C + rows.count_C - 1)[chunk_X])
    event_E = prefix_X[bag_E] + last_XV[bag_E, final_E]
    others_X = last_XV.index_put((bag_E, final_E), last_XV.new_tensor(MASKED)).logsumexp(-1)
    # By leaving the prefix, or by another final token; exact where either is tiny.
    rest_X = -torch.expm1(prefix_X) + (prefix_X + others_X).exp()
    return event_E, rest_X.clamp_min(floor_of(rest_X.dtype)).log()


def rest_terms(teacher_CX: Tensor, student_CX: Tensor, direction: Direction, beta: float) -> Tensor:
    """Return REST's summand of a divergence, from both sides' log-probabilities outside: [C].

    Where the student has no id there, KL(T || S) would be infinite whatever it learns: 0 then.
    """
    if is_forward(direction, beta) and student_CX.shape[1] == 0:
        return teacher_CX.new_zeros(teacher_CX.shape[0])
    return divergence_terms(rest_log_mass(teacher_CX), rest_log_mass(student_CX), direction, beta)


def rest_log_mass(logp_CX: Tensor) -> Tensor:
    """Return the log-mass of a set of columns, of a tiny number where there are none: [C]."""
    tiny = math.log(floor_of(logp_CX.dtype))
    if logp_CX.shape[1] == 0:
        return logp_CX.new_full((logp_CX.shape[0],), tiny)
    return logp_CX.logsumexp(-1).clamp_min(tiny)
