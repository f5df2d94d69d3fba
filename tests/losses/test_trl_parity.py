"""GOLD and ULD against TRL's `ULDLoss`, the public implementation (`pip install trl`).

Which merge rule is reproduced: TRL's `observed` (the distribution at a group's first position
times the probabilities of the realised later tokens) is our pooling `chain_rule`. TRL reads
`observed` rows at the token instead of one before it, so it predicts the token after; `bayesian`
rows are not moved. To compare the losses and not the off-by-one, TRL is handed logits that are
moved by one position, so that row k predicts token k.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from xtoken.losses import make_loss
from xtoken.projection import Projection

from .helpers import Case, make_chunks

gold_trainer = pytest.importorskip(
    "trl.experimental.gold.gold_trainer", reason="TRL is a development extra: pip install trl"
)

STUDENT = ["a", "b", "ab", "c", "12", "34", "x"]
TEACHER = ["c", "1", "2", "a", "3", "4", "b", "yy", "z"]
# "ab" + "c" + "12" + "34" + "a" against "a" + "b" + "c" + "1" + "2" + "3" + "4" + "a"
STUDENT_TOKENS = ["x", "ab", "c", "12", "34", "a"]
TEACHER_TOKENS = ["z", "a", "b", "c", "1", "2", "3", "4", "a"]


class Words:
    """The one method of a tokenizer that `ULDLoss` calls."""

    def __init__(self, tokens: list[str]):
        self.tokens = tokens

    def get_vocab(self) -> dict[str, int]:
        return {token: index for index, token in enumerate(self.tokens)}


def byte_offsets(tokens: list[str]) -> list[tuple[int, int]]:
    """Offsets in the completion, which begins after the first token."""
    offsets, position = [(-1, 0)], 0
    for token in tokens[1:]:
        offsets.append((position, position + len(token)))
        position += len(token)
    return offsets


def projection() -> Projection:
    """Exact pairs where the strings are equal, other rows on the first teacher piece."""
    indices = torch.full((len(STUDENT), 1), -1, dtype=torch.int32)
    exact = torch.zeros(len(STUDENT), dtype=torch.bool)
    for row, token in enumerate(STUDENT):
        column = token if token in TEACHER else token[0]
        exact[row] = token in TEACHER
        if column in TEACHER:
            indices[row, 0] = TEACHER.index(column)
    return Projection.from_arrays(
        indices.numpy(),
        (indices >= 0).float().numpy(),
        exact=exact.numpy(),
        teacher_size=len(TEACHER),
    )


def case(spread: float, seed: int = 0) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def random(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator, dtype=torch.float64) * spread

    student_ids = torch.tensor([STUDENT.index(t) for t in STUDENT_TOKENS])
    teacher_ids = torch.tensor([TEACHER.index(t) for t in TEACHER_TOKENS])
    nothing = torch.tensor([-1])
    chunks = make_chunks(
        [(0, 1), (1, 1), (2, 1), (3, 1), (4, 1)],
        [(0, 2), (2, 1), (3, 2), (5, 2), (7, 1)],
        torch.cat([student_ids[1:], nothing]),
        torch.cat([teacher_ids[1:], nothing]),
    )
    return Case(
        random(len(student_ids), len(STUDENT)),
        random(len(teacher_ids), len(TEACHER)),
        chunks,
        projection(),
    )


def moved(logits_NV: Tensor) -> Tensor:
    """Row k predicts token k: what `observed` assumes."""
    return torch.cat([torch.zeros_like(logits_NV[:1]), logits_NV[:-1]])


def trl_loss(given: Case, *, strategy: str, hybrid: bool, **settings) -> tuple[Tensor, Tensor]:
    """TRL's distillation loss and its gradient in the student's logits."""
    config = SimpleNamespace(
        uld_crossentropy_weight=0.0,
        uld_distillation_weight=1.0,
        uld_student_temperature=1.0,
        uld_teacher_temperature=1.0,
        uld_skip_student_eos=False,
        uld_skip_teacher_eos=False,
        use_extended_uld=True,
        uld_token_merge_strategy=strategy,
        uld_use_hybrid_loss=hybrid,
        uld_hybrid_matched_weight=settings.get("matched"),
        uld_hybrid_unmatched_weight=settings.get("unmatched"),
        beta=settings.get("beta", 0.5),
    )
    peer = gold_trainer.ULDLoss(config, Words(STUDENT), Words(TEACHER))
    student = given.student.clone().requires_grad_()
    move = moved if strategy == "observed" else lambda logits: logits
    student_ids = torch.tensor([[STUDENT.index(t) for t in STUDENT_TOKENS]])
    teacher_ids = torch.tensor([[TEACHER.index(t) for t in TEACHER_TOKENS]])
    mask_first = torch.tensor([0])
    loss = peer(
        move(student).unsqueeze(0),
        move(given.teacher).unsqueeze(0),
        student_ids.index_fill(1, mask_first, -100),
        teacher_ids.index_fill(1, mask_first, -100),
        student_ids,
        teacher_ids,
        student_byte_offsets=torch.tensor([byte_offsets(STUDENT_TOKENS)]),
        teacher_byte_offsets=torch.tensor([byte_offsets(TEACHER_TOKENS)]),
    )
    (gradient,) = torch.autograd.grad(loss, student)
    return loss.detach().double(), gradient


def our_loss(given: Case, kind: str, **settings) -> tuple[Tensor, Tensor]:
    """Our loss a chunk (as TRL reports it) and its gradient."""
    loss = make_loss(kind, projection=given.projection, **settings)
    student = given.student.clone().requires_grad_()
    result = loss(student, given.teacher, given.chunks)
    mean = result.total / result.count
    (gradient,) = torch.autograd.grad(mean, student)
    return mean.detach(), gradient


def assert_same(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(ours[0], theirs[0].reshape(()), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_gold_with_automatic_weights_is_trls_hybrid_loss(beta: float, seed: int) -> None:
    given = case(1.0, seed)
    assert_same(
        our_loss(given, "gold", pooling="chain_rule", direction="jsd", jsd_beta=beta),
        trl_loss(given, strategy="observed", hybrid=True, beta=beta),
    )


def test_gold_with_fixed_weights_is_trls_hybrid_loss() -> None:
    given = case(1.0)
    assert_same(
        our_loss(
            given,
            "gold",
            pooling="chain_rule",
            direction="jsd",
            jsd_beta=0.5,
            weights="fixed",
            lambda_kl=0.7,
            lambda_uld=1.9,
        ),
        trl_loss(given, strategy="observed", hybrid=True, beta=0.5, matched=0.7, unmatched=1.9),
    )


def test_uld_is_trls_loss_without_the_hybrid_part() -> None:
    given = case(1.0)
    assert_same(
        our_loss(given, "uld", pooling="chain_rule"),
        trl_loss(given, strategy="observed", hybrid=False),
    )


def test_the_bayesian_merge_is_another_rule() -> None:
    given = case(1.0)
    ours, _ = our_loss(given, "gold", pooling="chain_rule", direction="jsd", jsd_beta=0.5)
    theirs, _ = trl_loss(given, strategy="bayesian", hybrid=True, beta=0.5)
    assert abs(float(ours - theirs)) > 1e-3
