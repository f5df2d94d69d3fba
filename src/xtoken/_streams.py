"""Placing tokens by ids alone: running sums of byte lengths, and the byte streams compared."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from xtoken._placing import Placed, Side, flatten, role_tokens

if TYPE_CHECKING:
    from xtoken.vocab import Vocabulary

# Tokens looked at to tell whether a text starts with a dummy space.
LEADING_TOKENS = 32
# After the two byte streams have differed, their common offset is known again only from a run of
# equal bytes that is at least this long and occurs nowhere else in either stream.
RESYNC_BYTES = 16


class Stream:
    """The tokens of one side of a batch and their bytes, as the vocabulary has them.

    `ids` int64[N]; `first` (B + 1 entries): where each sequence begins; `trimmed`: tokens whose
    first byte is none of the text.
    """

    def __init__(self, vocab: Vocabulary, sequences: Sequence[np.ndarray]) -> None:
        self.vocab = vocab
        self.ids, self.first = flatten(sequences)
        self.trimmed: list[int] = []

    @cached_property
    def length(self) -> np.ndarray:
        """The tokens' byte lengths, int64[N]."""
        length = self.vocab.byte_lengths[self.ids].astype(np.int64)
        length[self.trimmed] -= 1
        return length

    def trim(self, token: int) -> None:
        """Take the first byte off a token."""
        self.trimmed.append(token)
        self.__dict__.pop("length", None)

    def source(self, tokens: np.ndarray) -> np.ndarray:
        """Return where the tokens' bytes begin in the vocabulary's `flat_bytes`."""
        source = self.vocab.byte_starts[self.ids[tokens]]
        if self.trimmed:
            source += np.isin(tokens, self.trimmed)
        return source

    def leading(self, sequence: int) -> tuple[int, bytes]:
        """Return the first token that has bytes (-1: none) and the first few tokens' bytes."""
        begin, end = self.first[sequence], self.first[sequence + 1]
        length = self.vocab.byte_lengths[self.ids[begin:end]]
        tokens = begin + np.flatnonzero(length)[:LEADING_TOKENS]
        data = b"".join(self.vocab.token_bytes(token) for token in self.ids[tokens].tolist())
        return (int(tokens[0]) if tokens.size else -1), data


def drop_dummy_prefixes(student: Stream, teacher: Stream) -> None:
    """Take the space that SentencePiece puts before a text off its first token.

    Some tokenizers leave it out when the text itself begins with a space, so both readings are
    tried and the one whose first bytes agree longer with the other side's is kept.
    """
    streams = (student, teacher)
    if not any(stream.vocab.dummy_prefix for stream in streams):
        return
    for sequence in range(len(student.first) - 1):
        (s_token, s_bytes), (t_token, t_bytes) = (stream.leading(sequence) for stream in streams)
        s_cuts, t_cuts = (
            (1, 0) if stream.vocab.dummy_prefix and data[:1] == b" " else (0,)
            for stream, data in zip(streams, (s_bytes, t_bytes), strict=True)
        )
        s_cut, t_cut = max(
            ((s, t) for s in s_cuts for t in t_cuts),
            key=lambda cut: _agreement(s_bytes[cut[0] :], t_bytes[cut[1] :]) + min(cut),
        )
        if s_cut:
            student.trim(s_token)
        if t_cut:
            teacher.trim(t_token)


def place_by_length(student: Stream, teacher: Stream) -> Placed:
    """Place one pair's tokens by running sums of byte lengths; check the bytes against each other.

    position(token i) = sum of the byte lengths before it. Where the byte streams differ the
    offsets are unknown (`lost`), except that ASCII letters may differ in case; they are known again
    from a run of `RESYNC_BYTES` equal bytes that stands nowhere else in either stream.
    """
    sides, streams, barriers = [], [], []
    for stream in (student, teacher):
        stop = np.cumsum(stream.length, dtype=np.int64)
        start = stop - stream.length
        content = np.flatnonzero(stream.length)
        empty = np.flatnonzero(stream.length == 0)
        special, opaque = role_tokens(
            stream.vocab,
            list(
                zip(empty.tolist(), stream.ids[empty].tolist(), stop[empty].tolist(), strict=True)
            ),
        )
        sides.append(
            Side(stream.vocab, stream.ids, stream.first, start, stop, content, None, special)
        )
        index = np.repeat(stream.source(content) - start[content], stream.length[content])
        streams.append(stream.vocab.flat_bytes[index + np.arange(index.size)])
        barriers += opaque
    totals = [data.size for data in streams]
    size = min(totals)
    base = [0, max(totals) + 1]
    placed = Placed(sides[0], sides[1], base, totals[:1], totals[1:])
    differs = streams[0][:size] != streams[1][:size]
    if barriers or differs.any():
        unknown = _unknown_offsets(
            streams[0].tobytes().lower(), streams[1].tobytes().lower(), np.array(barriers, np.int64)
        )
        placed.unequal = np.zeros(base[-1], bool)
        placed.unequal[:size] = differs | unknown
        # The boundary after byte i is known when byte i is; the text's start always is.
        placed.lost = np.zeros(base[-1] + 1, bool)
        placed.lost[1 : size + 1] = unknown
        placed.lost[barriers] = True
    return placed


def _agreement(left: bytes, right: bytes) -> int:
    size = min(len(left), len(right))
    return next((i for i in range(size) if left[i] != right[i]), size)


def _unknown_offsets(left: bytes, right: bytes, barriers: np.ndarray) -> np.ndarray:
    """Return bool[n]: bytes whose equal offset in both streams may not be the same text.

    `left` and `right` are the whole streams in lower case (`bytes.lower` changes ASCII letters
    only), n the length of the shorter. `barriers` are offsets where an unknown number of bytes is
    missing from one stream.
    """
    size = min(len(left), len(right))
    breaks = np.frombuffer(left[:size], np.uint8) != np.frombuffer(right[:size], np.uint8)
    breaks[barriers[barriers < size]] = True
    unknown = breaks.copy()
    for broken, stop in pairwise([*np.flatnonzero(breaks).tolist(), size]):
        unknown[broken + 1 : stop] = not _is_certain(left, right, broken + 1, stop)
    return unknown


def _is_certain(left: bytes, right: bytes, start: int, stop: int) -> bool:
    """Tell whether a run of equal bytes at equal offsets can only be the same text.

    Were the true shift d != 0, a run of text found at `start` in both streams would also stand at
    start + d in one of them.
    """
    run = left[start:stop]
    return len(run) >= RESYNC_BYTES and all(
        whole.find(run) == start and whole.find(run, start + 1) < 0 for whole in (left, right)
    )
