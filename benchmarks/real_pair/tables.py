"""The tables of finished cells in Markdown, `summary.json`, and bits per byte by row as a plot."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.miniature.grid import write_json
from benchmarks.miniature.plots import draw_dots
from benchmarks.miniature.tables import BASELINE, figure, mean_text, paired
from benchmarks.real_pair.cells import NAMES

from xtoken.evaluation.files import write_whole

FIGURES = {
    "bpb prose": ("bpb", "prose"),
    "bpb code": ("bpb", "code"),
    "bpb sums": ("bpb", "sums"),
    "bpb numerals": ("bpb_by_class", "numerals"),
    "agreement": ("agreement",),
    "KL": ("kl_per_chunk",),
    "1 digit": ("sums", "1_digit"),
    "2 digits": ("sums", "2_digits"),
    "LAMBADA": ("tasks", "lambada_openai acc"),
    "PIQA": ("tasks", "piqa acc"),
}
TASKS = ("LAMBADA", "PIQA")
COSTS = {"s a step": ("seconds", "a_step"), "peak GiB": ("peak_memory_mib",)}

Rows = dict[str, dict[int, dict[str, Any]]]


def read_case(folder: Path) -> dict[str, Rows]:
    """Return finished cells by case, row (in the order they are run) and seed."""
    found: dict[str, Rows] = {}
    for path in sorted((folder / "cells").glob("*.json")):
        cell = json.loads(path.read_text(encoding="utf-8"))
        found.setdefault(cell["case"], {}).setdefault(cell["row"], {})[cell["seed"]] = cell
    return {
        case: {name: rows[name] for name in NAMES if name in rows} for case, rows in found.items()
    }


def tables(folder: Path) -> dict[str, str]:
    """Return the table of each case in Markdown, with what it rests on below it."""
    found = {}
    for case, rows in read_case(folder).items():
        reference = read_reference(folder, case)
        found[case] = f"{_table(rows, reference)}\n\n{_notes(rows, reference)}"
    return found


def read_reference(folder: Path, case: str) -> dict[str, Any]:
    """Return what is known of a case's teacher and start."""
    found: dict[str, Any] = json.loads(
        (folder / "reference" / f"{case}.json").read_text(encoding="utf-8")
    )
    return found


def write_tables(folder: Path) -> str:
    """Write `tables.md` and `summary.json`; returns the Markdown."""
    text = "\n".join(f"## {case}\n\n{table}\n" for case, table in tables(folder).items())
    write_whole(folder / "tables.md", text)
    summary = {
        case: _summary(rows, read_reference(folder, case))
        for case, rows in read_case(folder).items()
    }
    write_json(folder / "summary.json", summary)
    return text


def _table(rows: Rows, reference: dict[str, Any]) -> str:
    shown = {
        name: path
        for name, path in FIGURES.items()
        if name not in TASKS or math.isfinite(figure(reference["start"], path))
    }
    heads = ["row", "seeds", *shown, "prose against continued", *COSTS]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for who in ("teacher", "start"):
        values = [mean_text([figure(reference[who], path)]) for path in shown.values()]
        lines.append(f"| *{who}* | | {' | '.join(values)} | | | |")
    for name, cells in rows.items():
        values = [
            mean_text([figure(cell["figures"], path) for cell in cells.values()])
            for path in shown.values()
        ]
        costs = [np.mean([_cost(c, path) for c in cells.values()]) for path in COSTS.values()]
        gap = _gap(name, cells, rows)
        lines.append(
            f"| {name} | {len(cells)} | {' | '.join(values)} | {gap} | {costs[0]:.2f} | "
            f"{costs[1] / 1024:.1f} |"
        )
    return "\n".join(lines)


def _cost(cell: dict[str, Any], path: tuple[str, ...]) -> float:
    found: Any = cell
    for key in path:
        found = found[key]
    return math.nan if found is None else float(found)


def _gap(name: str, cells: dict[int, dict[str, Any]], rows: Rows) -> str:
    gap = paired(cells, rows.get(BASELINE, {}), FIGURES["bpb prose"])
    if gap is None or name == BASELINE:
        return ""
    interval = f" [{gap[1]:+.4f}, {gap[2]:+.4f}]" if len(cells) > 1 else ""
    return f"{gap[0]:+.4f}{interval}"


def _notes(rows: Rows, reference: dict[str, Any]) -> str:
    """Say what the table rests on, from the cells themselves."""
    cells = [cell for own in rows.values() for cell in own.values()]
    settings, first = reference["settings"], cells[0]
    machine = first["machine"]
    # A row that read something else than the others of its seed has no place in the table.
    read = {(c["seed"], c["read"]) for c in cells}
    if len(read) != len({seed for seed, _ in read}):
        raise SystemExit("Rows of one seed read different tokens; remove the older cells.")
    texts = ", ".join(f"{name} {size:,}" for name, size in reference["start"]["bytes"].items())
    tasks = (
        f"LAMBADA and PIQA: the first {settings['task_rows']} rows of each."
        if settings["task_rows"]
        else "LAMBADA and PIQA were not run: no data was given (--tasks-data)."
    )
    paid = [
        name
        for name, own in rows.items()
        if any(cell["teacher_batches_computed"] for cell in own.values())
    ]
    asked = [name for name, own in rows.items() if "shared" in next(iter(own.values()))["teacher"]]
    return (
        f"{first['steps']} steps, {first['tokens']:,} tokens, learning rate "
        f"{settings['learning_rate']:g}; every row of a seed read the same tokens in the same "
        f"order from the same start. Bytes scored: {texts}. Sums: {settings['problems']} of each "
        f"size, few-shot, exact match. {tasks} Teacher ({settings['teacher_dtype']}): hidden "
        f"states computed once and shared, full logits formed from them in "
        f"{', '.join(asked) or 'no row'}; the seconds a step of {', '.join(paid) or 'no row'} "
        f"include computing them. {machine['processor']}, {machine['threads']} threads, "
        f"torch {machine['torch']}, transformers {machine['transformers']}, xtoken "
        f"{machine['xtoken']}."
    )


def _summary(rows: Rows, reference: dict[str, Any]) -> dict[str, Any]:
    return {
        "reference": {
            who: {
                name: value if math.isfinite(value := figure(reference[who], path)) else None
                for name, path in FIGURES.items()
            }
            for who in ("teacher", "start")
        },
        "settings": reference["settings"],
        "rows": {
            name: {
                "seeds": sorted(cells),
                "tokens": [cell["tokens"] for cell in cells.values()],
                "teacher": next(iter(cells.values()))["teacher"],
                "seconds": [cell["seconds"] for cell in cells.values()],
                "peak_memory_mib": [cell["peak_memory_mib"] for cell in cells.values()],
                "machine": next(iter(cells.values()))["machine"],
                **{
                    key: {
                        "values": values,
                        "difference": paired(cells, rows.get(BASELINE, {}), path),
                    }
                    for key, path in FIGURES.items()
                    if all(
                        map(
                            math.isfinite,
                            values := [figure(c["figures"], path) for c in cells.values()],
                        )
                    )
                },
            }
            for name, cells in rows.items()
        },
    }


def write_plots(folder: Path) -> list[Path]:
    """Write bits per byte by row and domain as an SVG a case."""
    import matplotlib

    matplotlib.use("svg")
    # Ids and dates that don't change from run to run.
    matplotlib.rcParams["svg.hashsalt"] = "real-pair"
    names = ("bpb prose", "bpb code", "bpb sums", "bpb numerals")
    figures = {name: FIGURES[name] for name in names}
    charts = []
    for case, rows in read_case(folder).items():
        path = folder / f"{case}-bits-per-byte.svg"
        title = f"{case}: held-out bits per byte"
        charts.append(draw_dots(path, title, rows, figures, lower=True))
    return charts
