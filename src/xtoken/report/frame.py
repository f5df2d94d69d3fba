"""What the terminal's reports share: headings, plain tables, and making a part for a width."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

# Below this width tables lose their less vital columns.
NARROW = 64


def heading(text: str) -> Text:
    """Return a bold line."""
    return Text(text, style="bold")


def plain_table(**options: Any) -> Table:
    """Return a table without lines."""
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", **options)


class ByWidth:
    """A renderable made when it is drawn, by `make(width, ascii_only)`."""

    def __init__(self, make: Callable[[int, bool], RenderableType]) -> None:
        self._make = make

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._make(options.max_width, options.ascii_only)
