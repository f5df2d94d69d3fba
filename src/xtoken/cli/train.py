"""`xtoken train`: carry out a run file, or say what it would do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xtoken.cli._app import app
from xtoken.cli._output import Json, doing, show, show_json

if TYPE_CHECKING:
    from rich.console import RenderableType

    from xtoken.training import TrainResult
    from xtoken.training.dry_run import DryRun

GIB = 2**30
SHOWN_BLOCKS = 60


@app.command()
def train(
    run: Annotated[
        Path, typer.Argument(metavar="RUN.yaml", help="The run file.", show_default=False)
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Settings that stand in for the file's, such as loss.kind=h_kl, "
            "training.max_steps=100 or teachers.0.weight=0.5.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print the resolved run, a memory estimate and the first aligned example; train "
            "nothing.",
        ),
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume/--no-resume", help="Go on from the newest whole checkpoint in output_dir."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Train a student from a run file; its paths are relative to this directory."""
    from xtoken.config import load_run

    config = load_run(run, overrides or ())
    if dry_run:
        from xtoken.training.dry_run import dry_run as look

        with doing("Reading tokenizers and data"):
            plan = look(config)
        if json:
            show_json(plan.to_dict())
        else:
            show(*_plan(plan))
        return
    from xtoken.training import train as carry_out

    result = carry_out(config, resume=resume)
    if os.environ.get("RANK", "0") != "0":
        return
    if json:
        show_json(result.to_dict())
    else:
        _show_result(result)


def _show_result(result: TrainResult) -> None:
    from xtoken.evaluation import load_evaluation
    from xtoken.report import render_table_before_after

    if result.after:
        show(*map(render_table_before_after, load_evaluation(result.output_dir)))
    show(f"{result.steps} steps in {result.seconds:.0f} s. The student is in {result.output_dir}.")


def _plan(plan: DryRun) -> list[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    from xtoken.config import to_yaml
    from xtoken.report import render_alignment

    def heading(text: str) -> Text:
        return Text(text, style="bold")

    memory = Table.grid(padding=(0, 2, 0, 0))
    memory.add_column(overflow="fold")
    memory.add_column(justify="right", no_wrap=True)
    for name, size in plan.memory.parts.items():
        memory.add_row(Text(name), f"{size / GIB:,.2f} GiB")
    memory.add_row(heading("together"), heading(f"{plan.memory.total / GIB:,.2f} GiB"))
    step = Table.grid(padding=(0, 2, 0, 0))
    for name, value in plan.arguments.items():
        step.add_row(Text(name), Text(str(value)))
    for name, shape in plan.batch_shapes.items():
        step.add_row(Text(name), Text(" x ".join(map(str, shape))))
    parts: list[RenderableType] = [
        heading("The resolved run"),
        Text(to_yaml(plan.config)),
        heading("Memory of one process, to within a third"),
        memory,
        "",
        heading("A step"),
        step,
    ]
    student, own = plan.pairs.student, plan.example.student
    for pair, side, entry in zip(
        plan.pairs.teachers, plan.example.teachers, plan.statistics, strict=True
    ):
        parts += [
            "",
            heading(f"Teacher {pair.name}, loss {pair.loss.kind}"),
            Text(
                f"On the first {entry['documents']} sequences: {entry['supervised_chunks']:,} "
                f"supervised chunks, {entry['one_to_one_share']:.1%} of them 1:1; "
                f"{entry['byte_coverage']:.1%} of the bytes aligned."
            ),
        ]
        if side.alignment is None:
            parts.append(Text("It has the student's tokenizer: every token is a chunk."))
            continue
        theirs = side.encoding
        parts += [
            Text(f"The first example ({plan.example.where}):"),
            render_alignment(
                student, pair.vocab, own.ids, theirs.ids, side.alignment, max_blocks=SHOWN_BLOCKS
            ),
        ]
    for note in plan.notes:
        parts += ["", Text(f"Note: {note}", style="yellow")]
    return [*parts, "", "Nothing was trained or written."]
