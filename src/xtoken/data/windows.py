"""Cutting a text into windows that fit a number of tokens.

A window ends behind a line where one ends near, else before a space, else between two characters.
The windows add up to the text.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

# Windows end up to this share of their tokens early to end at a line or a word.
SLACK = 16
# Longer texts are cut before they are tokenised: no window needs more, and memory stays bounded.
LONGEST_SEGMENT = 1 << 18

NEWLINE = 0x0A
SPACES = np.frombuffer(b" \t\n\r\v\f", np.uint8)


def segments(text: str, longest: int = LONGEST_SEGMENT) -> list[str]:
    """Cut a text into pieces of at most `longest` characters, at a line or word where one is near.

    They add up to the text; an empty text gives none.
    """
    pieces = []
    begin = 0
    while len(text) - begin > longest:
        low, high = begin + longest - longest // SLACK, begin + longest
        cut = text.rfind("\n", low, high) + 1
        if not cut:
            cut = text.rfind(" ", low, high)
        if cut <= begin:
            cut = high
        pieces.append(text[begin:cut])
        begin = cut
    if begin < len(text):
        pieces.append(text[begin:])
    return pieces


def windows(text: str, spans: np.ndarray, budget: int) -> list[str]:
    """Cut a text into windows of about `budget` of its tokens at most.

    Tokenised on its own a window may come out a token or two longer.

    Args:
        text: the text; the windows add up to it.
        spans: int64[n, 2], the tokens' byte spans in it, in order; (-1, -1) is no token of it.
        budget: tokens a window, at least 1.
    """
    data = np.frombuffer(text.encode(), np.uint8)
    spans = spans[spans[:, 0] < spans[:, 1]]
    cuts = _cuts(data, spans[:, 0], spans[:, 1], budget)
    content = data.tobytes()
    edges = [0, *cuts, len(content)]
    return [content[a:b].decode() for a, b in pairwise(edges)]


def _cuts(data: np.ndarray, starts: np.ndarray, stops: np.ndarray, budget: int) -> list[int]:
    """Return the byte positions between windows."""
    cuts: list[int] = []
    # A token's end is a place to cut if the next begins there and with a character of its own.
    ends = stops[:-1]
    open_ends = starts[1:] >= ends
    open_ends &= (data[np.minimum(ends, data.size - 1)] & 0xC0) != 0x80
    first = 0
    while stops.size - first > budget:
        low = cuts[-1] if cuts else 0
        last = first + budget
        near = np.arange(max(first, last - max(budget // SLACK, 1)), last)
        cut = _best(data, ends[near[open_ends[near]]], low)
        if cut is None:
            wide = np.arange(first, last)
            cut = _best(data, ends[wide[open_ends[wide]]], low)
        if cut is None:
            cut = _next_character(data, max(low, int(starts[last - 1])))
            if cut >= data.size:
                break
        cuts.append(cut)
        first = int(np.searchsorted(stops, cut, side="right"))
    return cuts


def _best(data: np.ndarray, ends: np.ndarray, low: int) -> int | None:
    """Return the best of some places to cut: the last of the first sort there is."""
    ends = ends[ends > low]
    before, after = data[ends - 1], data[ends]
    is_line = (before == NEWLINE) & (after != NEWLINE)
    is_word = np.isin(after, SPACES) & ~np.isin(before, SPACES)
    for chosen in (ends[is_line], ends[is_word], ends):
        if chosen.size:
            return int(chosen[-1])
    return None


def _next_character(data: np.ndarray, position: int) -> int:
    position += 1
    while position < data.size and data[position] & 0xC0 == 0x80:
        position += 1
    return position
