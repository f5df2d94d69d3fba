"""The audit and the alignment as sections of the page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from xtoken.aligned_blocks import Block, visible
from xtoken.report.audit_suppression import suppression_html
from xtoken.report.audit_text import (
    coverage_sentence,
    digits_sentence,
    exact_of,
    marks_sentence,
    overlap_sentence,
)
from xtoken.report.charts import LOSS_NAMES
from xtoken.report.markup import (
    Raw,
    alignment_blocks,
    code,
    facts,
    html,
    meter,
    prose,
    section,
    stacked_bar,
    table,
)
from xtoken.report.run_data import ALIGNMENT_KEYS, RunData, short_name

CHUNK_NAMES = {
    "1:1": "one to one",
    "1:N": "one student token, several of the teacher's",
    "N:1": "several of the student's, one teacher token",
    "M:N": "several on both sides",
}


def audit_section(audits: Sequence[Mapping[str, Any]]) -> str:
    """Return the audits, equal ones once."""
    distinct = {json.dumps(dict(audit), sort_keys=True): audit for audit in audits}
    body = "".join(audit_html(audit) for audit in distinct.values())
    return section(
        "audit",
        "Audit of the two tokenizers",
        body,
        "Tokens are compared as bytes. Exact: the other side has a token with the same bytes.",
    )


def audit_html(data: Mapping[str, Any]) -> str:
    """Return one audit: verdict, classes, text, roles, warnings."""
    return "".join(
        (
            _verdict(data),
            _warnings(data),
            _classes(data),
            _text(data.get("text")),
            suppression_html(data.get("suppression")),
            _roles(data),
        )
    )


def _verdict(data: Mapping[str, Any]) -> str:
    verdict = data["verdict"]
    loss = LOSS_NAMES.get(verdict["loss"], verdict["loss"])
    names = [short_name(data[side]["name"]) for side in ("student", "teacher")]
    sides = facts(
        (
            f"{side}: {short_name(data[side]['name'])}",
            f"{data[side]['size']:,} ids{_padded(data[side])}",
        )
        for side in ("student", "teacher")
    )
    return (
        f'<div class="card verdict"><p class="eyebrow">{html(names[0])} '
        f'<span class="arrow">&larr;</span> {html(names[1])}: take</p>'
        f'<p class="choice">{html(loss)}</p><p>{prose(verdict["reason"])}</p>{sides}'
        f'<p class="soft">{html(overlap_sentence(data))} {html(coverage_sentence(data))}</p></div>'
    )


def _padded(side: Mapping[str, Any]) -> str:
    padded = side.get("padded_rows")
    return f", {padded:,} padded rows" if padded else ""


def _warnings(data: Mapping[str, Any]) -> str:
    found = data.get("warnings") or []
    if not found:
        return ""
    items = "".join(f"<li>{prose(item['message'])}</li>" for item in found)
    return f'<div class="card warnings"><h3>Worth knowing</h3><ul>{items}</ul></div>'


def _classes(data: Mapping[str, Any]) -> str:
    rows_data = [row for row in data["classes"] if row["key"] != "missing"]
    with_text = any(row["student_text_tokens"] is not None for row in rows_data)
    total = sum(row["student_text_tokens"] or 0 for row in rows_data) or 1
    deciding = data["verdict"].get("deciding_class")
    head: list[object] = ["token class", "student exact", "teacher exact"]
    if with_text:
        head.append("of the text")
    head.append("unmatched, for example")
    rows: list[list[object]] = []
    classes: list[str] = []
    for row in rows_data:
        name = html(row["title"])
        if row["key"] == deciding:
            name += ' <span class="tag">against a split</span>'
        cells: list[object] = [Raw(name), *(_exact(row, side) for side in ("student", "teacher"))]
        if with_text:
            cells.append(f"{100 * (row['student_text_tokens'] or 0) / total:.1f} %")
        examples = " ".join(code(visible(token.encode())) for token in row["unmatched_examples"])
        cells.append(Raw(examples))
        rows.append(cells)
        classes.append("decides" if row["key"] == deciding else "")
    drawn = table("Token classes", head, rows, row_classes=classes, text_columns=(len(head) - 1,))
    digits = data.get("other_digits")
    note = f'<p class="note">{html(digits_sentence(digits))}</p>' if digits else ""
    return f'<div class="card">{drawn}{note}{_effects(rows_data)}</div>'


def _effects(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what each loss does with each class that is not matched id for id, folded away."""
    rows = [row for row in rows if len(set(row.get("effects", {}).values())) > 1]
    if not rows:
        return ""
    losses = list(dict.fromkeys(loss for row in rows for loss in row["effects"]))
    head = ["token class", *(LOSS_NAMES.get(loss, loss) for loss in losses)]
    cells = [[row["title"], *(row["effects"].get(loss, "") for loss in losses)] for row in rows]
    title = "What each loss does with the classes that are not matched id for id"
    drawn = table(title, head, cells, text_columns=range(1, len(head)), hide_caption=True)
    return f'<details class="effects"><summary>{title}</summary>{drawn}</details>'


def _exact(row: Mapping[str, Any], side: str) -> object:
    exact, total = row[f"{side}_exact"], row[f"{side}_ids"]
    if not total:
        return Raw('<span class="soft">none</span>')
    return Raw(f"{exact_of(exact, total)}{meter(exact / total)}")


def _text(text: Mapping[str, Any] | None) -> str:
    if not text:
        return ""
    share = f" of {text['total_bytes']:,}, sampled" if text.get("sampled") else ""
    items = [
        ("Bytes", f"{text['bytes']:,}{share}"),
        ("Student tokens a byte", f"{text['student_tokens_per_byte']:.3f}"),
        ("Teacher tokens a byte", f"{text['teacher_tokens_per_byte']:.3f}"),
        ("Student tokens with exact match", f"{100 * text['exact_share']:.1f} %"),
        ("Bytes aligned", f"{100 * text['byte_coverage']:.1f} %"),
    ]
    rows = [
        [
            code(visible(token["text"].encode())),
            f"{token['count']:,}",
            f"{100 * token['share']:.2f} %",
            Raw(" ".join(f"{code(visible(p.encode()))} {w:.2f}" for p, w in token["pieces"])),
        ]
        for token in text["frequent_inexact"][:10]
    ]
    drawn = (
        table(
            "Most used student tokens without exact match",
            ["token", "times", "of the text", "stands for"],
            rows,
            text_columns=(3,),
        )
        if rows
        else ""
    )
    bar = _chunk_bar(text["chunks"])
    return f'<div class="card"><h3>On the text</h3>{facts(items)}{bar}{drawn}</div>'


def _chunk_bar(counts: Mapping[str, int]) -> str:
    total = sum(counts.values())
    parts = [
        (
            f"{kind} {CHUNK_NAMES.get(kind, '')}".strip(),
            float(count),
            f"{100 * count / total:.1f} %" if total else "0",
        )
        for kind, count in counts.items()
    ]
    return stacked_bar("Chunks by kind (student:teacher)", parts)


def _roles(data: Mapping[str, Any]) -> str:
    rows = [
        [
            row["role"].replace("_", " "),
            code(row["student_text"]) if row["student_text"] else "none",
            code(row["teacher_text"]) if row["teacher_text"] else "none",
            "yes" if row["paired"] else "no",
        ]
        for row in data.get("roles", ())
        if row["student_text"] or row["teacher_text"]
    ]
    if not rows:
        return ""
    drawn = table(
        "Special tokens by role",
        ["role", "student", "teacher", "paired"],
        rows,
        text_columns=(1, 2, 3),
    )
    marks = data.get("marks")
    note = f'<p class="note">{html(marks_sentence(marks))}</p>' if marks else ""
    return f'<div class="card">{drawn}{note}</div>'


def alignment_section(runs: Sequence[RunData]) -> str:
    """Return alignment statistics and examples; equal ones once."""
    distinct: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for run in runs:
        for item in run.alignments:
            distinct.setdefault(json.dumps(item, sort_keys=True), (run.name, item))
    cards = []
    for run_name, statistics in distinct.values():
        title = str(statistics.get("teacher") or statistics.get("name") or "")
        if len(distinct) > 1 and len(runs) > 1:
            title = f"{run_name} {title}".strip()
        cards.append(_alignment_card(short_name(title) if title else "", statistics))
    return section(
        "alignment",
        "Alignment of the training text",
        "".join(cards),
        "Chunks are the finest spans whose bytes are equal on both sides.",
    )


def _alignment_card(title: str, item: Mapping[str, Any]) -> str:
    items = []
    for key, label in ALIGNMENT_KEYS.items():
        value = item.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if key.endswith(("_share", "_coverage")):
            shown = f"{100 * value:.1f} %"
        else:
            shown = f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
        items.append((label[:1].upper() + label[1:], shown))
    chunks = item.get("chunks")
    bar = _chunk_bar(chunks) if isinstance(chunks, Mapping) else ""
    drawn = [
        alignment_blocks([Block.from_dict(block) for block in example.get("blocks", ())])
        for example in item.get("examples", ())[:3]
        if isinstance(example, Mapping)
    ]
    examples = "".join(drawn)
    if examples:
        title = "An example" if len(drawn) == 1 else "Examples"
        examples = f'<p class="sides">{title}, student above teacher:</p>{examples}'
    heading = f"<h3>{html(title)}</h3>" if title else ""
    return f'<div class="card">{heading}{facts(items)}{bar}{examples}</div>'
