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
from xtoken.evaluation.files import write_whole

# A loss's learning rate is chosen here, for all columns.
SWEEP_COLUMN = "teacher_splits"


def write_json(path: Path, data: Any) -> None:
    """Write a file as a whole or not at all."""
    write_whole(path, json.dumps(data, indent=1, sort_keys=True) + "\n")


def is_done(path: Path, asked: dict[str, Any], within: str | None = None) -> bool:
    """Return whether a file is there; refuse one that was made with other settings.

    `within` names the entry of the file that holds them, None: they stand in it itself.
    """
    if not path.exists():
        return False
    found = json.loads(path.read_text(encoding="utf-8"))
    if within is not None:
        found = found[within]
    other = [f"{k} {found.get(k)} (asked: {v})" for k, v in asked.items() if found.get(k) != v]
    if other:
        raise SystemExit(
            f"{path} was made with {', '.join(other)}. Ask for the same, remove the file, or give "
            "another --output."
        )
    return True


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


def note_surroundings(path: Path) -> None:
    """Add this machine to those that cells were run on, each kind once."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    here = surroundings()
    if here not in known:
        write_json(path, [*known, here])


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
    note_surroundings(folder / "surroundings.json")
    rates = dict.fromkeys(rows, rate or size.learning_rates[0])
    if rate is None and size.sweep_steps:
        rates = swept_rates(size, folder, cache, prose, rows)
    for name in columns:
        column = build_column(name, size, cache, prose)
        _reference(column, size, folder, prose)
        for seed in seeds:
            bench = Bench.of(column, prose, size)
            for row in rows:
                path = folder / "cells" / f"{name}--{row}--{seed}.json"
                asked = {"size": size.name, "steps": size.cell_steps, "learning_rate": rates[row]}
                if is_done(path, asked):
                    continue
                cell = run_cell(bench, row, seed, rates[row])
                write_json(path, cell)
                figures = cell["figures"]
                print(
                    f"{name} {row} seed {seed}: sums {figures['sums']['all']:.3f}, words "
                    f"{figures['word_problems']:.3f}, numeral mass "
                    f"{figures['numerals']['mass']:.3f}, bpb {figures['bpb_prose']:.3f}, "
                    f"{sum(cell['seconds'].values()):.0f} s",
                    flush=True,
                )


def swept_rates(
    size: Size, folder: Path, cache: Path, prose: Prose, rows: Sequence[str]
) -> dict[str, float]:
    """Return each row's learning rate, swept once (in one column) and kept."""
    paths = {row: folder / "sweep" / f"{row}.json" for row in rows}
    missing = [row for row, path in paths.items() if not path.exists()]
    if missing:
        bench = Bench.of(build_column(SWEEP_COLUMN, size, cache, prose), prose, size)
        for row in missing:
            if paths[row].exists():  # another process was here in the meantime
                continue
            write_json(paths[row], sweep(bench, row))
            print(f"sweep {row}: {json.loads(paths[row].read_text())}", flush=True)
    return {row: float(json.loads(path.read_text())["rate"]) for row, path in paths.items()}


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
