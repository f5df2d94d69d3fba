"""What a run achieved, for the page: the summary's figures and the evaluation tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from xtoken.evaluation.tables import (
    COLUMN_LABELS,
    KNOWN_METRICS,
    EvaluationRow,
    EvaluationTable,
    format_value,
)
from xtoken.report.evaluation_text import best_column, change
from xtoken.report.markup import Raw, html, section, table
from xtoken.report.run_data import RunData

# The figures of the summary, as far as the first evaluation table has them.
MAIN_METRICS = ("bits_per_byte", "agreement", "kl_per_chunk")


def column_label(column: str) -> str:
    """Return a column's name for people; `run / column` keeps its run."""
    run, _, name = column.rpartition(" / ")
    label = COLUMN_LABELS.get(name, name.replace("_", " "))
    return f"{run}, {label}" if run else label


def merged_evaluations(runs: Sequence[RunData]) -> list[EvaluationTable]:
    """Return the runs' tables, tables of one name side by side; equal columns appear once."""
    if len(runs) == 1:
        return list(runs[0].evaluation)
    names = list(dict.fromkeys(t.name for run in runs for t in run.evaluation))
    return [_merged(name, runs) for name in names]


def _merged(name: str, runs: Sequence[RunData]) -> EvaluationTable:
    found = [(run.name, t) for run in runs for t in run.evaluation if t.name == name]
    rows: dict[str, EvaluationRow] = {}
    values: dict[str, dict[str, float]] = {}
    columns: list[str] = []
    wanted = list(dict.fromkeys(column for _, t in found for column in t.columns))
    finals = [_column(t, "after") for _, t in found]
    for column in wanted:
        holders = [(run, t) for run, t in found if column in t.columns]
        contents = [_column(t, column) for _, t in holders]
        # A baseline that is among the compared runs stands there under its own name.
        if column == "cross_entropy_only" and all(content in finals for content in contents):
            continue
        shared = all(content == contents[0] for content in contents)
        for (run, t), content in zip(holders, contents, strict=True):
            label = column if shared else f"{run} / {column}"
            if label not in columns:
                columns.append(label)
            for row in t.rows:
                rows.setdefault(row.metric, row)
                if row.metric in content:
                    values.setdefault(row.metric, {})[label] = content[row.metric]
    merged = tuple(
        EvaluationRow(metric, values.get(metric, {}), row.label, row.better, row.unit)
        for metric, row in rows.items()
    )
    notes = list(dict.fromkeys(t.note for _, t in found if t.note))
    return EvaluationTable(name, tuple(columns), merged, " ".join(notes))


def _column(evaluation: EvaluationTable, column: str) -> dict[str, float]:
    return {row.metric: row.values[column] for row in evaluation.rows if column in row.values}


def summary_cards(tables: Sequence[EvaluationTable]) -> str:
    """Return cards of the main figures: after, before, and every column as a bar."""
    if not tables:
        return ""
    found = [tables[0].row(metric) for metric in MAIN_METRICS]
    rows = [row for row in found if row is not None and len(row.values) > 0]
    if not rows:
        rows = [row for row in tables[0].rows if row.better != "neither"][:3]
    cards = "".join(_card(row, tables[0].columns) for row in rows)
    return f'<div class="grid">{cards}</div>' if cards else ""


def summary_section(tables: Sequence[EvaluationTable], notes: str) -> str:
    """Return the main figures and what could not be read, right under the page's head."""
    body = summary_cards(tables) + notes
    return f'<div class="summary"><h2 class="hidden">In short</h2>{body}</div>' if body else ""


def _card(row: EvaluationRow, columns: Sequence[str]) -> str:
    text, verdict = change(row)
    before, after = row.format("before"), row.format("after")
    if before and after:
        head = (
            f'<div class="big">{html(after)} <span class="was">was {html(before)}</span></div>'
            f'<div class="delta {verdict}">{html(text)}{_said(verdict)}</div>'
        )
    else:
        best = _leader(row, columns)
        moved, verdict = change(row, "before", best)
        since = f"{moved} from {before}" if before and best != "before" else ""
        head = (
            f'<div class="big">{html(row.format(best))} '
            f'<span class="was">{html(column_label(best))}</span></div>'
            f'<div class="delta {verdict}">{html(since)}{_said(verdict)}</div>'
        )
    hint = {"lower": "lower is better", "higher": "higher is better"}.get(row.better, "")
    return (
        f'<div class="card measure"><h3>{html(row.label[:1].upper() + row.label[1:])} '
        f'<span class="unit">{hint}</span></h3>{head}{_bars(row, columns)}</div>'
    )


def _leader(row: EvaluationRow, columns: Sequence[str]) -> str:
    """Return the best of the trained students' columns (of all, where no run has `after`)."""
    trained = [c for c in columns if c in row.values and c.rpartition(" / ")[2] == "after"]
    candidates = trained or [c for c in columns if c in row.values and c != "teacher"]
    finite = [c for c in candidates if math.isfinite(row.values[c])]
    if not finite:
        return next(iter(row.values))
    choose = max if row.better == "higher" else min
    return choose(finite, key=lambda column: row.values[column])


def _said(verdict: str) -> str:
    return f'<span class="hidden"> ({verdict})</span>' if verdict in ("better", "worse") else ""


def _bars(row: EvaluationRow, columns: Sequence[str]) -> str:
    finite = {c: row.values[c] for c in columns if math.isfinite(row.values.get(c, math.nan))}
    top = max((abs(value) for value in finite.values()), default=0.0)
    items = []
    for column in columns:
        if column not in row.values:
            continue
        width = 100 * abs(finite.get(column, 0.0)) / top if top else 0.0
        main = " main" if column.rpartition(" / ")[2] == "after" else ""
        items.append(
            f'<li><span class="name{main}" title="{html(column_label(column))}">'
            f'{html(column_label(column))}</span><span class="track" aria-hidden="true">'
            f'<span class="fill" style="width:{width:.1f}%"></span></span>'
            f"<span>{html(row.format(column))}</span></li>"
        )
    return f'<ul class="bars">{"".join(items)}</ul>'


def evaluation_section(tables: Sequence[EvaluationTable]) -> str:
    """Return all evaluation tables."""
    body = "".join(
        f'<div class="card">{_evaluation_table(part)}</div>'
        for t in tables
        for part in _by_class_apart(t)
        if part.rows
    )
    return section(
        "evaluation",
        "Evaluation",
        body,
        "Measured on text that was not trained on, where not said otherwise.",
    )


def _by_class_apart(evaluation: EvaluationTable) -> list[EvaluationTable]:
    """Take a table's rows by class of text out of it: a table for each metric that has some.

    There a row's name is its class alone, which narrow screens have room for.
    """
    parts: dict[str, list[EvaluationRow]] = {}
    for row in evaluation.rows:
        parts.setdefault(row.metric.partition("/")[0] if "/" in row.metric else "", []).append(row)
    whole = replace(evaluation, rows=tuple(parts.pop("", ())))
    made = [whole] if whole.rows else []
    for metric, rows in parts.items():
        label = KNOWN_METRICS.get(metric, (metric.replace("_", " "),))[0]
        named = tuple(replace(row, label=row.label.removeprefix(f"{label}, ")) for row in rows)
        note = "" if made else evaluation.note
        name = f"{label} by class: {evaluation.name}"
        made.append(EvaluationTable(name, evaluation.columns, named, note))
    return made


def _evaluation_table(evaluation: EvaluationTable) -> str:
    compared = "before" in evaluation.columns and "after" in evaluation.columns
    head: list[object] = ["", *(column_label(column) for column in evaluation.columns)]
    if compared:
        head.append("change")
    rows: list[list[object]] = []
    for row in evaluation.rows:
        best = best_column(row, evaluation.columns)
        cells: list[object] = [row.label]
        cells += [
            ("best" if column == best else "", row.format(column) or Raw("&ndash;"))
            for column in evaluation.columns
        ]
        if compared:
            text, verdict = change(row)
            cells.append((verdict if verdict in ("better", "worse") else "", text))
        rows.append(cells)
    caption = evaluation.name[:1].upper() + evaluation.name[1:]
    note = f'<p class="note">{html(evaluation.note)}</p>' if evaluation.note else ""
    return table(caption, head, rows) + note


def outcome(run: RunData) -> str:
    """Say in a sentence or two what the run changed on held-out text."""
    row = next((r for t in run.evaluation if (r := t.row("bits_per_byte")) is not None), None)
    if row is None:
        return ""
    before, after = row.values.get("before", math.nan), row.values.get("after", math.nan)
    if not (math.isfinite(before) and math.isfinite(after) and before > 0):
        return ""
    moved = "fell" if after < before else "rose" if after > before else "stayed"
    said = (
        f"On held-out text the student's bits per byte {moved} from {format_value(before)} to "
        f"{format_value(after)}"
    )
    said += (
        f" ({100 * (after - before) / before:+.1f} %)".replace("-", "−") if after != before else ""
    )
    baseline = row.values.get("cross_entropy_only", math.nan)
    if math.isfinite(baseline):
        said += f"; trained by cross-entropy alone it reaches {format_value(baseline)}"
    teacher = row.values.get("teacher", math.nan)
    if math.isfinite(teacher):
        said += f"; the teacher has {format_value(teacher)}"
    return f"{said}."
