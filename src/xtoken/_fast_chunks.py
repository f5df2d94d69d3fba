"""Chunks of plain ids where both sides' tokens spell the same bytes: the usual case, fast.

Positions are running sums of byte lengths; the positions where both sides have a token's end cut
the text. Then each chunk's bytes are compared, eight at a time for the many chunks of one short
token on each side. What doesn't fit (bytes that differ, tokens without known bytes, an empty side)
is left to the general form.

At a length of 1,024 the time goes into the number of numpy calls, not into their work: so both
sides stand in the same arrays, the student's half before the teacher's.
"""

from __future__ import annotations

from itertools import accumulate, pairwise

import numpy as np

from xtoken._chunking import Found, insert_roles, pair_roles, ranges, without
from xtoken._placing import role_tokens
from xtoken._streams import Stream
from xtoken._token_tables import WORD, pair_tables


def find_equal_chunks(
    student: Stream, teacher: Stream
) -> tuple[Found, list[int], list[int], list[int]] | None:
    """Return (chunks, base, student bytes, teacher bytes), or None: the general form is needed.

    `base` (B + 1 entries) is the first byte position of each sequence; bytes have B entries.
    """
    both = _Both(student, teacher)
    if both.has_empty:
        return None
    both.place()
    roles = both.roles()
    if roles is None:
        return None
    both.cut()
    if not both.spell_the_same():
        return None
    found = both.found()
    if both.at is not None:
        torn = both.torn()
        if torn.any():
            found = without(found, torn)
    return insert_roles(found, pair_roles(*roles)), both.base, *both.totals_by_side()


class _Both:
    """The tokens that cover bytes: B student sequences, then B teacher sequences.

    `ids`, `length` int64[n]; `at` int64[n], their indices among all tokens (None: all have bytes);
    `edges` (2B + 1 entries): where each sequence begins among them; `border`: the first token of
    the teacher.
    """

    def __init__(self, student: Stream, teacher: Stream) -> None:
        self.student, self.teacher = student, teacher
        self.tables = pair_tables(student.vocab, teacher.vocab)
        self.pairs = len(student.first) - 1
        self.all_ids = np.concatenate([student.ids, teacher.ids])
        size = student.ids.size
        self.all_ids[size:] += self.tables.border
        self.all_length = self.tables.length[self.all_ids]
        self.trimmed = [*student.trimmed, *(size + token for token in teacher.trimmed)]
        for token in self.trimmed:
            self.all_length[token] -= 1
        self.first_token = [*student.first, *(size + first for first in teacher.first[1:])]
        self.at: np.ndarray | None = None
        self.ids, self.length, self.edges = self.all_ids, self.all_length, self.first_token
        if np.count_nonzero(self.length) < self.length.size:
            self.at = self.length.nonzero()[0]
            self.ids, self.length = self.ids[self.at], self.length[self.at]
            self.edges = self.at.searchsorted(self.first_token).tolist()
        self.border = self.edges[self.pairs]
        self.has_empty = any(a == b for a, b in pairwise(self.edges))

    def place(self) -> None:
        """Find `stop` int64[n], byte positions, the teacher's `base[-1]` above the student's."""
        stop = self.length.cumsum()
        ends = [0, *(int(stop[edge - 1]) for edge in self.edges[1:])]
        self.totals = [b - a for a, b in pairwise(ends)]
        longer = map(max, self.totals[: self.pairs], self.totals[self.pairs :])
        self.base = [0, *accumulate(total + 1 for total in longer)]
        self.origins = [*self.base[:-1], *(self.base[-1] + base for base in self.base[:-1])]
        shift = [origin - end for origin, end in zip(self.origins, ends, strict=False)]
        if self.pairs == 1:
            stop[self.border :] += shift[1]
        else:
            stop += np.repeat(shift, np.diff(self.edges))
        self.stop = stop

    def totals_by_side(self) -> tuple[list[int], list[int]]:
        """Return the bytes of each sequence, the student's and the teacher's."""
        return self.totals[: self.pairs], self.totals[self.pairs :]

    def roles(self) -> tuple[list, list] | None:
        """Return both sides' role tokens; None if there is a token of unknown bytes."""
        if self.at is None:
            return [], []
        tokens = (self.all_length == 0).nonzero()[0]
        sequences = np.searchsorted(self.first_token, tokens, side="right") - 1
        size = self.student.ids.size
        sides: tuple[list, list] = ([], [])
        for token, rank, sequence in zip(
            tokens.tolist(), self.at.searchsorted(tokens).tolist(), sequences.tolist(), strict=True
        ):
            started = rank > self.edges[sequence]
            position = int(self.stop[rank - 1]) if started else self.origins[sequence]
            if token < size:
                sides[0].append((token, int(self.all_ids[token]), position))
            else:
                index = int(self.all_ids[token]) - self.tables.border
                sides[1].append((token - size, index, position - self.base[-1]))
        student, unknown = role_tokens(self.student.vocab, sides[0])
        teacher, more = role_tokens(self.teacher.vocab, sides[1])
        return None if unknown or more else (student, teacher)

    def cut(self) -> None:
        """Cut the tokens where the other side has an end too.

        `first`, `last`, `size` int64[2C] are the chunks as ranges of tokens, the student's, then
        the teacher's; `chunk` int64[n] the chunk of each token (2C: none).
        """
        marks = np.zeros(2 * self.base[-1], bool)
        marks[self.stop] = True
        other = self.stop + self.base[-1]
        other[self.border :] -= 2 * self.base[-1]
        closes = marks[other]
        self.last = closes.nonzero()[0]
        self.chunks = self.last.size // 2
        self.first = np.empty_like(self.last)
        self.first[:1] = 0
        np.add(self.last[:-1], 1, out=self.first[1:])
        self.chunk = closes.cumsum()
        self.chunk -= closes
        counts = self.last.searchsorted(self.edges).tolist()
        self.openings: list[tuple[int, int]] = []
        self.tails: list[slice] = []
        for sequence, (begin, end) in enumerate(pairwise(counts)):
            edge = self.edges[sequence]
            if end > begin:
                self.openings.append((begin, sequence))
                self.first[begin] = edge
            if self.totals[sequence] != self.totals[sequence - self.pairs]:
                tail = int(self.last[end - 1]) + 1 if end > begin else edge
                self.tails.append(slice(tail, self.edges[sequence + 1]))
                self.chunk[self.tails[-1]] = 2 * self.chunks
        self.size = self.last - self.first
        self.size += 1

    def spell_the_same(self) -> bool:
        """Compare the bytes of all chunks."""
        half = self.chunks
        word = self.tables.word[self.ids[self.last]]
        unsure = np.zeros(2 * half + 1, bool)
        own = unsure[:half]
        np.not_equal(word[:half], word[half:], out=own)
        own |= self.length[self.last[:half]] > WORD
        own |= self.size[:half] + self.size[half:] > 2
        unsure[half:-1] = own
        tokens = unsure[self.chunk].nonzero()[0]
        start = self.tables.start[self.ids[tokens]]
        if self.trimmed:
            start += np.isin(tokens if self.at is None else self.at[tokens], self.trimmed)
        data = self.tables.flat_bytes[ranges(start, self.length[tokens])]
        middle = data.size // 2
        return not (data[:middle] != data[middle:]).any()

    def torn(self) -> np.ndarray:
        """Return bool[C]: a token without bytes (a special) stands inside a chunk's range."""
        if self.at is None:
            return np.zeros(self.chunks, bool)
        torn = self.at[self.last] - self.at[self.first] >= self.size
        return torn[: self.chunks] | torn[self.chunks :]

    def found(self) -> Found:
        """Return the chunks, with token indices that count within each side."""
        half, size = self.chunks, self.student.ids.size
        start, stop = self.first, self.last
        chunk = self.chunk.astype(np.int32)
        chunk[self.border :] -= half
        for tail in self.tails:
            chunk[tail] = -1
        if self.at is not None:
            start, stop = self.at[start], self.at[stop]
            everywhere = np.full(self.all_ids.size, -1, np.int32)
            everywhere[self.at] = chunk
            chunk = everywhere
        stop = stop + 1
        byte_stop = self.stop[self.last[:half]]
        byte_start = np.empty_like(byte_stop)
        byte_start[1:] = byte_stop[:-1]
        for opening, sequence in self.openings:
            if sequence < self.pairs:
                byte_start[opening] = self.base[sequence]
        return Found(
            start[:half],
            stop[:half],
            start[half:] - size,
            stop[half:] - size,
            byte_start,
            byte_stop,
            chunk[:size],
            chunk[size:],
        )
