"""How cross-entropy and distillation add up to the loss of one optimizer step.

    fixed           L = kd * KD + ce * CE
    dynamic         L = kd * sg(CE / max(|KD|, 1e-6)) * KD + ce * CE
    dynamic_lagged  the same with the ratio of the step before

CE is the sum over supervised tokens divided by their global count, KD = sum_m w_m KD_m where
KD_m is teacher m's sum over chunks divided by its global chunk count. "Global" means over the
gradient-accumulation window and all ranks: a micro-batch contributes its own sums divided by
the global counts, so the contributions add up to the loss of the whole step however it is cut.

Source: X-Token (arXiv 2605.21699), dynamic scaling; method.md section 7 for the exact form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from xtoken.errors import ConfigError

Scaling = Literal["fixed", "dynamic", "dynamic_lagged"]
SCALINGS: tuple[Scaling, ...] = ("fixed", "dynamic", "dynamic_lagged")

# The smallest |KD| that the ratio divides by.
SMALLEST_KD = 1e-6


@dataclass(frozen=True)
class Combine:
    """Weights of the two parts, and how KD is scaled to CE.

    With `dynamic` and `dynamic_lagged` and kd = ce = 1 this is the paper's rule; other weights
    multiply the scaled parts.
    """

    kd: float = 1.0
    ce: float = 1.0
    scaling: Scaling = "fixed"

    def __post_init__(self) -> None:
        if self.scaling not in SCALINGS:
            raise ConfigError(
                f"combine.scaling is {self.scaling!r}; expected one of {', '.join(SCALINGS)}"
            )
        for name, value in (("kd", self.kd), ("ce", self.ce)):
            if not value >= 0.0 or value == float("inf"):
                raise ConfigError(f"combine.{name} is {value}; expected a finite number >= 0")
        if self.kd == 0.0 and self.ce == 0.0:
            raise ConfigError("combine.kd and combine.ce are both 0, so there is nothing to train")

    @property
    def scaled(self) -> bool:
        """Whether the distillation part is scaled to the cross-entropy at all."""
        return self.scaling != "fixed" and self.kd > 0.0


def scale_of(ce: Tensor, kd: Tensor) -> Tensor:
    """Return sg(CE / max(|KD|, 1e-6)) for global CE and KD (scalars)."""
    return (ce / kd.abs().clamp_min(SMALLEST_KD)).detach()


def combined(ce: Tensor, kd: Tensor, settings: Combine, scale: Tensor | float) -> Tensor:
    """Return kd * scale * KD + ce * CE; a part with weight 0 takes no gradient."""
    loss = torch.zeros_like(ce)
    if settings.ce:
        loss = loss + settings.ce * ce
    if settings.kd:
        loss = loss + settings.kd * scale * kd
    return loss


def weighted_kd(
    totals: Sequence[Tensor], weights: Sequence[float], counts: Sequence[float]
) -> Tensor:
    """Return sum_m w_m * total_m / count_m, this micro-batch's share of the global KD.

    A teacher without chunks in the whole step (count 0) has total 0 and contributes 0.
    """
    parts = [
        weight * total / max(count, 1.0)
        for total, weight, count in zip(totals, weights, counts, strict=True)
    ]
    return torch.stack(parts).sum() if len(parts) > 1 else parts[0]


@dataclass
class LaggedScale:
    """The ratio CE / max(|KD|, 1e-6) of the last step that had chunks; part of a checkpoint.

    `value` is None before the first such step: the trainer then measures the step's own ratio
    by a forward-only pass, since any constant would be wrong by whatever the losses' units are.
    """

    value: float | None = None

    def update(self, ce: float, kd: float, chunks: float) -> None:
        """Remember the ratio of the step just done, unless it had nothing to distil."""
        if chunks > 0:
            self.value = ce / max(abs(kd), SMALLEST_KD)
