"""From a run file to tokenizers, projections and losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from xtoken.config import RunConfig
from xtoken.errors import ConfigError, ProjectionError
from xtoken.projection import Projection
from xtoken.training.pairs import keep_projections, make_pairs


def run_config(pair: tuple[Path, Path], folder: Path, **changes: Any) -> RunConfig:
    student, teacher = pair
    plain = {
        "student": {"model": str(student)},
        "teachers": [{"model": str(teacher)}],
        "data": {"train": "train.jsonl"},
        "output_dir": str(folder),
        **changes,
    }
    return RunConfig.parse(plain)


def test_the_projection_is_built_once_and_kept(
    tiny_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    config = run_config(tiny_pair, tmp_path)
    first = make_pairs(config, tmp_path, say=said.append)
    file = first.teachers[0].projection_file
    assert file == tmp_path / "projection-0.safetensors"
    assert not file.exists()
    keep_projections(first)
    assert any("Built" in line for line in said)

    def build(*args: Any, **kwargs: Any) -> Projection:
        raise AssertionError("built again")

    monkeypatch.setattr(Projection, "build", build)
    again = make_pairs(config, tmp_path, say=said.append)
    assert (again.teachers[0].projection.indices == first.teachers[0].projection.indices).all()
    # What was read is left as it is.
    written = file.stat().st_mtime_ns
    keep_projections(again)
    assert file.stat().st_mtime_ns == written
    # Other rules, or a damaged file: the old one is not taken for the new.
    with pytest.raises(AssertionError, match="built again"):
        make_pairs(
            run_config(tiny_pair, tmp_path, projection={"gamma": 0.0}, loss={"kind": "p_kl"}),
            tmp_path,
            say=said.append,
        )
    (tmp_path / "projection-0.safetensors").write_bytes(b"half")
    with pytest.raises(AssertionError, match="built again"):
        make_pairs(config, tmp_path, say=said.append)


def test_a_given_projection_for_other_tokenizers_is_refused(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    config = run_config(tiny_pair, tmp_path)
    pairs = make_pairs(config, tmp_path, say=lambda text: None)
    keep_projections(pairs)
    swapped = run_config(
        (tiny_pair[1], tiny_pair[0]),
        tmp_path / "other",
        projection={"path": str(pairs.teachers[0].projection_file)},
    )
    with pytest.raises(ProjectionError):
        make_pairs(swapped, None, say=lambda text: None)


def test_the_same_tokenizer_goes_direct_and_is_announced(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    said: list[str] = []
    student = tiny_pair[0]
    config = run_config((student, student), tmp_path, loss={"kind": "p_kl", "temperature": 2.0})
    pair = make_pairs(config, None, say=said.append).teachers[0]
    assert pair.same_tokenizer
    assert pair.loss.kind == "direct"
    assert pair.loss.temperature == 2.0
    assert "student's own tokenizer" in said[0]


def test_direct_between_different_tokenizers_is_a_mistake_in_the_run_file(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    config = run_config(tiny_pair, tmp_path, loss={"kind": "direct"})
    with pytest.raises(ConfigError, match=r"teachers\.0 \(teacher\).*direct") as caught:
        make_pairs(config, None, say=lambda text: None)
    assert caught.value.exit_code == 2


def test_each_teacher_has_its_own_loss_and_weight(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    student, teacher = map(str, tiny_pair)
    config = run_config(
        tiny_pair,
        tmp_path,
        teachers=[
            {"model": teacher, "weight": 0.8, "loss": {"kind": "h_kl"}},
            {"model": student, "weight": 0.2},
        ],
    )
    pairs = make_pairs(config, tmp_path, say=lambda text: None)
    assert [pair.loss.kind for pair in pairs.teachers] == ["h_kl", "direct"]
    assert [pair.weight for pair in pairs.teachers] == [0.8, 0.2]
    assert pairs.teachers[1].projection_file is None
