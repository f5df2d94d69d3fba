"""Complete or not there: what a kill, a full disk and a cut copy leave behind."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from training_toys import make_examples, make_trainer

from xtoken.errors import TrainingError
from xtoken.training import checkpoints
from xtoken.training.checkpoints import (
    RunState,
    check_checkpoint,
    clear_staging,
    find_checkpoint,
    problem_of,
    staged,
)


def write(folder: Path, step: int = 1) -> Path:
    final = folder / f"checkpoint-{step}"
    with staged(final) as staging:
        (staging / "trainer_state.json").write_text('{"global_step": 1}')
        (staging / "model.safetensors").write_bytes(b"\x02\x00\x00\x00\x00\x00\x00\x00{}")
        RunState(0.5, [3.0]).save(staging)
    return final


def test_a_checkpoint_appears_whole(tmp_path: Path) -> None:
    final = write(tmp_path)
    assert problem_of(final) is None
    assert check_checkpoint(final) == final
    assert RunState.load(final) == RunState(0.5, [3.0])
    assert not list(tmp_path.glob(".*"))


def test_writing_it_again_replaces_it(tmp_path: Path) -> None:
    final = write(tmp_path)
    (final / "stray").write_text("x")
    write(tmp_path)
    assert not (final / "stray").exists()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda f: (f / "model.safetensors").write_bytes(b"\x02"), "has 1 bytes instead of 10"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda f: (f / "trainer_state.json").unlink(), "trainer_state.json is missing"),
        (lambda f: (f / "xtoken_state.json").write_text("{"), "cut short or not JSON"),
    ],
)
def test_damage_is_named(tmp_path: Path, harm: Any, words: str) -> None:
    final = write(tmp_path)
    harm(final)
    assert words in (problem_of(final) or "")
    with pytest.raises(TrainingError, match="no complete one beside it"):
        check_checkpoint(final)


def test_another_trainers_checkpoint_is_checked_by_its_headers(tmp_path: Path) -> None:
    final = write(tmp_path)
    (final / "xtoken_state.json").unlink()
    assert problem_of(final) is None
    header = b'{"w": {"dtype": "U8", "shape": [9], "data_offsets": [0, 9]}}'
    content = len(header).to_bytes(8, "little") + header
    (final / "model.safetensors").write_bytes(content + b"123")
    assert "cut short" in (problem_of(final) or "")
    (final / "model.safetensors").write_bytes(content + b"123456789")
    assert problem_of(final) is None


def test_the_newest_complete_one_is_found(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path).path is None
    for step in (2, 10, 9):
        write(tmp_path, step)
    assert find_checkpoint(tmp_path).path == tmp_path / "checkpoint-10"
    (tmp_path / "checkpoint-10" / "model.safetensors").unlink()
    found = find_checkpoint(tmp_path)
    assert found.path == tmp_path / "checkpoint-9"
    assert "checkpoint-10" in found.skipped[0]


def test_leftovers_of_a_kill_are_cleared(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint-4.incomplete").mkdir()
    old = write(tmp_path, 3)
    old.rename(tmp_path / ".checkpoint-3.replaced")
    clear_staging(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


@pytest.mark.parametrize("broken", ["model", "optimizer"])
def test_a_full_disk_leaves_the_earlier_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    trainer = make_trainer(
        tmp_path, examples=make_examples(8), save_strategy="steps", save_steps=1, max_steps=3
    )
    real_save, real_model = torch.save, type(trainer.model).save_pretrained

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def save(value: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        if trainer.state.global_step == 2 and str(path).endswith("optimizer.pt"):
            full()
        real_save(value, path, *args, **kwargs)

    def save_model(model: Any, *args: Any, **kwargs: Any) -> None:
        if trainer.state.global_step == 2:
            # What the Rust side of safetensors says.
            raise RuntimeError("I/O error: No space left on device (os error 28)")
        real_model(model, *args, **kwargs)

    if broken == "optimizer":
        monkeypatch.setattr(torch, "save", save)
    else:
        monkeypatch.setattr(type(trainer.model), "save_pretrained", save_model)
    with pytest.raises(TrainingError, match=r"disk is full.*checkpoint-1 is intact|disk is full"):
        trainer.train()
    assert problem_of(tmp_path / "checkpoint-1") is None
    assert not (tmp_path / "checkpoint-2").exists()
    assert not list(tmp_path.glob(".*"))


def test_rotation_keeps_the_best_and_the_last(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path,
        examples=make_examples(8),
        eval_dataset=make_examples(4, seed=5),
        max_steps=5,
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_bpb",
        greater_is_better=True,  # so that an early step, not the last, is the best
    )
    trainer.train()
    values = {
        line["step"]: line["eval_bpb"] for line in trainer.state.log_history if "eval_bpb" in line
    }
    best = max(values, key=lambda step: values[step])
    assert best < 5
    kept = {path.name for path in tmp_path.glob("checkpoint-*")}
    assert kept == {f"checkpoint-{best}", "checkpoint-5"}
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
    assert trainer.evaluate()["eval_bpb"] == pytest.approx(values[best], rel=1e-5)


def test_a_short_write_of_torch_is_known_as_a_full_disk() -> None:
    error = RuntimeError(
        "[enforce fail at inline_container.cc:863] . PytorchStreamWriter failed "
        "writing file data/0: file write failed"
    )
    assert checkpoints.disk_full(error) is not None
    assert checkpoints.disk_full(ValueError("no")) is None
