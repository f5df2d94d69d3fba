"""Two encodings of one text, cut where both have a token boundary.

    alignment = align(student_vocab, teacher_vocab, student_ids, teacher_ids)
    alignment.student_chunk   # which chunk each student token lies in, -1: none
    alignment.counts()        # {"one_to_one": 812, "one_to_many": 31, ...}

A chunk is a finest span of the text that both sides cover with whole tokens. Its bytes are equal
on both sides; inside it the two tokenisations have no boundary in common. Linear time, numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from xtoken._chunking import Found, find_chunks, insert_roles, pair_roles
from xtoken._fast_chunks import find_equal_chunks
from xtoken._placing import Placed, check_ids, place_by_spans
from xtoken._streams import Stream, drop_dummy_prefixes, place_by_length
from xtoken.errors import AlignmentError

if TYPE_CHECKING:
    from xtoken.vocab import Vocabulary

# Student tokens that are aligned together: enough to spread numpy's overhead, few enough that the
# arrays stay in the cache.
BLOCK_TOKENS = 8192


class ChunkKind(IntEnum):
    """How many student tokens stand against how many teacher tokens."""

    ONE_TO_ONE = 0
    ONE_TO_MANY = 1
    MANY_TO_ONE = 2
    MANY_TO_MANY = 3


@dataclass(frozen=True, eq=False)
class Alignment:
    """The chunks of one pair of encodings, in the order of the text.

    Attributes:
        student_chunk, teacher_chunk: int32[S], int32[T], the chunk of each token, -1: in none.
        student_start, student_stop, teacher_start, teacher_stop: int32[C], half-open ranges of
            token indices.
        byte_start, byte_stop: int64[C], the chunk's bytes; positions in the source text where
            spans were given, else in the stream of the tokens' bytes. Equal for a role chunk.
        kind: int8[C], a `ChunkKind`.
        is_role: bool[C], the chunk pairs two role tokens (eos with eos) and has no bytes.
        student_bytes, teacher_bytes: bytes of text on each side, aligned or not.
    """

    student_chunk: np.ndarray
    teacher_chunk: np.ndarray
    student_start: np.ndarray
    student_stop: np.ndarray
    teacher_start: np.ndarray
    teacher_stop: np.ndarray
    byte_start: np.ndarray
    byte_stop: np.ndarray
    kind: np.ndarray
    is_role: np.ndarray
    student_bytes: int
    teacher_bytes: int

    def __len__(self) -> int:
        return int(self.kind.shape[0])

    @property
    def aligned_bytes(self) -> int:
        """Bytes of text that lie in a chunk."""
        return int((self.byte_stop - self.byte_start).sum())

    @property
    def byte_coverage(self) -> float:
        """Return aligned bytes / bytes of the longer side; 1.0 where there is no text at all."""
        longer = max(self.student_bytes, self.teacher_bytes)
        return self.aligned_bytes / longer if longer else 1.0

    def counts(self) -> dict[str, int]:
        """Return the number of chunks of each kind, role chunks counted as one-to-one."""
        numbers = np.bincount(self.kind, minlength=len(ChunkKind)).tolist()
        return {kind.name.lower(): numbers[kind] for kind in ChunkKind}

    def within(self, student_mask: np.ndarray, teacher_mask: np.ndarray) -> np.ndarray:
        """Return bool[C]: chunks all of whose tokens are marked, on both sides.

        Args:
            student_mask: bool[S], one for each student token.
            teacher_mask: bool[T], one for each teacher token.

        Raises:
            AlignmentError: a mask doesn't have one entry for each token.
        """
        return _all_marked(
            student_mask, self.student_start, self.student_stop, self.student_chunk, "student"
        ) & _all_marked(
            teacher_mask, self.teacher_start, self.teacher_stop, self.teacher_chunk, "teacher"
        )

    def supervised(self, student_mask: np.ndarray, teacher_mask: np.ndarray) -> np.ndarray:
        """Return bool[C]: chunks that a loss may read.

        A chunk is supervised iff every token of it, on both sides, may be a training target
        (`within` the masks) and has a predecessor (index > 0): a token at i is predicted by the
        logits at i - 1. Arguments and errors as for `within`.
        """
        led = (self.student_start > 0) & (self.teacher_start > 0)
        return self.within(student_mask, teacher_mask) & led


def _all_marked(
    mask: np.ndarray, start: np.ndarray, stop: np.ndarray, chunk: np.ndarray, side: str
) -> np.ndarray:
    mask = np.asarray(mask, bool)
    if mask.shape != chunk.shape:
        raise AlignmentError(
            f"{side}_mask has shape {mask.shape} for {chunk.size} tokens; give one bool a token"
        )
    before = np.zeros(mask.size + 1, np.int32)
    np.cumsum(mask, out=before[1:])
    return before[stop] - before[start] == stop - start


def align(
    student_vocab: Vocabulary,
    teacher_vocab: Vocabulary,
    student_ids: Any,
    teacher_ids: Any,
    *,
    student_spans: Any = None,
    teacher_spans: Any = None,
) -> Alignment:
    """Cut two encodings of one text into the finest chunks with equal bytes.

    chunks = the intervals between consecutive values of ends(student) & ends(teacher), where
    ends = cumulative byte offsets of the tokens.

    Without spans the offsets are running sums of the tokens' byte lengths. The two byte streams
    are compared: where they differ (a normaliser changed the text, a literal `</s>` was read as a
    special token) chunks stop, and go on only where it is certain that both are at the same place
    of the text again. With spans the offsets are positions in the source text, and alignment goes
    on through such places. A chunk then covers the same span of the source on both sides; where a
    normaliser changed that span, the ids' own bytes may differ from it.

    Tokens that overlap in their spans (boundary unknown) stay together in one chunk. Role tokens
    have no bytes: they pair by role at the same byte position (bos, eos, end_of_turn; an eos with
    an end_of_turn where that is the only closing token on each side) or stay out, as do templates'
    tokens and what only one side has (a truncated tail, a bos).

    Args:
        student_vocab, teacher_vocab: the two vocabularies.
        student_ids, teacher_ids: int[S], int[T], the encodings; either may be empty.
        student_spans, teacher_spans: int64[S, 2], int64[T, 2] byte spans in the source text, both
            or neither: (-1, -1) for a token outside the text, (p, p) for a role token at byte p.

    Returns:
        Alignment

    Raises:
        AlignmentError: an id outside its vocabulary, spans of the wrong shape or out of order, or
            spans for one side only.
    """
    return align_batch(
        student_vocab,
        teacher_vocab,
        [student_ids],
        [teacher_ids],
        student_spans=None if student_spans is None else [student_spans],
        teacher_spans=None if teacher_spans is None else [teacher_spans],
    )[0]


def align_batch(
    student_vocab: Vocabulary,
    teacher_vocab: Vocabulary,
    student_ids: Sequence[Any],
    teacher_ids: Sequence[Any],
    *,
    student_spans: Sequence[Any] | None = None,
    teacher_spans: Sequence[Any] | None = None,
) -> list[Alignment]:
    """Align many pairs at once; equal to `align` on each pair, at less cost for short ones.

    Args:
        student_vocab, teacher_vocab: the two vocabularies.
        student_ids, teacher_ids: one sequence of ids for each pair.
        student_spans, teacher_spans: one array of spans for each pair, both or neither.

    Returns:
        One `Alignment` for each pair; their arrays are views of the batch's.

    Raises:
        AlignmentError: as `align`, or different numbers of sequences.
    """
    if len(student_ids) != len(teacher_ids):
        raise AlignmentError(
            f"{len(student_ids)} student sequences for {len(teacher_ids)} teacher sequences; give "
            "both encodings of each text"
        )
    if (student_spans is None) != (teacher_spans is None):
        given, missing = ("student", "teacher")[:: 1 if teacher_spans is None else -1]
        raise AlignmentError(
            f"{given}_spans were given without {missing}_spans; give both (positions in the same "
            "source text) or neither"
        )
    student = check_ids(student_vocab, student_ids, "student")
    teacher = check_ids(teacher_vocab, teacher_ids, "teacher")
    if student_spans is not None and teacher_spans is not None:
        if not len(student_ids):
            return []
        placed = place_by_spans(
            student_vocab, teacher_vocab, student, teacher, student_spans, teacher_spans
        )
        return _general(placed)
    alignments: list[Alignment] = []
    begin = tokens = 0
    for end, ids in enumerate(student, start=1):
        tokens += ids.size
        if tokens >= BLOCK_TOKENS or end == len(student):
            own = slice(begin, end)
            alignments += _plain(student_vocab, teacher_vocab, student[own], teacher[own])
            begin, tokens = end, 0
    return alignments


def _plain(
    student_vocab: Vocabulary,
    teacher_vocab: Vocabulary,
    student_ids: list[np.ndarray],
    teacher_ids: list[np.ndarray],
) -> list[Alignment]:
    """Align a block of pairs by ids alone; one at a time if one of them needs the general form."""
    student = Stream(student_vocab, student_ids)
    teacher = Stream(teacher_vocab, teacher_ids)
    drop_dummy_prefixes(student, teacher)
    fast = find_equal_chunks(student, teacher)
    if fast is not None:
        found, base, student_bytes, teacher_bytes = fast
        return _split(found, student.first, teacher.first, base, student_bytes, teacher_bytes)
    if len(student_ids) == 1:
        return _general(place_by_length(student, teacher))
    return [
        alignment
        for s, t in zip(student_ids, teacher_ids, strict=True)
        for alignment in _plain(student_vocab, teacher_vocab, [s], [t])
    ]


def _general(placed: Placed) -> list[Alignment]:
    pairs = pair_roles(placed.student.special, placed.teacher.special, placed.lost)
    return _split(
        insert_roles(find_chunks(placed), pairs),
        placed.student.first,
        placed.teacher.first,
        placed.base,
        placed.student_bytes,
        placed.teacher_bytes,
    )


def _split(
    found: Found,
    student_first: list[int],
    teacher_first: list[int],
    base: list[int],
    student_bytes: list[int],
    teacher_bytes: list[int],
) -> list[Alignment]:
    """Cut a batch's chunks into one alignment for each pair."""
    is_many = found.student_stop - found.student_start > 1
    kind = is_many.view(np.int8) * np.int8(2)
    kind += found.teacher_stop - found.teacher_start > 1
    is_role = found.byte_start == found.byte_stop
    edges = found.student_start.searchsorted(student_first)
    token_ranges = [
        found.student_start,
        found.student_stop,
        found.teacher_start,
        found.teacher_stop,
    ]
    byte_start, byte_stop = found.byte_start, found.byte_stop
    if len(student_first) > 2:
        lengths = np.diff(edges)
        origins = [np.repeat(first[:-1], lengths) for first in (student_first, teacher_first, base)]
        token_ranges = [array - origins[place // 2] for place, array in enumerate(token_ranges)]
        byte_start, byte_stop = byte_start - origins[2], byte_stop - origins[2]
    token_ranges = [array.astype(np.int32) for array in token_ranges]
    s, t, c = student_first, teacher_first, edges.tolist()
    alignments = []
    for k in range(len(s) - 1):
        own = slice(c[k], c[k + 1])
        student_chunk = found.student_chunk[s[k] : s[k + 1]]
        teacher_chunk = found.teacher_chunk[t[k] : t[k + 1]]
        if c[k]:
            student_chunk = np.maximum(student_chunk - np.int32(c[k]), np.int32(-1))
            teacher_chunk = np.maximum(teacher_chunk - np.int32(c[k]), np.int32(-1))
        alignments.append(
            Alignment(
                student_chunk,
                teacher_chunk,
                token_ranges[0][own],
                token_ranges[1][own],
                token_ranges[2][own],
                token_ranges[3][own],
                byte_start[own],
                byte_stop[own],
                kind[own],
                is_role[own],
                student_bytes[k],
                teacher_bytes[k],
            )
        )
    return alignments
