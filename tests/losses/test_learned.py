"""Learned W: starts from the fixed one, equals the reference, trains, and can be exported."""

from __future__ import annotations

import pytest
import torch

from losses.helpers import make_case, run
from xtoken.losses import PKL, reference

SETTINGS = [
    {},
    {"pooling": "chain_rule", "direction": "jsd"},
    {"pooling": "mean"},
    {"support": "topk_rest", "top_k": 2},
    {"support": "reached", "direction": "student_to_teacher"},
]


def dense(loss: PKL, weight_E: torch.Tensor) -> torch.Tensor:
    """W as V x U from a loss's plain columns and the weights of its entries."""
    projector = loss.projector
    W = torch.zeros(loss.student_size, loss.teacher_size, dtype=weight_E.dtype)
    W[projector.plain_student_P, projector.plain_teacher_P] = 1.0
    rows = projector.mixed_student_X[projector.entry_student_E.long()]
    columns = projector.mixed_teacher_Y[projector.entry_column_E.long()]
    return W.index_put((rows, columns), weight_E)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_value_and_gradients(settings):
    case = make_case()
    loss = PKL(case.projection, weights="learned", **settings).double()
    torch.manual_seed(0)
    loss.learned.logit_E.data += torch.randn_like(loss.learned.logit_E)
    leaves = [case.student.requires_grad_(), loss.learned.logit_E]
    result = loss(case.student, case.teacher, case.chunks)
    found = torch.autograd.grad(result.total, leaves)
    expected = reference.p_kl(
        case.student, case.teacher, case.chunks, case.projection,
        weights_VU=dense(loss, loss.learned()), **settings,
    )  # fmt: skip
    torch.testing.assert_close(result.total, expected)
    for mine, theirs in zip(found, torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_gradcheck():
    case = make_case()
    loss = PKL(case.projection, weights="learned", temperature=1.7).double()
    torch.manual_seed(0)
    loss.learned.logit_E.data += torch.randn_like(loss.learned.logit_E)

    def function(student, _):  # the parameter itself, which gradcheck moves in place
        return loss(student, case.teacher, case.chunks).total

    inputs = (case.student.requires_grad_(), loss.learned.logit_E)
    assert torch.autograd.gradcheck(function, inputs)


def test_h_kl_takes_the_heaviest_entry_of_a_learned_row():
    """Row 4 of W is {4: .6, 2: .3, 1: .1}; learnt, 2 is the heaviest, in its old place."""
    case = make_case()
    loss = PKL(case.projection, weights="learned")
    rows = loss.projector.mixed_student_X[loss.projector.entry_student_E.long()]
    columns = loss.projector.mixed_teacher_Y[loss.projector.entry_column_E.long()]
    with torch.no_grad():
        loss.learned.logit_E[(rows == 4) & (columns == 2)] += 8.0
    exported = loss.learned.export(case.projection, loss.projector)
    student, teacher = exported.extended_pairs()
    assert dict(zip(student.tolist(), teacher.tolist(), strict=True)) == {
        0: 0,
        1: 1,
        3: 4,
        4: 2,
        5: 5,
    }


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_training_starts_from_the_fixed_w(settings):
    case = make_case()
    fixed, gradient = run(PKL(case.projection, **settings), case)
    loss = PKL(case.projection, weights="learned", **settings)
    learned, learned_gradient = run(loss, case)
    torch.testing.assert_close(learned.total, fixed.total, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(learned_gradient, gradient, rtol=1e-5, atol=1e-7)
    exported = loss.learned.export(case.projection, loss.projector)
    torch.testing.assert_close(
        torch.from_numpy(exported.weights), torch.from_numpy(case.projection.weights)
    )


def test_rows_keep_summing_to_one_and_the_loss_falls():
    case = make_case()
    loss = PKL(case.projection, weights="learned")
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
    values = []
    for _ in range(30):
        optimizer.zero_grad()
        total = loss(case.student.float(), case.teacher.float(), case.chunks).total
        total.backward()
        optimizer.step()
        values.append(float(total.detach()))
    assert values[-1] < values[0]
    exported = loss.learned.export(case.projection, loss.projector)
    sums = torch.from_numpy(exported.weights).sum(1)
    torch.testing.assert_close(sums[:6], torch.ones(6))
    assert exported.rules["learned"]
    moved = PKL(exported)
    torch.testing.assert_close(
        moved(case.student, case.teacher, case.chunks).total,
        loss(case.student, case.teacher, case.chunks).total,
        rtol=1e-6, atol=1e-7,
    )  # fmt: skip


def test_state_is_saved_and_loaded():
    case = make_case()
    loss = PKL(case.projection, weights="learned")
    assert list(loss.state_dict()) == ["learned.logit_E"]
    loss.learned.logit_E.data += 1.0 * torch.arange(len(loss.learned.logit_E))
    other = PKL(case.projection, weights="learned")
    other.load_state_dict(loss.state_dict())
    torch.testing.assert_close(other.learned(), loss.learned())
    assert not list(PKL(case.projection).parameters())
