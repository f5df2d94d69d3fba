"""Where every token of a batch of encoding pairs lies in the text, in bytes.

All sequences of a batch share one axis of byte positions: sequence k owns the positions from
`base[k]` on, one more than its longer side has bytes, so that no span crosses into the next. Both
sides of a pair are placed on the same axis; `xtoken.align` then only compares positions.

Positions come from spans in the source text (`place_by_spans`), or from the tokens' own byte
lengths (`xtoken._streams`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from xtoken.errors import AlignmentError

if TYPE_CHECKING:
    from xtoken.vocab import Vocabulary

PAIRING_ROLES = frozenset(("bos", "eos", "end_of_turn"))
# (token index, byte position, roles)
RoleTokens = list[tuple[int, int, frozenset[str]]]


@dataclass
class Side:
    """One side (student or teacher) of a batch, its sequences one after the other.

    `first` (B + 1 entries): where each sequence begins in `ids`; `start`, `stop` int64[N]: byte
    positions; `content` int64[n]: indices of the tokens that cover bytes, ascending; `refused`
    bool[n]: those of them that may be in no chunk (None: none); `special`: role tokens that may
    pair.
    """

    vocab: Vocabulary
    ids: np.ndarray
    first: list[int]
    start: np.ndarray
    stop: np.ndarray
    content: np.ndarray
    refused: np.ndarray | None
    special: RoleTokens


@dataclass
class Placed:
    """Both sides of a batch on one axis of `base[-1]` byte positions.

    `student_bytes`, `teacher_bytes` have B entries. `unequal` bool[positions]: bytes that no chunk
    may hold; `lost` bool[positions + 1]: boundaries where the two streams' common offset is
    unknown; both None where nothing is.
    """

    student: Side
    teacher: Side
    base: list[int]
    student_bytes: list[int]
    teacher_bytes: list[int]
    unequal: np.ndarray | None = None
    lost: np.ndarray | None = None


def check_ids(vocab: Vocabulary, sequences: Sequence[Any], side: str) -> list[np.ndarray]:
    """Return the sequences as int64 arrays, or raise AlignmentError."""
    arrays = []
    size = len(vocab)
    for pair, sequence in enumerate(sequences):
        array = np.asarray(sequence)
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
            raise AlignmentError(
                f"{side}_ids of pair {pair} must be one sequence of integer ids; got an array of "
                f"shape {array.shape} and type {array.dtype}"
            )
        array = array.astype(np.int64, copy=False)
        # As unsigned numbers, negative ids are the largest.
        if array.size and array.view(np.uint64).max() >= size:
            where = int(np.flatnonzero((array < 0) | (array >= size))[0])
            raise AlignmentError(
                f"{side} token {where} of pair {pair} is id {array[where]}, but {vocab.name} has "
                f"ids 0 to {size - 1}; were the ids made by another tokenizer, or padded with an "
                "id outside the vocabulary?"
            )
        arrays.append(array)
    return arrays


def flatten(arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, list[int]]:
    """Return all ids (int64[N]) and where each sequence begins (B + 1 entries)."""
    first = [0, *accumulate(array.size for array in arrays)]
    return (arrays[0] if len(arrays) == 1 else np.concatenate(arrays)), first


def role_tokens(
    vocab: Vocabulary, without_bytes: list[tuple[int, int, int]]
) -> tuple[RoleTokens, list[int]]:
    """Sort tokens without bytes, (index, id, position), into role tokens that may pair and others.

    The second list has the positions of tokens that stand for unknown bytes (unk, a hole).
    """
    special: RoleTokens = []
    opaque = []
    for index, token, position in without_bytes:
        roles = vocab.roles(token)
        if roles & PAIRING_ROLES:
            special.append((index, position, roles))
        elif "unk" in roles or vocab.is_missing[token]:
            opaque.append(position)
    return special, opaque


def place_by_spans(
    student: Vocabulary,
    teacher: Vocabulary,
    student_ids: Sequence[np.ndarray],
    teacher_ids: Sequence[np.ndarray],
    student_spans: Sequence[Any],
    teacher_spans: Sequence[Any],
) -> Placed:
    """Place a batch's tokens by their byte spans in the source text (int64[n, 2] a sequence).

    (-1, -1): outside the text; (p, p): a role token that stands at byte p, or a token without text.
    A role token or hole whose span is not empty covers text that no chunk may hold.
    """
    (s_ids, s_first), (t_ids, t_first) = flatten(student_ids), flatten(teacher_ids)
    s_span = _flatten_spans(student_spans, s_first, "student")
    t_span = _flatten_spans(teacher_spans, t_first, "teacher")
    extents = zip(_extents(s_span, s_first), _extents(t_span, t_first), strict=True)
    base = [0, *accumulate(max(pair) + 1 for pair in extents)]
    s_side, s_bytes = _side_by_spans(student, s_ids, s_first, s_span, base, "student")
    t_side, t_bytes = _side_by_spans(teacher, t_ids, t_first, t_span, base, "teacher")
    return Placed(s_side, t_side, base, s_bytes, t_bytes)


def _flatten_spans(spans: Sequence[Any], first: list[int], side: str) -> np.ndarray:
    arrays = [np.asarray(span, np.int64) for span in spans]
    if len(arrays) != len(first) - 1:
        raise AlignmentError(
            f"{side}_spans holds {len(arrays)} sequences for {len(first) - 1} of ids; give one "
            "array of spans for each"
        )
    for index, (array, size) in enumerate(zip(arrays, np.diff(first), strict=True)):
        if array.size == 0 and size == 0:
            arrays[index] = array.reshape(0, 2)
        elif array.shape != (size, 2):
            raise AlignmentError(
                f"{side}_spans of pair {index} has shape {array.shape}; expected ({size}, 2), one "
                "(start, stop) byte span for each id"
            )
    return np.concatenate([*arrays, np.empty((0, 2), np.int64)])


def _extents(span: np.ndarray, first: list[int]) -> list[int]:
    return [int(span[a:b, 1].max(initial=0)) for a, b in pairwise(first)]


def _side_by_spans(
    vocab: Vocabulary,
    ids: np.ndarray,
    first: list[int],
    span: np.ndarray,
    base: list[int],
    side: str,
) -> tuple[Side, list[int]]:
    """Return the side and the bytes of text that its tokens cover (B entries)."""
    shift = np.repeat(base[:-1], np.diff(first))
    inside = span[:, 0] >= 0
    start, stop = span[:, 0] + shift, span[:, 1] + shift
    _check_order(span, start, stop, inside, first, side)
    covers = inside & (span[:, 1] > span[:, 0])
    content = np.flatnonzero(covers)
    opaque = vocab.is_special[ids] | vocab.is_missing[ids]
    empty = np.flatnonzero(opaque & inside & ~covers)
    special, _ = role_tokens(
        vocab, list(zip(empty.tolist(), ids[empty].tolist(), stop[empty].tolist(), strict=True))
    )
    begin, end = start[content], stop[content]
    covered = np.zeros(ids.size + 1, np.int64)
    if content.size:
        fresh = end - begin
        np.minimum(fresh[1:], end[1:] - end[:-1], out=fresh[1:])
        covered[content + 1] = fresh
    totals = np.diff(np.cumsum(covered)[first]).tolist()
    if vocab.lossy:
        start = _close_gaps(start, stop, content, first, base)
    refused = opaque[content] if opaque[content].any() else None
    return Side(vocab, ids, first, start, stop, content, refused, special), totals


def _check_order(
    span: np.ndarray,
    start: np.ndarray,
    stop: np.ndarray,
    inside: np.ndarray,
    first: list[int],
    side: str,
) -> None:
    wrong = inside & (span[:, 1] < span[:, 0]) | ~inside & (span != -1).any(1)
    where = np.flatnonzero(inside)
    wrong[where[1:]] |= np.diff(start[where]) < 0
    wrong[where[1:]] |= np.diff(stop[where]) < 0
    if wrong.any():
        token = int(np.flatnonzero(wrong)[0])
        pair = int(np.searchsorted(first, token, side="right")) - 1
        raise AlignmentError(
            f"{side} token {token - first[pair]} of pair {pair} has the span "
            f"({span[token, 0]}, {span[token, 1]}); spans are (start, stop) with start <= stop in "
            "the order of the text, or (-1, -1) for a token outside it"
        )


def _close_gaps(
    start: np.ndarray, stop: np.ndarray, content: np.ndarray, first: list[int], base: list[int]
) -> np.ndarray:
    """Let each token of a lossy tokenizer begin where the one before ended.

    WordPiece drops the spaces between words; they count with the word that follows, as in the
    vocabularies that keep them.
    """
    start = start.copy()
    begin = start[content]
    before = np.empty_like(begin)
    before[1:] = stop[content[:-1]]
    sequence = np.searchsorted(first, content, side="right") - 1
    opens = np.ones(content.size, bool)
    opens[1:] = sequence[1:] != sequence[:-1]
    before[opens] = np.array(base)[sequence[opens]]
    start[content] = np.minimum(begin, before)
    return start
