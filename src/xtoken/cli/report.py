"""`xtoken report`: what one run did, or several side by side, in short or as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xtoken.cli._app import app
from xtoken.cli._output import Json, doing, say, show, show_json


@app.command()
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Run folders (output_dir).", show_default=False),
    ],
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="OUT", help="Write one self-contained HTML page."),
    ] = None,
    json: Json = False,
) -> None:
    """Show what runs did, in short or as an HTML page."""
    from xtoken.report import load_run, report_data, report_terminal, write_html

    loaded = [load_run(folder) for folder in runs]
    if html is not None:
        with doing("Drawing the page"):
            write_html(loaded, html)
    if json:
        show_json({**report_data(loaded), "html": None if html is None else str(html)})
        return
    show(report_terminal(loaded))
    if html is not None:
        say(f"The page: {html}")
