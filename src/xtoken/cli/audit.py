"""`xtoken audit`: is the pair sane, and which loss to take."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xtoken.cli._app import app
from xtoken.cli._inputs import read_texts, vocabulary
from xtoken.cli._output import (
    MODEL,
    Encoding,
    Html,
    Json,
    Student,
    doing,
    progress,
    say,
    show,
    show_json,
)
from xtoken.errors import UsageError

if TYPE_CHECKING:
    from xtoken.audit import AuditReport, Suppression
    from xtoken.projection import Projection
    from xtoken.vocab import Vocabulary

# What --student-model reads unless told otherwise: a minute for a small model on a CPU.
TOKENS = 8_000


@app.command()
def audit(
    student: Student,
    teachers: Annotated[
        list[str],
        typer.Argument(
            metavar="TEACHER...",
            help=f"{MODEL} Several are ranked for the student.",
            show_default=False,
        ),
    ],
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
    student_model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Run this student on the text: how much would a strict partition push down?",
        ),
    ] = None,
    teacher_model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="With --student-model: measure the teacher's side, too."
        ),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            help="About how many tokens --student-model reads [default: 8000].",
            min=1,
            show_default=False,
        ),
    ] = None,
    encoding: Encoding = "utf-8",
    html: Html = None,
    json: Json = False,
) -> None:
    """Compare two tokenizers and say which loss the pair asks for."""
    _check(teachers, text, projection, student_model, teacher_model)
    if tokens is not None and student_model is None:
        raise UsageError("--tokens has no effect without --student-model; add it.")
    texts = read_texts(text, encoding) if text else None
    student_vocab = vocabulary(student)
    teacher_vocabs = [vocabulary(teacher) for teacher in teachers]
    models = []
    if student_model is not None:
        model, student_vocab = _load(student_model, student_vocab)
        models.append(model)
    if teacher_model is not None:
        model, teacher_vocabs[0] = _load(teacher_model, teacher_vocabs[0])
        models.append(model)
    given = _projection(projection, student_vocab, teacher_vocabs)
    reports = []
    for teacher_vocab in teacher_vocabs:
        report = _audit(student_vocab, teacher_vocab, texts, given)
        if models and texts is not None:
            most = TOKENS if tokens is None else tokens
            found = _suppression(models, student_vocab, teacher_vocab, texts, given, most)
            report = replace(report, suppression=found)
        reports.append(report)

    from xtoken.audit import rank_teachers
    from xtoken.report import audit_page, render_audit, write_page
    from xtoken.report.audit_ranking import render_ranking

    ranking = rank_teachers(reports) if len(reports) > 1 else None
    shown = reports if ranking is None else list(ranking.audits)
    if html is not None:
        write_page(audit_page(shown, ranking=ranking), html)
    if json:
        show_json(reports[0].to_dict() if ranking is None else ranking.to_dict())
        return
    show(render_audit(reports[0]) if ranking is None else render_ranking(ranking))
    if ranking is not None:
        say("One teacher alone shows its whole audit.")
    if html is not None:
        say(f"The page: {html}")


def _check(
    teachers: list[str],
    text: list[str] | None,
    projection: str | None,
    student_model: str | None,
    teacher_model: str | None,
) -> None:
    if student_model is not None and not text:
        raise UsageError("--student-model needs a text to read; add --text FILE.")
    if teacher_model is not None and student_model is None:
        raise UsageError("--teacher-model has no effect without --student-model; add it.")
    for option, value in (("--projection", projection), ("--teacher-model", teacher_model)):
        if value is not None and len(teachers) > 1:
            raise UsageError(
                f"{option} belongs to one pair, but {len(teachers)} teachers are given; give one."
            )


def _projection(
    path: str | None, student: Vocabulary, teachers: list[Vocabulary]
) -> Projection | None:
    from xtoken.projection import Projection

    return None if path is None else Projection.load(path, student, teachers[0])


def _audit(
    student: Vocabulary, teacher: Vocabulary, texts: list[str] | None, given: Projection | None
) -> AuditReport:
    from xtoken.audit import MAX_TEXT_BYTES
    from xtoken.audit import audit as make_audit

    if texts is None:
        with doing(f"Comparing with {teacher.name}"):
            return make_audit(student, teacher, projection=given)
    size = min(sum(len(item.encode("utf-8", "surrogatepass")) for item in texts), MAX_TEXT_BYTES)
    with progress(f"Comparing with {teacher.name}", size) as advance:
        return make_audit(student, teacher, texts, projection=given, progress=advance)


def _load(name: str, vocab: Vocabulary) -> tuple[Any, Vocabulary]:
    """Load a model; refuses one whose head is too small for the tokenizer."""
    import torch

    from xtoken.models import load_causal_lm, output_head_rows

    with doing(f"Loading {name}"):
        model = load_causal_lm(name, device="cuda" if torch.cuda.is_available() else "cpu")
    return model, vocab.with_rows(output_head_rows(model))


def _suppression(
    models: list[Any],
    student: Vocabulary,
    teacher: Vocabulary,
    texts: list[str],
    given: Projection | None,
    tokens: int,
) -> Suppression:
    from xtoken.audit.suppression import measure_suppression, sample_documents

    count = len(sample_documents(texts, tokens)[0])
    with progress(f"Running the student on {count:,} pieces of the text", count) as advance:
        return measure_suppression(
            models[0],
            student,
            teacher,
            texts,
            teacher=models[1] if len(models) > 1 else None,
            projection=given,
            max_tokens=tokens,
            progress=advance,
        )
