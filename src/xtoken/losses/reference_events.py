"""The definition of the losses that compare events: ALM, strict 1:1, CSD, BPM.

Float64 and plain loops, like `reference.py`. An *event* is something that both models can say at
a chunk's first position with a known probability; whatever is left on each side is REST.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from xtoken.losses.base import Chunks, Direction
from xtoken.losses.reference import TINY, Side, divergence, kl, sides

if TYPE_CHECKING:
    from xtoken.projection import Projection

Pairs = list[tuple[int, int]]


def alm(
    student_logits_NV: Tensor,
    teacher_logits_MU: Tensor,
    chunks: Chunks,
    projection: Projection,
    *,
    alm_temperature: float = 100.0,
) -> Tensor:
    """ALM (arXiv 2503.20083): KL between two coins, heads = the chunk's text at 1/tau_a.

    a = exp(l_T / tau_a), b = exp(l_S / tau_a) with l a chunk's log-likelihood; binary
    cross-entropy of b under a minus a's own entropy. No tau^2.
    """
    total = torch.zeros((), dtype=torch.float64)
    for student, teacher in sides(student_logits_NV, teacher_logits_MU, chunks, projection, 1.0):
        a, b = ((sequence_log_prob(s) / alm_temperature).exp() for s in (teacher, student))
        total = total + kl(torch.stack([a, 1 - a]), torch.stack([b, (1 - b).clamp_min(TINY)]))
    return total


def sequence_log_prob(side: Side) -> Tensor:
    """l = sum_i log p(realised token i)."""
    total = torch.zeros((), dtype=torch.float64)
    for i, token in enumerate(side.ids):
        total = total + side.logp_nV[i, token]
    return total


def event_buckets(side: Side, finals: Sequence[int]) -> Tensor:
    """P(prefix) * p(final) for each final token after the realised prefix, and REST.

    The prefix is all realised tokens but the last; REST is what is left of probability 1, by
    leaving the prefix or by another final token.
    """
    prefix = torch.ones((), dtype=torch.float64)
    for i, token in enumerate(side.ids[:-1]):
        prefix = prefix * side.logp_nV[i, token].exp()
    last = side.logp_nV[-1].exp()
    others = [i for i in range(len(last)) if i not in set(finals)]
    rest = (1 - prefix) + prefix * last[others].sum()
    return torch.stack([prefix * last[k] for k in finals] + [rest])


def bucket_divergence(
    p: Tensor, q: Tensor, student_says: int, direction: Direction, beta: float
) -> Tensor:
    """The divergence over buckets, REST the last of them.

    Where the student can say nothing but the events (`student_says` ids at most), KL(T || S)
    would be infinite whatever it learns: REST is left out then.
    """
    forward = direction == "teacher_to_student" or (direction == "jsd" and beta == 0)
    if forward and student_says <= len(q) - 1:
        p, q = p[:-1], q[:-1]
    return divergence(p, q, direction, beta)


def real_ids(masked: np.ndarray) -> int:
    """How many ids take part at all."""
    return int((~masked).sum())


def is_one_to_one(student: Side, teacher: Side) -> bool:
    """One token on either side."""
    return len(student.ids) == len(teacher.ids) == 1


def strict(
    student_logits_NV: Tensor,
    teacher_logits_MU: Tensor,
    chunks: Chunks,
    projection: Projection,
    *,
    direction: Direction = "teacher_to_student",
    temperature: float = 1.0,
    jsd_beta: float = 0.5,
) -> Tensor:
    """Strict 1:1 (arXiv 2610.08448): 1:1 chunks only, shared ids and REST."""
    common_student, common_teacher = projection.exact_pairs()
    total = torch.zeros((), dtype=torch.float64)
    for student, teacher in sides(
        student_logits_NV, teacher_logits_MU, chunks, projection, temperature
    ):
        if is_one_to_one(student, teacher):
            q = event_buckets(student, [int(v) for v in common_student])
            p = event_buckets(teacher, [int(u) for u in common_teacher])
            says = real_ids(projection.student_masked)
            total = total + temperature**2 * bucket_divergence(p, q, says, direction, jsd_beta)
    return total


def completions(
    student: Side, teacher: Side, student_bytes: list[bytes], teacher_bytes: list[bytes]
) -> Pairs:
    """Final tokens (student's, teacher's) that make the same bytes after the realised prefixes.

    At least one side has no prefix, so that the same bytes are one token there. Of several ids
    with the same bytes the realised one counts, else the lowest.
    """
    finals: list[dict[bytes, int]] = []
    for side, table in ((student, student_bytes), (teacher, teacher_bytes)):
        prefix = b"".join(table[i] for i in side.ids[:-1])
        found: dict[bytes, int] = {}
        for token, data in enumerate(table):
            if data:
                found.setdefault(prefix + data, token)
        found[prefix + table[side.ids[-1]]] = side.ids[-1]
        finals.append(found)
    return [(finals[0][text], finals[1][text]) for text in finals[0] if text in finals[1]]


def csd_events(
    student: Side,
    teacher: Side,
    projection: Projection,
    student_bytes: list[bytes],
    teacher_bytes: list[bytes],
) -> Pairs:
    """1:1: the shared ids. 1:N and N:1: completions. M:N: the realised sequences alone."""
    if is_one_to_one(student, teacher):
        common_student, common_teacher = projection.exact_pairs()
        return [(int(v), int(u)) for v, u in zip(common_student, common_teacher, strict=True)]
    if len(student.ids) > 1 and len(teacher.ids) > 1:
        return [(student.ids[-1], teacher.ids[-1])]
    return completions(student, teacher, student_bytes, teacher_bytes)


def csd(
    student_logits_NV: Tensor,
    teacher_logits_MU: Tensor,
    chunks: Chunks,
    projection: Projection,
    student_bytes: list[bytes],
    teacher_bytes: list[bytes],
    *,
    direction: Direction = "teacher_to_student",
    temperature: float = 1.0,
    jsd_beta: float = 0.5,
    beta: float = 1.0,
) -> Tensor:
    """CSD (arXiv 2610.28895): KL over events and REST; `beta` weighs chunks that aren't 1:1."""
    total = torch.zeros((), dtype=torch.float64)
    for student, teacher in sides(
        student_logits_NV, teacher_logits_MU, chunks, projection, temperature
    ):
        pairs = csd_events(student, teacher, projection, student_bytes, teacher_bytes)
        q = event_buckets(student, [v for v, _ in pairs])
        p = event_buckets(teacher, [u for _, u in pairs])
        one = is_one_to_one(student, teacher)
        says = real_ids(projection.student_masked) if one else len(q)
        found = bucket_divergence(p, q, says, direction, jsd_beta)
        total = total + (1.0 if one else beta) * temperature**2 * found
    return total


def longest_prefixes(
    student_bytes: list[bytes], teacher_bytes: list[bytes], roles: dict[int, int]
) -> Iterator[int]:
    """For each teacher token the longest student token that begins its bytes; -1: none.

    `roles` maps paired role tokens of the teacher to the student's. Of several student ids with
    the same bytes the lowest counts.
    """
    for u, data in enumerate(teacher_bytes):
        best = roles.get(u, -1)
        for v, start in enumerate(student_bytes):
            longer = best < 0 or len(start) > len(student_bytes[best])
            if start and data.startswith(start) and longer:
                best = v
        yield best


def bpm(
    student_logits_NV: Tensor,
    teacher_logits_MU: Tensor,
    chunks: Chunks,
    projection: Projection,
    prefix_of: list[int],
    *,
    direction: Direction = "teacher_to_student",
    temperature: float = 1.0,
    jsd_beta: float = 0.5,
) -> Tensor:
    """BPM (arXiv 2607.22334): teacher mass on the longest student token that is a byte prefix.

    `prefix_of[u]` is that student id (see `longest_prefixes`). Buckets: the student ids that
    some teacher token maps to, and the residual of each side.
    """
    image = sorted({v for u, v in enumerate(prefix_of)
                    if v >= 0 and not projection.teacher_masked[u]
                    and not projection.student_masked[v]})  # fmt: skip
    place = {v: i for i, v in enumerate(image)}
    total = torch.zeros((), dtype=torch.float64)
    for student, teacher in sides(
        student_logits_NV, teacher_logits_MU, chunks, projection, temperature
    ):
        p = torch.zeros(len(image) + 1, dtype=torch.float64)
        for u, mass in enumerate(teacher.logp_nV[0].exp()):
            p[place.get(prefix_of[u], len(image))] += mass
        s = student.logp_nV[0].exp()
        others = [v for v in range(len(s)) if v not in place]
        q = torch.cat([s[image], s[others].sum().reshape(1)])
        says = real_ids(projection.student_masked)
        total = total + temperature**2 * bucket_divergence(p, q, says, direction, jsd_beta)
    return total
