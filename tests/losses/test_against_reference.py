"""Fast losses equal the reference in value and gradient."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from losses.helpers import (
    STUDENT,
    TEACHER,
    Case,
    case_for,
    loss_for,
    make_case,
    run,
    run_reference,
    small_projection,
)
from xtoken.losses import LOSSES, PKL, cross_entropy, reference
from xtoken.losses import reference_events as events
from xtoken.losses import reference_path as paths
from xtoken.losses.blocks import Term, run_terms
from xtoken.losses.sources import LogitSource
from xtoken.projection import Projection

DIRECTIONS = [
    ("teacher_to_student", None),
    ("student_to_teacher", None),
    ("jsd", 0.3),
    ("jsd", 0.0),
    ("jsd", 1.0),
]
SUPPORTS = [
    ("full", None), ("reached", None), ("topk_rest", 1), ("topk_rest", 3), ("topk_rest", 8),
    ("topk_batch", 3), ("topk_batch", 8),
]  # fmt: skip
POOLINGS = ["first", "chain_rule", "mean"]


def settings_of(direction, beta, **more):
    more = {k: v for k, v in more.items() if v is not None}
    return {"direction": direction, **({} if beta is None else {"jsd_beta": beta}), **more}


def build(kind: str, case: Case, settings: dict):
    """Return (fast loss, reference function, its extra arguments, its settings)."""
    projection = case.projection
    loss = loss_for(kind, case, **settings)
    args: tuple = ()
    if kind == "h_kl":
        args = (projection.extended_pairs(settings.get("threshold", 0.6)),)
        settings = {k: v for k, v in settings.items() if k != "threshold"}
    if kind == "gold":
        share = len(projection.common_student) / projection.teacher_size
        args = (projection.exact_pairs(),)
        settings = {"direction": "jsd", "lambda_kl": share, "lambda_uld": 1 - share, **settings}
    texts = [[vocab.token_bytes(i) for i in range(len(vocab))] for vocab in (STUDENT, TEACHER)]
    if kind == "csd":
        args = tuple(texts)
    if kind == "bpm":
        args = (list(events.longest_prefixes(*texts, {4: 7})),)
    if kind == "path_kl":
        args = (
            paths.Paths(STUDENT, TEACHER, {7: 4}, projection.student_masked),
            paths.Paths(TEACHER, STUDENT, {4: 7}, projection.teacher_masked),
        )
    function = {"gold": reference.h_kl}.get(kind)
    if function is None:
        module = next(m for m in (events, paths, reference) if hasattr(m, kind))
        function = getattr(module, kind)
    return loss, function, args, settings


def grid():
    for (support, k), pooling, (direction, beta) in itertools.product(
        SUPPORTS, POOLINGS, DIRECTIONS
    ):
        yield "p_kl", settings_of(direction, beta, pooling=pooling, support=support, top_k=k)
    for pooling, (direction, beta) in itertools.product(POOLINGS, DIRECTIONS):
        more = {"pooling": pooling, "lambda_kl": 0.7, "lambda_uld": 1.3}
        yield "h_kl", settings_of(direction, beta, **more)
        yield "gold", settings_of(direction, beta, pooling=pooling)
    yield "h_kl", {"threshold": 0.8, "uld_top_k": 2}
    for pooling, k in itertools.product(["first", "chain_rule"], [None, 2, 8]):
        yield "uld", {"pooling": pooling, "top_k": k}
    for direction, beta in DIRECTIONS:
        for kind in ("direct", "strict", "csd", "bpm", "path_kl"):
            yield kind, settings_of(direction, beta)
        yield "csd", settings_of(direction, beta) | {"beta": 0.4}
    yield "alm", {}
    yield "alm", {"alm_temperature": 3.0}


GRID = list(grid())


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(("kind", "settings"), GRID, ids=lambda x: str(x))
def test_value_and_gradient(kind, settings, temperature):
    case = case_for(kind)
    if kind == "alm":
        temperature = 1.0  # it has its own
    else:
        settings = {**settings, "temperature": temperature}
    loss, function, args, rest = build(kind, case, settings)
    result, gradient = run(loss, case)
    expected, expected_gradient = run_reference(function, case, *args, **rest)
    assert int(result.count) == loss.count(case.chunks) == {"strict": 2}.get(kind, len(case.chunks))
    torch.testing.assert_close(result.total, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-8, atol=1e-10)
    assert not gradient[:, case.projection.student_size :].any()  # padded columns
    assert not gradient[-1].any()  # a row of no chunk


@pytest.mark.parametrize("direction", ["teacher_to_student", "student_to_teacher", "jsd"])
@pytest.mark.parametrize("larger", ["student", "teacher"])
def test_strict_where_one_side_has_no_rest(larger, direction):
    """A trimmed vocabulary: each of its ids has a partner."""
    V, U = (3, 5) if larger == "teacher" else (5, 3)
    ids = np.arange(V, dtype=np.int32)
    partner = ids < U
    projection = Projection.from_arrays(
        np.where(partner, ids, -1)[:, None],
        partner.astype(np.float32)[:, None],
        exact=partner,
        teacher_size=U,
    )
    case = make_case(projection)
    expected, expected_gradient = run_reference(events.strict, case, direction=direction)
    result, gradient = run(LOSSES["strict"](projection, direction=direction), case)
    torch.testing.assert_close(result.total, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-8, atol=1e-10)
    if direction == "teacher_to_student":  # no constant that says nothing stands in the value
        assert float(result.total) < 10 * int(result.count)
    single, _ = run(LOSSES["strict"](projection), case.to(torch.float32))
    assert float(single.total) < 10 * int(single.count)


def test_p_kl_where_no_teacher_id_is_masked():
    plain = small_projection()
    projection = Projection.from_arrays(
        plain.indices,
        plain.weights,
        exact=plain.exact,
        teacher_size=plain.teacher_size,
        student_masked=plain.student_masked,
        teacher_masked=np.zeros(plain.teacher_size, dtype=bool),
        teacher_fold=np.array([0, 1, 2, 0, 4, 5, -1, 2], dtype=np.int32),
    )
    case = make_case(projection)
    result, gradient = run(PKL(projection), case)
    expected, expected_gradient = run_reference(reference.p_kl, case)
    torch.testing.assert_close(result.total, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("unfolded", [False, True], ids=["all fold", "one folds nowhere"])
def test_p_kl_with_columns_of_every_kind(temperature, unfolded):
    """0 and 1 match alone, 2 and 3 are sums, 4 folds into 2, 5 folds into 3 or nowhere."""
    projection = Projection.from_arrays(
        np.array([[0, -1], [2, 3], [1, -1], [3, -1]], dtype=np.int32),
        np.array([[1, 0], [0.9, 0.1], [1, 0], [1, 0]], dtype=np.float32),
        exact=np.array([True, False, True, True]),
        teacher_size=7,
        student_masked=np.zeros(4, dtype=bool),
        teacher_masked=np.arange(7) == 6,
        teacher_fold=np.array([0, 1, 2, 3, 2, -1 if unfolded else 3, -1], dtype=np.int32),
    )
    case = make_case(projection)
    case.teacher[:, 5] += 6.0  # the largest of its row
    result, gradient = run(PKL(projection, temperature=temperature), case)
    expected, expected_gradient = run_reference(reference.p_kl, case, temperature=temperature)
    torch.testing.assert_close(result.total, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-8, atol=1e-10)
    rows_CU = case.teacher[case.chunks.teacher_start_C, :6] / temperature
    kept = rows_CU.softmax(-1)[:, :4].sum()
    torch.testing.assert_close(result.metrics["kept_mass"][0], kept, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_p_kl_rest_where_columns_share_tokens(k, temperature):
    """Tokens read by several listed columns, one read by none, one whose pieces are masked."""
    projection = Projection.from_arrays(
        np.array([[0, -1], [1, 2], [1, 3], [-1, -1], [3, 0], [4, -1]], dtype=np.int32),
        np.array([[1, 0], [0.9, 0.1], [0.3, 0.7], [0, 0], [0.6, 0.4], [1, 0]], dtype=np.float32),
        exact=np.array([True, False, False, False, False, False]),
        teacher_size=6,
        student_masked=np.zeros(6, dtype=bool),
        teacher_masked=np.arange(6) == 4,
        teacher_fold=np.array([0, 1, 2, 3, -1, 3], dtype=np.int32),
    )
    case = make_case(projection)
    loss = PKL(projection, support="topk_rest", top_k=k, temperature=temperature)
    result, gradient = run(loss, case)
    expected, expected_gradient = run_reference(
        reference.p_kl, case, support="topk_rest", top_k=k, temperature=temperature
    )
    torch.testing.assert_close(result.total, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-8, atol=1e-10)
    single, single_gradient = run(loss, case.to(torch.float32))
    torch.testing.assert_close(single.total.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(single_gradient.double(), expected_gradient, rtol=1e-5, atol=1e-6)


def test_p_kl_rest_where_an_unlisted_piece_weighs_next_to_nothing():
    projection = Projection.from_arrays(
        np.array([[0, 1, 2, 3], [4, -1, -1, -1]], dtype=np.int32),
        np.array([[0.99, 0.0099, 9.9e-5, 1e-6], [1, 0, 0, 0]], dtype=np.float32),
        exact=np.array([False, True]),
        teacher_size=5,
        student_masked=np.zeros(2, dtype=bool),
        teacher_masked=np.zeros(5, dtype=bool),
        teacher_fold=np.arange(5, dtype=np.int32),
    )
    case = make_case(projection)
    case.student[:, 1] -= 30.0  # REST is what the last piece of token 0 holds
    case.teacher[:, 3:] -= 10.0
    loss = PKL(projection, support="topk_rest", top_k=3)
    settings = {"support": "topk_rest", "top_k": 3}
    single = case.to(torch.float32)
    value, expected = run_reference(reference.p_kl, single.to(torch.float64), **settings)
    result, gradient = run(loss, single)
    # One minus the listed weights is right to 6e-8 in float32, of a millionth.
    torch.testing.assert_close(result.total.double(), value, rtol=2e-2, atol=1e-5)
    torch.testing.assert_close(gradient.double(), expected, rtol=0.1, atol=1e-5)
    whole, whole_gradient = run(loss, case)
    value, expected = run_reference(reference.p_kl, case, **settings)
    torch.testing.assert_close(whole.total, value, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(whole_gradient, expected, rtol=1e-8, atol=1e-10)


# The last ones leave 6e-8 when float32 adds them up.
@pytest.mark.parametrize(
    "weights", [(0.9, 0.09, 0.01), (0.522292971611023, 0.31847134232521057, 0.15923567116260529)]
)
def test_p_kl_rest_holds_nothing_of_a_token_whose_pieces_are_all_listed(weights):
    projection = Projection.from_arrays(
        np.array([[0, 1, 2], [3, -1, -1]], dtype=np.int32),
        np.array([weights, [1, 0, 0]], dtype=np.float32),
        exact=np.array([False, True]),
        teacher_size=4,
        student_masked=np.zeros(2, dtype=bool),
        teacher_masked=np.zeros(4, dtype=bool),
        teacher_fold=np.arange(4, dtype=np.int32),
    )
    case = make_case(projection)
    case.student[:, 1] -= 40.0  # REST is token 1 alone, far below float32's rounding of one
    case.teacher[:, 3] -= 10.0
    single = case.to(torch.float32)
    settings = {"support": "topk_rest", "top_k": 3}
    expected, _ = run_reference(reference.p_kl, single.to(torch.float64), **settings)
    result, _ = run(PKL(projection, **settings), single)
    torch.testing.assert_close(result.total.double(), expected, rtol=1e-5, atol=1e-6)


def test_p_kl_rest_of_a_confident_student():
    """REST is right where it is a millionth: not one minus what is listed."""
    projection = small_projection()
    case = make_case(projection)
    case.student[:, 2] += 16.0
    loss = PKL(projection, support="topk_rest", top_k=3)
    settings = {"support": "topk_rest", "top_k": 3}
    _, expected = run_reference(
        reference.p_kl, case.to(torch.float32).to(torch.float64), **settings
    )
    _, gradient = run(loss, case.to(torch.float32))
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=1e-6)


# Every fifth of the grid: all losses, directions, poolings and supports come up.
@pytest.mark.parametrize(("kind", "settings"), GRID[::5], ids=str)
def test_gradcheck(kind, settings):
    case = case_for(kind)
    if kind != "alm":  # it has its own temperature
        settings = {**settings, "temperature": 1.7}
    loss, *_ = build(kind, case, settings)

    def function(student):
        return loss(student, case.teacher, case.chunks).total

    assert torch.autograd.gradcheck(function, case.student.requires_grad_())


@pytest.mark.parametrize("kind", sorted(LOSSES))
@pytest.mark.parametrize("block_rows", [1, 2, 3, 64])
def test_block_size_changes_nothing(kind, block_rows):
    case = case_for(kind)
    settings = {"pooling": "chain_rule"} if "chain_rule" in LOSSES[kind].poolings else {}
    loss, *_ = build(kind, case, settings)
    student = case.student.clone().requires_grad_()
    term = Term(loss, case.chunks, LogitSource(case.teacher))
    total, (result,) = run_terms(LogitSource(student), [term], block_rows=block_rows)
    (gradient,) = torch.autograd.grad(total, student)
    whole, expected = run(loss, case)
    torch.testing.assert_close(result.total, whole.total)
    torch.testing.assert_close(gradient, expected)
    for name, (value, count) in whole.metrics.items():
        torch.testing.assert_close(result.metrics[name][0], value)
        torch.testing.assert_close(result.metrics[name][1], count)


@pytest.mark.parametrize("kind", sorted(LOSSES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_is_no_worse_than_naive(kind, dtype):
    """Our error against float64 is bounded by that of a log-softmax in the input's precision."""
    settings = {"pooling": "chain_rule"} if "chain_rule" in LOSSES[kind].poolings else {}
    case = case_for(kind).to(dtype)
    loss, function, args, rest = build(kind, case, settings)
    result, gradient = run(loss, case)
    assert result.total.dtype == torch.float32
    assert gradient.dtype == dtype
    exact, exact_gradient = run_reference(function, case.to(torch.float64), *args, **rest)
    # The inputs are exact in both, so that only our own rounding is seen.
    scale = max(1.0, abs(float(exact)))
    error = abs(float(result.total.detach() - exact))
    gradient_error = (gradient.double() - exact_gradient).abs().max()
    largest = exact_gradient.abs().max()
    eps = torch.finfo(dtype).eps
    assert error < 1e-5 * scale
    assert gradient_error <= 2 * eps * largest + 1e-6
    # The naive version: everything after the log-softmax is exact, and the gradient goes back
    # through it in the input's precision.
    student = case.student.requires_grad_()
    log_student = student[:, : loss.student_size].log_softmax(-1)
    log_teacher = case.teacher[:, : loss.teacher_size].log_softmax(-1)
    naive = function(
        log_student.double(), log_teacher.double(), case.chunks, case.projection, *args, **rest
    )
    (naive_gradient,) = torch.autograd.grad(naive, student)
    naive_error = abs(float(naive.detach() - exact))
    naive_gradient_error = (naive_gradient.double() - exact_gradient).abs().max()
    one = torch.finfo(torch.float32).eps
    assert error <= 2 * naive_error + 8 * one * scale
    assert gradient_error <= 2 * naive_gradient_error + eps * largest + 8 * one
    if dtype == torch.bfloat16:
        assert error < naive_error / 4  # (in float16 its errors cancel once)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_cross_entropy(dtype):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(9, 5, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    targets = torch.tensor([0, 4, -100, 2, 1, -100, 3, 3, 0])
    result = cross_entropy(logits, targets)
    expected = reference.cross_entropy(logits.double(), targets)
    assert float(result.count) == 7
    assert float(result.total.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert result.total.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_a_retained_graph_gives_the_same_gradient_twice():
    case = case_for("p_kl")
    student = case.student.requires_grad_()
    total = PKL(case.projection)(student, case.teacher, case.chunks).total
    (first,) = torch.autograd.grad(3.0 * total, student, retain_graph=True)
    (second,) = torch.autograd.grad(total, student)
    torch.testing.assert_close(first, 3.0 * second)
