"""The documentation is built, complete, and every block of it that can run does."""

from __future__ import annotations

import importlib.util
import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from laid_out import lay_out

ROOT = Path(__file__).resolve().parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAIR = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(language: str) -> list[tuple[str, str]]:
    return [
        (page.name, body)
        for page in DOCS
        for kind, body in PAIR.findall(page.read_text(encoding="utf-8"))
        if kind == language
    ]


@pytest.fixture
def workplace(tmp_path: Path, tiny_pair, tiny_text, monkeypatch) -> Path:
    """A directory with what the pages name."""
    monkeypatch.chdir(tmp_path)
    return lay_out(tmp_path, tiny_pair, tiny_text)


@pytest.mark.parametrize(
    "body",
    [body for page, body in blocks("python") if page == "recipes.md"],
    ids=["pytorch", "trl"],
)
def test_the_recipes_run(workplace: Path, body: str, capsys) -> None:
    exec(compile(body, "recipes.md", "exec"), {})
    shown = capsys.readouterr().out
    if "kd" in body.split("print")[-1]:
        lines = [line.split() for line in shown.splitlines() if line.startswith("ce ")]
        totals = [float(line[1]) + float(line[3]) for line in lines]
        assert totals[-1] < totals[0], "the student learns"
    else:
        assert "train_loss" in shown


def test_the_blocks_on_losses_run(tiny_pair) -> None:
    import torch

    from xtoken import Projection, Vocabulary
    from xtoken.losses import Chunks

    ours, theirs = (Vocabulary.from_pretrained(str(folder)) for folder in tiny_pair)
    torch.manual_seed(0)
    head, teacher_head = torch.nn.Linear(8, len(ours)), torch.nn.Linear(6, len(theirs))
    student_states_ND = torch.randn(4, 8, requires_grad=True)
    teacher_states_ME = torch.randn(4, 6)
    start = torch.tensor([0, 1])
    targets = torch.tensor([5, 6, -1, -1])
    names = {
        "projection": Projection.build(ours, theirs),
        "head": head,
        "teacher_head": teacher_head,
        "student_states_ND": student_states_ND,
        "teacher_states_ME": teacher_states_ME,
        "student_logits_NV": head(student_states_ND),
        "teacher_logits_MU": teacher_head(teacher_states_ME).detach(),
        "chunks": Chunks(start, start * 0 + 1, start, start * 0 + 1, targets, targets),
    }
    bodies = [body for page, body in blocks("python") if page == "losses.md"]
    assert len(bodies) == 2
    # The page's last block makes the loss that the one before it uses.
    for body in reversed(bodies):
        exec(compile(body, "losses.md", "exec"), names)
    assert student_states_ND.grad is not None


def test_the_block_on_the_audit_runs(tiny_pair, tiny_text) -> None:
    from transformers import AutoModelForCausalLM

    from xtoken import Vocabulary

    student, teacher = map(str, tiny_pair)
    names = {
        "student": AutoModelForCausalLM.from_pretrained(student),
        "student_vocab": Vocabulary.from_pretrained(student),
        "teacher_vocab": Vocabulary.from_pretrained(teacher),
        "text": "\n".join(tiny_text),
    }
    (body,) = [body for page, body in blocks("python") if page == "audit.md"]
    exec(compile(body, "audit.md", "exec"), names)
    assert names["report"].suppression == names["found"]


@pytest.mark.parametrize(("page", "body"), blocks("yaml"), ids=str)
def test_run_files_parse(page: str, body: str) -> None:
    from xtoken.config import RunConfig

    assert RunConfig.parse(yaml.safe_load(body)).teachers


def overrides(text: str) -> list[list[str]]:
    """Return the settings that a page names together: in a command, or as inline code.

    `a.b: value` in a sentence stands for `a.b=value`.
    """
    commands = [line.split("#")[0] for line in text.splitlines() if "xtoken train " in line]
    named = [line.split() for line in commands]
    for code in re.findall(r"`([^`\n]+)`", re.sub(PAIR, "", text)):
        key = re.match(r"([a-z_]+(?:\.\w+)+): (?=\S)", code)
        named.append([f"{key[1]}={code[key.end() :]}"] if key else code.split())
    setting = re.compile(r"[a-z_]+(?:\.\w+)*=\S.*")
    found = [[word for word in words if setting.fullmatch(word)] for words in named]
    return [group for group in found if group]


def refused(named: list[list[str]]) -> list[list[str]]:
    """Return the settings that the run file of the example doesn't take."""
    from xtoken.config import load_run
    from xtoken.errors import ConfigError

    found = []
    for group in named:
        try:
            load_run(ROOT / "configs" / "example.yaml", group)
        except ConfigError:
            found.append(group)
    return found


@pytest.mark.parametrize("page", [*DOCS, ROOT / "README.md"], ids=lambda page: page.name)
def test_settings_that_pages_name_exist(page: Path) -> None:
    assert refused(overrides(page.read_text(encoding="utf-8"))) == []


def test_settings_that_do_not_exist_are_found() -> None:
    text = (
        "Try `combine.kd=0`, `loss.kid=gold` or `projection.reversed: true`:\n```sh\n"
        "xtoken train configs/example.yaml loss.kind=h_kl training.max_steps=5  # a=b\n"
        "xtoken train configs/example.yaml loss.kind=h_kl training.lerning_rate=2e-5\n"
        "xtoken train configs/example.yaml loss.kind=hkl --dry-run\n```\n"
    )
    named = overrides(text)
    assert len(named) == 6
    assert [group[-1] for group in refused(named)] == [
        "training.lerning_rate=2e-5",
        "loss.kind=hkl",
        "loss.kid=gold",
        "projection.reversed=true",
    ]


def test_commands_name_verbs_and_options_that_exist() -> None:
    import typer

    from xtoken.cli import app

    root = typer.main.get_command(app)
    lines = [line for _, body in blocks("sh") for line in body.splitlines()]
    commands = [line.split("#")[0] for line in lines if re.search(r"(^| )xtoken \w", line)]
    assert commands
    for line in commands:
        words = shlex.split(line)
        words = words[words.index("xtoken") + 1 :]
        command = root.commands[words[0]]
        if hasattr(command, "commands"):
            command = command.commands[words[1]]
        known = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line


@pytest.mark.parametrize(
    "room", ["xtoken", "xtoken.audit", "xtoken.config", "xtoken.evaluation", "xtoken.report"]
)
def test_public_functions_are_in_the_reference(room: str) -> None:
    module = importlib.import_module(room)
    listed = (ROOT / "docs" / "api.md").read_text(encoding="utf-8").split()
    functions = [n for n in module.__all__ if inspect.isfunction(getattr(module, n))]
    # Only a test calls it.
    missing = {f"{room}.{name}" for name in functions} - set(listed)
    assert missing <= {"xtoken.audit.table_8_counts"}


@pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed (extra: docs)"
)
def test_the_site_builds_without_a_warning_and_loads_nothing_from_a_network(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    cli = (tmp_path / "site" / "cli" / "index.html").read_text(encoding="utf-8")
    for verb in ("audit", "align", "project build", "project show", "train", "eval", "report"):
        assert f"xtoken {verb}" in cli
    assert "--student-model" in cli
    api = (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")
    assert "sum_v W[v, u]" in api, "docstrings are rendered"
    method = (tmp_path / "site" / "method" / "index.html").read_text(encoding="utf-8")
    source = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    formulas = source.count("```math") + source.count("$`")
    assert formulas > 20
    assert method.count("<math ") == method.count("</math>") == formulas
    assert "<munder><mo>&#x02211;</mo>" in method, "the sum of P-KL"
    assert "\\sum" not in method, "TeX that was not read"
    for page in (tmp_path / "site").rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?:)?//[^"]*"', text)
        assert not loaded, f"{page.name} loads something from a network"
