"""Figures that are logged beside a loss, measured with the fixed W whatever the loss is."""

from __future__ import annotations

import torch
from torch import Tensor

from xtoken.losses.base import Chunks
from xtoken.losses.checks import check_chunks, check_logits
from xtoken.losses.columns import pick
from xtoken.losses.pooling import MASKED
from xtoken.losses.projector import Projector
from xtoken.losses.sources import Source, as_source, read_rows

BLOCK_ROWS = 64


@torch.no_grad()
def agreement(
    student: Tensor | Source, teacher: Tensor | Source, chunks: Chunks, projector: Projector
) -> tuple[Tensor, Tensor]:
    """Return (hits, count): chunks where student and teacher agree on the likeliest next token.

        hit = argmax_u q[u] == argmax_u p_T[u], u over the ids that W reaches, q = W^T p_S,
              both at the chunk's first position, at temperature 1

    Args:
        student, teacher: logits or `Hidden`, as for a loss.
        chunks: the supervised chunks.
        projector: the fixed W.

    Returns:
        Two float32 scalars; their quotient, over any number of batches, is the agreement.

    Raises:
        LossError: logits narrower than W, or chunks that reach outside them.
    """
    student, teacher = as_source(student), as_source(teacher)
    check_logits("agreement", "student_logits_NV", student.shape, projector.student_size)
    check_logits("agreement", "teacher_logits_MU", teacher.shape, projector.teacher_size)
    check_chunks("agreement", chunks, student.shape[0], teacher.shape[0])
    hits = torch.zeros((), device=student.inputs[0].device)
    for begin in range(0, len(chunks), BLOCK_ROWS):
        part = slice(begin, begin + BLOCK_ROWS)
        q_CR = projector.project(
            _probs(student, chunks.student_start_C[part], projector, "student")
        )
        p_CU = _probs(teacher, chunks.teacher_start_C[part], projector, "teacher")
        p_CR = pick(p_CU, projector.reached_R)
        hits += (q_CR.argmax(-1) == p_CR.argmax(-1)).sum()
    return hits, hits.new_tensor(float(len(chunks)))


@torch.no_grad()
def kept_mass(
    teacher: Tensor | Source, chunks: Chunks, projector: Projector
) -> tuple[Tensor, Tensor]:
    """Return (sum, count) of the teacher's mass on the ids that W reaches, before any folding.

    At each chunk's first position, at temperature 1, masked ids left out. Arguments as for
    `agreement`; two float32 scalars.

    Raises:
        LossError: logits narrower than W's teacher side, or chunks that reach outside them.
    """
    teacher = as_source(teacher)
    check_logits("kept_mass", "teacher_logits_MU", teacher.shape, projector.teacher_size)
    check_chunks("kept_mass", chunks, chunks.student_target_N.shape[0], teacher.shape[0])
    total = torch.zeros((), device=teacher.inputs[0].device)
    for begin in range(0, len(chunks), BLOCK_ROWS):
        start_C = chunks.teacher_start_C[begin : begin + BLOCK_ROWS]
        p_CU = _probs(teacher, start_C, projector, "teacher")
        total += pick(p_CU, projector.reached_R).sum().to(total.dtype)
    return total, total.new_tensor(float(len(chunks)))


def _probs(source: Source, index_C: Tensor, projector: Projector, side: str) -> Tensor:
    """Return softmax of some rows over the real ids that are not masked: float32 or wider."""
    size = projector.student_size if side == "student" else projector.teacher_size
    rows = read_rows(source, index_C, size)
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    return rows.index_fill(1, getattr(projector, f"{side}_masked_X"), MASKED).softmax(-1)
