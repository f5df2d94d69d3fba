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
# The seeds of the tables; what was run with more of them counts in the comparisons alone.
SEEDS = (0, 1, 2)
COMPARED = ["sums", "words", "bpb prose", "bpb numerals"]
# Rows that are set against each other, (first, second), in every column that has both.
PAIRS = [
    *((f"path_kl{a}", f"{kind}{a}") for a in ("_fixed_scale", "") for kind in ("p_kl", "h_kl")),
    ("path_kl_fixed_scale", "h_kl"),
    *((f"h_kl{a}", f"p_kl{a}") for a in ("_fixed_scale", "")),
    *(
        (f"path_kl_{variant}", "path_kl_fixed_scale")
        for variant in ("root_alone", "without_ends", "without_boundary", "kd4")
    ),
    ("path_kl_kd4", "h_kl_kd4"),
]

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


def gap_text(gap: tuple[float, float, float] | None, seeds: int) -> str:
    """Return a difference and, over several seeds, its interval."""
    if gap is None:
        return ""
    return f"{gap[0]:+.3f}" + (f" [{gap[1]:+.3f}, {gap[2]:+.3f}]" if seeds > 1 else "")


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
        gap = None if name == BASELINE else paired(cells, rows.get(BASELINE, {}), path)
        text = gap_text(gap, len(cells))
        lines.append(f"| {name} | {len(cells)} | " + " | ".join(shown) + f" | {text} |")
    return "\n".join(lines)


def pairs_table(rows: dict[str, dict[int, dict[str, Any]]]) -> str:
    """Return the paired differences of `PAIRS` in Markdown, over all seeds that both have."""
    lines = [f"| row | less | seeds | {' | '.join(COMPARED)} |", "|---" * (len(COMPARED) + 3) + "|"]
    for first, second in PAIRS:
        seeds = len(set(rows.get(first, {})) & set(rows.get(second, {})))
        if seeds:
            gaps = [paired(rows[first], rows[second], FIGURES[name]) for name in COMPARED]
            texts = " | ".join(gap_text(gap, seeds) for gap in gaps)
            lines.append(f"| {first} | {second} | {seeds} | {texts} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def tables(folder: Path) -> dict[str, str]:
    """Return every table of the finished cells in Markdown.

    By `COLUMN problems`, `COLUMN text` and, where rows were set against each other,
    `COLUMN pairs`.
    """
    found = {}
    for column, all_seeds in read_cells(folder).items():
        if pairs := pairs_table(all_seeds):
            found[f"{column} pairs"] = pairs
        rows = {
            row: kept
            for row, cells in all_seeds.items()
            if (kept := {seed: cell for seed, cell in cells.items() if seed in SEEDS})
        }
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
