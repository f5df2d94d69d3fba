"""Reports for a terminal: rich renderables that stay readable at 40 columns and in a pipe."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from xtoken.evaluation.tables import COLUMN_LABELS, EvaluationRow, EvaluationTable
from xtoken.report.alignment import visible
from xtoken.report.charts import LOSS_NAMES, charts, time_split
from xtoken.report.run_data import RunData, differences, short_name
from xtoken.report.series import short, smooth

if TYPE_CHECKING:
    from xtoken.audit import AuditReport

BARS = "▁▂▃▄▅▆▇█"
ASCII_BARS = "_.-~=+*#"
NARROW = 64


def _heading(text: str) -> Text:
    return Text(text, style="bold")


def _table(**options: Any) -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", **options)


class _ByWidth:
    """A renderable that is made for the width at hand."""

    def __init__(self, make: Any) -> None:
        self._make = make

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._make(options.max_width, options.ascii_only)


# ---- Audit ---------------------------------------------------------------------------------


def render_audit(report: AuditReport | Mapping[str, Any]) -> RenderableType:
    """Draw an audit: verdict, sizes and overlap, table of token classes, text, roles, warnings.

    `report` is an `AuditReport` or its `to_dict()` form, as read from a file.
    """
    data: Mapping[str, Any] = report if isinstance(report, Mapping) else report.to_dict()
    return _ByWidth(lambda width, ascii_only: Group(*_audit_parts(data, width)))


def _audit_parts(data: Mapping[str, Any], width: int) -> list[RenderableType]:
    verdict = data["verdict"]
    loss = LOSS_NAMES.get(verdict["loss"], verdict["loss"])
    parts: list[RenderableType] = [
        Text.assemble(
            ("Verdict: ", "bold"),
            (loss, "bold green"),
            " ",
            (f"(loss.kind={verdict['loss']})", "dim"),
        ),
        Text(verdict["reason"]),
        Text(""),
        _audit_sides(data, width),
        Text(""),
        Text(overlap_sentence(data)),
        Text(coverage_sentence(data)),
        Text(""),
        _class_table(data, width),
    ]
    digits = data.get("other_digits") or {}
    if digits:
        parts.append(Text(digits_sentence(digits), style="dim"))
    if data.get("text"):
        parts += [Text(""), *_text_parts(data["text"], width)]
    roles = [row for row in data.get("roles", ()) if row["student_text"] or row["teacher_text"]]
    if roles:
        parts += [Text(""), _role_table(roles)]
    if data.get("warnings"):
        parts += [Text(""), Text("Warnings", style="bold yellow")]
        parts += [_bullet(item["message"]) for item in data["warnings"]]
    return parts


def _bullet(message: str) -> RenderableType:
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_row(Text("!", style="yellow"), Text(message))
    return table


def _audit_sides(data: Mapping[str, Any], width: int) -> Table:
    table = _table()
    headers = ("", "tokenizer", "ids", "padded rows", "special")
    kept = len(headers) if width >= NARROW else 3
    for header in headers[:kept]:
        table.add_column(header, justify="left" if header in ("", "tokenizer") else "right")
    for side in ("student", "teacher"):
        facts = data[side]
        padded = facts.get("padded_rows")
        cells: list[RenderableType] = [
            Text(side, style="dim"),
            Text(short_name(facts["name"])),
            f"{facts['size']:,}",
            "not known" if padded is None else f"{padded:,}",
            f"{facts['special_tokens']:,}",
        ]
        table.add_row(*cells[:kept])
    return table


def overlap_sentence(data: Mapping[str, Any]) -> str:
    """Say how many byte strings both sides have."""
    overlap = data["overlap"]
    return (
        f"Overlap: {overlap['shared']:,} tokens have the same bytes on both sides, "
        f"{_percent(overlap['student_share'])} of the student's and "
        f"{_percent(overlap['teacher_share'])} of the teacher's."
    )


def coverage_sentence(data: Mapping[str, Any]) -> str:
    """Say how the student's tokens reach the teacher's."""
    rows = data["coverage"]
    return (
        f"Student tokens: {rows['exact']:,} exact, {rows['multi_token']:,} through several teacher "
        f"tokens, {rows['empty']:,} unreachable, {rows['role']:,} paired by role."
    )


def digits_sentence(digits: Mapping[str, bool]) -> str:
    """Say which single digits of other scripts the student has besides the ten of ASCII."""
    exact = [digit for digit, found in digits.items() if found]
    other = [digit for digit, found in digits.items() if not found]
    text = f"Single digits of other scripts: {len(digits)}"
    if exact:
        text += f"; exact: {_some(exact)}"
    if other:
        text += f"; not exact: {_some(other)}"
    return f"{text}."


def _some(items: Sequence[str], limit: int = 12) -> str:
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return " ".join(items[:limit]) + more


def exact_of(exact: int, total: int) -> str:
    """Write `matched of all` as `0/100`, with thousands separated."""
    return f"{exact:,}/{total:,}" if total else "none"


def _class_table(data: Mapping[str, Any], width: int) -> Table:
    with_text = width >= NARROW and any(
        row["student_text_tokens"] is not None for row in data["classes"]
    )
    total = sum(row["student_text_tokens"] or 0 for row in data["classes"])
    deciding = data["verdict"].get("deciding_class")
    table = _table(expand=False)
    table.add_column("token class", overflow="fold", min_width=16 if width < NARROW else 26)
    table.add_column("student exact", justify="right", no_wrap=True)
    if width >= NARROW:
        table.add_column("teacher exact", justify="right")
    if with_text:
        table.add_column("of the text", justify="right")
    if width >= 100:
        table.add_column("unmatched, for example", no_wrap=True, max_width=width - 78)
    for row in data["classes"]:
        if row["key"] == "missing":
            continue
        whole = row["student_exact"] == row["student_ids"]
        style = "" if whole or not row["critical"] else "yellow"
        cells: list[RenderableType] = [
            Text(row["title"] + (" *" if row["key"] == deciding else ""), style=style),
            Text(exact_of(row["student_exact"], row["student_ids"]), style=style),
        ]
        if width >= NARROW:
            cells.append(exact_of(row["teacher_exact"], row["teacher_ids"]))
        if with_text:
            cells.append(_percent((row["student_text_tokens"] or 0) / max(total, 1)))
        if width >= 100:
            examples = "  ".join(visible(t.encode()) for t in row["unmatched_examples"])
            cells.append(Text(examples, style="dim"))
        table.add_row(*cells)
    if deciding:
        table.caption = "* decides the verdict"
        table.caption_justify = "left"
    return table


def _text_parts(text: Mapping[str, Any], width: int) -> list[RenderableType]:
    sampled = f" (sampled from {text['total_bytes']:,})" if text.get("sampled") else ""
    chunks = ", ".join(f"{count:,} {kind}" for kind, count in text["chunks"].items())
    parts: list[RenderableType] = [
        _heading(f"On the text: {text['bytes']:,} bytes{sampled}"),
        Text(
            f"Tokens a byte: student {text['student_tokens_per_byte']:.3f}, teacher "
            f"{text['teacher_tokens_per_byte']:.3f}. Exact: {_percent(text['exact_share'])} of the "
            f"student's tokens. Aligned: {_percent(text['byte_coverage'])} of the bytes, "
            f"{_percent(text['one_to_one_share'])} of the chunks 1:1 (student:teacher {chunks})."
        ),
    ]
    if text["frequent_inexact"]:
        table = _table()
        table.add_column("most used without exact match")
        table.add_column("times", justify="right")
        table.add_column("stands for", overflow="fold")
        for token in text["frequent_inexact"][: 8 if width >= NARROW else 5]:
            pieces = " ".join(
                f"{visible(piece.encode())} {weight:.2f}" for piece, weight in token["pieces"]
            )
            table.add_row(
                Text(visible(token["text"].encode())),
                f"{token['count']:,}",
                Text(pieces, style="dim"),
            )
        parts += [Text(""), table]
    return parts


def _role_table(roles: Sequence[Mapping[str, Any]]) -> Table:
    table = _table()
    for header in ("role", "student", "teacher", "paired"):
        table.add_column(header, overflow="fold")
    for row in roles:
        table.add_row(
            Text(row["role"].replace("_", " ")),
            Text(row["student_text"] or "none"),
            Text(row["teacher_text"] or "none"),
            "yes" if row["paired"] else "no",
        )
    return table


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


# ---- Evaluation ----------------------------------------------------------------------------


def render_table_before_after(table: EvaluationTable) -> RenderableType:
    """Draw an evaluation: metrics by columns, with the change from `before` to `after`.

    Where the terminal is too narrow for the table, a list of metrics.
    """
    labels = {column: COLUMN_LABELS.get(column, column) for column in table.columns}
    needed = 34 + sum(max(len(label), 8) + 2 for label in labels.values())
    note = [Text(table.note, style="dim")] if table.note else []
    wide = Group(_heading(table.name), _evaluation_table(table, labels), *note)
    narrow = Group(_heading(table.name), *_evaluation_list(table, labels), *note)
    return _ByWidth(lambda width, ascii_only: wide if width >= needed else narrow)


def _evaluation_table(table: EvaluationTable, labels: Mapping[str, str]) -> Table:
    drawn = _table()
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
        if column != "teacher" and math.isfinite(row.values.get(column, math.nan))
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


# ---- Runs ----------------------------------------------------------------------------------


def report_terminal(runs: RunData | Sequence[RunData]) -> RenderableType:
    """Draw a short report of one run, or of several with what differs between them."""
    listed = [runs] if isinstance(runs, RunData) else list(runs)
    return _ByWidth(lambda width, plain: Group(*_run_parts(listed, width, plain)))


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
    table = _table()
    table.add_column("setting", overflow="fold")
    for run in runs:
        table.add_column(Text(run.name), overflow="fold")
    for key, values in rows.items():
        table.add_row(Text(key), *(Text(value or "not set") for value in values))
    return [_heading("What differs"), table]


def headline(run: RunData) -> str:
    """Say in one line who learnt from whom, how, and for how long."""
    teachers = " and ".join(run.teachers)
    kind = run.loss_kind
    loss = f" by {LOSS_NAMES.get(kind, kind)}" if kind else ""
    steps = f", {run.steps:,} steps" if run.steps else ""
    if not run.distils:
        return f"{run.student} learns from the text alone, by cross-entropy{steps}"
    learnt = f" learns from {teachers}{loss}" if teachers else loss
    return f"{run.student}{learnt}{steps}"


def _one_run(run: RunData, width: int, plain: bool) -> list[RenderableType]:
    parts: list[RenderableType] = [_heading(run.name), Text(headline(run))]
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
    room = 6 if narrow else max(8, min(32, width - 48))
    table = _table()
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
