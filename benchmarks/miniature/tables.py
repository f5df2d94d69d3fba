"""Mean, spread, and paired differences to continued training, with a bootstrap interval."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from xtoken.evaluation.files import write_whole

BASELINE = "continued"
# Name in the table, path in a cell's figures.
FIGURES = {
    "sums": ("sums", "all"),
    "1 digit": ("sums", "1_digits"),
    "2 digits": ("sums", "2_digits"),
    "3 digits": ("sums", "3_digits"),
    "words": ("word_problems",),
    "bpb all": ("bpb_overall",),
    "bpb prose": ("bpb_prose",),
    "bpb numerals": ("bpb_numerals",),
    "numeral mass": ("numerals", "mass"),
    "agreement": ("agreement",),
}
# The tables of a column: figures shown, and the one compared with continued training.
TABLES = {
    "problems": (["sums", "2 digits", "3 digits", "words", "numeral mass"], "sums"),
    "text": (["bpb prose", "bpb numerals", "bpb all", "agreement"], "bpb prose"),
}
RESAMPLES = 10_000

Grid = dict[str, dict[str, dict[int, dict[str, Any]]]]


def read_cells(folder: Path) -> Grid:
    """Return cells by column, row and seed."""
    grid: Grid = {}
    for path in sorted((folder / "cells").glob("*.json")):
        cell = json.loads(path.read_text(encoding="utf-8"))
        rows = grid.setdefault(cell["column"], {})
        rows.setdefault(cell["row"], {})[cell["seed"]] = cell
    return grid


def figure(figures: dict[str, Any], path: tuple[str, ...]) -> float:
    """Return one figure of a cell; NaN where it has none."""
    found: Any = figures
    for key in path:
        if key not in found:
            return float("nan")
        found = found[key]
    return float(found)


def paired(
    row: dict[int, dict[str, Any]], base: dict[int, dict[str, Any]], path: tuple[str, ...]
) -> tuple[float, float, float] | None:
    """Return the mean difference to the baseline over shared seeds, and its 95 % interval.

    Seeds are resampled; with three of them the interval is at most their range, and no test.
    """
    seeds = sorted(set(row) & set(base))
    if not seeds:
        return None
    gaps = np.array(
        [figure(row[s]["figures"], path) - figure(base[s]["figures"], path) for s in seeds]
    )
    drawn = np.random.default_rng(0).integers(0, len(gaps), (RESAMPLES, len(gaps)))
    low, high = np.quantile(gaps[drawn].mean(1), [0.025, 0.975])
    return float(gaps.mean()), float(low), float(high)


def mean_text(values: list[float]) -> str:
    """Return the mean and the standard deviation between seeds; "" where a value is missing."""
    if not np.isfinite(values).all():
        return ""
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


def column_table(
    rows: dict[str, dict[int, dict[str, Any]]],
    reference: dict[str, Any],
    names: list[str],
    compared: str,
) -> str:
    """Return a table in Markdown: means with their spread, and one figure's difference.

    The row with the best of that figure comes first.
    """
    path = FIGURES[compared]
    lines = [
        f"| row | seeds | {' | '.join(names)} | {compared} against continued |",
        "|---" * (len(names) + 3) + "|",
    ]
    for who in ("teacher", "start"):
        if who in reference:
            values = [f"{figure(reference[who], FIGURES[name]):.3f}" for name in names]
            lines.append(f"| *{who}* | | " + " | ".join(values) + " | |")
    sign = 1 if compared.startswith("bpb") else -1
    order = sorted(
        rows, key=lambda r: sign * np.mean([figure(c["figures"], path) for c in rows[r].values()])
    )
    for name in order:
        cells = rows[name]
        shown = [
            mean_text([figure(cell["figures"], FIGURES[key]) for cell in cells.values()])
            for key in names
        ]
        gap = paired(cells, rows.get(BASELINE, {}), path)
        text = ""
        if gap and name != BASELINE:
            text = f"{gap[0]:+.3f}"
            text += f" [{gap[1]:+.3f}, {gap[2]:+.3f}]" if len(cells) > 1 else ""
        lines.append(f"| {name} | {len(cells)} | " + " | ".join(shown) + f" | {text} |")
    return "\n".join(lines)


def tables(folder: Path) -> dict[str, str]:
    """Return every table of the finished cells in Markdown, by `COLUMN problems`, `COLUMN text`."""
    found = {}
    for column, rows in read_cells(folder).items():
        path = folder / "reference" / f"{column}.json"
        reference = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        for name, (names, compared) in TABLES.items():
            found[f"{column} {name}"] = column_table(rows, reference, names, compared)
    return found


def write_tables(folder: Path) -> str:
    """Write `tables.md` and `summary.json` from the finished cells; returns the Markdown."""
    summary = {
        column: {
            row: {
                name: {
                    "mean": float(
                        np.mean(values := [figure(c["figures"], p) for c in cells.values()])
                    ),
                    "values": values,
                    "difference": paired(cells, rows.get(BASELINE, {}), p),
                }
                for name, p in FIGURES.items()
            }
            for row, cells in rows.items()
        }
        for column, rows in read_cells(folder).items()
    }
    parts = [f"## {name}\n\n{table}\n" for name, table in tables(folder).items()]
    text = "\n".join(parts)
    write_whole(folder / "tables.md", text)
    write_whole(folder / "summary.json", json.dumps(summary, indent=1, sort_keys=True) + "\n")
    return text
