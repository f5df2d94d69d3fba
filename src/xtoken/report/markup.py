"""Small pieces of HTML that the sections share; every text that comes from outside is escaped."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from html import escape

from xtoken.aligned_blocks import KIND_NAMES, OUTSIDE, Block


class Raw(str):
    """Markup that is already HTML (anything else is escaped)."""

    __slots__ = ()


def html(value: object) -> str:
    """Escape a value unless it is `Raw`."""
    return str(value) if isinstance(value, Raw) else escape(str(value))


def prose(text: object) -> Raw:
    """Escape a sentence, its `code` set as code."""
    return Raw(re.sub(r"`([^`]+)`", r"<code>\1</code>", html(text)))


def section(ident: str, title: str, body: str, intro: str = "") -> str:
    """Return a section with its heading; nothing for an empty body."""
    if not body:
        return ""
    line = f'<p class="intro-line">{html(intro)}</p>' if intro else ""
    return (
        f'<section id="{ident}" aria-labelledby="{ident}-h"><h2 id="{ident}-h">{html(title)}</h2>'
        f"{line}{body}</section>"
    )


def table(
    caption: object,
    head: Sequence[object],
    rows: Iterable[Sequence[object]],
    *,
    row_classes: Sequence[str] = (),
    text_columns: Collection[int] = (),
    hide_caption: bool = False,
) -> str:
    """Return a table in a box that scrolls sideways where it is too wide for the screen.

    The first cell of a row is its heading; a cell that is a tuple is (class, content).
    """
    columns = "".join(
        f'<th scope="col"{_class("text" if i in text_columns else "")}>{html(cell)}</th>'
        for i, cell in enumerate(head)
    )
    body = []
    for number, row in enumerate(rows):
        cells = [f'<th scope="row">{html(row[0])}</th>']
        for i, cell in enumerate(row[1:], 1):
            name, content = cell if isinstance(cell, tuple) else ("", cell)
            if i in text_columns:
                name = f"{name} text".strip()
            cells.append(f"<td{_class(name)}>{html(content)}</td>")
        name = row_classes[number] if number < len(row_classes) else ""
        body.append(f"<tr{_class(name)}>{''.join(cells)}</tr>")
    hidden = _class("hidden" if hide_caption else "")
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{html(str(caption))}"><table>'
        f"<caption{hidden}>{html(caption)}</caption><thead><tr>{columns}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def facts(items: Iterable[tuple[str, object]]) -> str:
    """Return label and value pairs as a definition list."""
    body = "".join(
        f"<div><dt>{html(label)}</dt><dd>{html(value)}</dd></div>" for label, value in items
    )
    return f'<dl class="facts">{body}</dl>' if body else ""


def stacked_bar(label: str, parts: Sequence[tuple[str, float, str]]) -> str:
    """Return one horizontal bar cut into shares, with its legend.

    `parts`: (name, amount, amount for people). The legend holds every value as text, so the
    bar itself is decoration for a screen reader.
    """
    total = sum(amount for _, amount, _ in parts)
    if total <= 0:
        return ""
    bar = "".join(
        f'<span class="b{i % 8}" style="flex:{amount / total:.5f} 1 0"></span>'
        for i, (_, amount, _) in enumerate(parts)
        if amount > 0
    )
    legend = "".join(
        f'<li><i class="key b{i % 8}" aria-hidden="true"></i><span>{html(name)}</span> '
        f"<b>{html(shown)}</b></li>"
        for i, (name, _, shown) in enumerate(parts)
    )
    return (
        f'<div class="stack" aria-hidden="true">{bar}</div>'
        f'<ul class="legend" aria-label="{html(label)}">{legend}</ul>'
    )


def meter(share: float) -> str:
    """Return a small bar for a share between 0 and 1 (the number stands beside it)."""
    width = 100 * min(max(share, 0.0), 1.0)
    return Raw(
        f'<span class="meter" aria-hidden="true"><span style="width:{width:.1f}%"></span></span>'
    )


def code(text: object) -> Raw:
    """Return a short piece of code or a token, kept left to right."""
    return Raw(f'<code dir="auto">{html(text)}</code>')


def alignment_blocks(items: Sequence[Block]) -> str:
    """Return aligned tokens as a list of chunks, student above teacher, coloured by kind."""
    cells = []
    for block in items:
        kind = "out" if block.kind == OUTSIDE else f"k{block.kind}"
        name = "in no chunk" if block.kind == OUTSIDE else KIND_NAMES[block.kind]
        rows = "".join(
            f"<span>{''.join(f'<bdi>{html(token)}</bdi>' for token in side) or '<bdi>&nbsp;</bdi>'}"
            "</span>"
            for side in (block.student, block.teacher)
        )
        cells.append(f'<li class="{kind}" title="{name}">{rows}</li>')
    return f'<ul class="tokens">{"".join(cells)}</ul>'
