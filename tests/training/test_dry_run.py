"""The dry run: everything is checked, nothing is written, the first example is shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from xtoken.config import RunConfig
from xtoken.errors import DataError
from xtoken.training.dry_run import dry_run


def run_config(pair: tuple[Path, Path], data: Path, folder: Path, **changes: Any) -> RunConfig:
    plain = {
        "student": {"model": str(pair[0])},
        "teachers": [{"model": str(pair[1])}, {"model": str(pair[0]), "name": "twin"}],
        "data": {"train": str(data), "max_length": 48},
        "training": {"use_cpu": True, "per_device_train_batch_size": 3},
        "output_dir": str(folder),
        **changes,
    }
    return RunConfig.parse(plain)


def test_it_shows_the_run_and_writes_nothing(
    tiny_pair: tuple[Path, Path], tiny_text: list[str], tmp_path: Path
) -> None:
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in tiny_text))
    shown = dry_run(run_config(tiny_pair, data, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    text = "\n".join(shown.lines())
    assert "student weights" in text
    assert "Teacher teacher, loss path_kl" in text
    assert "Teacher twin, loss direct" in text
    assert "train.jsonl, line 1" in text
    assert shown.batch_shapes["student tokens"][0] == 3
    plain = json.loads(json.dumps(shown.to_dict()))
    assert plain["losses"] == {"teacher": "path_kl", "twin": "direct"}
    assert plain["memory_gib"]["total"] > 0
    for index, vocab in enumerate(pair.vocab for pair in shown.pairs.teachers):
        lines = shown.chunks(index, limit=None)
        content = "".join("".join(line.student) for line in lines if "<" not in line.student[0])
        assert content == tiny_text[0]
        assert {len(line.teacher) for line in lines} >= ({1} if index else {1, 2})
        assert vocab.name


def test_mistakes_show(tiny_pair: tuple[Path, Path], tmp_path: Path) -> None:
    data = tmp_path / "train.jsonl"
    data.write_text('{"text": "fine"}\n{"text": \n')
    with pytest.raises(DataError, match="line 2"):
        dry_run(run_config(tiny_pair, data, tmp_path / "out"))
