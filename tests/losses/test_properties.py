"""What has to hold for every loss, whatever the numbers."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from losses.helpers import (
    STUDENT,
    Case,
    byte_case,
    case_for,
    identity_projection,
    loss_for,
    make_case,
    make_chunks,
    run,
    small_projection,
)
from xtoken.losses import (
    ALM,
    BPM,
    CSD,
    GOLD,
    HKL,
    PKL,
    ULD,
    Chunks,
    Direct,
    Projector,
    Strict,
    agreement,
    kept_mass,
)
from xtoken.losses import (
    LOSSES as KINDS,
)
from xtoken.projection import Projection

POOLINGS = ["first", "chain_rule", "mean"]
DIRECTIONS = ["teacher_to_student", "student_to_teacher", "jsd"]
LOSSES = {
    "p_kl": PKL,
    "p_kl reached chain": lambda p: PKL(p, support="reached", pooling="chain_rule"),
    "p_kl mean": lambda p: PKL(p, pooling="mean"),
    "p_kl rest": lambda p: PKL(p, support="topk_rest", top_k=2),
    "p_kl reverse": lambda p: PKL(p, direction="student_to_teacher"),
    "p_kl jsd": lambda p: PKL(p, direction="jsd"),
    "h_kl": HKL,
    "h_kl mean": lambda p: HKL(p, pooling="mean"),
    "h_kl chain": lambda p: HKL(p, pooling="chain_rule"),
    "gold": GOLD,
    "gold chain": lambda p: GOLD(p, pooling="chain_rule"),
    "uld": ULD,
    "uld chain": lambda p: ULD(p, pooling="chain_rule"),
    "strict": Strict,
    "alm": ALM,
}


def one_to_one(case: Case) -> Case:
    """The same logits with chunks of one token on each side, at equal rows and targets."""
    pairs = [(r, 1) for r in (0, 1, 2, 5, 8, 9)]
    targets = case.chunks.student_target_N, case.chunks.teacher_target_M
    return replace(case, chunks=make_chunks(pairs, pairs, *targets))


def twins(size: int = 7) -> Case:
    """Student and teacher with one vocabulary, the same logits and the same chunks."""
    case = make_case(identity_projection(size, masked=(3,)), padded=(2, 2))
    pairs = [(0, 1), (1, 2), (4, 3), (8, 1)]
    chunks = make_chunks(pairs, pairs, case.chunks.student_target_N, case.chunks.student_target_N)
    return Case(case.student, case.student.clone(), chunks, case.projection)


@pytest.mark.parametrize("name", [n for n in LOSSES if n != "p_kl mean"])
def test_a_student_equal_to_its_teacher_has_no_loss(name):
    case = twins()
    result, gradient = run(LOSSES[name](case.projection), case)
    assert abs(float(result.total)) < 1e-9
    if name.startswith("p_kl") and "chain" not in name:  # between unnormalised sets 0 is no minimum
        assert gradient.abs().max() < 1e-9
    if "kept_mass" in result.metrics and "rest" not in name:
        _, count = result.metrics["kept_mass"]
        assert float(count) == (2 if name == "strict" else 4)


def test_a_student_equal_to_its_teacher_has_no_loss_on_events():
    """CSD and BPM between two copies of one vocabulary, chunks of one token."""
    for make in (CSD, BPM):
        projection = Projection.build(STUDENT, STUDENT)
        case = byte_case()
        target = case.chunks.student_target_N
        pairs = [(r, 1) for r in (0, 1, 6, 9)]
        chunks = make_chunks(pairs, pairs, target, target)
        case = Case(case.student, case.student.clone(), chunks, projection)
        result, gradient = run(make(projection, STUDENT, STUDENT), case)
        assert abs(float(result.total)) < 1e-9
        assert gradient.abs().max() < 1e-9


@pytest.mark.parametrize("support", ["full", "reached"])
def test_mean_pooling_has_no_loss_on_one_to_one_chunks(support):
    case = one_to_one(twins())
    result, _ = run(PKL(case.projection, pooling="mean", support=support), case)
    assert abs(float(result.total)) < 1e-7  # its own epsilons are 1e-10 a column


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_p_kl_with_equal_vocabularies_is_direct_kl(direction, temperature):
    projection = identity_projection(7, masked=(3,))
    case = make_case(projection)
    common = {"direction": direction, "temperature": temperature}
    direct, direct_gradient = run(Direct(7, projection.student_masked, **common), case)
    for support, k in (("full", None), ("reached", None), ("topk_rest", 7)):
        loss = PKL(projection, support=support, top_k=k, **common)
        result, gradient = run(loss, case)
        torch.testing.assert_close(result.total, direct.total)
        torch.testing.assert_close(gradient, direct_gradient)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_rest_bucket_with_all_ids_is_full_support(pooling, direction):
    case = make_case()
    full, full_gradient = run(PKL(case.projection, pooling=pooling, direction=direction), case)
    loss = PKL(case.projection, pooling=pooling, direction=direction, support="topk_rest", top_k=8)
    result, gradient = run(loss, case)
    torch.testing.assert_close(result.total, full.total)
    torch.testing.assert_close(gradient, full_gradient)


@given(seed=st.integers(0, 10_000), spread=st.sampled_from([0.1, 1.0, 4.0]))
@settings(max_examples=30, deadline=None)
def test_rest_bucket_is_a_lower_bound_that_grows_with_k(seed, spread):
    case = make_case(seed=seed, spread=spread)
    values = [
        float(run(PKL(case.projection, support="topk_rest", top_k=k), case)[0].total)
        for k in (1, 2, 3, 5)
    ]
    values.append(float(run(PKL(case.projection), case)[0].total))
    assert all(low <= high + 1e-9 for low, high in pairwise(values))
    assert values[0] >= -1e-9


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_splitting_the_chunks_of_any_kind_adds_up(kind):
    case = case_for(kind)
    loss = loss_for(kind, case)
    whole, gradient = run(loss, case)
    parts = [
        run(loss, replace(case, chunks=case.chunks.select(index)))
        for index in (
            torch.tensor([4, 1]),
            torch.tensor([0, 2, 3]),
            torch.tensor([5]),
            torch.arange(6, len(case.chunks)),
        )
    ]
    torch.testing.assert_close(sum(p[0].total for p in parts), whole.total)
    torch.testing.assert_close(sum(p[0].count for p in parts), whole.count)
    torch.testing.assert_close(sum(p[1] for p in parts), gradient)


@pytest.mark.parametrize("name", list(LOSSES))
def test_splitting_the_chunks_adds_up(name):
    case = make_case()
    loss = LOSSES[name](case.projection)
    whole, gradient = run(loss, case)
    parts = [
        run(loss, replace(case, chunks=case.chunks.select(index)))
        for index in (torch.tensor([4, 1]), torch.tensor([0, 2, 3]), torch.tensor([5]))
    ]
    torch.testing.assert_close(sum(p[0].total for p in parts), whole.total)
    torch.testing.assert_close(sum(p[0].count for p in parts), whole.count)
    torch.testing.assert_close(sum(p[1] for p in parts), gradient)


@pytest.mark.parametrize("name", list(LOSSES))
def test_relabelling_ids_changes_nothing(name):
    case = make_case()
    projection = case.projection
    rng = np.random.default_rng(5)
    new_student, new_teacher = rng.permutation(7), rng.permutation(8)  # new id of each old id
    old_student, old_teacher = np.argsort(new_student), np.argsort(new_teacher)

    def rename(ids, new):
        return np.where(ids < 0, -1, new[np.maximum(ids, 0)]).astype(np.int32)

    renamed = Projection.from_arrays(
        rename(projection.indices, new_teacher)[old_student],
        projection.weights[old_student],
        projection.exact[old_student],
        teacher_size=8,
        student_masked=projection.student_masked[old_student],
        teacher_masked=projection.teacher_masked[old_teacher],
        teacher_fold=rename(projection.teacher_fold, new_teacher)[old_teacher],
    )
    chunks = Chunks(
        *(getattr(case.chunks, f"{side}_{what}_C") for side in ("student", "teacher")
          for what in ("start", "count")),
        *(torch.from_numpy(rename(target.numpy(), new)).long() for target, new in (
            (case.chunks.student_target_N, new_student),
            (case.chunks.teacher_target_M, new_teacher),
        )),
    )  # fmt: skip
    student, teacher = case.student.clone(), case.teacher.clone()
    student[:, :7] = case.student[:, :7][:, old_student]
    teacher[:, :8] = case.teacher[:, :8][:, old_teacher]
    expected, expected_gradient = run(LOSSES[name](projection), case)
    result, gradient = run(LOSSES[name](renamed), Case(student, teacher, chunks, renamed))
    torch.testing.assert_close(result.total, expected.total)
    torch.testing.assert_close(gradient[:, :7][:, new_student], expected_gradient[:, :7])


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_no_chunks_give_zero_and_a_zero_gradient(kind):
    case = case_for(kind)
    case = replace(case, chunks=case.chunks.select(torch.zeros(0, dtype=torch.int64)))
    result, gradient = run(loss_for(kind, case), case)
    assert float(result.total.detach()) == 0
    assert float(result.count) == 0
    assert not gradient.any()


def test_no_rows_at_all():
    empty = torch.zeros(0, dtype=torch.int64)
    chunks = Chunks(empty, empty, empty, empty, empty, empty)
    student = torch.zeros(0, 7, requires_grad=True)
    result = PKL(small_projection())(student, torch.zeros(0, 8), chunks)
    result.total.backward()
    assert float(result.total.detach()) == 0


def test_the_teacher_gets_no_gradient_and_none_is_kept_without_need():
    case = make_case()
    teacher = case.teacher.clone().requires_grad_()
    loss = PKL(case.projection)
    student = case.student.clone().requires_grad_()
    loss(student, teacher, case.chunks).total.backward()
    assert teacher.grad is None
    assert not loss(case.student, case.teacher, case.chunks).total.requires_grad
    with torch.no_grad():
        assert not loss(student, case.teacher, case.chunks).total.requires_grad


def test_chain_rule_renormalised_is_first():
    """The scalars of a chain-rule merge cancel: KL * a + a log(a / b) with a, b the scalars."""
    case = make_case()
    one = torch.tensor([3])
    case = replace(case, chunks=case.chunks.select(one))
    first, _ = run(PKL(case.projection), case)
    chain, _ = run(PKL(case.projection, pooling="chain_rule"), case)
    student = case.student[:, :6].log_softmax(-1)
    teacher = case.teacher[:, :7].log_softmax(-1)
    start_S, start_T = int(case.chunks.student_start_C[0]), int(case.chunks.teacher_start_C[0])
    b = sum(student[r, case.chunks.student_target_N[r]] for r in range(start_S + 1, start_S + 3))
    a = sum(teacher[r, case.chunks.teacher_target_M[r]] for r in range(start_T + 1, start_T + 2))
    torch.testing.assert_close(chain.total, a.exp() * (first.total + a - b))


def test_mean_pooling_loses_confident_mass():
    """Three positions sure (0.9) of different ids: the geometric mean keeps 0.10 of the mass."""
    U = 50
    projection = identity_projection(U)
    teacher = torch.full((3, U), float(np.log(0.1 / (U - 1))), dtype=torch.float64)
    for row, column in enumerate((0, 1, 2)):
        teacher[row, column] = float(np.log(0.9))
    log_mean = teacher.log_softmax(-1).mean(0)
    mass = float(log_mean.exp().sum())
    chunks = make_chunks([(0, 3)], [(0, 3)], torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2]))
    student = torch.zeros(3, U, dtype=torch.float64)
    result, _ = run(PKL(projection, pooling="mean"), Case(student, teacher, chunks, projection))
    expected = (log_mean.exp() * (log_mean - np.log(1 / U + 1e-10))).sum()
    torch.testing.assert_close(result.total, expected)
    assert mass < 0.2


def test_proposition_1_of_the_paper():
    """KL on the common set alone pushes every uncommon logit down by p_S[j] * M_C(T).

    With a full-vocabulary student softmax, d/dz_j of -sum_C p_T log p_S = p_S[j] * sum_C p_T for
    an uncommon j, whatever the label says (X-Token, section 3).
    """
    case = one_to_one(make_case())
    result, gradient = run(HKL(case.projection, lambda_uld=0.0, threshold=1.0), case)
    common_S, common_T = (torch.from_numpy(x).long() for x in case.projection.exact_pairs())
    uncommon = [v for v in range(6) if v not in common_S.tolist()]
    assert uncommon == [2, 4, 5]
    rows = case.chunks.student_start_C
    p_S = case.student[rows][:, :6].softmax(-1)
    p_T = case.teacher[rows][:, :7].softmax(-1)
    mass = p_T[:, common_T].sum(-1)
    torch.testing.assert_close(gradient[rows][:, uncommon], p_S[:, uncommon] * mass[:, None])
    assert (gradient[rows][:, uncommon] > 0).all()
    torch.testing.assert_close(result.metrics["kept_mass"][0], mass.sum())


def test_a_rest_bucket_ends_the_suppression():
    """Under strict 1:1 an unshared logit moves only by how far REST is off: p_j (1 - r_T / r_S).

    d/dz_j of -r_T log r_S - sum_shared p_T log p_S is p_j * (mass of T) - r_T p_j / r_S.
    """
    case = one_to_one(make_case())
    _, gradient = run(Strict(case.projection), case)
    common_S, common_T = (torch.from_numpy(x).long() for x in case.projection.exact_pairs())
    rows = case.chunks.student_start_C
    p_S = case.student[rows][:, :6].softmax(-1)
    r_T = 1 - case.teacher[rows][:, :7].softmax(-1)[:, common_T].sum(-1)
    r_S = 1 - p_S[:, common_S].sum(-1)
    uncommon = [2, 4, 5]
    expected = p_S[:, uncommon] * (1 - r_T / r_S)[:, None]
    torch.testing.assert_close(gradient[rows][:, uncommon], expected)
    assert (gradient[rows][:, uncommon] < 0).any()


def test_p_kl_does_not_suppress_what_shares_a_teacher_token():
    """A multi-piece token is pulled up where its first piece is what the teacher says."""
    case = one_to_one(make_case())
    teacher = torch.full_like(case.teacher, -20.0)
    teacher[:, 0] = 20.0
    case = replace(case, teacher=teacher)
    _, gradient = run(PKL(case.projection), case)
    assert (gradient[case.chunks.student_start_C][:, 2] < 0).all()


@pytest.mark.parametrize("kind", ["h_kl", "gold"])
def test_the_kept_mass_of_a_common_set_is_that_of_the_first_position(kind):
    """Whatever the pooling makes of the distributions."""
    case = make_case()
    loss = loss_for(kind, case)
    first_CU = case.teacher[case.chunks.teacher_start_C, :7].softmax(-1)
    expected = first_CU[:, loss.common_teacher_X].sum()
    for pooling in POOLINGS:
        result = loss_for(kind, case, pooling=pooling)(case.student, case.teacher, case.chunks)
        torch.testing.assert_close(result.metrics["kept_mass"][0], expected)


def test_kept_mass_and_agreement():
    case = make_case()
    projector = Projector(case.projection)
    rows = case.chunks.teacher_start_C
    p_T = case.teacher[rows][:, :7].softmax(-1)
    expected = p_T[:, [0, 1, 2, 4, 5]].sum()
    for value, count in (
        kept_mass(case.teacher, case.chunks, projector),
        run(PKL(case.projection, support="reached"), case)[0].metrics["kept_mass"],
        run(PKL(case.projection, pooling="mean"), case)[0].metrics["kept_mass"],
    ):
        assert float(value) == pytest.approx(float(expected), rel=1e-6)
        assert float(count) == 6
    hits, count = agreement(case.student, case.teacher, case.chunks, projector)
    W = torch.zeros(7, 8, dtype=torch.float64)
    for v in range(6):
        for u, w in zip(case.projection.indices[v], case.projection.weights[v], strict=True):
            if u >= 0:
                W[v, u] += float(w)
    p_S = case.student[case.chunks.student_start_C][:, :6].softmax(-1)
    reached = [0, 1, 2, 4, 5]
    agreed = (p_S @ W[:6])[:, reached].argmax(-1) == p_T[:, reached].argmax(-1)
    assert float(hits) == float(agreed.sum())
    assert float(count) == 6
    same = twins()
    hits, count = agreement(same.student, same.teacher, same.chunks, Projector(same.projection))
    assert float(hits) == float(count) == 4


def test_rest_bucket_reports_the_chosen_mass():
    case = make_case()
    result, _ = run(PKL(case.projection, support="topk_rest", top_k=1), case)
    p_T = case.teacher[case.chunks.teacher_start_C][:, :7].softmax(-1)
    folded = p_T[:, [0, 1, 2, 4, 5]].clone()
    folded[:, 0] += p_T[:, 3]
    chosen = torch.tensor([0, 1, 2, 4, 5])[folded.argmax(-1)]
    expected = p_T.gather(1, chosen[:, None]).sum()
    assert float(result.metrics["kept_mass"][0]) == pytest.approx(float(expected))
