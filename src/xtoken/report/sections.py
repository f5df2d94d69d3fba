"""The page's sections on how a run went: curves, time, samples, differences, settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from xtoken.report.charts import LOSS_NAMES, charts, time_split
from xtoken.report.markup import Raw, facts, html, section, stacked_bar, table
from xtoken.report.plots import COLOURS, line_chart, swatch
from xtoken.report.results import column_label
from xtoken.report.run_data import RunData, differences, flatten, plain
from xtoken.report.series import short


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
                (phase, spent, f"{_moment(spent)} ({100 * spent / total:.0f} %)")
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


def _moment(seconds: float) -> str:
    """Write a part of a step: `1.81 s`, `133 ms`, `under 1 ms` (1.21e-05 s is not read)."""
    if seconds >= 0.9995:
        return f"{seconds:.3g} s"
    return f"{1000 * seconds:.0f} ms" if seconds >= 1e-3 else "under 1 ms"


def duration(seconds: float) -> str:
    """Write seconds as `48 s`, `12 min 5 s` or `3 h 20 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def embedded_data(runs: Sequence[RunData]) -> str:
    """Return the evaluation tables as JSON in the page, for whoever reads it by machine."""
    data = [{"run": run.name, "tables": [t.to_dict() for t in run.evaluation]} for run in runs]
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="evaluation-data">{text}</script>'
