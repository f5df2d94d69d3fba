"""The combination's formula, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xtoken.errors import ConfigError
from xtoken.training.combine import Combine, LaggedScale, combined, scale_of, weighted_kd

positive = st.floats(1e-4, 1e4)


@given(ce=positive, kd=positive)
def test_dynamic_makes_both_parts_equal_in_value(ce: float, kd: float) -> None:
    ce_value, kd_value = torch.tensor(ce, dtype=torch.float64), torch.tensor(kd).double()
    scale = scale_of(ce_value, kd_value)
    loss = combined(ce_value, kd_value, Combine(), scale)
    torch.testing.assert_close(loss, 2 * ce_value)


@given(ce=positive, kd=positive)
def test_the_scale_takes_no_gradient(ce: float, kd: float) -> None:
    ce_value = torch.tensor(ce, dtype=torch.float64, requires_grad=True)
    kd_value = torch.tensor(kd, dtype=torch.float64, requires_grad=True)
    combined(ce_value, kd_value, Combine(), scale_of(ce_value, kd_value)).backward()
    assert ce_value.grad is not None
    assert kd_value.grad is not None
    assert float(ce_value.grad) == 1.0
    assert float(kd_value.grad) == pytest.approx(ce / kd)


def test_a_negative_kd_is_scaled_by_its_size_and_a_vanishing_one_by_the_floor() -> None:
    assert float(scale_of(torch.tensor(3.0), torch.tensor(-1.5))) == 2.0
    assert float(scale_of(torch.tensor(3.0), torch.tensor(1e-9))) == pytest.approx(3e6)


def test_fixed_weights_multiply_the_parts() -> None:
    loss = combined(torch.tensor(2.0), torch.tensor(3.0), Combine(0.5, 0.25, "fixed"), 1.0)
    assert float(loss) == pytest.approx(0.5 * 3 + 0.25 * 2)


def test_a_part_of_weight_zero_takes_no_gradient() -> None:
    ce = torch.tensor(2.0, requires_grad=True)
    kd = torch.tensor(3.0, requires_grad=True)
    combined(ce, kd, Combine(kd=0.0, scaling="fixed"), 1.0).backward()
    assert kd.grad is None
    assert float(ce.grad) == 1.0


def test_several_teachers_add_up_by_weight_and_own_count() -> None:
    totals = [torch.tensor(6.0), torch.tensor(10.0), torch.tensor(0.0)]
    assert float(weighted_kd(totals, [0.8, 0.2, 5.0], [3.0, 4.0, 0.0])) == pytest.approx(2.1)


def test_the_lagged_ratio_ignores_steps_without_chunks() -> None:
    lagged = LaggedScale()
    lagged.update(2.0, 4.0, chunks=3)
    lagged.update(2.0, 0.0, chunks=0)
    assert lagged.value == 0.5


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"scaling": "dynamik"}, "dynamik"),
        ({"kd": -1.0}, "combine.kd is -1.0"),
        ({"ce": float("nan")}, "combine.ce is nan"),
        ({"kd": 0.0, "ce": 0.0}, "nothing to train"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Combine(**settings)
