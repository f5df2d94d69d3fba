"""The two real pairs: who teaches whom, what is read, and the start that all rows share."""

from __future__ import annotations

import random
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.miniature.problems import Problem

from xtoken.demo import PAIRS, assets
from xtoken.demo.pairs import DemoPair, Say
from xtoken.demo.run import WARM_UP_TEXTS, warm_up

# Sizes of the demonstration's pairs, as a benchmark has them. Passages are packed: a step reads
# up to `batch_size` x `max_length` tokens of the student.
CASES: dict[str, DemoPair] = {
    "gemma": replace(PAIRS["gemma"], steps=200, batch_size=4, max_length=192, held_out=16),
    "smollm2": replace(PAIRS["smollm2"], steps=300, batch_size=4, max_length=256, held_out=40),
}
# Bytes of a piece of held-out text; short enough that a piece is one window of every model.
PIECE = 700
# Where no training reads: sources of the standard library, a piece of each.
MODULES = [
    "argparse",
    "bisect",
    "calendar",
    "configparser",
    "csv",
    "difflib",
    "fractions",
    "ftplib",
    "heapq",
    "inspect",
    "mailbox",
    "pprint",
    "queue",
    "shlex",
    "statistics",
    "textwrap",
]
SUMS_A_TEXT = 24


@dataclass(frozen=True)
class Ready:
    """A case with everything on disk: what rows are trained from and measured on.

    `held_out` holds texts by domain; every row starts from the model in `start`.
    """

    case: DemoPair
    teacher: Path
    start: Path
    texts: list[str]
    held_out: dict[str, list[str]]


def code(count: int) -> list[str]:
    """Return pieces of this Python's standard library, from the middle of a module each."""
    folder = Path(sysconfig.get_path("stdlib"))
    pieces = []
    for name in MODULES[:count]:
        text = (folder / f"{name}.py").read_text(encoding="utf-8")
        begin = text.index("\n", len(text) // 2) + 1
        pieces.append(text[begin : begin + PIECE])
    return pieces


def addition(a: int, b: int) -> Problem:
    """Return `a + b =` with its answer and a line break."""
    return Problem(f"{a} + {b} =", f" {a + b}\n", a + b)


def sums(count: int) -> list[str]:
    """Return texts of additions of numbers below 100, on one line (passages have one line too)."""
    rng = random.Random(3)
    texts = []
    for _ in range(count):
        drawn = [addition(rng.randrange(100), rng.randrange(100)) for _ in range(SUMS_A_TEXT)]
        texts.append(", ".join(p.prompt + p.completion.rstrip() for p in drawn) + ".")
    return texts


def held_out_texts(prose: Sequence[str], count: int) -> dict[str, list[str]]:
    """Return held-out texts by domain: some `count` pieces of each."""
    return {
        "prose": [text[:PIECE] for text in prose[-count:]],
        "code": code(count),
        "sums": sums(max(count // 2, 1)),
    }


def prepare(case: DemoPair, cache: Path, say: Say) -> Ready:
    """Make a case ready: models converted, a fresh student warmed up; all of it once."""
    folder = cache / case.name
    folder.mkdir(parents=True, exist_ok=True)
    texts = assets.passages(case.name)
    teacher = case.teacher(folder, say)
    warmed = folder / "start"
    if not case.warm_up_steps:
        start = case.student(folder, texts, 0, say)
    elif (warmed / "summary.json").exists():
        start = warmed
    else:
        before = texts[:WARM_UP_TEXTS]
        fresh = case.student(folder, before, 0, say)
        # The demonstration's own sizes, whatever is asked of the rows.
        start = warm_up(PAIRS[case.name], folder, fresh, teacher, before, 0, say, "none")
    return Ready(
        case,
        teacher,
        start,
        texts[WARM_UP_TEXTS : len(texts) - case.held_out],
        held_out_texts(texts, case.held_out),
    )


def training_texts(ready: Ready, seed: int) -> list[str]:
    """Return a seed's passages: all that a training reads, and some more.

    No passage stands in two of the first seeds where there are enough of them.
    """
    case = ready.case
    # A passage has some 140 tokens; with fewer in mind none is read twice.
    needed = case.steps * case.batch_size * case.max_length // 120 + case.batch_size
    begin = seed * needed % len(ready.texts)
    return (ready.texts[begin:] + ready.texts[:begin])[:needed]
