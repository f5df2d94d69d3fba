"""Every command and code block of the README does what it says, on a tiny pair of models."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from laid_out import lay_out
from xtoken.cli import main

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
QUICKSTART = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
# What stands in for a thousand steps of a real model.
SHORT = [
    "training.max_steps=2",
    "training.per_device_train_batch_size=2",
    "training.gradient_accumulation_steps=2",
    "training.use_cpu=true",
    "data.max_length=64",
]


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)


def commands(page: str = README) -> list[str]:
    lines = [line for block in blocks("sh", page) for line in block.splitlines()]
    return [line.split("#")[0].strip() for line in lines if line.startswith("xtoken ")]


@pytest.fixture
def workplace(tmp_path: Path, tiny_pair, tiny_text, monkeypatch) -> Path:
    """A directory with everything that the README's commands name."""
    lay_out(tmp_path, tiny_pair, tiny_text)
    shutil.copy(tmp_path / "train.jsonl", tmp_path / "eval.jsonl")
    for name in ("sample.txt", "held_out.txt"):
        (tmp_path / name).write_text("\n".join(tiny_text))
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command: str) -> None:
    arguments = shlex.split(command)[1:]
    if arguments[0] == "train":
        arguments += SHORT
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code in (0, None), command


def test_the_readme_names_every_verb() -> None:
    verbs = {shlex.split(command)[1] for command in commands()}
    assert verbs == {"audit", "train", "eval", "report", "align", "project"}


def test_commands_run_in_the_order_of_the_readme(workplace: Path, capsys) -> None:
    for command in commands():
        run(command)
    shown = capsys.readouterr().out
    assert "201" in shown
    assert "bits per byte" in shown.lower()
    assert (workplace / "report.html").read_text().startswith("<!doctype html>")
    assert (workplace / "W.safetensors").exists()
    assert (workplace / "runs/first/model.safetensors").exists()


def test_the_quickstart_runs_and_compares_with_the_baseline(workplace: Path, capsys) -> None:
    for command in commands(QUICKSTART):
        run(command)
    page = (workplace / "report.html").read_text()
    assert "2 runs compared" in page
    for name in ("first", "baseline"):
        tables = (workplace / "runs" / name / "evaluation.json").read_text()
        assert "agreement" in tables


@pytest.mark.parametrize("page", [README, QUICKSTART], ids=["README", "quickstart"])
def test_the_run_file_of_the_readme_is_the_example(page: str) -> None:
    (block,) = blocks("yaml", page)
    assert yaml.safe_load(block) == yaml.safe_load((ROOT / "configs/example.yaml").read_text())


def test_python_blocks_run(workplace: Path, capsys) -> None:
    (block,) = blocks("python")
    exec(compile(block, "README.md", "exec"), {})
    assert "one_to_one" in capsys.readouterr().out


def test_make_targets_of_the_readme_exist() -> None:
    targets = set(re.findall(r"^make (\w+)", "\n".join(blocks("sh")), re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text()
    assert targets >= {"demo", "test"}
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
