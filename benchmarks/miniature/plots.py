"""Accuracy by digits, bits per byte, and probability on numerals during training, as SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.miniature.tables import FIGURES, figure, read_cells

Cells = dict[str, dict[int, dict[str, Any]]]


def write_plots(folder: Path) -> list[Path]:
    """Write the plots of every column that has cells; returns their paths."""
    import matplotlib

    matplotlib.use("svg")
    # Ids and dates that don't change from run to run.
    matplotlib.rcParams["svg.hashsalt"] = "miniature"
    found = []
    for column, rows in read_cells(folder).items():
        found += [
            _bars(folder, column, rows, ["1 digit", "2 digits", "3 digits"], "accuracy"),
            _bars(folder, column, rows, ["bpb prose", "bpb numerals"], "bits-per-byte"),
            _curves(folder, column, rows),
        ]
    return found


def save_chart(chart: Any, path: Path) -> Path:
    """Write a chart as SVG, whole or not at all, and close it."""
    from matplotlib import pyplot

    chart.tight_layout()
    partial = path.with_name(path.name + ".partial")
    chart.savefig(partial, format="svg", metadata={"Date": None})
    partial.replace(path)
    pyplot.close(chart)
    return path


def _bars(folder: Path, column: str, rows: Cells, names: list[str], title: str) -> Path:
    from matplotlib import pyplot

    chart, axes = pyplot.subplots(figsize=(9, 3.6))
    width = 0.8 / len(names)
    for place, name in enumerate(names):
        values = [
            [figure(c["figures"], FIGURES[name]) for c in cells.values()] for cells in rows.values()
        ]
        axes.bar(
            np.arange(len(rows)) + place * width,
            [np.mean(v) for v in values],
            width,
            yerr=[np.std(v) for v in values],
            label=name,
        )
    axes.set_xticks(np.arange(len(rows)) + 0.4 - width / 2, list(rows), rotation=40, ha="right")
    axes.set_title(f"{column}: {title}")
    axes.legend()
    return save_chart(chart, folder / f"{column}-{title}.svg")


def _curves(folder: Path, column: str, rows: Cells) -> Path:
    from matplotlib import pyplot

    chart, axes = pyplot.subplots(figsize=(9, 4.2))
    colours = pyplot.get_cmap("tab20")
    for number, (row, cells) in enumerate(rows.items()):
        # By step: a document cut in two makes one more batch, and the last step stands there twice.
        seeds = [{p["step"]: p["mass"] for p in cell["history"]} for cell in cells.values()]
        steps = sorted(set.intersection(*map(set, seeds)))
        mass = [np.mean([seed[step] for seed in seeds]) for step in steps]
        axes.plot(steps, mass, label=row, color=colours(number % 20))
    axes.set_xlabel("step")
    axes.set_ylabel("probability on numeral tokens")
    axes.set_title(f"{column}: at the answers of held-out sums")
    axes.legend(fontsize=7, ncol=2)
    return save_chart(chart, folder / f"{column}-numeral-mass.svg")
