"""An audit in a terminal, and the sentences about it that the page says too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from xtoken.aligned_blocks import visible
from xtoken.report.audit_suppression import suppression_parts
from xtoken.report.charts import LOSS_NAMES
from xtoken.report.frame import NARROW, ByWidth, heading, plain_table
from xtoken.report.run_data import short_name

if TYPE_CHECKING:
    from xtoken.audit import AuditReport


def render_audit(report: AuditReport | Mapping[str, Any]) -> RenderableType:
    """Draw an audit: verdict, sizes and overlap, table of token classes, text, roles, warnings.

    `report` is an `AuditReport` or its `to_dict()` form, as read from a file.
    """
    data: Mapping[str, Any] = report if isinstance(report, Mapping) else report.to_dict()
    return ByWidth(lambda width, ascii_only: Group(*_audit_parts(data, width)))


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
    parts += _effect_parts(data)
    digits = data.get("other_digits") or {}
    if digits:
        parts.append(Text(digits_sentence(digits), style="dim"))
    if data.get("text"):
        parts += [Text(""), *_text_parts(data["text"], width)]
    if data.get("suppression"):
        parts += [Text(""), *suppression_parts(data["suppression"], width)]
    roles = [row for row in data.get("roles", ()) if row["student_text"] or row["teacher_text"]]
    if roles:
        parts += [Text(""), _role_table(roles)]
    if data.get("marks"):
        parts += [Text(marks_sentence(data["marks"]))]
    if data.get("warnings"):
        parts += [Text(""), Text("Warnings", style="bold yellow")]
        parts += [_bullet(item["message"]) for item in data["warnings"]]
    return parts


def _effect_parts(data: Mapping[str, Any]) -> list[RenderableType]:
    """Return what each loss does with the class that decides (the page has all classes)."""
    deciding = data["verdict"].get("deciding_class")
    row = next((row for row in data["classes"] if row["key"] == deciding), None)
    if row is None:
        return []
    lines = [
        Text.assemble((f"{LOSS_NAMES.get(loss, loss)}: ", "bold"), effect)
        for loss, effect in row["effects"].items()
    ]
    return [Text(""), heading(f"What each loss does with {row['title']}"), *lines, Text("")]


def _bullet(message: str) -> RenderableType:
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_row(Text("!", style="yellow"), Text(message))
    return table


def _audit_sides(data: Mapping[str, Any], width: int) -> Table:
    table = plain_table()
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


def marks_sentence(marks: Sequence[Mapping[str, Any]]) -> str:
    """Say how many tokens each thinking mark takes on either side."""
    shown = []
    for mark in marks:
        counts = [mark[f"{side}_tokens"] for side in ("student", "teacher")]
        student, teacher = ("can't be written" if n is None else f"{n:,}" for n in counts)
        shown.append(f"{mark['mark']} {student} / {teacher}")
    return f"Thinking marks, tokens of student / teacher: {', '.join(shown)}."


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
    table = plain_table(expand=False)
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
        table.caption = "* makes a strict split unsound"
        table.caption_justify = "left"
    return table


def _text_parts(text: Mapping[str, Any], width: int) -> list[RenderableType]:
    sampled = f" (sampled from {text['total_bytes']:,})" if text.get("sampled") else ""
    chunks = ", ".join(f"{count:,} {kind}" for kind, count in text["chunks"].items())
    parts: list[RenderableType] = [
        heading(f"On the text: {text['bytes']:,} bytes{sampled}"),
        Text(
            f"Tokens a byte: student {text['student_tokens_per_byte']:.3f}, teacher "
            f"{text['teacher_tokens_per_byte']:.3f}. Exact: {_percent(text['exact_share'])} of the "
            f"student's tokens. Aligned: {_percent(text['byte_coverage'])} of the bytes, "
            f"{_percent(text['one_to_one_share'])} of the chunks 1:1 (student:teacher {chunks})."
        ),
    ]
    if text["frequent_inexact"]:
        table = plain_table()
        table.add_column("most used without exact match")
        table.add_column("times", justify="right")
        table.add_column("stands for", overflow="fold")
        for token in text["frequent_inexact"][: 8 if width >= NARROW else 5]:
            # In brackets: a numeral's pieces are numbers, too.
            pieces = ", ".join(
                f"{visible(piece.encode())} ({weight:.2f})" for piece, weight in token["pieces"]
            )
            table.add_row(
                Text(visible(token["text"].encode())),
                f"{token['count']:,}",
                Text(pieces, style="dim"),
            )
        parts += [Text(""), table]
    return parts


def _role_table(roles: Sequence[Mapping[str, Any]]) -> Table:
    table = plain_table()
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
