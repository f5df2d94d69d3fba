"""Several teachers for one student side by side, in the terminal and on the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from xtoken.report.audit_text import exact_of
from xtoken.report.charts import LOSS_NAMES
from xtoken.report.frame import NARROW, ByWidth, heading, plain_table
from xtoken.report.markup import Raw, html, meter, table
from xtoken.report.run_data import short_name

if TYPE_CHECKING:
    from xtoken.audit import Ranking

# Classes of fewer student ids than this are left out of the table side by side.
SMALL_CLASS = 100


def render_ranking(ranking: Ranking | Mapping[str, Any]) -> RenderableType:
    """Draw a ranking: the order, a table of teachers, each verdict, the classes side by side.

    `ranking` is a `Ranking` or its `to_dict()` form.
    """
    data: Mapping[str, Any] = ranking if isinstance(ranking, Mapping) else ranking.to_dict()
    return ByWidth(lambda width, ascii_only: Group(*_parts(data, width)))


def _parts(data: Mapping[str, Any], width: int) -> list[RenderableType]:
    names = [short_name(teacher["teacher"]) for teacher in data["teachers"]]
    parts: list[RenderableType] = [
        heading(f"{len(names)} teachers for {short_name(data['student'])}"),
        Text(data["order"]),
        Text(""),
        _teacher_table(data, names, width),
    ]
    for number, (name, audit) in enumerate(zip(names, data["audits"], strict=True), 1):
        loss = audit["verdict"]["loss"]
        parts += [
            Text(""),
            Text.assemble((f"{number}. {name}: ", "bold"), (LOSS_NAMES.get(loss, loss), "green")),
            Text(audit["verdict"]["reason"]),
            *(Text(f"! {item['message']}", style="yellow") for item in audit["warnings"]),
        ]
    if width >= NARROW:
        parts += [Text(""), _class_table(data, names)]
    return parts


def _teacher_table(data: Mapping[str, Any], names: Sequence[str], width: int) -> RenderableType:
    drawn = plain_table()
    drawn.add_column("")
    drawn.add_column("teacher", overflow="fold")
    drawn.add_column("loss", no_wrap=True)
    wide = width >= NARROW
    drawn.add_column("strict split", no_wrap=True)
    for header in ("reach", "critical classes", "exact") if wide else ("exact",):
        drawn.add_column(header, justify="right")
    if wide and data["weighted_by_text"]:
        drawn.add_column("1:1 chunks", justify="right")
        drawn.add_column("tokens a byte", justify="right")
    for name, teacher in zip(names, data["teachers"], strict=True):
        loss = teacher["loss"]
        cells = [str(teacher["rank"]), Text(name), LOSS_NAMES.get(loss, loss), _split(teacher)]
        if wide:
            cells += [_percent(teacher["reach"]), _critical(teacher)]
        cells.append(_percent(teacher["exact_share"]))
        if wide and data["weighted_by_text"]:
            cells.append(_percent(teacher["one_to_one_share"]))
            cells.append(f"{teacher['teacher_tokens_per_byte']:.3f}")
        drawn.add_row(*cells)
    return drawn


def _split(teacher: Mapping[str, Any]) -> str:
    """Say whether common and uncommon tokens can be split: what X-Token chooses its loss by."""
    return {"p_kl": "unsound", "h_kl": "sound"}.get(teacher.get("x_token") or "", "")


def _class_rows(data: Mapping[str, Any]) -> dict[str, tuple[str, int, list[int]]]:
    """Return class key -> title, the student's ids, exact ones for each teacher."""
    found: dict[str, tuple[str, int, list[int]]] = {}
    by_audit = [{row["key"]: row for row in audit["classes"]} for audit in data["audits"]]
    for row in data["audits"][0]["classes"]:
        key, ids = row["key"], row["student_ids"]
        # Scripts may be merged differently for each teacher: only like is compared with like.
        alike = all(key in rows and rows[key]["student_ids"] == ids for rows in by_audit)
        if key in ("missing", "special") or not alike:
            continue
        if ids and (row["critical"] or ids >= SMALL_CLASS):
            found[key] = (row["title"], ids, [rows[key]["student_exact"] for rows in by_audit])
    return found


def _class_table(data: Mapping[str, Any], names: Sequence[str]) -> RenderableType:
    drawn = plain_table()
    drawn.add_column("student tokens with exact partner", overflow="fold")
    for number, name in enumerate(names, 1):
        drawn.add_column(Text(f"{number}. {name}"), justify="right", overflow="fold")
    for title, ids, exact in _class_rows(data).values():
        drawn.add_row(Text(f"{title}: {ids:,}"), *(f"{100 * n / ids:.0f} %" for n in exact))
    return drawn


def ranking_html(ranking: Ranking | Mapping[str, Any]) -> str:
    """Return the ranking and the classes side by side as a card."""
    data: Mapping[str, Any] = ranking if isinstance(ranking, Mapping) else ranking.to_dict()
    weighted = data["weighted_by_text"]
    names = [short_name(teacher["teacher"]) for teacher in data["teachers"]]
    head: list[object] = ["teacher", "loss", "strict split", "reach", "critical classes", "exact"]
    head += ["shared ids, of either side"]
    if weighted:
        head += ["1:1 chunks", "tokens a byte"]
    rows: list[list[object]] = []
    for name, teacher in zip(names, data["teachers"], strict=True):
        loss = teacher["loss"]
        cells: list[object] = [
            f"{teacher['rank']}.\u00a0{name}",
            LOSS_NAMES.get(loss, loss),
            _split(teacher),
            _percent(teacher["reach"]),
            _critical(teacher),
            Raw(f"{_percent(teacher['exact_share'])}{meter(teacher['exact_share'])}"),
            f"{_percent(teacher['overlap_student'])}, {_percent(teacher['overlap_teacher'])}",
        ]
        if weighted:
            cells.append(_percent(teacher["one_to_one_share"]))
            cells.append(f"{teacher['teacher_tokens_per_byte']:.3f}")
        rows.append(cells)
    ranked = table("Teachers, the best first", head, rows, text_columns=(1, 2))
    classes = table(
        "Student tokens with exact partner, by class",
        ["token class", "ids", *names],
        [
            [title, f"{ids:,}", *(exact_of(count, ids) for count in exact)]
            for title, ids, exact in _class_rows(data).values()
        ],
    )
    return (
        f'<div class="card"><p>{html(data["order"])}</p>{ranked}</div>'
        f'<div class="card">{classes}</div>'
    )


def _critical(teacher: Mapping[str, Any]) -> str:
    return f"{teacher['critical_inside']} of {teacher['critical_classes']}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
