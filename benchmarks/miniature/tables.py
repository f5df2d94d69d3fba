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


def column_table(rows: dict[str, dict[int, dict[str, Any]]], reference: dict[str, Any]) -> str:
    """Return a column's table in Markdown: means with their spread, differences on sums."""
    names = list(FIGURES)
    lines = [
        "| row | seeds | " + " | ".join(names) + " | sums against continued |",
        "|---" * (len(names) + 3) + "|",
    ]
    for who in ("teacher", "start"):
        if who in reference:
            values = [f"{figure(reference[who], FIGURES[name]):.3f}" for name in names]
            lines.append(f"| *{who}* | | " + " | ".join(values) + " | |")
    order = sorted(
        rows,
        key=lambda r: -np.mean([figure(c["figures"], ("sums", "all")) for c in rows[r].values()]),
    )
    for name in order:
        cells = rows[name]
        shown = []
        for path in FIGURES.values():
            shown.append(mean_text([figure(cell["figures"], path) for cell in cells.values()]))
        gap = paired(cells, rows.get(BASELINE, {}), ("sums", "all"))
        text = ""
        if gap and name != BASELINE:
            text = f"{gap[0]:+.3f}"
            text += f" [{gap[1]:+.3f}, {gap[2]:+.3f}]" if len(cells) > 1 else ""
        lines.append(f"| {name} | {len(cells)} | " + " | ".join(shown) + f" | {text} |")
    return "\n".join(lines)


def write_tables(folder: Path) -> str:
    """Write `tables.md` and `summary.json` from the finished cells; returns the Markdown."""
    grid = read_cells(folder)
    parts, summary = [], {}
    for column, rows in grid.items():
        path = folder / "reference" / f"{column}.json"
        reference = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        parts.append(f"## {column}\n\n{column_table(rows, reference)}\n")
        summary[column] = {
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
    text = "\n".join(parts)
    write_whole(folder / "tables.md", text)
    write_whole(folder / "summary.json", json.dumps(summary, indent=1, sort_keys=True) + "\n")
    return text
