"""An alignment drawn: both tokenisations one under the other, chunk by chunk.

In a terminal (and, without colour, in a pipe), `│` between chunks, `╎` between tokens of a chunk:

    student │the│·year│·2024   │
    teacher │the│·year│·╎2╎0╎24│
                       1:4
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np
from rich.cells import cell_len, chop_cells
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.text import Text

from xtoken.aligned_blocks import OUTSIDE, Block, blocks

if TYPE_CHECKING:
    from xtoken.align import Alignment
    from xtoken.vocab import Vocabulary

_KIND_STYLES = ("", "bold yellow", "bold green", "bold magenta")
_WORDS = ("one to one", "one to many", "many to one", "many to many")

_ASCII = {"·": "_", "⏎": "\\n", "␍": "\\r", "⇥": "\\t", "⍽": "<A0>", "□": "<3000>"}
_ASCII |= {"│": "|", "╎": ":", "×": "x", "◌": "", "…": "~", "–": "-"}


class AlignmentView:
    """Blocks as a rich renderable, wrapped to the width that it is given."""

    def __init__(self, items: Sequence[Block], *, summary: str = "", omitted: int = 0) -> None:
        self.blocks = list(items)
        self.summary = summary
        self.omitted = omitted

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(20, options.max_width), options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        heads = ("student ", "teacher ") if width >= 50 else ("S ", "T ")
        room = max(width - len(heads[0]) - 1, 4)
        plain = options.ascii_only
        for number, line in enumerate(_lines(self.blocks, room)):
            if number:
                yield Text("")
            yield from (_ascii(row) if plain else row for row in _draw(line, heads))
        if self.omitted:
            yield Text(f"… and {self.omitted:,} more columns.", style="dim")
        if self.summary:
            yield Text("")
            yield Text(self.summary)
        if any(block.kind > 0 for block in self.blocks):
            legend = Text("colours (student:teacher)  ", style="dim")
            for kind in range(1, 4):
                if any(block.kind == kind for block in self.blocks):
                    legend.append(_WORDS[kind], _KIND_STYLES[kind]).append("  ")
            if console.color_system is not None:
                yield legend


def render_alignment(
    student_vocab: Vocabulary,
    teacher_vocab: Vocabulary,
    student_ids: Sequence[int] | np.ndarray,
    teacher_ids: Sequence[int] | np.ndarray,
    alignment: Alignment,
    *,
    max_blocks: int | None = None,
) -> AlignmentView:
    """Draw both tokenisations one under the other, with chunk kinds; print it with a rich Console.

    `student_ids` int[S] and `teacher_ids` int[T] are the ids that `alignment` was made of.
    `max_blocks` stops after that many columns and says how many were left out.

    Raises:
        AlignmentError: the ids are not those that were aligned (their number differs).
    """
    items = blocks(student_vocab, teacher_vocab, student_ids, teacher_ids, alignment)
    shown = items if max_blocks is None else items[:max_blocks]
    return AlignmentView(shown, summary=summary(alignment), omitted=len(items) - len(shown))


def summary(alignment: Alignment) -> str:
    """Return one line: tokens, chunks by kind, share of bytes aligned."""
    counts = np.bincount(np.asarray(alignment.kind, dtype=np.int64), minlength=4)
    kinds = ", ".join(
        f"{count:,} {word}" for count, word in zip(counts.tolist(), _WORDS, strict=True) if count
    )
    chunks = f"{len(alignment):,} chunk{'' if len(alignment) == 1 else 's'}"
    return (
        f"{len(alignment.student_chunk):,} student and {len(alignment.teacher_chunk):,} teacher "
        f"tokens; {chunks}{f' ({kinds})' if kinds else ''}; "
        f"{100 * alignment.byte_coverage:.1f} % of bytes aligned."
    )


@dataclass(frozen=True)
class _Cell:
    """One column as it is drawn: two texts of at most `width` cells and a label."""

    student: str
    teacher: str
    label: str
    kind: int
    is_role: bool

    @property
    def width(self) -> int:
        return max(cell_len(self.student), cell_len(self.teacher), cell_len(self.label))


def _cells(block: Block, room: int) -> Iterator[_Cell]:
    """Return the block as one cell, or as several where it is wider than a line."""
    label = "" if block.kind == 0 else block.label
    whole = _Cell(
        "╎".join(block.student), "╎".join(block.teacher), label, block.kind, block.is_role
    )
    if whole.width <= room:
        yield whole
        return
    student = list(_wrapped(block.student, room))
    teacher = list(_wrapped(block.teacher, room))
    for number, (top, bottom) in enumerate(zip_longest(student, teacher, fillvalue="")):
        yield _Cell(top, bottom, label if number == 0 else "…", block.kind, block.is_role)


def _wrapped(tokens: Sequence[str], room: int) -> Iterator[str]:
    line = ""
    for token in tokens:
        for position, part in enumerate(chop_cells(token, room) if token else [""]):
            joined = part if not line else f"{line}{'╎' if position == 0 else ''}{part}"
            if line and cell_len(joined) > room:
                yield line
                line = part
            else:
                line = joined
    if line:
        yield line


def _lines(items: Sequence[Block], room: int) -> Iterator[list[_Cell]]:
    line: list[_Cell] = []
    used = 0
    for block in items:
        for cell in _cells(block, room - 1):
            if line and used + cell.width + 1 > room:
                yield line
                line, used = [], 0
            line.append(cell)
            used += cell.width + 1
    if line:
        yield line


def _draw(line: Sequence[_Cell], heads: tuple[str, str]) -> list[Text]:
    rows = [Text(heads[0], style="dim"), Text(heads[1], style="dim"), Text(" " * len(heads[0]))]
    for row in rows:
        row.no_wrap, row.overflow = True, "ignore"
    for cell in line:
        style = "dim italic" if cell.kind == OUTSIDE or cell.is_role else _KIND_STYLES[cell.kind]
        for row, text in zip(rows, (cell.student, cell.teacher, cell.label), strict=True):
            row.append("│" if row is not rows[2] else " ", "dim")
            row.append(_isolated(text), style if row is not rows[2] else f"dim {style}".strip())
            row.append(" " * (cell.width - cell_len(text)))
    for row in rows[:2]:
        row.append("│", "dim")
    rows[2].rstrip()
    return rows if rows[2].plain.strip() else rows[:2]


def _isolated(text: str) -> str:
    """Keep right-to-left text inside its column (isolates have no width)."""
    if any(unicodedata.bidirectional(char) in ("R", "AL", "AN") for char in text):
        return f"\u2066{text}\u2069"
    return text


def _ascii(row: Text) -> Text:
    """Return the row for a terminal without Unicode; columns may shift where text isn't ASCII."""
    plain = "".join(_ASCII.get(char, char) for char in row.plain)
    return Text(plain.encode("ascii", "backslashreplace").decode(), no_wrap=True, overflow="ignore")
