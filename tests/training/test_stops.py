"""What stops a run, and with which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training_toys import ToyLoss, make_examples, make_objective, make_trainer, weights_of

from xtoken.errors import ConfigError, LossError, TrainingError
from xtoken.losses.base import Chunks, LossResult
from xtoken.training.callbacks import ProgressReport, plain_number
from xtoken.training.combine import Combine


class Poisoned(ToyLoss):
    """NaN in the third call."""

    def __call__(self, student_NV: Any, teacher_MU: Any, chunks: Chunks) -> LossResult:
        result = super().__call__(student_NV, teacher_MU, chunks)
        if len(self.seen) == 3:
            result.total = result.total * float("nan")
        return result


def test_nan_names_step_and_examples_and_changes_nothing(tmp_path: Path) -> None:
    objective = make_objective()
    objective.teachers[0].loss = Poisoned()
    trainer = make_trainer(
        tmp_path,
        examples=make_examples(12),
        objective=objective,
        save_strategy="steps",
        save_steps=1,
        per_device_train_batch_size=3,
    )
    trainer.train_dataset.dataset[8]["teachers"][0]["chunks"] = [(1, 1, 1, 1)]
    with pytest.raises(TrainingError) as caught:
        trainer.train()
    message = str(caught.value)
    assert "step 3" in message
    assert "examples 6, 7, 8" in message
    assert "kd/t0 = nan" in message
    assert "checkpoint-2" in message
    saved = torch.load(tmp_path / "checkpoint-2" / "optimizer.pt", weights_only=True)
    assert saved is not None
    assert all(torch.isfinite(value).all() for value in weights_of(trainer).values())


def test_an_error_of_a_loss_says_where(tmp_path: Path) -> None:
    class Refusing(ToyLoss):
        def __call__(self, student_NV: Any, teacher_MU: Any, chunks: Chunks) -> LossResult:
            raise LossError("toy: teacher_logits_MU holds 1 of 4 rows that are no distribution")

    objective = make_objective()
    objective.teachers[0].loss = Refusing()
    trainer = make_trainer(tmp_path, examples=make_examples(8), objective=objective)
    with pytest.raises(TrainingError, match=r"step 1, training examples 0, 1, 2, 3 .*rows that"):
        trainer.train()


def test_a_gradient_that_is_not_finite_stops_before_the_update(tmp_path: Path) -> None:
    class Steep(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
            return value.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            return gradient * float("inf")

    class SteepLoss(ToyLoss):
        def __call__(self, student_NV: Any, teacher_MU: Any, chunks: Chunks) -> LossResult:
            return super().__call__(Steep.apply(student_NV), teacher_MU, chunks)

    objective = make_objective()
    objective.teachers[0].loss = SteepLoss()
    trainer = make_trainer(tmp_path, examples=make_examples(8), objective=objective)
    before = weights_of(trainer)
    with pytest.raises(
        TrainingError, match=r"step 1, training examples 0, 1, 2, 3 .*gradient is not finite"
    ):
        trainer.train()
    after = weights_of(trainer)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_teacher_without_any_chunk_is_an_error_and_a_batch_without_is_not(tmp_path: Path) -> None:
    examples = make_examples(8, teachers=2)
    for example in examples:
        example["teachers"][1]["chunks"] = []
    for example in examples[:4]:
        example["teachers"][0]["chunks"] = []
    trainer = make_trainer(
        tmp_path, examples=examples, objective=make_objective(2, (1.0, 1.0)), max_steps=2
    )
    with pytest.raises(TrainingError, match="teacher t1 had no supervised chunk"):
        trainer.train()
    assert trainer.chunks_seen[0] > 0
    assert trainer.state.log_history[0]["loss"] > 0


@pytest.mark.parametrize("scaling", ["fixed", "dynamic", "dynamic_lagged"])
def test_without_weight_a_silent_teacher_is_no_error(tmp_path: Path, scaling: str) -> None:
    examples = make_examples(4)
    for example in examples:
        example["teachers"][0]["chunks"] = []
    trainer = make_trainer(
        tmp_path, examples=examples, combine=Combine(kd=0.0, scaling=scaling), max_steps=1
    )
    trainer.train()
    line = trainer.state.log_history[0]
    assert line["loss"] == pytest.approx(line["ce"], rel=1e-6)


def test_a_step_without_chunks_under_distillation_alone_moves_nothing(tmp_path: Path) -> None:
    examples = make_examples(8)
    for example in examples[:4]:
        example["teachers"][0]["chunks"] = []
    trainer = make_trainer(
        tmp_path, examples=examples, combine=Combine(ce=0.0, scaling="fixed"), max_steps=1
    )
    before = weights_of(trainer)
    with pytest.raises(TrainingError, match="no supervised chunk"):
        trainer.train()
    after = weights_of(trainer)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_unknown_progress_style_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected auto, bar, lines or none"):
        ProgressReport("fancy")


def test_what_json_can_not_say_becomes_null() -> None:
    assert plain_number(float("nan")) is None
    assert plain_number(torch.tensor(2.5)) == 2.5


@pytest.mark.parametrize(("style", "expected"), [("lines", "step 2/2  loss"), ("bar", "2/2 0:")])
def test_progress_shows_the_figures(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], style: str, expected: str
) -> None:
    make_trainer(
        tmp_path,
        examples=make_examples(8),
        eval_dataset=make_examples(3, seed=2),
        eval_strategy="steps",
        eval_steps=2,
        progress=style,
        max_steps=2,
    ).train()
    shown = capfd.readouterr().err
    assert expected in shown
    assert "tok/s" in shown
    assert "step 2  evaluation  loss" in shown
