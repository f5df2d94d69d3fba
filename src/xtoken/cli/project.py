"""`xtoken project`: build, look at and import the projection W between two vocabularies."""

from __future__ import annotations

import codecs
import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xtoken.cli._app import app
from xtoken.cli._inputs import vocabulary
from xtoken.cli._output import Json, Student, Teacher, doing, show, show_json
from xtoken.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from xtoken.projection import Changes, Explanation, Projection, TeacherExplanation
    from xtoken.projection.tokens import TokenTable

SOURCES_SHOWN = 20
_ESCAPE = re.compile(r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[nrt\\])")

Output = Annotated[
    Path, typer.Option("--output", "-o", metavar="W.safetensors", help="File to write.")
]

project = typer.Typer(no_args_is_help=True, help="Build, show or import a projection W.")
app.add_typer(project, name="project")


class Rule(StrEnum):
    """How tokens without an exact partner are projected."""

    MULTI_TOKEN = "multi_token"
    LONGEST_PREFIX = "longest_prefix"


class Side(StrEnum):
    """Whose token is asked about."""

    STUDENT = "student"
    TEACHER = "teacher"


@project.command()
def build(
    student: Student,
    teacher: Teacher,
    output: Output,
    max_pieces: Annotated[int, typer.Option(help="Most teacher tokens a student token has.")] = 4,
    beta: Annotated[float, typer.Option(help="Weight of the first piece.")] = 0.9,
    gamma: Annotated[float, typer.Option(help="Decay from piece to piece.")] = 0.1,
    reverse: Annotated[
        bool, typer.Option("--reverse", help="Also cut teacher tokens by the student.")
    ] = False,
    rule: Annotated[
        Rule, typer.Option(help="For tokens without an exact partner.")
    ] = Rule.MULTI_TOKEN,
    json: Json = False,
) -> None:
    """Build W from two tokenizers and save it."""
    from xtoken.projection import Projection

    student_vocab, teacher_vocab = vocabulary(student), vocabulary(teacher)
    with doing("Building the projection"):
        made = Projection.build(
            student_vocab,
            teacher_vocab,
            max_pieces=max_pieces,
            beta=beta,
            gamma=gamma,
            reverse=reverse,
            rule=rule.value,  # type: ignore[arg-type]
        )
        made.save(output)
    _show_stats(made, output, json)


@project.command(name="import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE.pt", help="A projection of public code.")],
    student: Student,
    teacher: Teacher,
    output: Output,
    normalize: Annotated[
        bool, typer.Option("--normalize", help="Divide each row by its sum.")
    ] = False,
    json: Json = False,
) -> None:
    """Turn a .pt projection into W; nothing in the file is run."""
    from xtoken.projection import import_pt

    student_vocab, teacher_vocab = vocabulary(student), vocabulary(teacher)
    with doing("Reading the projection"):
        made = import_pt(file, student_vocab, teacher_vocab, normalize=normalize)
        made.save(output)
    _show_stats(made, output, json)


@project.command(name="show")
def show_(
    file: Annotated[Path, typer.Argument(metavar="W", help="A file that `build` wrote.")],
    token: Annotated[
        str | None,
        typer.Argument(
            metavar="TOKEN|ID",
            help="A token's text (\\n, \\xNN and the like work) or id; both are shown where a "
            "number is both. Left out: what the projection is.",
            show_default=False,
        ),
    ] = None,
    side: Annotated[Side, typer.Option(help="Whose token it is.")] = Side.STUDENT,
    student: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Check that W is for this student.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Check that W is for this teacher.")
    ] = None,
    initial: Annotated[
        Path | None,
        typer.Option(
            metavar="W", help="An earlier W to compare with, such as the one that was learned from."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Show a token's row of W, or who maps to a teacher's token."""
    from xtoken.projection import Projection, compare

    made = Projection.load(
        file,
        vocabulary(student) if student else None,
        vocabulary(teacher) if teacher else None,
    )
    earlier = None if initial is None else Projection.load(initial)
    if token is None:
        if earlier is None:
            _show_stats(made, file, json)
        else:
            _show_changes(compare(earlier, made), json)
        return
    table = made.student_tokens if side == Side.STUDENT else made.teacher_tokens
    assert table is not None  # a file always has both
    found = [
        made.explain(i) if side == Side.STUDENT else made.explain_teacher(i)
        for i in find_tokens(table, token, side.value)
    ]
    before: list[dict[int, float] | None] = [None] * len(found)
    if earlier is not None:
        compare(earlier, made, examples=0)  # refuses what can't be compared
        before = [_weights_in(earlier, item) for item in found]
    if json:
        shown = [item.to_dict() for item in found]
        for entry, weights in zip(shown, before, strict=True):
            if weights is None:
                continue
            for piece in entry["pieces" if side == Side.STUDENT else "sources"]:
                piece["initial_weight"] = weights.get(piece["id"], 0.0)
        show_json(shown)
        return
    for number, (item, weights) in enumerate(zip(found, before, strict=True)):
        show(*([""] if number else []), *_explained(item, weights))


def find_tokens(table: TokenTable, wanted: str, side: str) -> list[int]:
    """Return the ids that a text or number names; a number may be an id and a text."""
    data = _ESCAPE.sub(lambda m: codecs.decode(m[0], "unicode_escape"), wanted)
    # \xNN names a byte, not a character.
    raw = b"".join(
        bytes([int(part[2:], 16)]) if re.fullmatch(r"\\x[0-9a-fA-F]{2}", part) else _text(part)
        for part in re.split(r"(\\x[0-9a-fA-F]{2})", wanted)
    )
    ids = list(table.find(raw))
    if wanted.isdecimal() and int(wanted) < len(table):
        ids.append(int(wanted))
    if not ids:
        number = f", and its ids run from 0 to {len(table) - 1}" if wanted.isdecimal() else ""
        raise UsageError(
            f"The {side} {table.name} has no token with exactly the text {data!r}{number}. A word "
            "may begin with a space (' word'); see `xtoken align` for how a text is cut."
        )
    return list(dict.fromkeys(ids))


def _text(part: str) -> bytes:
    return _ESCAPE.sub(lambda m: codecs.decode(m[0], "unicode_escape"), part).encode()


def _show_stats(made: Projection, file: Path, json: bool) -> None:
    stats = made.stats()
    names = {
        "student": made.student_tokens.name if made.student_tokens else "",
        "teacher": made.teacher_tokens.name if made.teacher_tokens else "",
    }
    if json:
        show_json({"file": str(file), **names, "rules": dict(made.rules), **stats})
        return
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(justify="right")
    rows = [
        ("student ids", stats["student_size"]),
        ("  with an exact partner", stats["exact"]),
        ("  through several teacher tokens", stats["multi_token"]),
        ("  paired by role", stats["role"]),
        ("  reaching nothing", stats["empty"]),
        ("  in no distribution", stats["student_masked"]),
        ("teacher ids", stats["teacher_size"]),
        ("  reached", stats["teacher_reached"]),
        ("  folded onto reached ones", stats["teacher_folded"]),
        ("  neither", stats["teacher_unreached"]),
        ("  in no distribution", stats["teacher_masked"]),
    ]
    for label, count in rows:
        table.add_row(label, f"{count:,}")
    title = Text(f"{file}: {names['student']} -> {names['teacher']}", style="bold", overflow="fold")
    show(title, table)


def _weights_in(earlier: Projection, item: Explanation | TeacherExplanation) -> dict[int, float]:
    """Return the weight that each piece of a shown row or column had."""
    from xtoken.projection import Explanation

    if isinstance(item, Explanation):
        pieces = earlier.explain(item.student_id).pieces
    else:
        pieces = earlier.explain_teacher(item.teacher_id).sources
    return {piece.token: piece.weight for piece in pieces}


def _show_changes(changes: Changes, json: bool) -> None:
    if json:
        show_json(changes.to_dict())
        return
    from rich.table import Table
    from rich.text import Text

    from xtoken.report import visible

    show(
        f"{changes.changed:,} of {changes.rows:,} rows with several pieces changed by more than "
        f"{changes.threshold:g}; the mean weight moved is {changes.mean_moved:.4f}, the most "
        f"{changes.most_moved:.4f}."
    )
    table = Table.grid(padding=(0, 2, 0, 0))
    for example in changes.examples:
        pieces = "  ".join(
            f"{visible(piece.bytes)} {was:.3f} -> {piece.weight:.3f}"
            for piece, was in zip(example.row.pieces, example.before, strict=True)
        )
        name = Text(visible(example.row.bytes), style="bold", overflow="fold")
        table.add_row(f"{example.moved:.3f}", name, Text(pieces, overflow="fold"))
    if changes.examples:
        show("The rows that moved most:", table)


def _explained(
    item: Explanation | TeacherExplanation, before: dict[int, float] | None = None
) -> list[RenderableType]:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    from xtoken.projection import Explanation
    from xtoken.report import visible

    def named(data: bytes, roles: tuple[str, ...]) -> str:
        return visible(data) if data else f"<{', '.join(roles) or 'no bytes'}>"

    ours = isinstance(item, Explanation)
    head, token_id, kinds = (
        ("student", item.student_id, ROW_KINDS)
        if isinstance(item, Explanation)
        else ("teacher", item.teacher_id, COLUMN_KINDS)
    )
    parts: list[RenderableType] = [
        Text.assemble(
            (f"{head} {token_id} ", "dim"),
            (named(item.bytes, item.roles), "bold"),
            f"  {kinds[item.kind]}",
        )
    ]
    pieces = item.pieces if isinstance(item, Explanation) else item.sources
    table = Table.grid(padding=(0, 2, 0, 0))
    for justify in ("right", "left", "right", "left"):
        table.add_column(justify=justify)  # type: ignore[arg-type]
    for piece in pieces[:SOURCES_SHOWN]:
        name = Text(named(piece.bytes, piece.roles), overflow="fold")
        was = "" if before is None else f"was {before.get(piece.token, 0.0):.4f}"
        table.add_row(f"{piece.weight:.4f}", name, Text(str(piece.token), style="dim"), was)
    if pieces:
        parts.append(Padding(table, (0, 0, 0, 2)))
    if len(pieces) > SOURCES_SHOWN:
        parts.append(Text(f"  and {len(pieces) - SOURCES_SHOWN:,} more", style="dim"))
    if not ours and item.kind == "folded" and item.fold is not None:  # type: ignore[union-attr]
        fold = item.fold  # type: ignore[union-attr]
        parts.append(Text(f"  folds onto {named(fold.bytes, fold.roles)} (id {fold.token})"))
    return parts


ROW_KINDS: dict[str, Any] = {
    "exact": "has the same bytes as one teacher token",
    "role": "is paired with the teacher's token of the same role",
    "multi-token": "stands for these teacher tokens",
    "empty": "reaches no teacher token",
    "masked": "is in no distribution (no token, or a role without partner)",
}
COLUMN_KINDS: dict[str, Any] = {
    "reached": "gets probability from these student tokens",
    "folded": "gets none; under support full its mass goes to another token",
    "unreached": "is reached by no student token",
    "masked": "is in no distribution (no token, or a role without partner)",
}
