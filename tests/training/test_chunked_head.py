"""A run that forms logits in blocks makes the updates of one that holds them as a whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_toys import make_examples, make_trainer

from xtoken.config import RunConfig
from xtoken.teachers import LocalTeacher
from xtoken.training import read_metrics, train

Make = Callable[..., RunConfig]


@pytest.fixture(autouse=True)
def nothing_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the tiny models' logits count as large."""
    monkeypatch.setattr("xtoken.output_head.HELD_BYTES", {"cpu": 0, "cuda": 0})


@pytest.fixture
def make_config(tiny_pair: tuple[Path, Path], tiny_text: list[str], tmp_path: Path) -> Make:
    """Return a function: (folder, whether in blocks, other sections) -> a run."""
    data = tmp_path / "train.jsonl"
    texts = [text[: 20 + 17 * n % 90] for n, text in enumerate(tiny_text * 4)]
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))

    def make(folder: str, chunked: bool, **sections: Any) -> RunConfig:
        plain: dict[str, Any] = {
            "student": {"model": str(tiny_pair[0]), "chunked_head": chunked},
            "teachers": [{"model": str(tiny_pair[1]), "chunked_head": chunked}],
            "data": {"train": str(data), "max_length": 48, "eval_split": 0.2},
            "output_dir": str(tmp_path / folder),
        }
        plain |= {key: value for key, value in sections.items() if key != "training"}
        plain["training"] = {
            "use_cpu": True,
            "per_device_train_batch_size": 2,
            "max_steps": 3,
            "logging_steps": 1,
            "learning_rate": 1e-2,
            "optim": "sgd",
            "lr_scheduler_type": "constant",
            "save_strategy": "no",
            **sections.get("training", {}),
        }
        return RunConfig.parse(plain)

    return make


def run(config: RunConfig) -> tuple[dict[str, torch.Tensor], list[dict], list[str]]:
    said: list[str] = []
    train(config, progress="none", say=said.append)
    weights = load_file(Path(config.output_dir) / "model.safetensors")
    return weights, read_metrics(config.output_dir), said


def test_small_logits_are_held(
    tiny_pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = LocalTeacher.from_pretrained(tiny_pair[1])
    ids = torch.tensor([[3, 4, 5, 6]])
    assert not teacher.rows(ids, torch.ones_like(ids)).whole
    rows = teacher.head.module.weight.shape[0]
    for size, whole in ((4 * 4 * rows, True), (4 * 4 * rows - 1, False)):
        monkeypatch.setattr("xtoken.output_head.HELD_BYTES", {"cpu": size, "cuda": size})
        assert teacher.rows(ids, torch.ones_like(ids)).whole is whole


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"combine": {"scaling": "fixed", "ce": 0.0}},
        {"combine": {"scaling": "dynamic_lagged"}},
        {"training": {"gradient_accumulation_steps": 2}},
        {"combine": {"kd": 0.0}},
        {"loss": {"kind": "h_kl"}},
        {"loss": {"kind": "path_kl"}},
        {"loss": {"kind": "alm"}},
        {"loss": {"kind": "p_kl", "weights": "learned"}},
    ],
    ids=str,
)
def test_blocks_change_no_update(make_config: Make, sections: dict[str, Any]) -> None:
    whole, lines, said = run(make_config("whole", False, **sections))
    blocks, other_lines, other_said = run(make_config("blocks", True, **sections))
    assert not any("in blocks" in line for line in said)
    assert any(line.startswith("Logits are formed in blocks") for line in other_said)
    for name, value in whole.items():
        torch.testing.assert_close(blocks[name], value, atol=2e-5, rtol=1e-4, msg=name)
    assert len(lines) == len(other_lines)
    for line, other in zip(lines, other_lines, strict=True):
        for figure, value in line.items():
            named = figure.endswith(("loss", "ce", "bpb", "agreement", "scale"))
            if (named or "kd" in figure) and not figure.startswith("time"):
                assert other[figure] == pytest.approx(value, rel=1e-3, abs=1e-5), figure


def test_mixed_precision_takes_the_heads_precision_from_autocast(make_config: Make) -> None:
    settings = {"bf16": True}
    whole, *_ = run(make_config("whole", False, training=settings))
    blocks, *_ = run(make_config("blocks", True, training=settings))
    exact, *_ = run(make_config("exact", False))
    for name, value in whole.items():
        own = (value - exact[name]).abs().max()
        assert (blocks[name] - exact[name]).abs().max() <= 2 * own + 1e-4, name


def test_a_loss_that_takes_whole_logits_only_keeps_them(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, examples=make_examples(8))
    assert trainer.objective.head is None
    assert trainer.head_note is not None
    assert "takes whole logits only" in trainer.head_note
