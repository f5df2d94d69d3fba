from __future__ import annotations

import math

from hypothesis import example, given
from hypothesis import strategies as st

from xtoken.report.run_data import Series
from xtoken.report.series import limits, pick, short, smooth, thin, ticks, wants_log

finite = st.floats(-1e12, 1e12)
positive = st.floats(1e-9, 1e12)


def series(values: list[float]) -> Series:
    return Series(tuple(float(i) for i in range(len(values))), tuple(values))


@given(st.lists(finite, min_size=40, max_size=300))
def test_smooth_stays_within_the_values(values: list[float]) -> None:
    found = smooth(series(values))
    slack = 1e-6 * max(map(abs, values)) * len(values)
    assert len(found) == len(values)
    assert min(values) - slack <= min(found.values)
    assert max(found.values) <= max(values) + slack


def test_smooth_keeps_a_straight_line_and_leaves_short_curves_alone() -> None:
    line = series([0.5 * i for i in range(400)])
    found = smooth(line)
    assert all(
        abs(a - b) < 1e-6 for a, b in list(zip(found.values, line.values, strict=True))[10:-10]
    )
    assert smooth(series([1.0] * 39)) is None
    assert len(smooth(series([1.0] * 50 + [math.nan] * 5))) == 50


@given(st.lists(finite | st.just(math.nan), min_size=1, max_size=2000))
def test_thin_keeps_ends_and_extremes(values: list[float]) -> None:
    found = thin(series(values), 40)
    assert len(found) <= 3 * 20 + 2 or len(values) <= 40
    assert found.steps[0] == 0
    assert found.steps[-1] == len(values) - 1
    assert list(found.steps) == sorted(set(found.steps))
    good = [v for v in values if math.isfinite(v)]
    if good:
        kept = [v for v in found.values if math.isfinite(v)]
        assert (min(kept), max(kept)) == (min(good), max(good))
    assert any(map(math.isnan, found.values)) == any(map(math.isnan, values))


@given(st.lists(finite, min_size=1, max_size=50), st.integers(2, 12))
def test_pick_keeps_first_and_last(values: list[float], count: int) -> None:
    found = pick(series(values), count)
    assert len(found) == min(count, len(values))
    assert found.steps[0] == 0
    assert found.steps[-1] == len(values) - 1


@given(st.lists(finite, min_size=1, max_size=19))
def test_limits_hold_few_values_entirely(values: list[float]) -> None:
    low, high = limits(values, [], False)
    assert low <= min(values)
    assert max(values) <= high
    assert low < high


def test_limits_cut_a_spike_but_not_a_curve() -> None:
    low, high = limits([400.0, *([1.0, 1.2] * 200)], [], False)
    assert high < 3
    decay = [3 + 5 * math.exp(-i / 40) for i in range(400)]
    low, high = limits(decay, decay, False)
    assert high > 7
    assert low > 0
    assert limits([math.nan], [], False) == (0.0, 1.06)
    assert limits([0.0, 0.5], [], False)[0] == 0.0


@given(finite, finite)
@example(0.0, 5e-324)
def test_ticks_are_inside_and_few(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    found = ticks(low, high, 4)
    assert len(found) <= 12
    slack = 1e-6 * max(abs(low), abs(high), 1e-300)
    assert all(low - slack <= t <= high + slack for t in found)
    assert found == sorted(found)


@given(positive, st.floats(1.01, 1e9))
def test_log_ticks_are_inside(low: float, factor: float) -> None:
    high = low * factor
    found = ticks(low, high, 4, log=True)
    assert all(low <= t <= high for t in found)
    assert len(found) <= 12


def test_log_axis_is_chosen_for_wide_positive_values() -> None:
    assert wants_log([10.0**i for i in range(-3, 4)])
    assert not wants_log([1.0, 2.0, 3.0])
    assert not wants_log([0.0, 1e5, 1e-5])
    low, high = limits([0.001, 1.0, 1000.0], [], True)
    assert 0 < low <= 0.001
    assert high >= 1000


def test_short_numbers() -> None:
    numbers = (0.0, 1e-5, 0.1234, 12.345, 400.0, 1234.5, 4000.0, 12345.0, 4.5e6, 2e12)
    assert [short(n) for n in numbers] == [
        "0", "1e-05", "0.123", "12.35", "400", "1234", "4,000", "12.35k", "4.5M", "2e+12",
    ]  # fmt: skip
    assert short(math.nan) == "not finite"
