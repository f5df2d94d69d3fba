"""From the tokens of a text to the bytes of the text that each of them stands for.

Where the tokens' bytes add up to the text, running sums are the spans (`exact_spans`). Elsewhere
(the normaliser changed something, white space was dropped) the tokenizer's character offsets say
where tokens lie, and tokens that share characters form a cluster (`spans_from_offsets`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from xtoken.vocab import Vocabulary

OUTSIDE = -1


def exact_spans(vocab: Vocabulary, ids: Sequence[int], content: bytes) -> np.ndarray | None:
    """Return int64[n, 2] spans when the tokens' bytes are the content, None when they are not.

    A dummy prefix (one space that is no byte of the content) is cut off the first token; a token
    that is nothing but the prefix lies outside, (-1, -1).
    """
    all_bytes = vocab.all_bytes
    if max(ids, default=0) >= len(all_bytes):
        return None
    pieces = [all_bytes[index] for index in ids]
    joined = b"".join(pieces)
    if joined == content:
        prefix = 0
    elif vocab.dummy_prefix and joined == b" " + content:
        prefix = 1
    else:
        return None
    lengths = np.fromiter(map(len, pieces), np.int64, len(pieces))
    if not lengths.all():
        return None  # a role token among them
    return spans_of_lengths(lengths, prefix)


def spans_of_lengths(lengths: np.ndarray, prefix: int = 0) -> np.ndarray:
    """Return the spans of consecutive tokens of these byte lengths, `prefix` bytes before 0."""
    stops = np.cumsum(lengths) - prefix
    spans = np.stack([np.maximum(stops - lengths, 0), stops], axis=1)
    spans[(spans[:, 0] >= spans[:, 1]) & (lengths > 0)] = OUTSIDE
    return spans


def byte_positions(text: str) -> np.ndarray:
    """Return int64[len(text) + 1]: the byte offset of each character, and the text's length."""
    code_points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    widths = 1 + (code_points >= 0x80) + (code_points >= 0x800).astype(np.int64)
    widths += code_points >= 0x10000
    return np.concatenate([[0], np.cumsum(widths)]).astype(np.int64)


def spans_from_offsets(
    vocab: Vocabulary,
    ids: Sequence[int],
    offsets: Sequence[tuple[int, int]],
    text: str,
    content: bytes,
) -> tuple[np.ndarray, bool]:
    """Return int64[n, 2] spans, and whether the tokens' bytes are all of the content.

    Tokens whose character ranges overlap are a cluster. When the cluster's bytes equal the source,
    each token gets its own bytes; otherwise every token of it gets the cluster's whole span, for
    where the boundaries inside would lie is unknown. Characters between clusters (a combining mark
    that NFC put into the letter before it, whose offsets only name the letter) belong to the
    cluster before them, up to white space that the tokenizer drops. Tokens without characters lie
    outside.
    """
    at = byte_positions(text).tolist()
    all_bytes, size = vocab.all_bytes, len(text)
    spans: list[tuple[int, int]] = []
    exact, reached, token, count = True, 0, 0, len(ids)
    while token < count:
        low, high = offsets[token]
        following = offsets[token + 1][0] if token + 1 < count else size
        if following == high > low and at[low] == reached:
            # By far the most frequent: a token alone, whose bytes are its characters.
            stop = at[high]
            if all_bytes[ids[token]] == content[reached:stop]:
                spans.append((reached, stop))
                reached, token = stop, token + 1
                continue
        last, low, high = _cluster(offsets, token, text, drops_space=vocab.drops_space)
        start, stop = at[low], at[high]
        pieces = [all_bytes[index] for index in ids[token:last]]
        cut = _cut(pieces, start, content[start:stop], dummy_prefix=vocab.dummy_prefix)
        if cut is None:
            cut = [(start, stop) if start < stop else (OUTSIDE, OUTSIDE)] * len(pieces)
            exact = False
        spans += cut
        exact = exact and start == reached
        reached, token = stop, last
    array = np.array(spans, np.int64).reshape(count, 2)
    return array, exact and reached == len(content)


def _cluster(
    offsets: Sequence[tuple[int, int]], first: int, text: str, *, drops_space: bool
) -> tuple[int, int, int]:
    """Return (end, first character, last character) of the cluster that begins at a token."""
    low, high = offsets[first]
    last = first + 1
    while last < len(offsets) and (offsets[last][0] < high or offsets[last][0] == offsets[last][1]):
        high = max(high, offsets[last][1])
        last += 1
    border = offsets[last][0] if last < len(offsets) else len(text)
    if first == 0 and not drops_space:
        low = 0
    while high < border and not (drops_space and text[high].isspace()):
        high += 1
    return last, low, high


def _cut(
    pieces: Sequence[bytes], start: int, source: bytes, *, dummy_prefix: bool
) -> list[tuple[int, int]] | None:
    """Give each piece of a cluster its own bytes of the source; None where they aren't those."""
    joined = b"".join(pieces)
    if joined == source:
        prefix = 0
    elif dummy_prefix and joined == b" " + source:
        prefix = 1
    else:
        return None
    lengths = np.fromiter(map(len, pieces), np.int64, len(pieces))
    cut = spans_of_lengths(lengths, prefix)
    return [(a + start, b + start) if a < b else (OUTSIDE, OUTSIDE) for a, b in cut.tolist()]


def inside(spans: np.ndarray, allowed: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return bool[n]: the non-empty spans that lie within the union of the allowed byte ranges."""
    merged: list[list[int]] = []
    for start, stop in sorted(allowed):
        if start >= stop:
            continue
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], stop)
        else:
            merged.append([start, stop])
    if not merged:
        return np.zeros(len(spans), dtype=bool)
    starts, stops = np.array(merged, np.int64).T
    owner = np.searchsorted(starts, spans[:, 0], side="right") - 1
    within = (owner >= 0) & (spans[:, 1] <= stops[np.maximum(owner, 0)])
    return within & (spans[:, 0] < spans[:, 1])
