"""Numbers prepared for a chart: smoothing, thinning out, axis limits and ticks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from xtoken.report.run_data import Series

# A curve with fewer points is drawn as it is.
SMOOTH_FROM = 40
# Points of a drawn curve; more than two a pixel can't be seen.
MAX_POINTS = 320


def smooth(series: Series) -> Series | None:
    """Return a centred moving average over 1/20 of the points; None where there are few.

    Centred, so that a drop is not shown later than it happened; at the ends the window is cut.
    """
    finite = series.finite()
    count = len(finite)
    if count < SMOOTH_FROM:
        return None
    half = max(2, count // 40)
    sums = np.concatenate([[0.0], np.cumsum(finite.values)])
    position = np.arange(count)
    start, stop = np.maximum(position - half, 0), np.minimum(position + half + 1, count)
    averages = (sums[stop] - sums[start]) / (stop - start)
    return Series(finite.steps, tuple(averages.tolist()))


def thin(series: Series, limit: int = MAX_POINTS) -> Series:
    """Return at most about `limit` points: each bucket's lowest and highest, in order.

    Spikes survive, which a plain stride would drop. Values that are not finite survive too: they
    are where the line breaks.
    """
    if len(series) <= limit:
        return series
    values = np.array(series.values)
    kept = {0, len(series) - 1}
    for bucket in np.array_split(np.arange(len(series)), limit // 2):
        part = values[bucket]
        bad = bucket[~np.isfinite(part)]
        if len(bad):
            kept.add(int(bad[0]))
        good = bucket[np.isfinite(part)]
        if len(good):
            kept |= {int(good[values[good].argmin()]), int(good[values[good].argmax()])}
    order = sorted(kept)
    return Series(
        tuple(series.steps[i] for i in order),
        tuple(series.values[i] for i in order),
    )


def pick(series: Series, count: int) -> Series:
    """Return `count` points at even distances, first and last among them (for a table)."""
    if len(series) <= count:
        return series
    order = np.unique(np.linspace(0, len(series) - 1, count).round().astype(int)).tolist()
    return Series(tuple(series.steps[i] for i in order), tuple(series.values[i] for i in order))


def wants_log(values: Sequence[float]) -> bool:
    """Return whether a logarithmic axis shows these values better (all positive, wide range)."""
    finite = np.array([v for v in values if math.isfinite(v)])
    if len(finite) < 3 or finite.min() <= 0:
        return False
    low, high = np.percentile(finite, [2, 98])
    return bool(high / low > 60)


def limits(drawn: Sequence[float], must_show: Sequence[float], log: bool) -> tuple[float, float]:
    """Return the y range: all of `must_show` and `drawn`, but for rare spikes.

    A first gradient norm of 400 would flatten the 3,000 steps after it; it is cut off at the
    frame instead (the caller says so).
    """
    if log:
        drawn, must_show = ([math.log10(v) for v in p if v > 0] for p in (drawn, must_show))
        low, high = limits(drawn, must_show, False)
        return 10.0**low, 10.0**high
    ranges = [r for r in (_core(drawn), _core(must_show)) if r is not None]
    low, high = (min(r[0] for r in ranges), max(r[1] for r in ranges)) if ranges else (0.0, 1.0)
    pad = 0.06 * (high - low) or (0.1 * abs(high) or 1.0)
    padded = low - pad
    # Counts, losses and shares don't go below zero; neither should their axis.
    return (0.0 if low >= 0 > padded else float(padded)), float(high + pad)


def _core(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the range of values without the outermost hundredth where that lies far out."""
    finite = np.array([v for v in values if math.isfinite(v)])
    if not len(finite):
        return None
    low, high = float(finite.min()), float(finite.max())
    if len(finite) >= 20:
        p1, p99 = (float(p) for p in np.percentile(finite, [1, 99]))
        room = 0.6 * (p99 - p1)
        low, high = max(low, p1 - room), min(high, p99 + room)
    return low, high


def ticks(low: float, high: float, count: int, log: bool = False) -> list[float]:
    """Return round tick positions (1, 2 or 5 times a power of ten) inside [low, high]."""
    if log:
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for factors in ((1,), (1, 3), (1, 2, 5)):
            found = [f * 10.0**e for e in exponents for f in factors]
            found = [t for t in found if low <= t <= high]
            if len(found) >= 3:
                return found[:: max(1, round(len(found) / count))]
        return found
    # A range below what floats can divide (two equal values and a denormal) has no steps.
    if high - low < 1e-300:
        return [low]
    found = _linear_ticks(low, high, count)
    return found if len(found) >= 3 else _linear_ticks(low, high, 2 * count)


def _linear_ticks(low: float, high: float, count: int) -> list[float]:
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    found = []
    while first * step <= high + 1e-9 * step:
        # 0.1 * 3 is 0.30000000000000004; a multiple of a round step has few digits.
        found.append(float(f"{first * step:.12g}"))
        first += 1
    return found


def short(value: float) -> str:
    """Write a number in few characters: 12.3k, 4.5M, 0.031, 5e-05."""
    if not math.isfinite(value):
        return "not finite"
    size = abs(value)
    if size >= 1e9 or (0 < size < 1e-3):
        return f"{value:.3g}"
    if size >= 1e6:
        return f"{value / 1e6:.4g}M"
    if size >= 1e4:
        return f"{value / 1e3:.4g}k"
    if value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}" if size < 1 else f"{value:.4g}"
