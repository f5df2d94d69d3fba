"""Accuracy by digits, bits per byte, and probability on numerals during training, as SVG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.miniature.tables import FIGURES, figure, read_cells

Cells = dict[str, dict[int, dict[str, Any]]]
Figures = Mapping[str, tuple[str, ...]]
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


def draw_dots(path: Path, title: str, cells: Cells, figures: Figures, *, lower: bool) -> Path:
    """Draw a panel a figure: mean and spread of each row, the best of the first panel on top.

    Args:
        path: where the SVG goes.
        title: what stands above all.
        cells: the rows, each with its cells by seed.
        figures: the panels, and where each figure stands in a cell.
        lower: less is better.
    """
    from matplotlib import pyplot

    found = {
        name: {
            row: [figure(cell["figures"], place) for cell in own.values()]
            for row, own in cells.items()
        }
        for name, place in figures.items()
    }
    first = next(iter(found.values()))
    order = sorted(first, key=lambda row: np.mean(first[row]), reverse=lower)
    places = np.arange(len(order))
    size = (9, 0.9 + 0.2 * len(order))
    chart, panels = pyplot.subplots(1, len(found), figsize=size, sharey=True, squeeze=False)
    for axes, (name, rows) in zip(panels[0], found.items(), strict=True):
        means = [float(np.mean(rows[row])) for row in order]
        most = FAR * float(np.median(means)) if lower else np.inf
        spread = [
            np.std(rows[row]) * (mean <= most) for row, mean in zip(order, means, strict=True)
        ]
        axes.errorbar([min(mean, most) for mean in means], places, xerr=spread, fmt="o", ms=4)
        for place, mean in enumerate(means):
            if mean > most:
                axes.annotate(f"{mean:.1f} >", (most, place), (-6, 0), textcoords="offset points",
                              ha="right", va="center", fontsize=7)  # fmt: skip
        if "continued" in order:
            axes.axvline(means[order.index("continued")], color="grey", lw=0.8, ls="--")
        axes.set_yticks(places, order, fontsize=7)
        axes.grid(axis="y", lw=0.3)
        axes.locator_params(axis="x", nbins=4)
        axes.tick_params(axis="x", labelsize=8)
        axes.set_title(name, fontsize=9)
    better = "less" if lower else "more"
    chart.suptitle(f"{title} ({better} is better; dashed: continued training)", fontsize=10)
    return save_chart(chart, path)


def _dots(folder: Path, column: str, rows: Cells, names: list[str], title: str) -> Path:
    figures = {name: FIGURES[name] for name in names}
    path = folder / f"{column}-{title}.svg"
    return draw_dots(path, f"{column}: {title}", rows, figures, lower=title == "bits-per-byte")


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
