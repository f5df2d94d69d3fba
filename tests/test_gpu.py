"""What runs on a CPU gives the same on a GPU: every loss, the chunked head, a training.

    make test-gpu        # or: pytest -m gpu

The CPU's results are held against the definition elsewhere; here they are the definition.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from losses.helpers import Case, case_for, loss_for
from losses.test_chunked_head import Side, make_side
from xtoken.config import RunConfig
from xtoken.losses import LOSSES, PKL, Projector, Term, TopK, agreement, run_terms
from xtoken.training import read_metrics, train

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
# Of sums over some ten chunks in float32.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "p_kl": [
        {},
        {"pooling": "chain_rule", "temperature": 2.0},
        {"support": "topk_rest", "top_k": 3},
        {"support": "topk_batch", "top_k": 3},
        {"direction": "jsd"},
    ],
    "path_kl": [{}, {"direction": "student_to_teacher", "temperature": 2.0}],
    "gold": [{}, {"pooling": "mean"}],
}
GRID = [(kind, settings) for kind in LOSSES for settings in SETTINGS.get(kind, [{}])]


def on(case: Case, device: str, dtype: torch.dtype = torch.float32) -> Case:
    """Move a case to a device."""
    return Case(
        case.student.to(device, dtype),
        case.teacher.to(device, dtype),
        case.chunks.to(device),
        case.projection,
    )


def found(kind: str, settings: dict[str, Any], case: Case) -> list[torch.Tensor]:
    """Return a loss, its gradient and its figures, on the CPU."""
    loss = loss_for(kind, case, **settings)
    student = case.student.clone().requires_grad_()
    result = loss(student, case.teacher, case.chunks)
    (gradient,) = torch.autograd.grad(result.total, student)
    figures = [value for value, _ in result.metrics.values()]
    return [x.detach().cpu().double() for x in (result.total, gradient, *figures)]


@pytest.mark.parametrize(("kind", "settings"), GRID, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_losses(kind, settings, dtype):
    case = case_for(kind)
    there = found(kind, settings, on(case, DEVICE, dtype))
    # The logits are the rounded ones on both sides; the gradient is rounded once.
    here = found(kind, settings, on(case, "cpu", dtype))
    tolerance = TOLERANCE if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-3}
    for ours, theirs in zip(there, here, strict=True):
        torch.testing.assert_close(ours, theirs, **tolerance)


def test_a_signal_of_top_k():
    case = on(case_for("p_kl"), "cpu")
    count = case.projection.teacher_size
    masked = torch.from_numpy(case.projection.teacher_masked)
    logp = case.teacher[:, :count].masked_fill(masked, -torch.inf).log_softmax(-1)
    top = logp.topk(3)
    totals = []
    for device in ("cpu", DEVICE):
        loss = PKL(case.projection, support="topk_rest", top_k=3)
        signal = TopK(top.indices.to(device), top.values.to(device))
        total = loss(case.student.to(device), signal, case.chunks.to(device)).total
        totals.append(total.cpu())
    torch.testing.assert_close(*totals, **TOLERANCE)


def test_learned_weights_get_the_same_gradient():
    gradients = []
    for device in ("cpu", DEVICE):
        case = on(case_for("p_kl"), device)
        loss = PKL(case.projection, weights="learned").to(device)
        total = loss(case.student, case.teacher, case.chunks).total
        assert loss.learned is not None
        gradients.append(torch.autograd.grad(total, loss.learned.logit_E)[0].cpu())
    torch.testing.assert_close(*gradients, **TOLERANCE)


@pytest.mark.parametrize("head", [{}, {"bias": True, "scale": 0.5, "soft_cap": 3.0}], ids=str)
@pytest.mark.parametrize("rows", [1, 7, 64])
def test_hidden_states_and_heads(head, rows):
    case = case_for("p_kl")

    def moved(side: Side, device: str) -> Side:
        bias = None if side.bias is None else side.bias.to(device)
        return Side(
            side.states.detach().to(device).requires_grad_(),
            side.weight.detach().to(device).requires_grad_(),
            bias,
            side.scale,
            side.soft_cap,
        )

    sides = [
        make_side(case.student.shape[0], case.projection.student_size, 1, **head),
        make_side(case.teacher.shape[0], case.projection.teacher_size, 2, **head),
    ]
    answers = []
    for device in ("cpu", DEVICE):
        student, teacher = (moved(side, device) for side in sides)
        term = Term(PKL(case.projection), case.chunks.to(device), teacher.hidden())
        total, _ = run_terms(student.hidden(), [term], head_rows=rows)
        gradients = torch.autograd.grad(total, [student.states, student.weight])
        answers.append([x.detach().cpu() for x in (total, *gradients)])
    for ours, theirs in zip(*answers, strict=True):
        torch.testing.assert_close(ours, theirs, **TOLERANCE)


def test_agreement():
    counts = []
    for device in ("cpu", DEVICE):
        case = on(case_for("p_kl"), device)
        projector = Projector(case.projection).to(device)
        hits, count = agreement(case.student, case.teacher, case.chunks, projector)
        counts.append((float(hits), float(count)))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("kind", ["p_kl", "path_kl"])
@pytest.mark.parametrize("held", [True, False], ids=["held", "in blocks"])
def test_a_training(tiny_pair, tiny_text, tmp_path: Path, monkeypatch, kind, held):
    if not held:
        monkeypatch.setattr("xtoken.output_head.HELD_BYTES", {"cpu": 0, "cuda": 0})
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in tiny_text))

    def losses(use_cpu: bool, **training: Any) -> list[float]:
        folder = tmp_path / f"{'cpu' if use_cpu else 'gpu'}-{len(training)}"
        config = RunConfig.parse(
            {
                "student": {"model": str(tiny_pair[0])},
                "teachers": [{"model": str(tiny_pair[1])}],
                "data": {"train": str(data), "max_length": 48},
                "loss": {"kind": kind},
                "training": {
                    "use_cpu": use_cpu,
                    "max_steps": 3,
                    "logging_steps": 1,
                    "per_device_train_batch_size": 2,
                    "optim": "sgd",
                    "save_strategy": "no",
                    **training,
                },
                "output_dir": str(folder),
            }
        )
        train(config, progress="none")
        return [line["loss"] for line in read_metrics(folder) if line["kind"] == "train"]

    plain = losses(DEVICE == "cpu")
    assert plain == pytest.approx(losses(True), rel=1e-3)
    assert losses(DEVICE == "cpu", bf16=True) == pytest.approx(plain, rel=0.05)
