"""`xtoken align`: both tokenisations of a text, chunk by chunk."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from xtoken.cli._app import app
from xtoken.cli._inputs import read_texts, vocabulary
from xtoken.cli._output import Encoding, Html, Json, Student, Teacher, say, show, show_json
from xtoken.errors import UsageError

MAX_BLOCKS = 2000
# Nobody reads more than this; a corpus given whole would take minutes and gigabytes.
MAX_CHARACTERS = 1_000_000


@app.command()
def align(
    student: Student,
    teacher: Teacher,
    text: Annotated[
        str | None,
        typer.Argument(
            metavar="TEXT", help="The text itself; - reads standard input.", show_default=False
        ),
    ] = None,
    file: Annotated[
        str | None, typer.Option("--file", metavar="FILE", help="Read the text from a file.")
    ] = None,
    encoding: Encoding = "utf-8",
    html: Html = None,
    json: Json = False,
) -> None:
    """Show how two tokenizers cut a text, and where the cuts meet."""
    if (text is None) == (file is None):
        raise UsageError("Give the text either as the third argument or with --file, one of them.")
    if text is None or text == "-":
        (content,) = read_texts([file or "-"], encoding)
    else:
        content = text
    if not content:
        raise UsageError("The text is empty; give at least one character.")
    if len(content) > MAX_CHARACTERS:
        say(
            f"The text has {len(content):,} characters; the first {MAX_CHARACTERS:,} are aligned. "
            f"`xtoken audit --text` samples a corpus."
        )
        content = content[:MAX_CHARACTERS]
    from xtoken.align import align as make_alignment
    from xtoken.encode import encode_text
    from xtoken.report import alignment_page, blocks, render_alignment, write_page

    student_vocab, teacher_vocab = vocabulary(student), vocabulary(teacher)
    ours, theirs = encode_text(student_vocab, content), encode_text(teacher_vocab, content)
    alignment = make_alignment(
        student_vocab,
        teacher_vocab,
        ours.ids,
        theirs.ids,
        student_spans=ours.spans,
        teacher_spans=theirs.spans,
    )
    parts = (student_vocab, teacher_vocab, ours.ids, theirs.ids, alignment)
    if html is not None:
        summary = (
            f"{len(alignment):,} chunks; {100 * alignment.byte_coverage:.1f} % of bytes aligned."
        )
        names = {"student": student_vocab.name, "teacher": teacher_vocab.name}
        write_page(alignment_page(blocks(*parts), **names, summary=summary), html)
    if json:
        show_json(
            {
                "student": student_vocab.name,
                "teacher": teacher_vocab.name,
                "student_ids": ours.ids.tolist(),
                "teacher_ids": theirs.ids.tolist(),
                "student_chunk": alignment.student_chunk.tolist(),
                "teacher_chunk": alignment.teacher_chunk.tolist(),
                "chunks": alignment.counts(),
                "byte_coverage": alignment.byte_coverage,
                "blocks": [block.to_dict() for block in blocks(*parts)],
            }
        )
        return
    # A book on a terminal scrolls everything else away; a pipe gets all of it.
    show(render_alignment(*parts, max_blocks=MAX_BLOCKS if sys.stdout.isatty() else None))
    if html is not None:
        say(f"The page: {html}")
