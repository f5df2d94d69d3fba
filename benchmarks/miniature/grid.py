"""The grid, cell by cell: what is finished is kept, what is missing is run."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from benchmarks.miniature.cells import ROWS, Bench, run_cell, sweep
from benchmarks.miniature.columns import COLUMNS, Column, Prose, build_column, read_prose
from benchmarks.miniature.metrics import measure
from benchmarks.miniature.sizes import Size

from xtoken import __version__


def write_json(path: Path, data: Any) -> None:
    """Write a file as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(path)


def surroundings() -> dict[str, str]:
    """Return the hardware and the versions."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        named = re.search(r"model name\s*:\s*(.*)", cpuinfo.read_text(encoding="utf-8"))
        model = named.group(1) if named else model
    return {
        "cpu": model,
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "xtoken": __version__,
    }


def run_grid(
    size: Size,
    folder: Path,
    cache: Path,
    *,
    rows: Sequence[str] = tuple(ROWS),
    columns: Iterable[str] = tuple(COLUMNS),
    seeds: Sequence[int] = (0, 1, 2),
    rate: float | None = None,
    prose: Prose | None = None,
) -> None:
    """Run every cell that has no file yet: column by column, in it seed by seed.

    `rate` is the learning rate of every row; None sweeps each row's own first.
    """
    prose = prose or read_prose()
    write_json(folder / "surroundings.json", surroundings())
    for name in columns:
        column = build_column(name, size, cache, prose)
        _reference(column, size, folder, prose)
        for seed in seeds:
            bench = Bench.of(column, prose, size)
            for row in rows:
                path = folder / "cells" / f"{name}--{row}--{seed}.json"
                if path.exists():
                    continue
                cell = run_cell(bench, row, seed, rate or _rate(bench, row, folder))
                write_json(path, cell)
                figures = cell["figures"]
                print(
                    f"{name} {row} seed {seed}: sums {figures['sums']['all']:.3f}, words "
                    f"{figures['word_problems']:.3f}, numeral mass "
                    f"{figures['numerals']['mass']:.3f}, bpb {figures['bpb_prose']:.3f}, "
                    f"{sum(cell['seconds'].values()):.0f} s",
                    flush=True,
                )


def _rate(bench: Bench, row: str, folder: Path) -> float:
    """Return a row's learning rate, swept once and kept."""
    if not bench.size.sweep_steps:
        return bench.size.learning_rates[0]
    path = folder / "sweep" / f"{bench.column.name}--{row}.json"
    if not path.exists():
        # A bench of its own, so that the sweep's teacher logits go when it ends.
        write_json(path, sweep(Bench.of(bench.column, bench.prose, bench.size), row))
    return float(json.loads(path.read_text(encoding="utf-8"))["rate"])


def _reference(column: Column, size: Size, folder: Path, prose: Prose) -> None:
    """Measure the teacher, and the start before any training, once."""
    path = folder / "reference" / f"{column.name}.json"
    if path.exists():
        return
    texts = prose.held_out[: size.prose_texts]
    teacher = Bench.of(column, prose, size).teacher
    itself = Column(column.name, column.teacher, column.teacher, column.teacher_model, column.start)
    found = {
        "teacher": measure(column.teacher_model, itself, teacher, texts, size.held_out_problems),
        "start": measure(column.start, column, teacher, texts, size.held_out_problems),
        "parameters": {
            "teacher": column.teacher_model.num_parameters(),
            "student": column.start.num_parameters(),
        },
    }
    write_json(path, found)
    for who in ("teacher", "start"):
        print(f"{column.name} {who}: {found[who]['sums']} words {found[who]['word_problems']}")
