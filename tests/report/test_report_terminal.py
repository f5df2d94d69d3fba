from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console
from synthetic_runs import audit_dict, make_run, tables

from xtoken.evaluation import EvaluationTable
from xtoken.evaluation.tables import EvaluationRow
from xtoken.report import (
    load_run,
    render_audit,
    render_table_before_after,
    report_terminal,
)
from xtoken.report.evaluation_text import best_column, change
from xtoken.report.terminal import sparkline


def printed(renderable, width: int = 80) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(renderable)
    return out.getvalue()


@pytest.mark.parametrize("width", [40, 80, 120])
def test_audit_fits_and_says_its_verdict(width: int) -> None:
    text = printed(render_audit(audit_dict()), width)
    assert text.startswith("Verdict: P-KL (loss.kind=p_kl)")
    assert "0/963" in text
    assert "makes a strict split unsound" in text
    assert "sampled from" in " ".join(text.split())
    assert all(cell_len(line) <= width for line in text.splitlines())


def test_audit_of_a_real_pair(tiny_pair, tiny_text: list[str]) -> None:
    from xtoken import Vocabulary
    from xtoken.audit import audit

    student, teacher = (Vocabulary.from_pretrained(folder) for folder in tiny_pair)
    report = audit(student, teacher, tiny_text)
    text = printed(render_audit(report), 100)
    assert report.verdict.reason in " ".join(text.split())
    # What is written to audit.json reads the same.
    again = json.loads(json.dumps(report.to_dict()))
    assert printed(render_audit(again), 100) == text
    assert printed(render_audit(audit(student, student)), 100).startswith("Verdict: direct KL")


def test_before_and_after() -> None:
    text = printed(render_table_before_after(tables()[0]), 100)
    for part in (
        "2.913",
        "1.604",
        "−44.9 %",
        "+31.9 points",
        "cross-entropy only",
        "412,003 bytes",
    ):
        assert part in text


def test_change_and_best() -> None:
    row = EvaluationRow.of("bits_per_byte", {"before": 2.0, "after": 2.5, "teacher": 1.0})
    assert change(row) == ("+25.0 %", "worse")
    assert best_column(row, ("before", "after", "teacher")) == "before"
    assert change(EvaluationRow.of("agreement", {"before": 0.1, "after": 0.3})) == (
        "+20.0 points",
        "better",
    )
    assert change(EvaluationRow.of("agreement", {"before": 0.1, "after": 0.1}))[1] == "same"
    assert change(EvaluationRow.of("agreement", {"before": 0.1, "after": math.nan})) == ("", "")
    assert change(EvaluationRow.of("documents", {"before": 1.0, "after": 2.0})) == ("", "")
    tie = EvaluationRow.of("agreement", {"before": 0.1, "after": 0.1})
    assert best_column(tie, ("before", "after")) is None


@pytest.mark.parametrize("width", [40, 80])
def test_run_fits(tmp_path: Path, width: int) -> None:
    text = printed(report_terminal(load_run(make_run(tmp_path, steps=80))), width)
    assert "gpt2-mini learns from SmolLM2-135M-Instruct by P-KL, 80 steps" in " ".join(text.split())
    assert "Cross-entropy" in text
    assert "Time a step: 1.05 s" in " ".join(text.split())
    assert any(bar in text for bar in "▁▂▃▄▅▆▇█")
    assert all(cell_len(line) <= width for line in text.splitlines())


def test_several_runs_name_what_differs(tmp_path: Path) -> None:
    runs = [
        load_run(make_run(tmp_path, name="first", steps=5)),
        load_run(make_run(tmp_path, name="second", steps=5, loss="h_kl")),
    ]
    text = printed(report_terminal(runs), 100)
    assert "What differs" in text
    assert "loss.kind" in text
    assert "The runs have the same settings." in printed(report_terminal([runs[0], runs[0]]))


def test_figures_carry_their_units(tmp_path: Path) -> None:
    text = printed(report_terminal(load_run(make_run(tmp_path, steps=5))), 80)
    for named in ("Cross-entropy (nats a token)", "Throughput (tokens/s)", "Time a step (s)"):
        assert named in text


def test_run_with_nothing_but_a_broken_file(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "kd": NaN}\n')
    text = " ".join(printed(report_terminal(load_run(tmp_path)), 60).split())
    assert "kd: 1 value is not finite, first at step 1." in text


def test_markup_in_names_is_text(tmp_path: Path) -> None:
    table = EvaluationTable.from_columns("[red]x[/red]", {"[b]a[/b]": {"m": 1.0}}, "[/]")
    text = printed(render_table_before_after(table))
    for part in ("[red]x[/red]", "[b]a[/b]", "[/]"):
        assert part in text


def test_sparkline() -> None:
    assert sparkline([0.0, 1.0], 10) == "▁█"
    assert sparkline([3.0] * 5, 3) == "▅▅▅"
    assert sparkline([], 5) == ""
    assert len(sparkline(range(1000), 24)) == 24
    assert sparkline([0.0, 1.0], 10, ascii_only=True) == "_#"


def test_pieces_of_a_numeral_are_told_from_their_weights() -> None:
    report = audit_dict()
    report["text"]["frequent_inexact"] = [
        {"text": "201", "count": 3, "pieces": [["2", 0.9009], ["0", 0.0901]]}
    ]
    assert "2 (0.90), 0 (0.09)" in printed(render_audit(report), 80)


def test_a_run_that_diverged_says_so_at_the_top(tmp_path: Path) -> None:
    fine = make_run(tmp_path / "fine")
    assert "diverged" not in printed(report_terminal([load_run(fine)]))
    lines = ['{"step": 1, "loss": 2.0}', '{"step": 2, "loss": NaN}', '{"step": 3, "loss": NaN}']
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    top = " ".join(printed(report_terminal([load_run(folder)])).split()[:40])
    assert "it diverged: its loss is not finite from step 2 on" in top
