"""How texts longer than a model's context are cut into overlapping windows. Plain numpy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from xtoken.errors import EvaluationError


@dataclass(frozen=True)
class Window:
    """Items [start, stop) are read, [first, stop) of them are scored."""

    start: int
    stop: int
    first: int


def check_stride(max_length: int, stride: int | None) -> int:
    """Return the stride to use; None means half of `max_length`.

    Raises EvaluationError unless max_length >= 2 and 1 <= stride < max_length.
    """
    if max_length < 2:
        raise EvaluationError(
            f"max_length is {max_length} (or the model's own limit is); expected at least 2, a "
            f"token and one before it."
        )
    if stride is None:
        return max_length // 2
    if not 1 <= stride < max_length:
        raise EvaluationError(
            f"stride is {stride}; expected 1 to {max_length - 1}, below max_length and the model's "
            f"own limit, so that every scored token has max_length - stride tokens of context."
        )
    return stride


def token_windows(count: int, max_length: int, stride: int) -> Iterator[Window]:
    """Cut `count` tokens into windows of at most `max_length`, each token scored in one window.

    The windows advance by `stride`; the last one is moved back so that it ends with the text.
    Every token that is scored outside of the first window has at least `max_length - stride`
    tokens of context.
    """
    scored = 0
    start = 0
    while scored < count:
        stop = min(start + max_length, count)
        yield Window(max(0, stop - max_length), stop, scored)
        scored = stop
        start += stride


def chunk_windows(
    sides: Sequence[tuple[np.ndarray, np.ndarray]],
    capacities: Sequence[int],
    strides: Sequence[int],
) -> Iterator[Window]:
    """Cut aligned chunks into windows that fit on every side, each chunk scored in one window.

    A window starts and stops at chunk borders, so that all sides read the same bytes in it.

    Args:
        sides: for each side, int[C] first token and int[C] stop of each chunk, ascending.
        capacities: tokens that a window may hold, for each side.
        strides: tokens that windows advance by, for each side; from the second window on,
            `capacity - stride` tokens at most are context.

    Yields:
        Windows over chunk indices; a chunk that is longer than a capacity is in none of them.
    """
    count = len(sides[0][0])
    start = scored = 0
    while scored < count:
        stop = min(
            int(np.searchsorted(stops, starts[start] + capacity, side="right"))
            for (starts, stops), capacity in zip(sides, capacities, strict=True)
        )
        if stop <= scored:
            # The next chunk does not fit behind this much context, or not at all.
            if start == scored:
                scored += 1
            start = scored
            continue
        yield Window(start, stop, scored)
        scored = stop
        if scored < count:
            start = max(
                int(np.searchsorted(starts, starts[scored] - (capacity - stride), side="left"))
                for (starts, _), capacity, stride in zip(sides, capacities, strides, strict=True)
            )
