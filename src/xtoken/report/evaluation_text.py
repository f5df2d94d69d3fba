"""An evaluation table in a terminal; which column is best, and what changed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from xtoken.evaluation.tables import COLUMN_LABELS, EvaluationRow, EvaluationTable
from xtoken.report.frame import ByWidth, heading, plain_table


def render_table_before_after(table: EvaluationTable) -> RenderableType:
    """Draw an evaluation: metrics by columns, with the change from `before` to `after`.

    Where the terminal is too narrow for the table, a list of metrics.
    """
    labels = {column: COLUMN_LABELS.get(column, column) for column in table.columns}
    needed = 34 + sum(max(len(label), 8) + 2 for label in labels.values())
    note = [Text(table.note, style="dim")] if table.note else []
    wide = Group(heading(table.name), _evaluation_table(table, labels), *note)
    narrow = Group(heading(table.name), *_evaluation_list(table, labels), *note)
    return ByWidth(lambda width, ascii_only: wide if width >= needed else narrow)


def _evaluation_table(table: EvaluationTable, labels: Mapping[str, str]) -> Table:
    drawn = plain_table()
    drawn.add_column("")
    for label in labels.values():
        drawn.add_column(Text(label), justify="right", overflow="fold")
    compared = "before" in labels and "after" in labels
    if compared:
        drawn.add_column("change", justify="right", no_wrap=True)
    for row in table.rows:
        best = best_column(row, table.columns)
        cells = [Text(row.format(c), style="bold" if c == best else "") for c in labels]
        if compared:
            cells.append(_change_text(row))
        drawn.add_row(Text(row.label), *cells)
    return drawn


def _evaluation_list(table: EvaluationTable, labels: Mapping[str, str]) -> list[RenderableType]:
    parts: list[RenderableType] = []
    for row in table.rows:
        parts.append(Text(row.label))
        for column, label in labels.items():
            if column in row.values:
                line = Text(f"  {label} ", style="dim").append(row.format(column), "not dim bold")
                parts.append(line.append("  ") + _change_text(row) if column == "after" else line)
    return parts


def _change_text(row: EvaluationRow) -> Text:
    text, verdict = change(row)
    return Text(text, style={"better": "green", "worse": "red"}.get(verdict, "dim"))


def best_column(row: EvaluationRow, columns: Sequence[str]) -> str | None:
    """Return the student's best column (the teacher doesn't compete); None for a lone value."""
    values = {
        column: row.values[column]
        for column in columns
        if not column.startswith("teacher") and math.isfinite(row.values.get(column, math.nan))
    }
    if len(values) < 2 or row.better == "neither":
        return None
    choose = min if row.better == "lower" else max
    best = choose(values, key=lambda column: values[column])
    return None if list(values.values()).count(values[best]) > 1 else best


def change(row: EvaluationRow, start: str = "before", stop: str = "after") -> tuple[str, str]:
    """Return the change between two columns as (text, "better" | "worse" | "same" | "")."""
    old, new = row.values.get(start, math.nan), row.values.get(stop, math.nan)
    if not (math.isfinite(old) and math.isfinite(new)) or row.better == "neither":
        return "", ""
    difference = new - old
    if row.unit == "%":
        text = f"{100 * difference:+.1f} points"
    elif old:
        text = f"{100 * difference / abs(old):+.1f} %"
    else:
        text = f"{difference:+.3g}"
    text = text.replace("-", "−")
    if difference == 0:
        return "no change", "same"
    return text, "better" if (difference < 0) == (row.better == "lower") else "worse"
