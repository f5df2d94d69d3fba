"""Chunks from positions: the intervals between consecutive edges that both sides have.

`find_chunks` is the general form (clusters of overlapping tokens, gaps, unknown offsets);
`xtoken._fast_chunks` does the same for plain ids at several times the speed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from xtoken._placing import PAIRING_ROLES, Placed, RoleTokens, Side

CLOSING_ROLES = frozenset(("eos", "end_of_turn"))


@dataclass
class Found:
    """Chunks of a whole batch: token ranges and byte positions, int64[C] each.

    `student_chunk`, `teacher_chunk` int32: the chunk of every token, -1: none. Token indices, byte
    positions and chunk indices count over the batch.
    """

    student_start: np.ndarray
    student_stop: np.ndarray
    teacher_start: np.ndarray
    teacher_stop: np.ndarray
    byte_start: np.ndarray
    byte_stop: np.ndarray
    student_chunk: np.ndarray
    teacher_chunk: np.ndarray


def find_chunks(placed: Placed) -> Found:
    """Find the intervals between consecutive common edges that both sides cover in full."""
    size = int(placed.base[-1]) + 1
    student, teacher = _Edges(placed.student, size), _Edges(placed.teacher, size)
    common = np.flatnonzero(student.is_edge & teacher.is_edge)
    low, high = common[:-1], common[1:]
    fine = student.covers(low, high) & teacher.covers(low, high)
    if placed.unequal is not None:
        before = np.zeros(size, np.int64)
        np.cumsum(placed.unequal, out=before[1:])
        fine &= before[high] == before[low]
    low, high = low[fine], high[fine]
    s, t = student.tokens(low, high), teacher.tokens(low, high)
    return Found(
        *s,
        *t,
        low,
        high,
        _chunk_of_token(placed.student.ids.size, *s),
        _chunk_of_token(placed.teacher.ids.size, *t),
    )


class _Edges:
    """The byte positions where one side's tokens begin and end.

    Tokens whose spans overlap form a cluster: only its outer edges are known. `opens[p]` is the
    index (among the tokens that cover bytes) of the token that begins a cluster at position p,
    `closes[p]` of the one that ends a cluster there; -1: none.
    """

    def __init__(self, side: Side, size: int) -> None:
        self.side = side
        content = side.content
        start, stop = side.start[content], side.stop[content]
        apart = np.ones(content.size + 1, bool)
        apart[1:-1] = start[1:] >= stop[:-1]
        index = np.arange(content.size)
        self.opens = np.full(size, -1, np.int64)
        self.closes = np.full(size, -1, np.int64)
        self.opens[start[apart[:-1]]] = index[apart[:-1]]
        self.closes[stop[apart[1:]]] = index[apart[1:]]
        self.is_edge = (self.opens >= 0) | (self.closes >= 0)
        fresh = stop - start
        np.minimum(fresh[1:], stop[1:] - stop[:-1], out=fresh[1:])
        self.covered = _sums_before(fresh)

    def covers(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Return bool: tokens without a gap, a stranger or a refused token fill [low, high)."""
        opens, closes = self.opens[low], self.closes[high]
        fine = (opens >= 0) & (closes >= opens)
        fine &= self.covered[closes + 1] - self.covered[opens] == high - low
        # Tokens without bytes in between (a special, a template's) would be part of the range.
        content = self.side.content
        fine &= content[closes] - content[opens] == closes - opens
        if self.side.refused is not None:
            refused = _sums_before(self.side.refused)
            fine &= refused[closes + 1] == refused[opens]
        return fine

    def tokens(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the half-open token ranges of the intervals."""
        content = self.side.content
        return content[self.opens[low]], content[self.closes[high]] + 1


def _sums_before(values: np.ndarray) -> np.ndarray:
    """Return int64[n + 1]: the sum of the values before each index."""
    before = np.zeros(values.size + 1, np.int64)
    np.cumsum(values, out=before[1:])
    return before


def ranges(start: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Return the concatenation of arange(start[i], start[i] + size[i])."""
    index = (start - size.cumsum() + size).repeat(size)
    index += np.arange(index.size)
    return index


def _chunk_of_token(tokens: int, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    chunk = np.full(tokens, -1, np.int32)
    size = stop - start
    chunk[ranges(start, size)] = np.repeat(np.arange(start.size, dtype=np.int32), size)
    return chunk


def without(found: Found, dropped: np.ndarray) -> Found:
    """Return the chunks but those marked in `dropped` (bool[C])."""
    keep = ~dropped
    # Where each old index goes; the last entry serves the index -1.
    place = np.append(np.cumsum(keep, dtype=np.int32) - 1, np.int32(-1))
    place[:-1][~keep] = -1
    return Found(
        found.student_start[keep],
        found.student_stop[keep],
        found.teacher_start[keep],
        found.teacher_stop[keep],
        found.byte_start[keep],
        found.byte_stop[keep],
        place[found.student_chunk],
        place[found.teacher_chunk],
    )


# ---- Role tokens ---------------------------------------------------------------------------


def pair_roles(
    student: RoleTokens, teacher: RoleTokens, lost: np.ndarray | None = None
) -> list[tuple[int, int, int]]:
    """Return (student token, teacher token, byte position) of role tokens that pair.

    Those at the same position pair in order, by a shared role; an eos with an end_of_turn where
    each side has a single closing token there. `lost` bool[positions]: no pair stands here.
    """
    if not student or not teacher:
        return []
    at: dict[int, RoleTokens] = {}
    for item in teacher:
        at.setdefault(item[1], []).append(item)
    own: dict[int, RoleTokens] = {}
    for item in student:
        if item[1] in at and (lost is None or not lost[item[1]]):
            own.setdefault(item[1], []).append(item)
    return [
        (s, t, position)
        for position, tokens in own.items()
        for s, t in _match(tokens, at[position])
    ]


def _match(student: RoleTokens, teacher: RoleTokens) -> list[tuple[int, int]]:
    lone = all(
        sum(bool(roles & CLOSING_ROLES) for _, _, roles in side) == 1 for side in (student, teacher)
    )
    pairs = []
    free = 0
    for s, _, student_roles in student:
        for place in range(free, len(teacher)):
            t, _, teacher_roles = teacher[place]
            both_close = student_roles & CLOSING_ROLES and teacher_roles & CLOSING_ROLES
            if student_roles & teacher_roles & PAIRING_ROLES or (lone and both_close):
                pairs.append((s, t))
                free = place + 1
                break
    return pairs


def insert_roles(found: Found, pairs: list[tuple[int, int, int]]) -> Found:
    """Add pairs of role tokens to the chunks of text, in the order of the tokens."""
    if not pairs:
        return found
    student, teacher, position = np.array(pairs, np.int64).T
    start = np.concatenate([found.student_start, student])
    order = np.argsort(start, kind="stable")
    # Where each old index goes; the last entry serves the index -1.
    place = np.empty(order.size + 1, np.int32)
    place[order] = np.arange(order.size, dtype=np.int32)
    place[-1] = -1
    text = found.student_start.size
    student_chunk, teacher_chunk = found.student_chunk.copy(), found.teacher_chunk.copy()
    student_chunk[student] = teacher_chunk[teacher] = np.arange(text, order.size)
    return Found(
        start[order],
        np.concatenate([found.student_stop, student + 1])[order],
        np.concatenate([found.teacher_start, teacher])[order],
        np.concatenate([found.teacher_stop, teacher + 1])[order],
        np.concatenate([found.byte_start, position])[order],
        np.concatenate([found.byte_stop, position])[order],
        place[student_chunk],
        place[teacher_chunk],
    )
