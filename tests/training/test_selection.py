"""Several teachers: averaged logits, the best for a sample, weights by what they think of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from tiny_models import save_tiny_model
from xtoken.config import RunConfig
from xtoken.errors import ConfigError, UsageError
from xtoken.losses import Chunks
from xtoken.losses.sources import LogitSource
from xtoken.teachers import AveragedTeachers, LocalTeacher
from xtoken.training import read_metrics, train
from xtoken.training.selection import Selection

IDS = torch.tensor([[5, 9, 11, 30], [7, 8, 3, 2]])
MASK = torch.ones_like(IDS)


def chunk_table() -> Chunks:
    """Two samples of five rows; the first has two chunks, the second one."""
    start = torch.tensor([0, 2, 5])
    return Chunks(
        start,
        torch.tensor([2, 1, 3]),
        torch.tensor([0, 1, 4]),
        torch.tensor([1, 2, 2]),
        torch.arange(10) % 4,
        torch.arange(8) % 4,
    )


@pytest.mark.parametrize("criterion", ["ce", "entropy", "max_prob"])
def test_scores_are_what_the_docstring_says(criterion: str) -> None:
    logits_MU = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    chunks, owner_C = chunk_table(), torch.tensor([0, 0, 1])
    found = Selection("sum", criterion).score(LogitSource(logits_MU), chunks, owner_C, 3, 4)
    logp = logits_MU[:, :4].log_softmax(-1)
    if criterion == "ce":
        nats = [-(logp[0, 0] + logp[1, 1] + logp[2, 2]) / 3, -(logp[4, 0] + logp[5, 1]) / 3]
        expected = [math.exp(-float(value)) for value in nats]
    elif criterion == "entropy":
        entropy = -(logp.exp() * logp).sum(-1)
        expected = [math.exp(-float(entropy[0] + entropy[1]) / 2), math.exp(-float(entropy[4]))]
    else:
        top = logp.exp().amax(-1)
        expected = [float(top[0] + top[1]) / 2, float(top[4])]
    assert found[:2].tolist() == pytest.approx(expected)
    assert bool(found[2].isnan())


def test_factors_redistribute_the_weights() -> None:
    nan = float("nan")
    score_MB = torch.tensor([[0.2, 0.6, nan, nan], [0.4, 0.3, 0.1, nan], [0.9, 0.9, 0.9, 0.9]])
    weights = [1.0, 3.0, 0.0]
    shares = Selection("sum", "ce").factors(score_MB, weights) * torch.tensor(weights)[:, None]
    assert shares[:, 0].tolist() == pytest.approx([4 * 0.2 / 1.4, 4 * 1.2 / 1.4, 0.0])
    assert shares[:, 2].tolist() == pytest.approx([0.0, 4.0, 0.0])
    assert shares[:, 3].tolist() == [0.0, 0.0, 0.0], "nobody has a chunk there"
    best = Selection("best", "ce").factors(score_MB, weights) * torch.tensor(weights)[:, None]
    assert best.tolist() == [[0.0, 4.0, 0.0, 0.0], [4.0, 0.0, 4.0, 0.0], [0.0] * 4]


# ---------------------------------------------------------------------- runs


@pytest.fixture
def three(tiny_pair: tuple[Path, Path], tmp_path: Path) -> Path:
    """Return a second teacher with the first one's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_pair[1])
    return save_tiny_model(tmp_path / "second", tokenizer, seed=99)


@pytest.fixture
def make_config(
    tiny_pair: tuple[Path, Path], three: Path, tiny_text: list[str], tmp_path: Path
) -> Callable[..., RunConfig]:
    data = tmp_path / "train.jsonl"
    texts = [text[: 20 + 17 * n % 90] for n, text in enumerate(tiny_text * 4)]
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))

    def make(folder: str, combine: dict[str, Any], batch: int = 4, **more: Any) -> RunConfig:
        return RunConfig.parse(
            {
                "student": {"model": str(tiny_pair[0])},
                "teachers": [
                    {"model": str(tiny_pair[1]), "name": "first", "weight": 0.8},
                    {"model": str(three), "name": "second", "weight": 0.2},
                ],
                "data": {"train": str(data), "max_length": 48, "eval_split": 0.2},
                "combine": combine,
                "training": {
                    "use_cpu": True,
                    "per_device_train_batch_size": batch,
                    "gradient_accumulation_steps": 4 // batch,
                    "max_steps": 2,
                    "logging_steps": 1,
                    "learning_rate": 1e-2,
                    "optim": "sgd",
                    "lr_scheduler_type": "constant",
                    "save_strategy": "no",
                },
                "output_dir": str(tmp_path / folder),
                **more,
            }
        )

    return make


def weights_after(config: RunConfig) -> dict[str, torch.Tensor]:
    train(config, progress="none")
    return load_file(Path(config.output_dir) / "model.safetensors")


@pytest.mark.parametrize("held", [0, 2**28])
@pytest.mark.parametrize(
    "combine",
    [
        {"teachers": "best"},
        {"teachers": "best", "teacher_weights": "entropy", "scaling": "fixed"},
        {"teacher_weights": "ce"},
        {"teacher_weights": "max_prob"},
        {"teachers": "average_logits"},
        {"log_vocab_normalization": True, "scaling": "fixed"},
    ],
    ids=str,
)
def test_the_choice_does_not_depend_on_how_a_batch_is_split(
    make_config: Callable[..., RunConfig],
    combine: dict[str, Any],
    held: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("xtoken.output_head.HELD_BYTES", {"cpu": held, "cuda": held})
    whole = weights_after(make_config("whole", combine))
    split = weights_after(make_config("split", combine, batch=1))
    for name, value in whole.items():
        torch.testing.assert_close(split[name], value, atol=2e-5, rtol=1e-4, msg=name)
    plain = weights_after(make_config("plain", {"scaling": combine.get("scaling", "dynamic")}))
    assert any(not torch.allclose(plain[name], value, atol=1e-6) for name, value in whole.items())


def test_shares_are_logged_and_the_best_has_all(make_config: Callable[..., RunConfig]) -> None:
    config = make_config("best", {"teachers": "best"})
    train(config, progress="none")
    for line in read_metrics(config.output_dir):
        if line["kind"] == "train":
            shares = [line.get(f"teacher_share/{name}", 0.0) for name in ("first", "second")]
            assert all(0.0 <= share <= 1.0 for share in shares)
            assert any(shares)
            assert line["kd"] > 0.0


@pytest.mark.parametrize(
    "combine", [{"teachers": "best"}, {"teacher_weights": "max_prob"}], ids=str
)
def test_the_scale_and_the_log_go_by_what_was_chosen(
    make_config: Callable[..., RunConfig], combine: dict[str, Any]
) -> None:
    config = make_config("chosen", {**combine, "scaling": "dynamic"})
    train(config, progress="none")
    lines = [line for line in read_metrics(config.output_dir) if line["kind"] == "train"]
    assert lines
    for line in lines:
        chosen = [line.get(f"kd_chosen/{name}", 0.0) for name in ("first", "second")]
        assert line["kd"] == pytest.approx(0.8 * chosen[0] + 0.2 * chosen[1], rel=1e-5)
        assert line["scale"] == pytest.approx(line["ce"] / line["kd"], rel=1e-4)
        assert line["loss"] == pytest.approx(2 * line["ce"], rel=1e-4)


# ---------------------------------------------------------------------- averaged logits


@pytest.mark.parametrize("held", [0, 2**28])
def test_averaged_logits_are_the_weighted_mean(
    tiny_pair: tuple[Path, Path], three: Path, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xtoken.output_head.HELD_BYTES", {"cpu": held, "cuda": held})
    members = [LocalTeacher.from_pretrained(folder) for folder in (tiny_pair[1], three)]
    mean = AveragedTeachers(members, [3.0, 1.0])
    size = len(mean.vocab)
    parts = [member.signal(IDS, MASK)[..., :size].float() for member in members]
    expected = (0.75 * parts[0] + 0.25 * parts[1]).reshape(-1, size)
    torch.testing.assert_close(mean.signal(IDS, MASK).reshape(-1, size), expected)
    rows_R = torch.tensor([1, 6])
    found = mean.rows(IDS, MASK).open(rows_R, size, keep=False)
    torch.testing.assert_close(found, expected[rows_R])


def test_weights_that_sum_to_zero_are_refused(tiny_pair: tuple[Path, Path]) -> None:
    teacher = LocalTeacher.from_pretrained(tiny_pair[1])
    with pytest.raises(UsageError, match="sum to zero"):
        AveragedTeachers([teacher, teacher], [0.0, 0.0])
    with pytest.raises(UsageError, match="for 2 teachers"):
        AveragedTeachers([teacher, teacher], [1.0])
    other = LocalTeacher.from_pretrained(tiny_pair[0])
    with pytest.raises(UsageError, match="tokenizers differ"):
        AveragedTeachers([teacher, other])


def test_averaging_two_tokenizers_is_refused_before_anything_is_loaded(
    make_config: Callable[..., RunConfig], tiny_pair: tuple[Path, Path]
) -> None:
    teachers = [{"model": str(tiny_pair[1])}, {"model": str(tiny_pair[0])}]
    config = make_config("x", {"teachers": "average_logits"}, teachers=teachers)
    with pytest.raises(ConfigError, match="has another tokenizer"):
        train(config, progress="none")


def test_learned_weights_are_written_and_differ(make_config: Callable[..., RunConfig]) -> None:
    from xtoken.projection import Projection

    loss = {"kind": "p_kl", "weights": "learned", "weights_learning_rate": 0.1}
    config = make_config("learned", {"scaling": "dynamic"}, loss=loss)
    train(config, progress="none")
    folder = Path(config.output_dir)
    before = Projection.load(folder / "projection-0.safetensors")
    after = Projection.load(folder / "projection-0-learned.safetensors")
    assert after.rules["learned"]
    assert before.weights.shape == after.weights.shape
    moved = abs(before.weights - after.weights).max()
    assert 1e-4 < moved < 1.0
    assert abs(after.weights.sum(1) - before.weights.sum(1)).max() < 1e-5, "rows stay normalised"
