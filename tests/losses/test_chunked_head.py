"""Hidden states and head give what the whole logits give: values, gradients, several losses."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from losses.helpers import Case, case_for, loss_for, make_case, make_chunks, small_projection
from xtoken.errors import LossError
from xtoken.losses import (
    LOSSES,
    Hidden,
    OutputHead,
    Projector,
    Realised,
    Term,
    TopK,
    agreement,
    cross_entropy,
    cross_entropy_term,
    kept_mass,
    make_loss,
    run_terms,
)
from xtoken.losses.sources import LogitSource

HEADS = [
    {},
    {"bias": True},
    {"scale": 0.3},
    {"soft_cap": 2.0},
    {"bias": True, "scale": 1.7, "soft_cap": 3.0},
]
SETTINGS = {
    "p_kl": [
        {},
        {"direction": "student_to_teacher", "temperature": 2.0},
        {"support": "topk_rest", "top_k": 2},
        {"weights": "learned"},
        {"pooling": "chain_rule"},
        {"support": "topk_batch", "top_k": 3},
    ],
    "h_kl": [{"pooling": "mean"}],
    "gold": [{"pooling": "chain_rule", "temperature": 2.0}],
    "uld": [{}],
    "direct": [{"direction": "jsd"}],
    "path_kl": [{}, {"direction": "student_to_teacher", "temperature": 2.0}],
    "csd": [{"direction": "jsd", "temperature": 2.0}],
}
GRID = [(k, s) for k in LOSSES for s in SETTINGS.get(k, [{}])]


@dataclass
class Side:
    """Hidden states, head parameters and how they become logits."""

    states: Tensor
    weight: Tensor
    bias: Tensor | None
    scale: float
    soft_cap: float | None

    def parameters(self) -> list[Tensor]:
        return [self.states, self.weight] + ([] if self.bias is None else [self.bias])

    def logits(self) -> Tensor:
        logits = torch.nn.functional.linear(self.states, self.weight, self.bias) * self.scale
        if self.soft_cap is not None:
            logits = self.soft_cap * torch.tanh(logits / self.soft_cap)
        return logits

    def hidden(self) -> Hidden:
        head = OutputHead(self.weight, self.bias, self.scale, self.soft_cap)
        return Hidden(self.states, head)


def make_side(rows, columns, seed, *, bias=False, scale=1.0, soft_cap=None, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    D = 5
    weights = random(columns, D), random(columns) if bias else None
    side = Side(random(rows, D), *weights, scale, soft_cap)
    for tensor in side.parameters():
        tensor.requires_grad_()
    return side


def sides(case: Case, options: dict, dtype=torch.float64) -> tuple[Side, Side]:
    student = make_side(case.student.shape[0], case.student.shape[1], 1, dtype=dtype, **options)
    teacher = make_side(case.teacher.shape[0], case.teacher.shape[1], 2, dtype=dtype, **options)
    return student, teacher


def loss_and_case(kind: str, extra: dict):
    case = case_for(kind)
    return loss_for(kind, case, **extra), case


@pytest.mark.parametrize("options", HEADS, ids=str)
@pytest.mark.parametrize(("kind", "extra"), GRID, ids=str)
def test_hidden_states_equal_logits(kind, extra, options):
    loss, case = loss_and_case(kind, extra)
    student, teacher = sides(case, options)
    expected = loss(student.logits(), teacher.logits(), case.chunks)
    expected_gradients = torch.autograd.grad(
        2.0 * expected.total, [*student.parameters(), *loss.parameters()]
    )
    for pair in (
        (student.hidden(), teacher.hidden()),
        (student.hidden(), teacher.logits().detach()),
        (student.logits(), teacher.hidden()),
    ):
        result = loss(*pair, case.chunks)
        torch.testing.assert_close(result.total, expected.total)
        gradients = torch.autograd.grad(
            2.0 * result.total, [*student.parameters(), *loss.parameters()]
        )
        for found, wanted in zip(gradients, expected_gradients, strict=True):
            torch.testing.assert_close(found, wanted)
        for name, pair in expected.metrics.items():
            torch.testing.assert_close(result.metrics[name][0], pair[0])
    assert teacher.weight.grad is None


@pytest.mark.parametrize("head_rows", [1, 2, 7, 64])
@pytest.mark.parametrize("block_rows", [1, 7, 64])
@pytest.mark.parametrize("kind", sorted(LOSSES))
def test_sizes_of_parts_and_blocks_change_nothing(kind, block_rows, head_rows):
    loss, case = loss_and_case(kind, SETTINGS.get(kind, [{}])[-1])
    student, teacher = sides(case, {"bias": True, "soft_cap": 5.0})
    expected = loss(student.logits(), teacher.logits(), case.chunks).total
    expected_gradients = torch.autograd.grad(expected, student.parameters())
    total, (result,) = run_terms(
        student.hidden(),
        [Term(loss, case.chunks, teacher.hidden())],
        block_rows=block_rows,
        head_rows=head_rows,
    )
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(result.total, expected.detach())
    for found, wanted in zip(
        torch.autograd.grad(total, student.parameters()), expected_gradients, strict=True
    ):
        torch.testing.assert_close(found, wanted)


def test_gradcheck_through_the_head():
    loss, case = loss_and_case("p_kl", {"pooling": "chain_rule"})
    student, teacher = sides(case, {"bias": True, "scale": 0.7, "soft_cap": 4.0})

    def function(states, weight, bias):
        hidden = Hidden(states, OutputHead(weight, bias, 0.7, 4.0))
        return loss(hidden, teacher.hidden(), case.chunks).total

    assert torch.autograd.gradcheck(function, student.parameters())


@pytest.mark.parametrize("head_rows", [1, 3, 64])
@pytest.mark.parametrize("hidden", [False, True])
def test_several_losses_share_a_pass(head_rows, hidden):
    """Cross-entropy and two teachers' losses at once: the sum of what each gives alone."""
    case = make_case()
    student, teacher = sides(case, {"bias": True})
    other = make_side(*case.teacher.shape, 9)
    targets = torch.tensor([0, 3, -100, 2, 1, -100, 4, 4, 0, 5, -100])
    p_kl = make_loss("p_kl", projection=case.projection, temperature=2.0)
    h_kl = make_loss("h_kl", projection=case.projection, pooling="mean")
    fewer = case.chunks.select(torch.tensor([5, 0, 3]))
    logits = student.logits()
    parts = [
        cross_entropy(logits, targets),
        p_kl(logits, teacher.logits(), case.chunks),
        h_kl(logits, other.logits(), fewer),
    ]
    expected = 1.0 * parts[0].total + 0.5 * parts[1].total + 2.0 * parts[2].total
    expected_gradients = torch.autograd.grad(expected, student.parameters())
    source = student.hidden() if hidden else LogitSource(student.logits())
    total, results = run_terms(
        source,
        [
            cross_entropy_term(source, targets),
            Term(p_kl, case.chunks, teacher.hidden(), 0.5),
            Term(h_kl, fewer, other.hidden(), 2.0),
        ],
        head_rows=head_rows,
    )
    torch.testing.assert_close(total, expected)
    for result, part in zip(results, parts, strict=True):
        torch.testing.assert_close(result.total, part.total.detach())
        torch.testing.assert_close(result.count, part.count)
    for found, wanted in zip(
        torch.autograd.grad(total, student.parameters()), expected_gradients, strict=True
    ):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("vocabulary_size", [None, 7])
def test_cross_entropy_from_hidden_states(vocabulary_size):
    student = make_side(11, 9, 4, bias=True)
    targets = torch.tensor([0, 3, -100, 2, 1, -100, 4, 4, 0, 5, -100])
    rows = student.logits()[:, :vocabulary_size]
    expected = torch.nn.functional.cross_entropy(rows, targets, reduction="sum")
    result = cross_entropy(student.hidden(), targets, vocabulary_size=vocabulary_size)
    torch.testing.assert_close(result.total, expected)
    assert float(result.count) == 8
    for found, wanted in zip(
        torch.autograd.grad(result.total, student.parameters()),
        torch.autograd.grad(expected, student.parameters()),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted)


class Adapted(nn.Module):
    """A head with a low-rank adapter, as a fine-tuning library makes it."""

    def __init__(self, columns: int):
        super().__init__()
        torch.manual_seed(0)
        self.base = nn.Linear(5, columns, dtype=torch.float64).requires_grad_(False)
        self.down = nn.Linear(5, 2, bias=False, dtype=torch.float64)
        self.up = nn.Linear(2, columns, bias=False, dtype=torch.float64)

    def forward(self, states: Tensor) -> Tensor:
        return self.base(states) + self.up(self.down(states))


@pytest.mark.parametrize("kind", ["p_kl", "uld"])
def test_any_module_as_head(kind):
    loss, case = loss_and_case(kind, {})
    head = Adapted(case.student.shape[1])
    _, teacher = sides(case, {})
    states = torch.randn(case.student.shape[0], 5, dtype=torch.float64, requires_grad=True)
    leaves = [states, head.down.weight, head.up.weight]
    expected = loss(head(states), teacher.logits(), case.chunks).total
    hidden = Hidden(states, head, columns=case.student.shape[1])
    total, _ = run_terms(
        hidden, [Term(loss, case.chunks, LogitSource(teacher.logits()))], head_rows=3
    )
    torch.testing.assert_close(total, expected)
    for found, wanted in zip(
        torch.autograd.grad(total, leaves), torch.autograd.grad(expected, leaves), strict=True
    ):
        torch.testing.assert_close(found, wanted)
    with pytest.raises(LossError, match="columns"):
        Hidden(states, head)


@pytest.mark.parametrize("head_rows", [1, 7, 64])
@pytest.mark.parametrize("kind", sorted(LOSSES))
def test_tied_weight_and_accumulation(kind, head_rows):
    """The embedding's own gradient and two micro-batches add up to one whole batch's."""
    loss, case = loss_and_case(kind, {})
    _, teacher = sides(case, {})
    N, V = case.student.shape
    weight = torch.randn(V, 5, dtype=torch.float64, requires_grad=True)
    ids = torch.arange(N) % V

    def whole():
        return loss(weight[ids] @ weight.t(), teacher.logits(), case.chunks).total

    (expected,) = torch.autograd.grad(whole(), weight)
    for part in (torch.arange(0, len(case.chunks), 2), torch.arange(1, len(case.chunks), 2)):
        hidden = Hidden(weight[ids], OutputHead(weight))
        term = Term(loss, case.chunks.select(part), teacher.hidden())
        run_terms(hidden, [term], head_rows=head_rows)[0].backward()
    torch.testing.assert_close(weight.grad, expected)


def test_frozen_head_and_frozen_states():
    case = make_case()
    loss = make_loss("p_kl", projection=case.projection)
    student, teacher = sides(case, {"bias": True})
    expected = torch.autograd.grad(
        loss(student.logits(), teacher.logits(), case.chunks).total, student.parameters()
    )
    for i, tensor in enumerate(student.parameters()):
        for other in student.parameters():
            other.requires_grad_(other is tensor)
        total = loss(student.hidden(), teacher.hidden(), case.chunks).total
        (found,) = torch.autograd.grad(total, tensor)
        torch.testing.assert_close(found, expected[i])
    with torch.no_grad():
        assert not loss(student.hidden(), teacher.hidden(), case.chunks).total.requires_grad


@pytest.mark.parametrize("head_rows", [1, 7, 64])
@pytest.mark.parametrize("mode", ["weights", "autocast", "argument"])
@pytest.mark.parametrize("kind", sorted(LOSSES))
def test_half_precision(kind, mode, head_rows):
    """The error against float64 is no more than twice that of the whole route's."""
    loss, case = loss_and_case(kind, {})
    dtype = torch.bfloat16 if mode == "weights" else torch.float32
    student, teacher = sides(case, {}, dtype)
    exact_student, exact_teacher = sides(case, {})
    for rough, exact in zip(student.parameters(), exact_student.parameters(), strict=True):
        exact.data.copy_(rough.data)
    for rough, exact in zip(teacher.parameters(), exact_teacher.parameters(), strict=True):
        exact.data.copy_(rough.data)
    exact = loss(exact_student.logits(), exact_teacher.logits(), case.chunks).total
    exact_gradients = torch.autograd.grad(exact, exact_student.parameters())

    def errors(total):
        found = torch.autograd.grad(total, student.parameters())
        off = [abs(float(total.detach()) - float(exact.detach())) / float(exact.detach())]
        for g, e in zip(found, exact_gradients, strict=True):
            off.append(float((g.double() - e).abs().max() / e.abs().max()))
        return off

    def chunked(hidden, rows):
        term = Term(loss, case.chunks, rows)
        return run_terms(hidden, [term], head_rows=head_rows)[0]

    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mode != "weights"):
        naive = errors(loss(student.logits(), teacher.logits(), case.chunks).total)
    if mode == "argument":
        half = torch.bfloat16
        hidden = Hidden(student.states, OutputHead(student.weight), dtype=half)
        rows = Hidden(teacher.states, OutputHead(teacher.weight), dtype=half)
        ours = errors(chunked(hidden, rows))
    else:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mode == "autocast"):
            ours = errors(chunked(student.hidden(), teacher.hidden()))
    assert ours[0] <= 2 * naive[0] + 1e-5
    for mine, theirs in zip(ours[1:], naive[1:], strict=True):
        assert mine <= 2 * theirs + 2**-8


def test_a_weights_gradient_in_half_precision_loses_nothing_to_the_number_of_parts(monkeypatch):
    """Many small parts are added up in float32, also where their product comes in slices."""
    monkeypatch.setattr("xtoken.losses.chunked_head.PRODUCT_BYTES", 2 * 5 * 4)  # 4 rows at a time
    student = make_side(600, 9, 5, bias=True, dtype=torch.bfloat16)
    exact = make_side(600, 9, 5, bias=True)
    for rough, fine in zip(student.parameters(), exact.parameters(), strict=True):
        fine.data.copy_(rough.data)
    targets = torch.randint(9, (600,), generator=torch.Generator().manual_seed(0))
    hidden = student.hidden()
    parts, _ = run_terms(hidden, [cross_entropy_term(hidden, targets)], head_rows=2)
    gradients = [
        torch.autograd.grad(total, side.parameters())
        for total, side in (
            (cross_entropy(exact.logits(), targets).total, exact),
            (cross_entropy(student.logits(), targets).total, student),
            (parts, student),
        )
    ]
    for wanted, whole, found in zip(*gradients, strict=True):
        assert found.dtype == torch.bfloat16
        theirs, ours = ((g.double() - wanted).abs().max() for g in (whole, found))
        assert ours <= 1.5 * theirs


@given(
    pieces=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4), st.booleans()), max_size=12),
    head_rows=st.integers(1, 9),
    pooling=st.sampled_from(["first", "chain_rule"]),
    shuffle=st.randoms(use_true_random=False),
)
@settings(max_examples=60, deadline=None)
def test_any_cut_of_any_chunks(pieces, head_rows, pooling, shuffle):
    student_pairs, teacher_pairs, s, t = [], [], 0, 0
    for n, m, used in pieces:
        if used:
            student_pairs.append((s, n))
            teacher_pairs.append((t, m))
        s, t = s + n, t + m
    N, M = s + 1, t + 1
    order = list(range(len(student_pairs)))
    shuffle.shuffle(order)
    generator = torch.Generator().manual_seed(N * 31 + M)
    targets = [torch.randint(3, (n,), generator=generator) for n in (N, M)]
    chunks = make_chunks(
        [student_pairs[i] for i in order], [teacher_pairs[i] for i in order], *targets
    )
    student, teacher = make_side(N, 9, 5), make_side(M, 11, 6)
    loss = make_loss("p_kl", projection=small_projection(), pooling=pooling)
    expected = loss(student.logits(), teacher.logits(), chunks)
    total, (result,) = run_terms(
        student.hidden(), [Term(loss, chunks, teacher.hidden())], head_rows=head_rows
    )
    torch.testing.assert_close(total, expected.total)
    torch.testing.assert_close(result.count, expected.count)
    for found, wanted in zip(
        torch.autograd.grad(total, student.parameters()),
        torch.autograd.grad(expected.total, student.parameters()),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted)


def test_only_the_rows_that_are_read_go_through_the_head():
    seen: list[int] = []

    class Counting(nn.Linear):
        def forward(self, states: Tensor) -> Tensor:
            seen.append(states.shape[0])
            return super().forward(states)

    case = make_case()
    states = torch.randn(11, 5, dtype=torch.float64)
    head = Counting(5, 9, dtype=torch.float64)
    for pooling, rows in (("first", 6), ("chain_rule", 9)):
        seen.clear()
        loss = make_loss("p_kl", projection=case.projection, pooling=pooling)
        loss(Hidden(states, head), case.teacher, case.chunks)
        assert sum(seen) == rows


@pytest.mark.parametrize("head_rows", [1, 3, 64])
def test_stored_signals_beside_hidden_states(head_rows):
    case = make_case()
    student, teacher = sides(case, {"bias": True})
    logp_MU = teacher.logits()[:, :7].detach().log_softmax(-1)
    target_M1 = case.chunks.teacher_target_M.clamp_min(0)[:, None]
    for loss, signal in (
        (loss_for("p_kl", case, support="topk_rest", top_k=3), TopK(*logp_MU.topk(4)[::-1])),
        (loss_for("alm", case), Realised(logp_MU.gather(1, target_M1)[:, 0])),
    ):
        expected = loss(student.logits(), signal, case.chunks).total
        term = Term(loss, case.chunks, signal)
        total, _ = run_terms(student.hidden(), [term], head_rows=head_rows)
        torch.testing.assert_close(total, expected)
        for found, wanted in zip(
            torch.autograd.grad(total, student.parameters()),
            torch.autograd.grad(expected, student.parameters()),
            strict=True,
        ):
            torch.testing.assert_close(found, wanted)


def test_several_losses_take_plain_logits():
    """Logits are sources as they are, on either side."""
    case = make_case()
    loss = make_loss("p_kl", projection=case.projection)
    student = case.student.requires_grad_()
    total, (result,) = run_terms(student, [Term(loss, case.chunks, case.teacher, 2.0)])
    expected = loss(student, case.teacher, case.chunks).total
    torch.testing.assert_close(total, 2.0 * expected)
    torch.testing.assert_close(result.total, expected.detach())


def test_metrics_from_hidden_states():
    case = make_case()
    student, teacher = sides(case, {})
    projector = Projector(case.projection)
    assert agreement(student.hidden(), teacher.hidden(), case.chunks, projector) == agreement(
        student.logits(), teacher.logits(), case.chunks, projector
    )
    found = kept_mass(teacher.hidden(), case.chunks, projector)
    torch.testing.assert_close(found, kept_mass(teacher.logits(), case.chunks, projector))


def test_shapes_that_do_not_fit():
    case = make_case()
    loss = make_loss("p_kl", projection=case.projection)
    states, weight = torch.zeros(11, 5), torch.zeros(9, 4)
    with pytest.raises(LossError, match=r"states_ND has shape \(11, 5\).*\(9, 4\)"):
        Hidden(states, OutputHead(weight))
    with pytest.raises(LossError, match=r"bias_V has shape \(8,\).*\(9, 4\); expected \(9,\)"):
        OutputHead(weight, torch.zeros(8))
    with pytest.raises(LossError, match=r"weight_VD has shape \(9,\)"):
        OutputHead(weight[:, 0])
    for bad in ({"soft_cap": 0.0}, {"soft_cap": -30.0}, {"scale": 0.0}, {"scale": float("nan")}):
        with pytest.raises(LossError, match=rf"{next(iter(bad))} is .*positive"):
            OutputHead(weight, **bad)
    with pytest.raises(LossError, match=r"dtype is torch\.bfloat16, but the head is a module"):
        Hidden(states, nn.Linear(5, 9), dtype=torch.bfloat16)
    with pytest.raises(LossError, match="head is a function; expected an OutputHead"):
        Hidden(states, lambda x: x, columns=9)
    narrow = Hidden(states, OutputHead(torch.zeros(6, 5)))
    with pytest.raises(LossError, match=r"student_logits_NV has shape \(11, 6\)"):
        loss(narrow, case.teacher, case.chunks)
    nan = Hidden(torch.full((11, 5), torch.nan), OutputHead(torch.zeros(9, 5)))
    with pytest.raises(LossError, match="NaN"):
        loss(nan, case.teacher, case.chunks)
    short = replace(case.chunks, student_target_N=case.chunks.student_target_N[:5])
    with pytest.raises(LossError, match="student_target_N"):
        loss(Hidden(states, OutputHead(torch.zeros(9, 5))), case.teacher, short)
