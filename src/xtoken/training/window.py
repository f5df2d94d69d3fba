"""The loss of one optimizer step, whatever the number of micro-batches and ranks it is cut into."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from xtoken.training.combine import Combine, LaggedScale, scale_of, weighted_kd
from xtoken.training.counts import Counts
from xtoken.training.objective import Parts, Weights

Reduce = Callable[[Tensor], Tensor]


@dataclass
class Window:
    """One optimizer step's micro-batches on this rank.

    `scale` is the step's dynamic scale once it is known; `values` holds each finished
    micro-batch's share (CE, KD) of the global values.
    """

    batches: list[dict[str, Any]]
    counts: Counts
    scale: Tensor | None = None
    values: list[Tensor] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every micro-batch has been run."""
        return len(self.values) == len(self.batches)


class StepLoss:
    """Turns micro-batches' sums into shares of the step's loss.

    A share is the micro-batch's sums divided by the step's global counts and combined with the
    step's one scale; all shares of all ranks add up to the loss of the step.

    Args:
        settings: weights and scaling.
        weights: the teachers' weights w_m.
        over_ranks: sums a tensor over the ranks that see different data.
        lagged: the previous step's ratio, kept here for `dynamic_lagged`.
    """

    def __init__(self, settings: Combine, weights: Sequence[float], over_ranks: Reduce) -> None:
        self.settings = settings
        self.weights = list(weights)
        self.over_ranks = over_ranks
        self.lagged = LaggedScale()
        self.window = Window([], Counts(0.0, ()))

    def open(self, batches: list[dict[str, Any]], counts: Counts) -> None:
        """Begin a step."""
        self.window = Window(batches, counts)

    def must_measure(self) -> bool:
        """Whether the window has to be run forward once before its first backward.

        With one micro-batch a rank, CE and KD are known after its own forward; a lagged scale
        needs it only while there is no step before.
        """
        window = self.window
        if not self.settings.scaled or window.scale is not None or len(window.batches) < 2:
            return False
        return self.settings.scaling == "dynamic" or self.lagged.value is None

    def measure(self, run: Callable[[dict[str, Any]], Parts]) -> None:
        """Set the scale from a forward-only `run` of each micro-batch."""
        shares = [torch.stack(self.shares(run(batch))) for batch in self.window.batches]
        ce, kd = self.over_ranks(torch.stack(shares).sum(0))
        self.window.scale = scale_of(ce, kd)

    def shares(self, parts: Parts) -> tuple[Tensor, Tensor]:
        """Return this micro-batch's share of the global CE and KD."""
        counts = self.window.counts
        ce = parts.ce.total / max(counts.tokens, 1.0)
        if not parts.kd:
            return ce, torch.zeros_like(ce)
        totals = [result.total.to(ce.dtype) for result in parts.kd]
        return ce, weighted_kd(totals, self.weights, counts.chunks)

    def scale(self, values: Tensor) -> Tensor | float:
        """Return the step's scale; `values` are the shares (CE, KD) of a lone micro-batch."""
        known = self._known_scale()
        if known is not None:
            return known
        ce, kd = self.over_ranks(values)
        self.window.scale = scale_of(ce, kd)
        return self.window.scale

    def _known_scale(self) -> Tensor | float | None:
        if not self.settings.scaled:
            return 1.0
        if self.settings.scaling == "dynamic_lagged" and self.lagged.value is not None:
            return self.lagged.value
        return self.window.scale

    def known_weights(self) -> Weights | None:
        """Return the weights of a micro-batch's sums, or None if its own values decide them."""
        known = self._known_scale()
        return None if known is None else self.weights_at(float(known))

    def weights_at(self, scale: float) -> Weights:
        """Return what sums are multiplied by at a scale: the settings over the global counts."""
        settings, counts = self.settings, self.window.counts
        return Weights(
            settings.ce / max(counts.tokens, 1.0),
            tuple(
                settings.kd * scale * weight / max(count, 1.0)
                for weight, count in zip(self.weights, counts.chunks, strict=True)
            ),
        )

    def loss(self, parts: Parts) -> Tensor:
        """Return the micro-batch's share of the loss."""
        ce, kd = self.shares(parts)
        values = torch.stack([ce.detach(), kd.detach()])
        loss = parts.loss(self.weights_at(float(self.scale(values))))
        self.window.values.append(values)
        if not loss.requires_grad:
            # Nothing to learn here, but the other ranks expect gradients to reduce.
            loss = loss + 0.0 * parts.ce.total
        return loss

    def close(self) -> float | None:
        """End the step; return the scale it used, or None if it had no chunks."""
        window = self.window
        used = None
        if window.counts.total_chunks > 0:
            used = float(self.scale(window.values[-1]))
        if self.settings.scaled and self.settings.scaling == "dynamic_lagged":
            ce, kd = self.over_ranks(torch.stack(window.values).sum(0)).tolist()
            self.lagged.update(ce, kd, window.counts.total_chunks)
        window.batches = []
        return used
