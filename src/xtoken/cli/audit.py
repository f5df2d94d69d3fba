"""`xtoken audit`: is the pair sane, and which loss does it ask for."""

from __future__ import annotations

from typing import Annotated

import typer

from xtoken.cli._app import app
from xtoken.cli._inputs import read_texts, vocabulary
from xtoken.cli._output import Encoding, Html, Json, Student, Teacher, doing, say, show, show_json


@app.command()
def audit(
    student: Student,
    teacher: Teacher,
    text: Annotated[
        list[str] | None,
        typer.Option(
            "--text",
            metavar="FILE",
            help="Text like that of the training: counts follow its use. May be repeated.",
        ),
    ] = None,
    projection: Annotated[
        str | None,
        typer.Option(metavar="W", help="A projection of this pair, instead of a new one."),
    ] = None,
    encoding: Encoding = "utf-8",
    html: Html = None,
    json: Json = False,
) -> None:
    """Compare two tokenizers and say which loss the pair asks for."""
    from xtoken.audit import audit as make_audit
    from xtoken.projection import Projection

    texts = read_texts(text, encoding) if text else None
    student_vocab, teacher_vocab = vocabulary(student), vocabulary(teacher)
    given = Projection.load(projection, student_vocab, teacher_vocab) if projection else None
    with doing("Comparing the tokenizers"):
        report = make_audit(student_vocab, teacher_vocab, texts, projection=given)
    from xtoken.report import audit_page, render_audit, write_page

    if html is not None:
        write_page(audit_page([report]), html)
    if json:
        show_json(report.to_dict())
        return
    show(render_audit(report))
    if html is not None:
        say(f"The page: {html}")
