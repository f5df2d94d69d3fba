"""Line charts as small inline SVG, themed by the page's CSS, with values for people and readers.

A chart is a `<figure>`: heading, legend with last values, the SVG (role `img`, with a title and a
sentence of description), a table of a dozen points, and the points as JSON for the pointer.
It needs no script to be read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

from xtoken.report.run_data import Series
from xtoken.report.series import limits, pick, short, smooth, thin, ticks, wants_log

WIDTH, HEIGHT = 360, 200
TOP, RIGHT, BOTTOM = 8, 10, 24
COLOURS = 8


@dataclass(frozen=True)
class Curve:
    """One line of a chart: `colour` 0 to 7; `dash` for a second kind of line in that colour.

    `points`: drawn with dots and never smoothed (few values, such as evaluations). Curves of one
    `group` (a run among several) share an entry of the legend.
    """

    name: str
    series: Series
    colour: int = 0
    dash: bool = False
    points: bool = False
    group: str = ""


@dataclass(frozen=True)
class Chart:
    """What a line chart shows; `unit` "%" multiplies values by 100.

    `log`: take a logarithmic axis where the values are positive and range widely.
    """

    key: str
    title: str
    curves: tuple[Curve, ...]
    unit: str = ""
    about: str = ""
    log: bool = True


@dataclass(frozen=True)
class _Frame:
    """The mapping from values to places in the SVG."""

    left: float
    x: tuple[float, float]
    y: tuple[float, float]
    log: bool

    def across(self, step: float) -> float:
        low, high = self.x
        share = (step - low) / (high - low) if high > low else 0.5
        return self.left + share * (WIDTH - RIGHT - self.left)

    def down(self, value: float) -> float:
        low, high = (math.log10(v) for v in self.y) if self.log else self.y
        if self.log:
            value = math.log10(value) if value > 0 else low - (high - low)
        share = (value - low) / (high - low) if high > low else 0.5
        # Far outside is as good as outside, and keeps the numbers short.
        return TOP + (1 - max(-3.0, min(4.0, share))) * (HEIGHT - BOTTOM - TOP)


def line_chart(chart: Chart, ident: str) -> str:
    """Return the chart as a `<figure>`; `ident` must be unique on the page."""
    factor = 100.0 if chart.unit == "%" else 1.0
    curves = [_scaled(curve, factor) for curve in chart.curves if len(curve.series.finite())]
    if not curves:
        return ""
    smoothed = [None if curve.points else smooth(curve.series) for curve in curves]
    values = [v for curve in curves for v in curve.series.finite().values]
    main = [
        v
        for curve, average in zip(curves, smoothed, strict=True)
        for v in (average or (curve.series.finite() if curve.points else Series((), ()))).values
    ]
    log = chart.log and chart.unit != "%" and wants_log(main or values)
    y = limits(values, main, log)
    if chart.unit == "%":
        y = (max(y[0], 0.0), min(y[1], 100.0) if max(values) <= 100 else y[1])
    steps = [s for curve in curves for s in curve.series.steps]
    labels = ticks(*y, 4, log)
    widest = max((len(_label(t, chart.unit)) for t in labels), default=1)
    frame = _Frame(10 + 6.6 * widest, (min(steps), max(steps)), y, log)

    cut = sum(1 for v in values if not y[0] <= v <= y[1])
    parts = [_axes(frame, labels, chart.unit)]
    parts.append(f'<g clip-path="url(#{ident}-clip)">')
    for curve, average in zip(curves, smoothed, strict=True):
        parts.append(_line(frame, curve, average))
    parts.append('</g><line class="cursor" y1="8" y2="176" x1="-9" x2="-9"/>')
    described = _described(curves, smoothed, chart.unit)
    about = f'<p class="about">{escape(chart.about)}</p>' if chart.about else ""
    notes = ["logarithmic axis"] if log else []
    if cut:
        notes.append(f"{cut} {'value lies' if cut == 1 else 'values lie'} outside the frame")
    bad = sum(len(curve.series) - len(curve.series.finite()) for curve in curves)
    if bad:
        notes.append(f"{bad} {'value is' if bad == 1 else 'values are'} not finite")
    note = f'<p class="note">{escape("; ".join(notes).capitalize())}.</p>' if notes else ""
    clip = (
        f'<clipPath id="{ident}-clip"><rect x="{frame.left - 4:.1f}" y="{TOP - 4}" '
        f'width="{WIDTH - RIGHT - frame.left + 8:.1f}" height="{HEIGHT - BOTTOM - TOP + 6}"/>'
        "</clipPath>"
    )
    return (
        f'<figure class="chart" id="{ident}" data-key="{escape(chart.key)}">'
        f"<figcaption><h3>{escape(chart.title)}{_unit(chart.unit)}</h3>{about}</figcaption>"
        f"{_legend(curves, smoothed, chart.unit)}"
        f'<div class="plot" tabindex="0" role="group" aria-label="{escape(chart.title)}: '
        f'left and right arrow keys read the values">'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-labelledby="{ident}-t {ident}-d"><title id="{ident}-t">{escape(chart.title)}'
        f'</title><desc id="{ident}-d">{escape(described)}</desc><defs>{clip}</defs>'
        f'{"".join(parts)}</svg><output class="tip" hidden></output></div>{note}'
        f"{_table(chart, curves)}{_data(chart, frame, curves)}</figure>"
    )


def _scaled(curve: Curve, factor: float) -> Curve:
    if factor == 1.0:
        return curve
    values = tuple(value * factor for value in curve.series.values)
    return replace(curve, series=Series(curve.series.steps, values))


def _unit(unit: str) -> str:
    # Per cent stands at every value.
    return f' <span class="unit">{escape(unit)}</span>' if unit and unit != "%" else ""


def _label(value: float, unit: str) -> str:
    return f"{short(value)} %" if unit == "%" else short(value)


def _value(value: float, unit: str) -> str:
    """Write a value for legend and table: shares to a tenth of a per cent."""
    return f"{value:.1f} %" if unit == "%" and math.isfinite(value) else _label(value, unit)


def _axes(frame: _Frame, labels: Sequence[float], unit: str) -> str:
    parts = []
    bottom = HEIGHT - BOTTOM
    for tick in labels:
        y = frame.down(tick)
        parts.append(
            f'<line class="grid" x1="{frame.left:.1f}" x2="{WIDTH - RIGHT}" '
            f'y1="{y:.1f}" y2="{y:.1f}"/><text class="tick" x="{frame.left - 6:.1f}" '
            f'y="{y + 4:.1f}" text-anchor="end">{_label(tick, unit)}</text>'
        )
    parts.append(
        f'<line class="axis" x1="{frame.left:.1f}" x2="{WIDTH - RIGHT}" '
        f'y1="{bottom}" y2="{bottom}"/>'
    )
    # Steps are whole numbers; a run of three has none at 1.5.
    steps = [tick for tick in ticks(*frame.x, 4) if tick == int(tick)]
    places = [frame.across(tick) for tick in steps]
    if not places or min(places) > frame.left + 34:
        parts.append(
            f'<text class="tick" x="{frame.left:.1f}" y="{HEIGHT - 6}" text-anchor="start">'
            "step</text>"
        )
    for tick, x in zip(steps, places, strict=True):
        anchor = "end" if x > WIDTH - RIGHT - 12 else "middle"
        parts.append(
            f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
            f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">'
            f"{short(tick)}</text>"
        )
    return "".join(parts)


def _path(frame: _Frame, series: Series) -> str:
    """Return path data; the line breaks at values that are not finite."""
    parts, pen = [], "M"
    for step, value in zip(series.steps, series.values, strict=True):
        if not math.isfinite(value):
            pen = "M"
            continue
        parts.append(f"{pen}{frame.across(step):.1f} {frame.down(value):.1f}")
        pen = "L"
    return "".join(parts)


def _dots(frame: _Frame, series: Series, colour: int) -> str:
    return "".join(
        f'<circle class="dot s{colour}" cx="{frame.across(s):.1f}" cy="{frame.down(v):.1f}" r="3"/>'
        for s, v in zip(series.steps, series.values, strict=True)
    )


def _line(frame: _Frame, curve: Curve, average: Series | None) -> str:
    look = f"s{curve.colour}{' dash' if curve.dash else ''}"
    if average is not None:
        return (
            f'<path class="raw {look}" d="{_path(frame, thin(curve.series))}"/>'
            f'<path class="line {look}" d="{_path(frame, thin(average, 160))}"/>'
        )
    line = f'<path class="line {look}" d="{_path(frame, thin(curve.series))}"/>'
    finite = curve.series.finite()
    if curve.points or len(finite) <= 12:
        line += _dots(frame, finite, curve.colour)
    return line


def swatch(colour: int, dash: bool = False) -> str:
    """Return a short sample of a line, for legends."""
    look = f"s{colour}{' dash' if dash else ''}"
    return (
        '<svg class="swatch" viewBox="0 0 18 8" width="18" height="8" aria-hidden="true">'
        f'<line class="line {look}" x1="1" x2="17" y1="4" y2="4"/></svg>'
    )


def _last(curve: Curve, average: Series | None) -> float:
    return (average or curve.series.finite()).values[-1]


def _legend(curves: Sequence[Curve], smoothed: Sequence[Series | None], unit: str) -> str:
    items: dict[str, str] = {}
    for curve, average in zip(curves, smoothed, strict=True):
        name = curve.name.removeprefix(f"{curve.group}, ") if curve.group else curve.name
        last = _value(_last(curve, average), unit)
        key = curve.group or curve.name
        items[key] = items.get(key, "") + (
            f"{swatch(curve.colour, curve.dash)}<span>{escape(name)}</span> <b>{last}</b>"
        )
    entries = "".join(f"<li>{item}</li>" for item in items.values())
    return f'<ul class="legend" aria-label="Lines and their last values">{entries}</ul>'


def _described(curves: Sequence[Curve], smoothed: Sequence[Series | None], unit: str) -> str:
    sentences = []
    for curve, average in zip(curves, smoothed, strict=True):
        shown = average or curve.series.finite()
        sentences.append(
            f"{curve.name}: {_label(shown.values[0], unit)} at step {short(shown.steps[0])}, "
            f"{_label(shown.values[-1], unit)} at step {short(shown.steps[-1])}, lowest "
            f"{_label(min(shown.values), unit)}, highest {_label(max(shown.values), unit)}."
        )
    return " ".join(sentences)


def _table(chart: Chart, curves: Sequence[Curve]) -> str:
    """Return a dozen recorded values of each line as a table, folded away."""
    picked = [
        dict(zip(p.steps, p.values, strict=True)) for p in (pick(c.series, 12) for c in curves)
    ]
    steps = sorted({step for points in picked for step in points})
    head = "".join(f'<th scope="col">{escape(curve.name)}</th>' for curve in curves)
    body = "".join(
        f'<tr><th scope="row">{short(step)}</th>'
        + "".join(
            f"<td>{_value(points[step], chart.unit) if step in points else ''}</td>"
            for points in picked
        )
        + "</tr>"
        for step in steps
    )
    return (
        f'<details class="values"><summary>Values<span class="hidden"> of {escape(chart.title)}'
        f'</span></summary><div class="scroll"><table><caption class="hidden">{escape(chart.title)}'
        f', recorded values at some steps</caption><thead><tr><th scope="col">step</th>{head}</tr>'
        f"</thead><tbody>{body}</tbody></table></div></details>"
    )


def _data(chart: Chart, frame: _Frame, curves: Sequence[Curve]) -> str:
    """Return the thinned points as JSON, from which the page's script reads values."""

    def rounded(values: Sequence[float]) -> list[float | None]:
        return [float(f"{v:.4g}") if math.isfinite(v) else None for v in values]

    data = {
        "frame": [round(frame.left, 1), WIDTH - RIGHT, *frame.x],
        "unit": chart.unit,
        "lines": [
            {"name": c.name, "colour": c.colour, "x": list(t.steps), "y": rounded(t.values)}
            for c, t in ((curve, thin(curve.series)) for curve in curves)
        ],
    }
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" class="points">{text}</script>'
