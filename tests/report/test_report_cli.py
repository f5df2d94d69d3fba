from __future__ import annotations

import json
from pathlib import Path

import pytest
from synthetic_runs import make_run
from typer.testing import CliRunner, Result

import xtoken.cli.report  # noqa: F401 - registers the verb
from xtoken.cli._app import app


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def test_text(tmp_path: Path) -> None:
    result = command(make_run(tmp_path, steps=12))
    assert result.exit_code == 0
    assert "learns from SmolLM2-135M-Instruct by P-KL, 12 steps" in result.stdout
    assert "\x1b" not in result.stdout


def test_page(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, name=name, steps=12) for name in ("a", "b")]
    page = tmp_path / "deep" / "page.html"
    result = command(*runs, "--html", page)
    assert result.exit_code == 0
    assert "2 runs compared" in page.read_text(encoding="utf-8")
    assert str(page) in "".join(result.stderr.split())


def test_json(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path, name="a", steps=12),
        make_run(tmp_path, name="b", steps=12, loss="gold"),
    ]
    (runs[1] / "metrics.jsonl").write_text('{"step": 3, "kd": NaN}\n{"step": 4, "kd": 2.0}\n')
    data = json.loads(command(*runs, "--json").stdout)
    assert data["differences"] == {"loss.kind": ["p_kl", "gold"]}
    assert data["html"] is None
    first, second = data["runs"]
    assert first["metrics"]["ce"]["count"] == 12
    assert first["metrics"]["ce"]["lowest"] <= first["metrics"]["ce"]["last"]
    assert first["evaluation"][0]["rows"][0]["values"]["after"] == 1.604
    assert first["verdicts"][0]["loss"] == "p_kl"
    assert first["seconds_a_step"]["teacher"] == pytest.approx(0.35, abs=0.05)
    assert second["metrics"]["kd"] == {
        "count": 1, "first": 2.0, "last": 2.0, "lowest": 2.0, "highest": 2.0,
    }  # fmt: skip
    assert second["notes"] == ["kd: 1 value is not finite, first at step 3."]


def test_baseline_is_called_one(tmp_path: Path) -> None:
    folder = make_run(tmp_path, steps=5)
    text = (folder / "run.yaml").read_text().replace("kd: 1.0", "kd: 0.0")
    (folder / "run.yaml").write_text(text)
    assert "learns from the text alone, by cross-entropy, 5 steps" in command(folder).stdout
    assert json.loads(command(folder, "--json").stdout)["runs"][0]["loss"] is None


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["nowhere"], "nowhere does not exist; expected a run folder", 2),
        ([], "Missing argument", 2),
        (["."], "is not a run folder", 2),
    ],
)
def test_mistakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str, code: int
) -> None:
    monkeypatch.chdir(tmp_path)
    result = command(*arguments)
    assert result.exit_code == code
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_page_that_can_not_be_written(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps=3)
    (tmp_path / "file").write_text("")
    result = command(run, "--html", tmp_path / "file" / "page.html")
    assert result.exit_code == 1
    assert "could not be written" in " ".join(result.stderr.split())
