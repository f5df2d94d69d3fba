"""What verbs write: rich text on a terminal, plain text in a pipe, JSON where asked for."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Html = Annotated[
    Path | None,
    typer.Option("--html", metavar="OUT", help="Write one self-contained HTML page, too."),
]
Encoding = Annotated[
    str, typer.Option("--encoding", metavar="NAME", help="Encoding of the text files.")
]
# Columns of a terminal below which a bar would leave no room for what it stands for.
NARROW = 60
MODEL = "A hub name, a local directory, or a .gguf file."
Student = Annotated[str, typer.Argument(metavar="STUDENT", help=MODEL, show_default=False)]
Teacher = Annotated[str, typer.Argument(metavar="TEACHER", help=MODEL, show_default=False)]


def console(*, stderr: bool = False) -> Console:
    """Return a console on stdout (or stderr); rich itself goes plain in a pipe."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


def show(*parts: RenderableType) -> None:
    """Print renderables on stdout, one below the other."""
    target = console()
    for part in parts:
        target.print(part)


def show_json(data: Any) -> None:
    """Print plain values as JSON; numbers that are not finite become null."""
    unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    print(json.dumps(_finite(data), indent=2, ensure_ascii=not unicode, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def say(message: str) -> None:
    """Print a line for the user on stderr, where it disturbs neither a pipe nor JSON."""
    console(stderr=True).print(message, markup=False, soft_wrap=True)


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Show a spinner with `what` while the block runs; nothing in a pipe."""
    target = console(stderr=True)
    if not target.is_terminal:
        yield
        return
    from rich.text import Text

    with target.status(Text(what)):
        yield


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar over `total` units while the block runs; yields a function that advances it."""
    target = console(stderr=True)
    if not target.is_terminal:
        yield lambda step: None
        return
    from rich.progress import (
        BarColumn,
        Progress,
        ProgressColumn,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    columns: tuple[ProgressColumn, ...] = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    if target.width < NARROW:
        # The share first: what doesn't fit is cut off at the end.
        columns = (TextColumn("{task.percentage:>3.0f}% {task.description}", markup=False),)
    with Progress(*columns, console=target, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda step: bar.update(task, advance=step)
