"""The sections of the page about one run or several: results, curves, time, samples, settings."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

from xtoken.evaluation.tables import (
    COLUMN_LABELS,
    EvaluationRow,
    EvaluationTable,
    format_value,
)
from xtoken.report.charts import LOSS_NAMES, charts, time_split
from xtoken.report.markup import Raw, facts, html, section, stacked_bar, table
from xtoken.report.plots import COLOURS, line_chart, swatch
from xtoken.report.run_data import RunData, differences, flatten, plain
from xtoken.report.series import short
from xtoken.report.terminal import best_column, change

# The figures of the summary, as far as the first evaluation table has them.
MAIN_METRICS = ("bits_per_byte", "agreement", "kl_per_chunk")


def column_label(column: str) -> str:
    """Return a column's name for people; `run / column` keeps its run."""
    run, _, name = column.rpartition(" / ")
    label = COLUMN_LABELS.get(name, name.replace("_", " "))
    return f"{run}, {label}" if run else label


# ---- Results -------------------------------------------------------------------------------


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


def summary_section(tables: Sequence[EvaluationTable], runs: Sequence[RunData]) -> str:
    """Return the main figures and what could not be read, right under the page's head."""
    body = summary_cards(tables) + notes_card(runs)
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
    body = "".join(f'<div class="card">{_evaluation_table(t)}</div>' for t in tables if t.rows)
    return section(
        "evaluation",
        "Evaluation",
        body,
        "Measured on text that was not trained on, where not said otherwise.",
    )


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


# ---- Curves and time -----------------------------------------------------------------------


def curves_section(runs: Sequence[RunData]) -> str:
    """Return the grid of line charts."""
    drawn = [line_chart(chart, f"c{number}") for number, chart in enumerate(charts(runs))]
    body = "".join(drawn)
    if not body:
        return ""
    intro = (
        "Thin lines are recorded values, bold lines their moving average; dots are held-out text."
    )
    resumed = [
        f"{run.name} was resumed at step {', '.join(map(short, run.resumed_at))}."
        for run in runs
        if run.resumed_at
    ]
    return section(
        "curves", "Curves", f'<div class="grid">{body}</div>', " ".join([intro, *resumed])
    )


def time_section(runs: Sequence[RunData]) -> str:
    """Return where a step's time goes, a bar a run."""
    cards = []
    for run in runs:
        split = time_split(run)
        total = sum(split.values())
        parts = (
            [
                (phase, spent, f"{spent:.3g} s ({100 * spent / total:.0f} %)")
                for phase, spent in split.items()
            ]
            if total > 0
            else []
        )
        bar = stacked_bar("Seconds a step by phase", parts)
        if bar:
            name = f"{run.name}: " if len(runs) > 1 else ""
            speed = run.last("tokens_per_second")
            rate = f", {speed:,.0f} tokens/s at the end" if speed else ""
            cards.append(
                f'<div class="card"><h3>{html(name)}{total:.3g} s a step{rate}</h3>{bar}</div>'
            )
    return section(
        "time",
        "Where a step's time goes",
        "".join(cards),
        "Median over the logged steps, the first left out.",
    )


# ---- Samples, settings ---------------------------------------------------------------------


def samples_section(runs: Sequence[RunData]) -> str:
    """Return prompts with what each model wrote."""
    cards = []
    for run in runs:
        items = []
        for sample in run.samples:
            rows = "".join(
                f'<dt>{html(column_label(name))}</dt><dd dir="auto">{html(text)}</dd>'
                for name, text in sample.outputs.items()
            )
            items.append(
                f'<article class="sample"><p class="prompt" dir="auto">{html(sample.prompt)}</p>'
                f"<dl>{rows}</dl></article>"
            )
        if items:
            name = f"<h3>{html(run.name)}</h3>" if len(runs) > 1 else ""
            cards.append(f'<div class="card">{name}{"".join(items)}</div>')
    return section(
        "samples", "Samples", "".join(cards), "The same prompts before and after training."
    )


def differences_section(runs: Sequence[RunData]) -> str:
    """Return the settings in which the runs differ, with each run's colour."""
    if len(runs) < 2:
        return ""
    head = ["setting", *(Raw(f"{swatch(i % COLOURS)} {html(r.name)}") for i, r in enumerate(runs))]
    rows: list[list[object]] = [
        ["student", *(run.student for run in runs)],
        ["teachers", *(", ".join(run.teachers) or "none" for run in runs)],
        ["loss", *(_loss_name(run) for run in runs)],
        ["steps", *(f"{run.steps:,}" for run in runs)],
    ]
    found = differences(runs)
    for key, values in found.items():
        if key not in ("student.model", "loss.kind"):
            rows.append(
                [key, *(value or Raw('<span class="soft">not set</span>') for value in values)]
            )
    note = "" if found else '<p class="note">Their run files hold the same settings.</p>'
    columns = range(1, len(head))
    body = table("Settings that differ", head, rows, text_columns=columns, hide_caption=True) + note
    return section("differences", "What differs", f'<div class="card">{body}</div>')


def _loss_name(run: RunData) -> str:
    if not run.distils:
        return "cross-entropy alone"
    return LOSS_NAMES.get(run.loss_kind or "", run.loss_kind or "none")


def settings_section(runs: Sequence[RunData]) -> str:
    """Return the resolved run file, the environment, and what could not be read."""
    cards = []
    for run in runs:
        name = f"{run.name}: " if len(runs) > 1 else ""
        parts = []
        environment = flatten(run.environment)
        if environment:
            rows = [[key, ("text", plain(value))] for key, value in environment.items()]
            parts.append(table(f"{name}environment", ["", "version"], rows, text_columns=(1,)))
        if run.config_text:
            open_ = " open" if len(runs) == 1 else ""
            parts.append(
                f"<details{open_}><summary>{html(name)}resolved run file</summary>"
                '<pre tabindex="0" aria-label="Resolved run file">'
                f"<code>{html(run.config_text.rstrip())}</code></pre></details>"
            )
        if parts:
            cards.append(f'<div class="card">{"".join(parts)}</div>')
    return section("settings", "Settings and environment", "".join(cards))


def notes_card(runs: Sequence[RunData]) -> str:
    """Return what could not be read, or is not finite, as a list."""
    notes = [f"{run.name}: {note}" if len(runs) > 1 else note for run in runs for note in run.notes]
    if not notes:
        return ""
    items = "".join(f"<li>{html(note)}</li>" for note in notes)
    return f'<div class="card warnings" role="note"><h3>Please note</h3><ul>{items}</ul></div>'


def run_facts(run: RunData) -> str:
    """Return a run's main facts: loss, steps, length, time, device."""
    items: list[tuple[str, object]] = []
    if not run.distils:
        items.append(("Loss", "cross-entropy alone"))
    elif run.loss_kind:
        items.append(("Loss", LOSS_NAMES.get(run.loss_kind, run.loss_kind)))
    combine: Mapping[str, object] = run.config.get("combine") or {}
    if combine.get("scaling"):
        items.append(("Scaling", str(combine["scaling"]).replace("_", " ")))
    if run.steps:
        items.append(("Steps", f"{run.steps:,}"))
    seconds = run.summary.get("seconds") or run.last("train_runtime")
    if isinstance(seconds, int | float) and seconds > 0:
        items.append(("Training time", duration(float(seconds))))
    speed = run.last("tokens_per_second")
    if speed:
        items.append(("Tokens a second", f"{speed:,.0f}"))
    memory = run.last("memory_gib")
    if memory:
        items.append(("Peak memory", f"{memory:.2g} GiB"))
    for key, label in (("device", "Device"), ("status", "Ended")):
        value = run.environment.get(key) or run.summary.get(key)
        if value and not isinstance(value, Mapping | list):
            items.append((label, str(value)))
    return facts(items)


def duration(seconds: float) -> str:
    """Write seconds as `48 s`, `12 min 5 s` or `3 h 20 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


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


def embedded_data(runs: Sequence[RunData]) -> str:
    """Return the evaluation tables as JSON in the page, for whoever reads it by machine."""
    data = [{"run": run.name, "tables": [t.to_dict() for t in run.evaluation]} for run in runs]
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="evaluation-data">{text}</script>'
