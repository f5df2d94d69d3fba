"""The short report of a run in a terminal; readable at 40 columns and in a pipe."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from xtoken.report.charts import LOSS_NAMES, charts, time_split
from xtoken.report.evaluation_text import render_table_before_after
from xtoken.report.frame import NARROW, ByWidth, heading, plain_table
from xtoken.report.run_data import RunData, differences
from xtoken.report.series import short, smooth

BARS = "▁▂▃▄▅▆▇█"
ASCII_BARS = "_.-~=+*#"


def report_terminal(runs: RunData | Sequence[RunData]) -> RenderableType:
    """Draw a short report of one run, or of several with what differs between them."""
    listed = [runs] if isinstance(runs, RunData) else list(runs)
    return ByWidth(lambda width, plain: Group(*_run_parts(listed, width, plain)))


def _run_parts(runs: Sequence[RunData], width: int, plain: bool) -> list[RenderableType]:
    parts: list[RenderableType] = []
    if len(runs) > 1:
        parts += _difference_parts(runs)
    for run in runs:
        if parts:
            parts.append(Text(""))
        parts += _one_run(run, width, plain)
    return parts


def _difference_parts(runs: Sequence[RunData]) -> list[RenderableType]:
    rows = differences(runs)
    if not rows:
        return [Text("The runs have the same settings.")]
    table = plain_table()
    table.add_column("setting", overflow="fold")
    for run in runs:
        table.add_column(Text(run.name), overflow="fold")
    for key, values in rows.items():
        table.add_row(Text(key), *(Text(value or "not set") for value in values))
    return [heading("What differs"), table]


def headline(run: RunData) -> str:
    """Say in one line who learnt from whom, how, for how long, and whether it went wrong."""
    teachers = " and ".join(run.teachers)
    kind = run.loss_kind
    loss = f" by {LOSS_NAMES.get(kind, kind)}" if kind else ""
    steps = f", {run.steps:,} steps" if run.steps else ""
    bad = run.metrics["loss"].broken_steps() if "loss" in run.metrics else []
    if bad:
        steps += f"; it diverged: its loss is not finite from step {bad[0]:g} on"
    if not run.distils:
        return f"{run.student} learns from the text alone, by cross-entropy{steps}"
    learnt = f" learns from {teachers}{loss}" if teachers else loss
    return f"{run.student}{learnt}{steps}"


def _one_run(run: RunData, width: int, plain: bool) -> list[RenderableType]:
    parts: list[RenderableType] = [heading(run.name), Text(headline(run))]
    for audit in run.audits:
        loss = audit["verdict"].get("loss", "")
        reason = audit["verdict"].get("reason", "")
        parts.append(Text(f"Audit: {LOSS_NAMES.get(loss, loss)}. {reason}"))
    for table in run.evaluation:
        parts += [Text(""), render_table_before_after(table)]
    curves = _curve_table(run, width, plain)
    if curves.row_count:
        parts += [Text(""), curves]
    split = time_split(run)
    if split:
        total = sum(split.values()) or 1.0
        shares = ", ".join(f"{phase} {100 * spent / total:.0f} %" for phase, spent in split.items())
        parts += [Text(""), Text(f"Time a step: {total:.2f} s ({shares}).")]
    for note in run.notes:
        parts.append(Text(f"Note: {note}", style="yellow"))
    return parts


def _curve_table(run: RunData, width: int, plain: bool) -> Table:
    narrow = width < NARROW
    # Beside the longest title and two numbers.
    room = 6 if narrow else max(8, min(32, width - 54))
    table = plain_table()
    table.add_column("curve")
    if not narrow:
        table.add_column("first", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("last", justify="right", no_wrap=True)
    for chart in charts([run]):
        for curve in chart.curves:
            finite = curve.series.finite()
            if not len(finite):
                continue
            shown = (smooth(curve.series) or finite).values
            factor, suffix = (100.0, " %") if chart.unit == "%" else (1.0, "")
            name = (
                chart.title
                if curve.name in ("training", chart.key)
                else (f"{chart.title}, {curve.name}")
            )
            if chart.unit not in ("", "%"):
                name = f"{name} ({chart.unit})"
            first, last = (short(float(f"{factor * shown[i]:.3g}")) + suffix for i in (0, -1))
            bars = Text(sparkline(shown, room, ascii_only=plain), style="cyan")
            table.add_row(Text(name), *([] if narrow else [first]), bars, last)
    return table


def sparkline(values: Sequence[float], width: int, *, ascii_only: bool = False) -> str:
    """Draw values as a row of bars, the mean of each stretch, at most `width` of them."""
    finite = np.array([v for v in values if math.isfinite(v)])
    if not len(finite):
        return ""
    means = np.array([part.mean() for part in np.array_split(finite, min(width, len(finite)))])
    low, high = means.min(), means.max()
    bars = ASCII_BARS if ascii_only else BARS
    # What moves by less than a hundredth is drawn flat: bars would only show its noise.
    moves = high - low > 0.01 * max(abs(high), abs(low))
    share = (means - low) / (high - low) if moves else np.full(len(means), 0.5)
    return "".join(bars[i] for i in np.minimum((share * len(bars)).astype(int), len(bars) - 1))
