"""Figures that are added up as (sum, count) pairs and divided once, when they are logged."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Number = Tensor | float | int
KINDS = ("one_to_one", "one_to_many", "many_to_one", "many_to_many")


def _wide(value: Number) -> Tensor | float:
    if not isinstance(value, Tensor):
        return float(value)
    # Apple's GPUs have no float64.
    return value.detach().float() if value.device.type == "mps" else value.detach().double()


class Sums:
    """Named (sum, count) pairs over micro-batches, steps and ranks.

    Tensors stay on their device until `values` reads them, so adding never waits for a GPU.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Any] = {}
        self._counts: dict[str, Any] = {}

    def add(self, name: str, total: Number, count: Number = 1.0) -> None:
        """Add `total` over `count` items to the figure `name`."""
        total, count = _wide(total), _wide(count)
        self._sums[name] = self._sums.get(name, 0.0) + total
        self._counts[name] = self._counts.get(name, 0.0) + count

    def merge(self, other: Sums) -> None:
        """Add all pairs of `other`."""
        for name in other._sums:
            self.add(name, other._sums[name], other._counts[name])

    def pairs(self) -> dict[str, tuple[float, float]]:
        """Return the sums and counts as Python floats (waits for the device)."""
        return {name: (float(self._sums[name]), float(self._counts[name])) for name in self._sums}

    @staticmethod
    def means(ranks: Iterable[Mapping[str, tuple[float, float]]]) -> dict[str, float]:
        """Return sum / count of each name over the ranks' `pairs`, leaving out empty counts."""
        sums: dict[str, float] = {}
        counts: dict[str, float] = {}
        for pairs in ranks:
            for name, (total, count) in pairs.items():
                sums[name] = sums.get(name, 0.0) + total
                counts[name] = counts.get(name, 0.0) + count
        return {name: sums[name] / counts[name] for name in sums if counts[name] > 0}


class Clock:
    """Splits a step's time between phases: data, teacher, student, loss, other.

    `enter(phase)` closes the phase before it. On a GPU the marks are CUDA events, so timing a
    phase doesn't wait for it; `seconds` does, once.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._cuda = device is not None and device.type == "cuda"
        self._marks: list[tuple[str | None, Any]] = []
        self._seconds: dict[str, float] = {}

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def enter(self, phase: str | None) -> None:
        """Attribute the time from now on to `phase` (None: to nothing)."""
        now = self._now()
        if not self._cuda and self._marks:
            last, then = self._marks.pop()
            if last is not None:
                self._seconds[last] = self._seconds.get(last, 0.0) + now - then
        self._marks.append((phase, now))

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each phase since the last call, and start anew."""
        if self._cuda and self._marks:
            self._marks[-1][1].synchronize()
            for (phase, start), (_, stop) in zip(self._marks, self._marks[1:], strict=False):
                if phase is not None:
                    spent = start.elapsed_time(stop) / 1000.0
                    self._seconds[phase] = self._seconds.get(phase, 0.0) + spent
            del self._marks[:-1]
        seconds, self._seconds = self._seconds, {}
        return seconds


def peak_memory_gib(device: torch.device) -> float:
    """Return the highest memory use so far: the device's on a GPU, the process's otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if os.name != "posix":
        return float("nan")
    import resource  # Unix only

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20


def coverage(
    stats: Mapping[str, Any], teachers: Sequence[str]
) -> Iterator[tuple[str, float, float]]:
    """Yield (name, part, whole) of a batch: share of bytes aligned, share of chunks that are 1:1.

    With several teachers each has its own beside the sum over all.
    """
    for name, side in zip(teachers, stats.get("teachers", ()), strict=False):
        chunks = sum(side[kind] for kind in KINDS)
        for figure, part, whole in (
            ("bytes_aligned", side["aligned_bytes"], stats["student_bytes"]),
            ("one_to_one", side["one_to_one"], chunks),
        ):
            yield figure, part, whole
            if len(teachers) > 1:
                yield f"{figure}/{name}", part, whole
