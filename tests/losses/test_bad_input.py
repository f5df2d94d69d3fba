"""Each wrong argument is refused before any work, by name, with what was given and expected."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from losses.helpers import (
    STUDENT,
    TEACHER,
    case_for,
    loss_for,
    make_case,
    run,
    run_reference,
    small_projection,
)
from xtoken.errors import LossError, ProjectionError, XTokenError
from xtoken.losses import (
    GOLD,
    HKL,
    LOSSES,
    PKL,
    ULD,
    Direct,
    cross_entropy,
    cross_entropy_term,
    divergence,
    loss_settings,
    make_loss,
    reference,
    run_terms,
)
from xtoken.losses.divergence import DIRECTIONS
from xtoken.projection import Projection

W = small_projection()
PAIR = Projection.build(STUDENT, TEACHER)
ROW = torch.zeros(2, 3)
cross = cross_entropy_term(torch.zeros(2, 7), torch.tensor([1, 2]))


def shuffled() -> Projection:
    """As many ids on either side, but each maps to another."""
    indices = np.array([[1], [2], [0]], dtype=np.int32)
    return Projection.from_arrays(
        indices, np.ones((3, 1), dtype=np.float32), np.ones(3, dtype=bool), teacher_size=3
    )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PKL(W, temperature=0.0), ["temperature", "0.0", "positive"]),
        (lambda: HKL(W, temperature=-1.0), ["temperature", "-1.0"]),
        (lambda: PKL(W, temperature=float("nan")), ["temperature", "nan"]),
        (lambda: PKL(W, pooling="last"), ["pooling", "'last'", "chain_rule"]),
        (lambda: ULD(W, pooling="mean"), ["uld", "pooling", "'mean'", "first"]),
        (lambda: PKL(W, direction="reverse"), ["direction", "student_to_teacher"]),
        (lambda: PKL(W, support="all"), ["support", "'all'", "topk_rest"]),
        (lambda: PKL(W, support="topk_rest", top_k=9), ["top_k", "9", "8"]),
        (lambda: PKL(W, support="topk_batch", top_k=0), ["top_k", "0"]),
        (lambda: PKL(W, top_k=5), ["top_k", "support", "'full'"]),
        (lambda: PKL(W, jsd_beta=0.5), ["jsd_beta", "direction"]),
        (lambda: PKL(W, direction="jsd", jsd_beta=1.5), ["jsd_beta", "1.5"]),
        (lambda: HKL(W, lambda_kl=-1.0), ["lambda_kl", "-1.0"]),
        (lambda: HKL(W, uld_top_k=100), ["uld_top_k", "100"]),
        (lambda: GOLD(W, lambda_kl=1.0), ["lambda_kl", "auto", "fixed"]),
        (lambda: GOLD(W, weights="half"), ["weights", "'half'"]),
        (lambda: Direct(5, np.zeros(4, dtype=bool)), ["masked", "(4,)", "(5,)"]),
        (lambda: make_loss("pkl", projection=W), ["'pkl'", "Did you mean p_kl?"]),
        (lambda: make_loss("p_kl", projection=W, temprature=2), ["temprature", "temperature?"]),
        (lambda: make_loss("p_kl"), ["p_kl", "projection"]),
        (lambda: make_loss("direct", projection=W), ["direct", "7", "8"]),
        (lambda: make_loss("direct", projection=shuffled()), ["direct", "maps one vocabulary to"]),
        (lambda: make_loss("direct", projection=PAIR, student_vocab=STUDENT), ["14", "13"]),
        (lambda: PKL(W, temperature="2"), ["temperature", "'2'"]),
        (lambda: PKL(W, support="topk_rest", top_k=2.5), ["top_k", "2.5", "1 to 8"]),
        (lambda: HKL(W, threshold=float("nan")), ["threshold", "nan"]),
        (lambda: HKL(W, threshold=-1.0), ["threshold", "-1.0"]),
        (lambda: HKL(W, lambda_kl="1"), ["lambda_kl", "'1'"]),
        (lambda: PKL(W, direction="jsd", jsd_beta="half"), ["jsd_beta", "'half'"]),
        (lambda: divergence(ROW, ROW, "reverse"), ["direction", "'reverse'", "jsd"]),
        (lambda: divergence(ROW, ROW, "jsd", 1.5), ["jsd_beta", "1.5"]),
        (lambda: divergence(ROW, ROW[:, :2], "jsd"), ["(2, 3)", "(2, 2)"]),
        (lambda: run_terms(torch.zeros(2, 7), []), ["terms", "empty"]),
        (lambda: run_terms(torch.zeros(2, 7), [cross], head_rows=0), ["head_rows", "0"]),
        (lambda: run_terms(torch.zeros(2, 7), [replace(cross, weight=float("nan"))]), ["nan"]),
        (lambda: make_loss("direct"), ["student_vocab"]),
        (lambda: make_loss("csd", projection=W), ["csd", "student_vocab"]),
        (lambda: make_loss("alm", projection=W, alm_temperature=0), ["alm_temperature", "0"]),
        (lambda: PKL(W, weights="free"), ["weights", "'free'", "learned"]),
    ],
)
def test_settings(make, words):
    with pytest.raises(LossError) as caught:
        make()
    for word in words:
        assert word in str(caught.value)


def bare(exact: bool) -> Projection:
    indices = np.array([[0], [1]], dtype=np.int32)
    weights = np.full((2, 1), 0.0 if exact is None else 1.0, dtype=np.float32)
    return Projection.from_arrays(indices, weights, np.zeros(2, dtype=bool), teacher_size=3)


def test_empty_common_set():
    for make in (lambda p: GOLD(p), lambda p: HKL(p, threshold=1.5)):
        with pytest.raises(LossError, match=r"no token in common.*path_kl"):
            make(bare(False))
    HKL(bare(False))  # heavy pairs are common enough


def test_projection_that_reaches_nothing():
    indices = np.full((2, 1), -1, dtype=np.int32)
    weights = np.zeros((2, 1), dtype=np.float32)
    empty = Projection.from_arrays(indices, weights, np.zeros(2, dtype=bool), teacher_size=3)
    with pytest.raises(LossError, match="reaches no teacher id"):
        PKL(empty)


@pytest.mark.parametrize("kind", sorted(LOSSES))
def test_shapes(kind):
    case = case_for(kind)
    loss = loss_for(kind, case)
    N, V, U = len(case.student), loss.student_size, loss.teacher_size
    with pytest.raises(LossError, match=rf"student_logits_NV has shape \({N}, 6\).*\[{N}, {V}\]"):
        loss(case.student[:, :6], case.teacher, case.chunks)
    with pytest.raises(LossError, match=rf"teacher_logits_MU has shape \(13, 5\).*\[13, {U}\]"):
        loss(case.student, case.teacher[:, :5], case.chunks)
    with pytest.raises(LossError, match=r"two dimensions"):
        loss(case.student[None], case.teacher, case.chunks)
    with pytest.raises(LossError, match=rf"student_target_N has shape \({N},\).*9 rows"):
        loss(case.student[:9], case.teacher, case.chunks)
    bad = replace(case.chunks, student_start_C=case.chunks.student_start_C + 2)
    with pytest.raises(LossError, match=rf"student rows 2 to {N}.*expected rows 0 to {N - 1}"):
        loss(case.student, case.teacher, bad)
    bad = replace(case.chunks, teacher_count_C=case.chunks.teacher_count_C * 0)
    with pytest.raises(LossError, match="counts from 0"):
        loss(case.student, case.teacher, bad)
    bad = replace(case.chunks, teacher_count_C=case.chunks.teacher_count_C[:3])
    with pytest.raises(LossError, match=r"teacher_count_C has shape \(3,\); expected \(\d,\)"):
        loss(case.student, case.teacher, bad)
    bad = replace(case.chunks, student_start_C=case.chunks.student_start_C.int())
    with pytest.raises(LossError, match=r"int32; expected torch.int64"):
        loss(case.student, case.teacher, bad)


@pytest.mark.parametrize("kind", sorted(LOSSES))
@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("bad", [-1, 99])
def test_chunks_whose_tokens_are_no_ids(kind, side, bad):
    settings = {"pooling": "chain_rule"} if "chain_rule" in LOSSES[kind].poolings else {}
    case = case_for(kind)
    loss = loss_for(kind, case, **settings)
    name = "student_target_N" if side == "student" else "teacher_target_M"
    target = getattr(case.chunks, name).clone()
    inside = int(getattr(case.chunks, f"{side}_start_C")[2])
    target[inside] = bad
    chunks = replace(case.chunks, **{name: target})
    size = getattr(loss, f"{side}_size")
    if not loss.reads_targets:
        assert kind in ("strict", "bpm", "direct")
        assert loss(case.student, case.teacher, chunks).total.isfinite()
        return
    with pytest.raises(LossError, match=rf"{name} .*chunk 2 are \[{bad}.*0 to {size - 1}"):
        loss(case.student, case.teacher, chunks)


@pytest.mark.parametrize("bad", [-1, 7])
def test_cross_entropy_of_ids_that_are_none(bad):
    targets = torch.tensor([2, -100, bad, 3])
    with pytest.raises(LossError, match=rf"targets_N holds 1 ids .*row 2 holds {bad}\..*0 to 6"):
        cross_entropy(torch.zeros(4, 7), targets)
    with pytest.raises(LossError, match=r"targets_N is torch\.int32"):
        cross_entropy(torch.zeros(4, 7), targets.int())


def test_a_label_that_the_model_excludes_costs_infinity():
    """As in PyTorch: it is a fault of the data that nobody should overlook."""
    logits = torch.zeros(2, 7)
    logits[1, 3] = -float("inf")
    assert cross_entropy(logits, torch.tensor([2, 3])).total == float("inf")
    assert cross_entropy(logits, torch.tensor([2, 4])).total.isfinite()


@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("bad", [-7, 99])
def test_path_kl_takes_an_unknown_id_before_a_chunk_as_none(side, bad):
    case = case_for("path_kl")
    loss = loss_for("path_kl", case)
    chunks = case.chunks.select(torch.tensor([2, 4]))
    name = "student_target_N" if side == "student" else "teacher_target_M"
    before = int(getattr(chunks, f"{side}_start_C")[0]) - 1
    found = []
    for value in (-1, bad):
        target = getattr(chunks, name).clone()
        target[before] = value
        changed = replace(chunks, **{name: target})
        found.append(float(loss(case.student, case.teacher, changed).total))
        assert loss.count(changed) == 2
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", ["csd", "bpm", "path_kl"])
def test_a_projection_for_other_tokenizers(kind):
    """Also where a loss is made by its class, not by name."""
    for make in (LOSSES[kind], lambda p, s, t: make_loss(kind, projection=p, student_vocab=s,
                                                         teacher_vocab=t)):  # fmt: skip
        with pytest.raises(ProjectionError, match="built for the student tokenizer"):
            make(Projection.build(STUDENT, TEACHER), TEACHER, STUDENT)
        with pytest.raises(ProjectionError, match="bare arrays"):
            make(W, STUDENT, TEACHER)


@pytest.mark.parametrize("kind", sorted(LOSSES))
@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize(
    ("value", "word"), [(float("nan"), "NaN"), (-float("inf"), "all -inf"), (float("inf"), "inf")]
)
def test_rows_that_are_no_distribution(kind, side, value, word):
    case = case_for(kind)
    logits = getattr(case, side)
    loss = loss_for(kind, case)
    size = getattr(loss, f"{side}_size")
    logits[0 if side == "student" else 1, :size] = value  # what the first chunk reads
    with pytest.raises(LossError, match=f"{side}_logits .*{word}"):
        loss(case.student, case.teacher, case.chunks)


def test_a_masked_id_alone_is_no_distribution():
    case = make_case()
    case.student[0, :6] = -float("inf")  # id 6, the masked one, stays finite
    with pytest.raises(LossError, match=r"student_logits .*all -inf"):
        PKL(case.projection)(case.student, case.teacher, case.chunks)


def test_single_minus_infinity_is_allowed():
    case = make_case()
    case.teacher[1, 0] = -float("inf")
    student = case.student.requires_grad_()
    total = PKL(case.projection)(student, case.teacher, case.chunks).total
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(student.grad).all()


NOTHING = [-float("inf"), -1e9, torch.finfo(torch.float32).min, torch.finfo(torch.float16).min]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("direction", ["teacher_to_student", "student_to_teacher"])
@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("nothing", NOTHING)
@pytest.mark.parametrize("kind", ["direct", "p_kl"])
def test_what_a_side_excludes_counts_as_the_reference_has_it(
    kind, nothing, side, direction, temperature
):
    """A divisor of 0 is a tiny number, not one that drowns everything else."""
    case = case_for("direct")  # W = I: with sums of several ids nothing would be 0
    logits, row = (case.student, 0) if side == "student" else (case.teacher, 1)
    logits[row, 1] = nothing
    settings = {"direction": direction, "temperature": temperature}
    function = reference.direct if kind == "direct" else reference.p_kl
    result, gradient = run(loss_for(kind, case, **settings), case)
    expected, expected_gradient = run_reference(function, case, **settings)
    torch.testing.assert_close(result.total, expected, rtol=1e-6, atol=0.0)
    assert gradient.isfinite().all()
    if side == "teacher":
        torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("temperature", [0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("nothing", NOTHING)
@pytest.mark.parametrize("side", ["student", "teacher", "both"])
@pytest.mark.parametrize("kind", sorted(LOSSES))
def test_no_loss_is_drowned_by_what_a_side_excludes(kind, side, nothing, dtype, temperature):
    case = case_for(kind).to(dtype)
    settings = {} if kind == "alm" else {"temperature": temperature}
    for direction in DIRECTIONS if "direction" in loss_settings(kind) else [None]:
        own = settings | ({} if direction is None else {"direction": direction})
        loss = loss_for(kind, case, **own)
        student, teacher = case.student.clone(), case.teacher.clone()
        if side != "teacher":
            student[::2, 1] = nothing
        if side != "student":
            teacher[1::2, 2] = nothing
        result, gradient = run(loss, replace(case, student=student, teacher=teacher))
        assert abs(float(result.total)) < 300 * len(case.chunks)
        assert gradient.isfinite().all()


def test_registry_names_every_setting():
    assert set(LOSSES) >= {"p_kl", "h_kl", "gold", "uld", "direct"}
    assert loss_settings("p_kl") == {
        "direction": "teacher_to_student",
        "temperature": 1.0,
        "pooling": "first",
        "support": "full",
        "top_k": None,
        "jsd_beta": None,
        "weights": "fixed",
        "weights_learning_rate": None,
    }
    for kind in LOSSES:
        loss = loss_for(kind, case_for(kind), **loss_settings(kind))
        assert loss.kind == kind
        assert issubclass(LossError, XTokenError)
