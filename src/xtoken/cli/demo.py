"""`xtoken demo`: watch a student learn from a teacher that has another tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xtoken.cli._app import app
from xtoken.cli._output import Json, say, show, show_json

if TYPE_CHECKING:
    from xtoken.evaluation import EvaluationTable


@app.command()
def demo(
    pair: Annotated[
        str,
        typer.Option(help="smollm2 (five minutes on two cores) or gemma (some ten minutes)."),
    ] = "smollm2",
    output: Annotated[
        Path, typer.Option(help="Where models, metrics and the page are written.")
    ] = Path("demo-output"),
    seed: Annotated[int, typer.Option(help="Seed of the student and of the order.")] = 0,
    json: Json = False,
) -> None:
    """Distil on this machine, from packages that pip installed; downloads nothing."""
    from xtoken.demo import run_demo
    from xtoken.report import render_table_before_after

    def render(table: EvaluationTable) -> None:
        if not json:
            show(render_table_before_after(table))

    result = run_demo(pair, output, say=say, show=render, seed=seed)
    if json:
        show_json(
            {
                "table": result.table.to_dict(),
                "page": str(result.page),
                "distilled": str(result.distilled),
                "cross_entropy_only": str(result.baseline),
                "seconds": result.seconds,
            }
        )
        return
    say(f"Took {result.seconds / 60:.1f} minutes. The page: {result.page}")
