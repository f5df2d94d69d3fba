"""Hand-made pairs for loss tests: a small W with every kind of row, chunks of every kind."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fake_vocab import FakeVocabulary, roles
from xtoken.losses import Chunks, Loss, LossResult, make_loss
from xtoken.projection import Projection


def small_projection() -> Projection:
    """V = 7, U = 8, K = 3. Student 6 and teacher 7 are masked; teacher 3 folds, 6 can't.

    Rows: 0 -> 0 and 1 -> 1 exact, 2 -> {0: .909, 2: .091}, 3 -> 4 exact,
    4 -> {4: .6, 2: .3, 1: .1}, 5 -> {5: .75, 0: .25} (a pair for H-KL).
    """
    indices = np.full((7, 3), -1, dtype=np.int32)
    weights = np.zeros((7, 3), dtype=np.float32)
    rows = {
        0: [(0, 1.0)],
        1: [(1, 1.0)],
        2: [(0, 10 / 11), (2, 1 / 11)],
        3: [(4, 1.0)],
        4: [(4, 0.6), (2, 0.3), (1, 0.1)],
        5: [(5, 0.75), (0, 0.25)],
    }
    for row, entries in rows.items():
        for slot, (column, weight) in enumerate(entries):
            indices[row, slot], weights[row, slot] = column, weight
    return Projection.from_arrays(
        indices,
        weights,
        exact=np.array([1, 1, 0, 1, 0, 0, 0], dtype=bool),
        teacher_size=8,
        student_masked=np.arange(7) == 6,
        teacher_masked=np.arange(8) == 7,
        teacher_fold=np.array([0, 1, 2, 0, 4, 5, -1, -1], dtype=np.int32),
    )


def identity_projection(size: int, masked: tuple[int, ...] = ()) -> Projection:
    """W = I, some ids missing."""
    ids = np.arange(size, dtype=np.int32)
    missing = np.isin(ids, masked)
    return Projection.from_arrays(
        np.where(missing, -1, ids)[:, None],
        (~missing).astype(np.float32)[:, None],
        exact=~missing,
        teacher_size=size,
        student_masked=missing,
        teacher_masked=missing,
    )


@dataclass
class Case:
    """Logits, chunks and W of a small batch."""

    student: Tensor
    teacher: Tensor
    chunks: Chunks
    projection: Projection

    def to(self, dtype: torch.dtype) -> Case:
        return Case(self.student.to(dtype), self.teacher.to(dtype), self.chunks, self.projection)


def make_chunks(
    student: list[tuple[int, int]],
    teacher: list[tuple[int, int]],
    student_target: Tensor,
    teacher_target: Tensor,
) -> Chunks:
    """Chunks from (start, count) pairs."""
    columns = [torch.tensor([pair[i] for pair in side], dtype=torch.int64)
               for side in (student, teacher) for i in (0, 1)]  # fmt: skip
    return Chunks(*columns, student_target, teacher_target)


def make_case(
    projection: Projection | None = None,
    *,
    seed: int = 0,
    padded: tuple[int, int] = (2, 3),
    spread: float = 1.5,
) -> Case:
    """11 student rows and 13 teacher rows with chunks 1:1, 1:3, 2:1, 3:2, 1:1, 1:2; rows unused.

    Columns beyond V and U hold large values: whoever reads them fails.
    """
    projection = small_projection() if projection is None else projection
    generator = torch.Generator().manual_seed(seed)
    V, U = projection.student_size, projection.teacher_size
    N, M = 11, 13
    student = torch.randn(N, V + padded[0], generator=generator, dtype=torch.float64) * spread
    teacher = torch.randn(M, U + padded[1], generator=generator, dtype=torch.float64) * spread
    student[:, V:] = 50.0
    teacher[:, U:] = 50.0
    real_S = torch.from_numpy(np.flatnonzero(~projection.student_masked))
    real_T = torch.from_numpy(np.flatnonzero(~projection.teacher_masked))
    student_target = real_S[torch.randint(len(real_S), (N,), generator=generator)]
    teacher_target = real_T[torch.randint(len(real_T), (M,), generator=generator)]
    student_target[10], teacher_target[12] = -1, -1
    chunks = make_chunks(
        [(0, 1), (1, 1), (2, 2), (5, 3), (8, 1), (9, 1)],
        [(1, 1), (2, 3), (5, 1), (6, 2), (8, 1), (9, 2)],
        student_target,
        teacher_target,
    )
    return Case(student, teacher, chunks, projection)


STUDENT = FakeVocabulary(
    [b"1", b"2", b"12", b"a", b"ab", b"b", b"0", roles("eos"), None, b"c", b"bc", b"13",
     roles("pad"), b"2"]
)  # fmt: skip
TEACHER = FakeVocabulary(
    [b"a", b"1", b"2", b"0", roles("eos"), b"20", b"abc", b"b", b"c", b"3", b"120",
     roles("special"), b"21"]
)  # fmt: skip
# Chunks of bytes: a | 12 | abc | 120 | eos | 13 | 2 (as the student's second id for it) | 20.
STUDENT_IDS = [3, 2, 4, 9, 2, 6, 7, 11, 13, 1, 6]
TEACHER_IDS = [0, 1, 2, 6, 1, 5, 4, 1, 9, 2, 5]
STUDENT_COUNTS = [1, 1, 2, 2, 1, 1, 1, 2]
TEACHER_COUNTS = [1, 2, 1, 2, 1, 2, 1, 1]


def byte_case(seed: int = 0, *, spread: float = 1.5) -> Case:
    """Two small vocabularies of bytes, with W as it is built for them, and a text's chunks."""
    projection = Projection.build(STUDENT, TEACHER)
    generator = torch.Generator().manual_seed(seed)
    N, M = len(STUDENT_IDS) + 1, len(TEACHER_IDS) + 2
    student = torch.randn(N, len(STUDENT) + 1, generator=generator, dtype=torch.float64) * spread
    teacher = torch.randn(M, len(TEACHER) + 2, generator=generator, dtype=torch.float64) * spread
    student[:, len(STUDENT) :] = 50.0
    teacher[:, len(TEACHER) :] = 50.0

    def pairs(counts: list[int], begin: int) -> list[tuple[int, int]]:
        return [(begin + sum(counts[:i]), count) for i, count in enumerate(counts)]

    chunks = make_chunks(
        pairs(STUDENT_COUNTS, 0),
        pairs(TEACHER_COUNTS, 1),
        torch.tensor([*STUDENT_IDS, -1]),
        torch.tensor([-1, *TEACHER_IDS, -1]),
    )
    return Case(student, teacher, chunks, projection)


def case_for(kind: str, seed: int = 0) -> Case:
    """Return a case that a kind of loss can be run on."""
    if kind == "direct":
        return make_case(identity_projection(7, masked=(3,)), seed=seed)
    if kind in ("csd", "bpm", "path_kl"):
        return byte_case(seed)
    return make_case(seed=seed)


def loss_for(kind: str, case: Case, **settings) -> Loss:
    """Make a loss for the case of its kind."""
    vocabs = {}
    if kind in ("csd", "bpm", "path_kl"):
        vocabs = {"student_vocab": STUDENT, "teacher_vocab": TEACHER}
    return make_loss(kind, projection=case.projection, **vocabs, **settings)


def run(loss: Loss, case: Case) -> tuple[LossResult, Tensor]:
    """Return the loss and its gradient in the student's logits."""
    student = case.student.clone().requires_grad_()
    result = loss(student, case.teacher, case.chunks)
    (gradient,) = torch.autograd.grad(result.total, student)
    result.total = result.total.detach()
    return result, gradient


def run_reference(function, case: Case, *args, **settings) -> tuple[Tensor, Tensor]:
    """Return the reference's loss and gradient."""
    student = case.student.clone().requires_grad_()
    total = function(student, case.teacher, case.chunks, case.projection, *args, **settings)
    if not total.requires_grad:  # no chunk counts
        return total, torch.zeros_like(student)
    (gradient,) = torch.autograd.grad(total, student)
    return total.detach(), gradient
