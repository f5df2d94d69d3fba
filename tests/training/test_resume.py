"""A killed and resumed run ends with the same bits as one that was never stopped."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from training_toys import ShiftedLoss, make_examples, make_objective, make_trainer, weights_of
from transformers import TrainerCallback

from xtoken.errors import TrainingError
from xtoken.training.callbacks import TrainingInterrupted, read_metrics
from xtoken.training.combine import Combine

SETTINGS: dict[str, Any] = {
    "max_steps": 7,
    "save_strategy": "steps",
    "save_steps": 2,
    "optim": "adamw_torch",
    "learning_rate": 1e-2,
    "lr_scheduler_type": "cosine",
    "train_sampling_strategy": "random",
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "dropout": 0.2,
    "eval_strategy": "steps",
    "eval_steps": 2,
}


class Killed(Exception):  # noqa: N818
    """Stands for a process that is gone."""


class KillAt(TrainerCallback):
    """Dies in the middle of a step, after the gradients and before the update."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step:
            raise Killed


def run(folder: Path, scaling: str, **settings: Any) -> Any:
    return make_trainer(
        folder,
        examples=make_examples(10),
        eval_dataset=make_examples(4, seed=9),
        combine=Combine(scaling=scaling),
        **{**SETTINGS, **settings},
    )


@pytest.mark.parametrize("scaling", ["fixed", "dynamic", "dynamic_lagged"])
@pytest.mark.parametrize("killed_at", [4, 6])
def test_resumed_weights_are_bit_for_bit_the_same(
    tmp_path: Path, scaling: str, killed_at: int
) -> None:
    # 10 examples, 4 a step: step 3 ends the first epoch; one resume is inside, one past an epoch.
    whole = run(tmp_path / "whole", scaling)
    whole.train()
    with pytest.raises(Killed):
        run(tmp_path / "cut", scaling, callbacks=[KillAt(killed_at)]).train()
    resumed = run(tmp_path / "cut", scaling)
    resumed.train(resume_from_checkpoint=True)
    expected = weights_of(whole)
    for name, value in weights_of(resumed).items():
        assert torch.equal(value, expected[name]), name
    figures = ("loss", "ce", "kd", "scale", "eval_ce", "chunks")
    for mine, other in zip(
        read_metrics(tmp_path / "cut"), read_metrics(tmp_path / "whole"), strict=True
    ):
        assert (mine["step"], mine["kind"]) == (other["step"], other["kind"])
        for name in figures:
            assert mine.get(name) == other.get(name), name


def test_evaluating_more_often_changes_no_weight(tmp_path: Path) -> None:
    results = []
    for every in (1, 5):
        trainer = run(tmp_path / str(every), "fixed", eval_steps=every)
        trainer.train()
        results.append(weights_of(trainer))
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    class Press(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                os.kill(os.getpid(), signal.SIGINT)

    whole = run(tmp_path / "whole", "dynamic_lagged")
    whole.train()
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(TrainingInterrupted, match=r"checkpoint-3.*--resume") as caught:
        run(tmp_path / "cut", "dynamic_lagged", callbacks=[Press()]).train()
    assert caught.value.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert (tmp_path / "cut" / "checkpoint-3").is_dir()
    resumed = run(tmp_path / "cut", "dynamic_lagged")
    resumed.train(resume_from_checkpoint=True)
    expected = weights_of(whole)
    for name, value in weights_of(resumed).items():
        assert torch.equal(value, expected[name]), name


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    class Press(TrainerCallback):
        def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "fixed", callbacks=[Press()]).train()
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_broken_checkpoint_is_passed_over_or_refused(tmp_path: Path) -> None:
    run(tmp_path, "fixed", max_steps=4).train()
    newest = tmp_path / "checkpoint-4"
    weights = newest / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(TrainingError, match=r"model\.safetensors.*resume from .*checkpoint-2"):
        run(tmp_path, "fixed").train(resume_from_checkpoint=str(newest))
    resumed = run(tmp_path, "fixed", max_steps=4)
    resumed.train(resume_from_checkpoint=True)
    assert resumed._initial_global_step == 2


def test_resuming_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no complete checkpoint"):
        run(tmp_path, "fixed").train(resume_from_checkpoint=True)


def test_a_fresh_run_starts_a_new_metrics_file(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 900, "kind": "train"}\n')
    run(tmp_path, "fixed", max_steps=1).train()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {line["step"] for line in lines} == {1}


def test_a_losss_own_weights_are_trained_split_and_resumed(tmp_path: Path) -> None:
    def fresh(folder: Path, **settings: Any) -> Any:
        objective = make_objective()
        objective.teachers[0].loss = ShiftedLoss()
        return run(folder, "dynamic", objective=objective, **settings)

    whole = fresh(tmp_path / "whole")
    whole.train()
    learned = whole.objective.teachers[0].loss.shift.detach()
    assert learned.abs().sum() > 0
    with pytest.raises(Killed):
        fresh(tmp_path / "cut", callbacks=[KillAt(6)]).train()
    resumed = fresh(tmp_path / "cut")
    resumed.train(resume_from_checkpoint=True)
    assert torch.equal(resumed.objective.teachers[0].loss.shift.detach(), learned)
    rates = [group["initial_lr"] for group in whole.optimizer.param_groups]
    assert rates == [1e-2, 1e-2, 0.3]
    plain: dict[str, Any] = {"optim": "sgd", "dropout": 0.0, "per_device_train_batch_size": 1}
    one = fresh(tmp_path / "one", **{**plain, "gradient_accumulation_steps": 4})
    four = fresh(
        tmp_path / "four",
        **{**plain, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1},
    )
    for trainer in (one, four):
        trainer.train()
    torch.testing.assert_close(
        one.objective.teachers[0].loss.shift, four.objective.teachers[0].loss.shift
    )
    other = tmp_path / "cut" / "checkpoint-4"
    (other / "losses.safetensors").unlink()
    (other / "xtoken_state.json").unlink()
    trainer = fresh(tmp_path / "cut")
    with pytest.raises(TrainingError, match=r"no weights 0\.shift"):
        trainer.train(resume_from_checkpoint=str(other))
