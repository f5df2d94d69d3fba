"""Fast losses equal the reference in value and gradient."""

from __future__ import annotations

import itertools

import pytest
import torch

from losses.helpers import Case, identity_projection, make_case, run, run_reference
from xtoken.losses import GOLD, HKL, LOSSES, PKL, ULD, Direct, cross_entropy, reference
from xtoken.losses.blocks import Term, run_terms
from xtoken.losses.sources import LogitSource

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
    if kind == "p_kl":
        return PKL(projection, **settings), reference.p_kl, (), settings
    if kind == "h_kl":
        threshold = settings.get("threshold", 0.6)
        rest = {k: v for k, v in settings.items() if k != "threshold"}
        pairs = projection.extended_pairs(threshold)
        return HKL(projection, **settings), reference.h_kl, (pairs,), rest
    if kind == "gold":
        share = len(projection.common_student) / projection.teacher_size
        loss = GOLD(projection, **settings)
        rest = {"direction": "jsd", "lambda_kl": share, "lambda_uld": 1 - share, **settings}
        return loss, reference.h_kl, (projection.exact_pairs(),), rest
    if kind == "uld":
        return ULD(projection, **settings), reference.uld, (), settings
    loss = Direct(projection.student_size, projection.student_masked, **settings)
    return loss, reference.direct, (), settings


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
        yield "direct", settings_of(direction, beta)


GRID = list(grid())


def case_for(kind: str, seed: int = 0) -> Case:
    return make_case(identity_projection(7, masked=(3,)) if kind == "direct" else None, seed=seed)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(("kind", "settings"), GRID, ids=lambda x: str(x))
def test_value_and_gradient(kind, settings, temperature):
    case = case_for(kind)
    settings = {**settings, "temperature": temperature}
    loss, function, args, rest = build(kind, case, settings)
    result, gradient = run(loss, case)
    expected, expected_gradient = run_reference(function, case, *args, **rest)
    assert int(result.count) == 6
    torch.testing.assert_close(result.total, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-8, atol=1e-10)
    padded = gradient[:, case.projection.student_size :]
    assert not padded.any()
    assert not gradient[10].any()  # a row of no chunk


@pytest.mark.parametrize("kind", ["p_kl", "h_kl", "gold", "uld", "direct"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_gradcheck(kind, pooling):
    case = case_for(kind)
    poolings = LOSSES[kind].poolings
    loss, *_ = build(kind, case, {"pooling": pooling} if pooling in poolings[1:] else {})

    def function(student):
        return loss(student, case.teacher, case.chunks).total

    assert torch.autograd.gradcheck(function, case.student.requires_grad_())


@pytest.mark.parametrize("kind", ["p_kl", "h_kl", "gold", "uld", "direct"])
@pytest.mark.parametrize("block_rows", [1, 2, 3, 64])
def test_block_size_changes_nothing(kind, block_rows):
    case = case_for(kind)
    settings = {} if kind == "direct" else {"pooling": "chain_rule"}
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


@pytest.mark.parametrize("kind", ["p_kl", "h_kl", "gold", "uld", "direct"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_is_no_worse_than_naive(kind, dtype):
    """Our error against float64 is bounded by that of the same maths in the input's precision."""
    settings = {} if kind == "direct" else {"pooling": "chain_rule"}
    case = case_for(kind).to(dtype)
    loss, function, args, rest = build(kind, case, settings)
    result, gradient = run(loss, case)
    assert result.total.dtype == torch.float32
    assert gradient.dtype == dtype
    exact, exact_gradient = run_reference(function, case.to(torch.float64), *args, **rest)
    # The inputs are exact in both, so that only our own rounding is seen.
    assert abs(float(result.total.detach() - exact)) < 1e-5 * max(1.0, abs(float(exact)))
    error = (gradient.double() - exact_gradient).abs().max()
    assert error <= 2 * torch.finfo(dtype).eps * exact_gradient.abs().max() + 1e-6


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
    case = make_case()
    student = case.student.requires_grad_()
    total = PKL(case.projection)(student, case.teacher, case.chunks).total
    (first,) = torch.autograd.grad(3.0 * total, student, retain_graph=True)
    (second,) = torch.autograd.grad(total, student)
    torch.testing.assert_close(first, 3.0 * second)
