"""What a strict partition would suppress, in the terminal and on the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from xtoken.aligned_blocks import visible
from xtoken.report.frame import NARROW, heading, plain_table
from xtoken.report.markup import Raw, code, facts, html, table

TITLE = "What a strict partition would suppress"
SHOWN = 12


def suppression_sentence(found: Mapping[str, Any]) -> str:
    """Say how much probability a strict partition pushes down, and how it was measured."""
    bound = (
        f"the teacher's measured mass on the common tokens, {_percent(found['common_mass'])}"
        if found["teacher_measured"]
        else "at most, as no teacher model was given: its mass on the common tokens is taken as 1"
    )
    sampled = (
        f" ({found['bytes']:,} of the text's {found['total_bytes']:,} bytes)"
        if found["bytes"] < found["total_bytes"]
        else ""
    )
    return (
        f"At {found['chunks']:,} chunk starts{sampled} the student holds "
        f"{_percent(found['mass'])} of its next-token probability on tokens without exact "
        "partner. A KL over the common tokens alone pushes these down whatever the text says, "
        f"with a gradient of {found['gradient']:.4f} a chunk (L2 norm {found['gradient_norm']:.4f}"
        f"; {bound})."
    )


def suppression_parts(found: Mapping[str, Any], width: int) -> list[RenderableType]:
    """Draw the measurement for a terminal."""
    rows = found["classes"]
    parts: list[RenderableType] = [heading(TITLE), Text(suppression_sentence(found))]
    if not rows:
        return parts
    drawn = plain_table()
    drawn.add_column("token class", overflow="fold")
    if width >= NARROW:
        drawn.add_column("held", justify="right", no_wrap=True)
    drawn.add_column("gradient", justify="right", no_wrap=True)
    if width >= NARROW:
        drawn.add_column("next in the text", justify="right")
        drawn.add_column("held there", justify="right")
    if width >= 100:
        drawn.add_column("such as", no_wrap=True, max_width=width - 78)
    for row in rows[:SHOWN]:
        cells: list[RenderableType] = [Text(row["title"])]
        if width >= NARROW:
            cells.append(_percent(row["mass"]))
        cells.append(f"{row['gradient']:.4f}")
        if width >= NARROW:
            cells += [f"{row['text_tokens']:,}", _there(row)]
        if width >= 100:
            shown = "  ".join(visible(text.encode()) for text in row["examples"])
            cells.append(Text(shown, style="dim"))
        drawn.add_row(*cells)
    if len(rows) > SHOWN:
        drawn.caption = f"and {len(rows) - SHOWN} more classes, with less"
        drawn.caption_justify = "left"
    return [*parts, Text(""), drawn]


def suppression_html(found: Mapping[str, Any] | None) -> str:
    """Return the measurement as a card, nothing where there is none."""
    if not found:
        return ""
    items = [
        ("Held on uncommon tokens", _percent(found["mass"])),
        ("Gradient a chunk", f"{found['gradient']:.4f}"),
        ("Its L2 norm", f"{found['gradient_norm']:.4f}"),
        (
            "Teacher's mass on common tokens",
            _percent(found["common_mass"]) if found["teacher_measured"] else "taken as 1",
        ),
        ("Chunk starts", f"{found['chunks']:,}"),
    ]
    rows = [
        [
            row["title"],
            f"{row['tokens']:,}",
            _percent(row["mass"]),
            f"{row['gradient']:.4f}",
            f"{row['text_tokens']:,}",
            _there(row),
            Raw(" ".join(code(visible(text.encode())) for text in row["examples"])),
        ]
        for row in found["classes"]
    ]
    head = ["token class", "ids", "held", "gradient", "next in the text", "held there", "such as"]
    drawn = (
        table("By token class, the largest gradient first", head, rows, text_columns=(6,))
        if rows
        else ""
    )
    return (
        f'<div class="card"><h3>{html(TITLE)}</h3><p>{html(suppression_sentence(found))}</p>'
        f"{facts(items)}{drawn}</div>"
    )


def _there(row: Mapping[str, Any]) -> str:
    return "" if row["text_probability"] is None else _percent(row["text_probability"])


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %" if share < 0.1 else f"{100 * share:.1f} %"
