"""Accuracy by digits, bits per byte, and probability on numerals during training, as SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.miniature.tables import FIGURES, figure, read_cells

Cells = dict[str, dict[int, dict[str, Any]]]
FIXED = "_fixed_scale"
# A figure this many times the median is named at the edge: it would press the others together.
FAR = 1.15


def write_plots(folder: Path) -> list[Path]:
    """Write the plots of every column that has cells; returns their paths."""
    import matplotlib

    matplotlib.use("svg")
    # Ids and dates that don't change from run to run.
    matplotlib.rcParams["svg.hashsalt"] = "miniature"
    found = []
    for column, rows in read_cells(folder).items():
        found += [
            _dots(folder, column, rows, ["2 digits", "3 digits", "words"], "accuracy"),
            _dots(folder, column, rows, ["bpb prose", "bpb numerals"], "bits-per-byte"),
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


def _dots(folder: Path, column: str, rows: Cells, names: list[str], title: str) -> Path:
    """Draw a panel a figure: mean and spread of each row, the best of the first panel on top."""
    from matplotlib import pyplot

    lower = title == "bits-per-byte"
    found = {
        name: {
            row: [figure(c["figures"], FIGURES[name]) for c in cells.values()]
            for row, cells in rows.items()
        }
        for name in names
    }
    order = sorted(rows, key=lambda row: np.mean(found[names[0]][row]), reverse=lower)
    height = 0.9 + 0.2 * len(rows)
    chart, panels = pyplot.subplots(1, len(names), figsize=(9, height), sharey=True, squeeze=False)
    for axes, name in zip(panels[0], names, strict=True):
        means = [float(np.mean(found[name][row])) for row in order]
        most = FAR * float(np.median(means)) if lower else np.inf
        shown = [min(mean, most) for mean in means]
        spread = [
            np.std(found[name][row]) * (mean <= most)
            for row, mean in zip(order, means, strict=True)
        ]
        axes.errorbar(shown, np.arange(len(order)), xerr=spread, fmt="o", ms=4)
        for place, mean in enumerate(means):
            if mean > most:
                axes.annotate(f"{mean:.1f} >", (most, place), (-6, 0), textcoords="offset points",
                              ha="right", va="center", fontsize=7)  # fmt: skip
        if "continued" in order:
            axes.axvline(means[order.index("continued")], color="grey", lw=0.8, ls="--")
        axes.set_yticks(np.arange(len(order)), order, fontsize=7)
        axes.grid(axis="y", lw=0.3)
        axes.set_title(f"{name} ({'less' if lower else 'more'} is better)", fontsize=9)
    chart.suptitle(f"{column}: {title}; dashed: continued training", fontsize=10)
    return save_chart(chart, folder / f"{column}-{title}.svg")


def _curves(folder: Path, column: str, rows: Cells) -> Path:
    from matplotlib import pyplot

    chart, axes = pyplot.subplots(figsize=(9, 4.6))
    colours = pyplot.get_cmap("tab20")
    kinds = list(dict.fromkeys(row.removesuffix(FIXED) for row in rows))
    for row, cells in rows.items():
        # By step: a document cut in two makes one more batch, and the last step stands there twice.
        seeds = [{p["step"]: p["mass"] for p in cell["history"]} for cell in cells.values()]
        steps = sorted(set.intersection(*map(set, seeds)))
        mass = [np.mean([seed[step] for seed in seeds]) for step in steps]
        colour = colours(kinds.index(row.removesuffix(FIXED)) % 20)
        axes.plot(steps, mass, "--" if row.endswith(FIXED) else "-", label=row, color=colour)
    axes.set_xlabel("step")
    axes.set_ylabel("probability on numeral tokens")
    axes.set_title(f"{column}: at the answers of held-out sums")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return save_chart(chart, folder / f"{column}-numeral-mass.svg")
