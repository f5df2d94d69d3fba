"""The definition of X-Token's losses, GOLD, ULD and direct KL: float64, a chunk at a time.

The losses over events are in `reference_events.py`, Path-KL in `reference_path.py`.

Nothing here is fast, and nothing fast may differ from it. Each function takes the logits of all
rows, the chunks and a projection (see `base.py`), and returns the sum over chunks as a float64
scalar that autograd can differentiate; dividing by the number of chunks is the training step's
business. `p` is a probability, `logp` its logarithm; a measure need not sum to one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from xtoken.losses.base import Chunks, Direction, Pooling, Support

if TYPE_CHECKING:
    from xtoken.projection import Projection

# Keeps the logarithm of an underflown probability finite.
TINY = torch.finfo(torch.float64).tiny * 1e8
# (code): added inside and outside the student's renormalisation under pooling `mean`.
MEAN_EPSILON = 1e-10


class Side(NamedTuple):
    """One model's part of a chunk: its log-probabilities at n positions and the realised ids."""

    logp_nV: Tensor
    ids: list[int]


# ------------------------------------------------------------------ what all losses share


def log_probs(row_V: Tensor, size: int, masked: np.ndarray, temperature: float) -> Tensor:
    """log softmax(row / tau) over the real ids that are not masked; -inf elsewhere: [size]."""
    kept = [i for i in range(size) if not masked[i]]
    logp = torch.full((size,), -torch.inf, dtype=torch.float64)
    logp[kept] = torch.log_softmax(row_V[kept].double() / temperature, dim=-1)
    return logp


def sides(
    student_logits_NV: Tensor,
    teacher_logits_MU: Tensor,
    chunks: Chunks,
    projection: Projection,
    temperature: float,
) -> Iterator[tuple[Side, Side]]:
    """Yield (student, teacher) of each chunk; the teacher carries no gradient."""
    for c in range(len(chunks)):
        found = []
        for logits, size, masked, start, count, target in (
            (
                student_logits_NV,
                projection.student_size,
                projection.student_masked,
                int(chunks.student_start_C[c]),
                int(chunks.student_count_C[c]),
                chunks.student_target_N,
            ),
            (
                teacher_logits_MU.detach(),
                projection.teacher_size,
                projection.teacher_masked,
                int(chunks.teacher_start_C[c]),
                int(chunks.teacher_count_C[c]),
                chunks.teacher_target_M,
            ),
        ):
            rows = range(start, start + count)
            logp = [log_probs(logits[r], size, masked, temperature) for r in rows]
            found.append(Side(torch.stack(logp), [int(target[r]) for r in rows]))
        yield found[0], found[1]


def rest_log_prob(side: Side) -> Tensor:
    """sum_{i > 0} log p(realised token i of the chunk): 0 for a chunk of one token."""
    logp = torch.zeros((), dtype=torch.float64)
    for i in range(1, len(side.ids)):
        logp = logp + side.logp_nV[i, side.ids[i]]
    return logp


def kl(p: Tensor, q: Tensor) -> Tensor:
    """sum_u p[u] * (log p[u] - log q[u]), 0 log 0 = 0; can be negative between measures."""
    total = torch.zeros((), dtype=torch.float64)
    for p_u, q_u in zip(p, q, strict=True):
        if p_u > 0:
            total = total + p_u * (p_u.log() - q_u.clamp_min(TINY).log())
    return total


def divergence(teacher: Tensor, student: Tensor, direction: Direction, beta: float) -> Tensor:
    """KL(T || S), KL(S || T), or b KL(T || M) + (1-b) KL(S || M) with M = b T + (1-b) S.

    b = 0 means KL(T || S) and b = 1 KL(S || T), as in TRL.
    """
    if direction == "teacher_to_student" or (direction == "jsd" and beta == 0):
        return kl(teacher, student)
    if direction == "student_to_teacher" or (direction == "jsd" and beta == 1):
        return kl(student, teacher)
    mixture = beta * teacher + (1 - beta) * student
    return beta * kl(teacher, mixture) + (1 - beta) * kl(student, mixture)


def dense_projection(projection: Projection) -> Tensor:
    """W as a dense float64[V, U].

    Entries of masked ids are left out (a masked id is in no distribution) and rows that lost
    some are divided by what is left.
    """
    W = torch.zeros(projection.student_size, projection.teacher_size, dtype=torch.float64)
    for v in range(projection.student_size):
        lost = False
        for u, weight in zip(projection.indices[v], projection.weights[v], strict=True):
            if weight > 0 and not projection.student_masked[v]:
                if projection.teacher_masked[u]:
                    lost = True
                else:
                    W[v, u] += float(weight)
        if lost and W[v].sum() > 0:
            W[v] /= W[v].sum()
    return W


# ------------------------------------------------------------------ P-KL


def teacher_on_support(
    logp_U: Tensor, columns: list[int], support: Support, fold: np.ndarray
) -> Tensor:
    """The teacher's distribution on W's columns (sums to one): [len(columns)].

    `full` and `topk_rest`: an unreached id's mass goes to the id it folds to; ids that fold
    nowhere are left out. `reached` and `topk_batch`: renormalised on the columns.
    """
    place = {u: i for i, u in enumerate(columns)}
    p = torch.zeros(len(columns), dtype=torch.float64)
    for u in range(len(logp_U)):
        target = int(fold[u]) if support in ("full", "topk_rest") else u
        if target in place and torch.isfinite(logp_U[u]):
            p[place[target]] += logp_U[u].exp()
    return p / p.sum()


def kept_columns(
    W: Tensor, teacher_logits_MU: Tensor, chunks: Chunks, support: Support, top_k: int, first: bool
) -> list[int]:
    """The teacher ids that W reaches; `topk_batch`: the k of them with the largest logits."""
    reached = [u for u in range(W.shape[1]) if bool((W[:, u] > 0).any())]
    if support != "topk_batch":
        return reached
    rows: list[int] = []
    for start, count in zip(chunks.teacher_start_C, chunks.teacher_count_C, strict=True):
        rows += range(int(start), int(start) + (1 if first else int(count)))
    if not rows:
        return reached
    best = teacher_logits_MU[rows].detach().double().amax(0)
    order = sorted(reached, key=lambda u: (-float(best[u]), u))
    return sorted(order[:top_k])


def with_rest(values: Tensor, chosen: list[int]) -> Tensor:
    """The chosen entries, and the sum of all others as one more."""
    others = [i for i in range(len(values)) if i not in set(chosen)]
    return torch.cat([values[chosen], values[others].sum().reshape(1)])


def p_kl(
    student_logits_NV: Tensor,
    teacher_logits_MU: Tensor,
    chunks: Chunks,
    projection: Projection,
    *,
    direction: Direction = "teacher_to_student",
    temperature: float = 1.0,
    pooling: Pooling = "first",
    support: Support = "full",
    top_k: int = 8192,
    jsd_beta: float = 0.5,
    weights_VU: Tensor | None = None,
) -> Tensor:
    """P-KL (X-Token, arXiv 2605.21699): q = W^T p_S, sum over chunks of tau^2 * KL(p_T || q).

    first:      q and p_T at the chunk's first position.
    chain_rule: each times the probability of the chunk's remaining realised tokens.
    mean:       q' = m / (sum m + 1e-10) + 1e-10, m = mean of q over the chunk's positions;
                p_T = exp(mean of log p_T).
    `weights_VU` stands in for the projection's own W (learned W).
    """
    W = dense_projection(projection) if weights_VU is None else weights_VU
    fold = projection.teacher_fold
    columns = kept_columns(W, teacher_logits_MU, chunks, support, top_k, pooling == "first")
    total = torch.zeros((), dtype=torch.float64)
    for student, teacher in sides(
        student_logits_NV, teacher_logits_MU, chunks, projection, temperature
    ):
        q_nR = [(W.T @ logp.exp())[columns] for logp in student.logp_nV]
        p_nR = [teacher_on_support(logp, columns, support, fold) for logp in teacher.logp_nV]
        if support in ("reached", "topk_batch"):
            q_nR = [q / q.sum() for q in q_nR]
        if pooling == "mean":
            m = torch.stack([(W.T @ logp.exp())[columns] for logp in student.logp_nV]).mean(0)
            q = m / (m.sum() + MEAN_EPSILON) + MEAN_EPSILON
            p = torch.stack([p.log() for p in p_nR]).mean(0).exp()
        else:
            q, p = q_nR[0], p_nR[0]
            if pooling == "chain_rule":
                q = q * rest_log_prob(student).exp()
                p = p * rest_log_prob(teacher).exp()
        if support == "topk_rest":
            chosen = sorted(range(len(p)), key=lambda i: (-float(p[i]), i))[:top_k]
            q, p = with_rest(q, chosen), with_rest(p, chosen)
        total = total + temperature**2 * divergence(p, q, direction, jsd_beta)
    return total


# ------------------------------------------------------------------ H-KL, GOLD, ULD, direct


def pooled_log_probs(side: Side, pooling: Pooling) -> Tensor:
    """One vector of log-probabilities a chunk: see method `pooling`; `mean` averages logs."""
    if pooling == "mean":
        return side.logp_nV.mean(0)
    if pooling == "chain_rule":
        return side.logp_nV[0] + rest_log_prob(side)
    return side.logp_nV[0]


def sorted_l1(student_p: Tensor, teacher_p: Tensor, top_k: int | None) -> Tensor:
    """sum_i |s_(i) - t_(i)| over descending order, the shorter one padded with zeros."""
    s = sorted(student_p, key=lambda x: -float(x.detach()))[:top_k]
    t = sorted(teacher_p, key=lambda x: -float(x.detach()))[:top_k]
    zero = torch.zeros((), dtype=torch.float64)
    total = zero
    for i in range(max(len(s), len(t))):
        s_i = s[i] if i < len(s) else zero
        t_i = t[i] if i < len(t) else zero
        total = total + (s_i - t_i).abs()
    return total


def h_kl(
    student_logits_NV: Tensor,
    teacher_logits_MU: Tensor,
    chunks: Chunks,
    projection: Projection,
    pairs: tuple[np.ndarray, np.ndarray],
    *,
    direction: Direction = "teacher_to_student",
    temperature: float = 1.0,
    pooling: Pooling = "first",
    lambda_kl: float = 1.0,
    lambda_uld: float = 1.0,
    uld_top_k: int | None = None,
    jsd_beta: float = 0.5,
) -> Tensor:
    """H-KL and GOLD: lambda_kl * D(common pairs) + lambda_uld * sorted L1 of the rest.

    The log-probabilities are the full vocabulary's on each side, so the common part is a sum
    over measures that don't sum to one. GOLD: `pairs` are the exact ones only.
    """
    common_student = [int(v) for v in pairs[0]]
    common_teacher = [int(u) for u in pairs[1]]
    student_rest = sorted(set(range(projection.student_size)) - set(common_student))
    teacher_rest = sorted(set(range(projection.teacher_size)) - set(common_teacher))
    total = torch.zeros((), dtype=torch.float64)
    for student, teacher in sides(
        student_logits_NV, teacher_logits_MU, chunks, projection, temperature
    ):
        s = pooled_log_probs(student, pooling).exp()
        t = pooled_log_probs(teacher, pooling).exp()
        common = divergence(t[common_teacher], s[common_student], direction, jsd_beta)
        rest = sorted_l1(s[student_rest], t[teacher_rest], uld_top_k)
        total = total + temperature**2 * (lambda_kl * common + lambda_uld * rest)
    return total


def uld(
    student_logits_NV: Tensor,
    teacher_logits_MU: Tensor,
    chunks: Chunks,
    projection: Projection,
    *,
    temperature: float = 1.0,
    pooling: Pooling = "first",
    top_k: int | None = None,
) -> Tensor:
    """ULD (arXiv 2402.12030): L1 between the sorted full distributions."""
    total = torch.zeros((), dtype=torch.float64)
    for student, teacher in sides(
        student_logits_NV, teacher_logits_MU, chunks, projection, temperature
    ):
        s = pooled_log_probs(student, pooling).exp()
        t = pooled_log_probs(teacher, pooling).exp()
        total = total + temperature**2 * sorted_l1(s, t, top_k)
    return total


def direct(
    student_logits_NV: Tensor,
    teacher_logits_MU: Tensor,
    chunks: Chunks,
    projection: Projection,
    *,
    direction: Direction = "teacher_to_student",
    temperature: float = 1.0,
    jsd_beta: float = 0.5,
) -> Tensor:
    """Equal vocabularies: tau^2 * D between the distributions at each chunk's first position."""
    total = torch.zeros((), dtype=torch.float64)
    for student, teacher in sides(
        student_logits_NV, teacher_logits_MU, chunks, projection, temperature
    ):
        p, q = teacher.logp_nV[0].exp(), student.logp_nV[0].exp()
        total = total + temperature**2 * divergence(p, q, direction, jsd_beta)
    return total


def cross_entropy(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """-sum over rows of log p(target), rows with target -100 left out."""
    total = torch.zeros((), dtype=torch.float64)
    for row, target in zip(logits_NV, targets_N, strict=True):
        if int(target) != -100:
            total = total - torch.log_softmax(row.double(), dim=-1)[int(target)]
    return total
