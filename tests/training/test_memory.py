"""The estimate: exact where it can be, and growing with what it says it grows with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from xtoken.config import RunConfig
from xtoken.errors import ModelNotFoundError
from xtoken.training.arguments import training_arguments
from xtoken.training.memory import GIB, MemoryEstimate, estimate, model_size
from xtoken.training.student import student_dtype


def run_config(pair: tuple[Path, Path], folder: Path, **changes: Any) -> RunConfig:
    plain = {
        "student": {"model": str(pair[0])},
        "teachers": [{"model": str(pair[1])}],
        "data": {"train": "train.jsonl", "max_length": 64},
        "output_dir": str(folder),
        "training": {"use_cpu": True},
        **changes,
    }
    return RunConfig.parse(plain)


def estimated(pair: tuple[Path, Path], folder: Path, **changes: Any) -> MemoryEstimate:
    config = run_config(pair, folder, **changes)
    return estimate(
        config,
        training_arguments(config),
        model_size(config.student),
        [model_size(config.teachers[0])],
        student_dtype=student_dtype(config.student),
        teacher_lengths=[80],
    )


def test_sizes_are_those_of_the_loaded_model(tiny_pair: tuple[Path, Path], tmp_path: Path) -> None:
    config = run_config(tiny_pair, tmp_path)
    for model in (config.student, config.teachers[0]):
        loaded = AutoModelForCausalLM.from_pretrained(model.model)
        size = model_size(model)
        assert size.parameters == sum(p.numel() for p in loaded.parameters())
        assert size.head_rows == loaded.get_output_embeddings().weight.shape[0]
        assert (size.layers, size.hidden) == (2, 32)


def test_weights_gradients_and_adam_are_counted(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    parts = estimated(tiny_pair, tmp_path).parts
    weights = parts["student weights"]
    assert parts["gradients"] == weights
    assert parts["optimizer"] == 2 * weights
    adapters = estimated(
        tiny_pair, tmp_path, student={"model": str(tiny_pair[0]), "lora": {"r": 2}}
    )
    assert adapters.parts["gradients"] < parts["gradients"]


def test_the_estimate_grows_with_the_batch(tiny_pair: tuple[Path, Path], tmp_path: Path) -> None:
    small = estimated(tiny_pair, tmp_path)
    settings = {"use_cpu": True, "per_device_train_batch_size": 32}
    large = estimated(tiny_pair, tmp_path, training=settings)
    for name in ("activations", "student logits and gradient", "logits of teacher"):
        assert large.parts[name] == pytest.approx(4 * small.parts[name])
    assert large.parts["student weights"] == small.parts["student weights"]


def test_a_head_in_half_precision_takes_a_copy_more_where_its_logits_come_in_blocks(
    tiny_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "student logits and gradient"
    model = {"model": str(tiny_pair[0])}
    held = estimated(tiny_pair, tmp_path, student={**model, "dtype": "bfloat16"}).parts[name]
    monkeypatch.setattr("xtoken.training.memory.HEAD_BLOCK", held / 2)
    size = model_size(run_config(tiny_pair, tmp_path).student)
    for dtype, more in (("bfloat16", 2 * size.head_rows * size.hidden), ("float32", 0)):
        parts = estimated(tiny_pair, tmp_path, student={**model, "dtype": dtype}).parts
        assert parts[name] == held / 2 + more


def test_the_lines_add_up() -> None:
    lines = MemoryEstimate({"a": GIB, "b": GIB / 2}).lines()
    assert lines[0].split() == ["a", "1.00", "GiB"]
    assert lines[-1].split() == ["total", "1.50", "GiB"]


def test_a_model_that_is_not_there(tiny_pair: tuple[Path, Path], tmp_path: Path) -> None:
    config = run_config(tiny_pair, tmp_path, student={"model": str(tmp_path / "nothing")})
    with pytest.raises(ModelNotFoundError, match="nothing"):
        model_size(config.student)
