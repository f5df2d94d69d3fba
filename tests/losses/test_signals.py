"""Teachers that give less than logits: top-k and REST under P-KL, realised tokens under ALM."""

from __future__ import annotations

import pytest
import torch

from losses.helpers import byte_case, case_for, loss_for, make_case, run
from xtoken.errors import LossError
from xtoken.losses import ALM, LOSSES, PKL, Realised, TopK


def listed(case, k: int) -> TopK:
    """The teacher's k likeliest ids of each row, masked ids and padded columns left out."""
    size = case.projection.teacher_size
    logits = case.teacher[:, :size].clone()
    logits[:, torch.from_numpy(case.projection.teacher_masked)] = -torch.inf
    logp, ids = logits.log_softmax(-1).topk(k, dim=-1)
    return TopK(ids, logp)


@pytest.mark.parametrize("direction", ["teacher_to_student", "student_to_teacher", "jsd"])
def test_all_ids_listed_equal_full_support(direction):
    """Folding merges ids that share a column; ids that fold nowhere are left out as in `full`."""
    for case in (make_case(), byte_case()):
        full, gradient = run(PKL(case.projection, direction=direction), case)
        loss = PKL(case.projection, direction=direction, support="topk_rest", top_k=8)
        student = case.student.clone().requires_grad_()
        count = int((~case.projection.teacher_masked).sum())
        result = loss(student, listed(case, count), case.chunks)
        if case.projection.teacher_size > 8:  # more columns than 8: a lower bound
            if direction == "teacher_to_student":
                assert float(result.total.detach()) <= float(full.total) + 1e-9
            continue
        torch.testing.assert_close(result.total, full.total)
        torch.testing.assert_close(torch.autograd.grad(result.total, student)[0], gradient)


def test_few_ids_and_rest_by_hand():
    """Rows list ids 0 and 3 (both fold to 0) and 4; REST is what is left on either side."""
    case = make_case()
    ids = torch.tensor([[0, 3, 4, -1]]).expand(13, -1)
    p = torch.tensor([0.3, 0.2, 0.1, 7.0], dtype=torch.float64).expand(13, -1)
    loss = PKL(case.projection, support="topk_rest", top_k=5)
    result = loss(case.student, TopK(ids, p.log()), case.chunks)
    W = torch.zeros(7, 8, dtype=torch.float64)
    for v in range(6):
        for u, w in zip(case.projection.indices[v], case.projection.weights[v], strict=True):
            if u >= 0:
                W[v, u] += float(w)
    expected = 0.0
    for row in case.chunks.student_start_C.tolist():
        q = case.student[row, :6].softmax(-1) @ W[:6]
        q = torch.stack([q[0], q[4], q.sum() - q[0] - q[4]])
        p_T = torch.tensor([0.5, 0.1, 0.4], dtype=torch.float64)
        expected += float((p_T * (p_T / q).log()).sum())
    assert float(result.total) == pytest.approx(expected)
    assert float(result.metrics["kept_mass"][0]) == pytest.approx(6 * 0.6)
    one = PKL(case.projection, support="topk_rest", top_k=1)
    assert float(one(case.student, TopK(ids, p.log()), case.chunks).total) < expected


def test_gradcheck_with_listed_ids():
    case = make_case()
    loss = PKL(case.projection, support="topk_rest", top_k=3)
    signal = listed(case, 4)
    assert torch.autograd.gradcheck(
        lambda student: loss(student, signal, case.chunks).total, case.student.requires_grad_()
    )


def test_realised_log_probs_are_all_that_alm_needs():
    case = make_case()
    whole, gradient = run(ALM(case.projection, alm_temperature=5.0), case)
    logits = case.teacher[:, :7].log_softmax(-1)
    signal = Realised(logits.gather(1, case.chunks.teacher_target_M.clamp_min(0)[:, None])[:, 0])
    student = case.student.clone().requires_grad_()
    result = ALM(case.projection, alm_temperature=5.0)(student, signal, case.chunks)
    torch.testing.assert_close(result.total, whole.total)
    torch.testing.assert_close(torch.autograd.grad(result.total, student)[0], gradient)


@pytest.mark.parametrize("kind", sorted(LOSSES))
def test_a_signal_that_a_loss_cannot_use(kind):
    case = case_for(kind)
    loss = loss_for(kind, case)
    M = case.teacher.shape[0]
    signals = {
        "realised": Realised(torch.zeros(M)),
        "topk": TopK(torch.zeros(M, 1, dtype=torch.int64), torch.zeros(M, 1)),
    }
    for name, signal in signals.items():
        if name not in loss.accepts:
            with pytest.raises(LossError, match=rf"{kind}: the teacher gives .*needs logits"):
                loss(case.student, signal, case.chunks)


def test_hints_and_broken_signals():
    case = make_case()
    hot = PKL(case.projection, support="topk_rest", top_k=2, temperature=2.0)
    with pytest.raises(LossError, match=r"topk_rest, pooling first and temperature 1"):
        hot(case.student, listed(case, 2), case.chunks)
    with pytest.raises(LossError, match=r"\(3, 2\).*\(3, 1\)"):
        TopK(torch.zeros(3, 2, dtype=torch.int64), torch.zeros(3, 1))
    with pytest.raises(LossError, match=r"\[M\]"):
        Realised(torch.zeros(3, 1))
    with pytest.raises(LossError, match=r"realised signal.*nan"):
        ALM(case.projection)(case.student, Realised(torch.full((13,), torch.nan)), case.chunks)
    loss = PKL(case.projection, support="topk_rest", top_k=2)
    with pytest.raises(LossError, match=r"topk signal.*probability of 2\.718.*At most 1"):
        loss(case.student, TopK(torch.zeros(13, 1).long(), torch.ones(13, 1)), case.chunks)
    good = listed(case, 2)
    twice, beyond = good.ids_MK.clone(), good.ids_MK.clone()
    twice[4, 1] = twice[4, 0]
    beyond[5, 0] = 8
    logp_MK = good.inputs[0]
    with pytest.raises(LossError, match=r"id twice in 1 rows, the first of them row 4"):
        loss(case.student, TopK(twice, logp_MK), case.chunks)
    with pytest.raises(LossError, match=r"holds id 8; its vocabulary has 8 ids"):
        loss(case.student, TopK(beyond, logp_MK), case.chunks)
    with pytest.raises(LossError, match=r"holds id -5; expected"):
        loss(case.student, TopK(beyond.clamp_max(-5), logp_MK), case.chunks)
    with pytest.raises(LossError, match=r"holds nothing in row 0"):
        loss(case.student, TopK(torch.full_like(beyond, -1), logp_MK), case.chunks)
    with pytest.raises(LossError, match=r"probability of 1\.[1-9].* in all"):
        loss(case.student, TopK(good.ids_MK, torch.full_like(logp_MK, -0.5)), case.chunks)
    filled = TopK(torch.where(logp_MK < -1.5, -1, good.ids_MK), logp_MK)
    assert loss(case.student, filled, case.chunks).total.isfinite()  # -1 may stand there twice
    with pytest.raises(LossError, match=r"int32 and logp_MK torch.float64"):
        TopK(good.ids_MK.int(), logp_MK)
    with pytest.raises(LossError, match=r"logp_M is torch.int64"):
        Realised(torch.zeros(5).long())
    with pytest.raises(LossError, match=r"teacher_logits has 5 rows"):
        ALM(case.projection)(case.student, Realised(torch.zeros(5)), case.chunks)
