"""Student against teacher on held-out text: agreement, KL a chunk, bits per byte of both.

Both models read the same windows of text, cut where both tokenizers have a border; figures are
taken at the first position of each chunk, where both have read the same bytes. A text's first
chunk is left out, whether or not a bos stands before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from xtoken.align import Alignment, align_batch
from xtoken.encode import Encoding
from xtoken.errors import EvaluationError
from xtoken.evaluation import scoring
from xtoken.evaluation.bpb import SORTED, BitsPerByte, Progress
from xtoken.evaluation.windows import check_stride, chunk_windows
from xtoken.losses import PKL, Chunks
from xtoken.losses import agreement as chunk_agreement
from xtoken.losses.sources import LogitSource, Source, read_rows
from xtoken.projection import Projection

if TYPE_CHECKING:
    from xtoken.vocab import Vocabulary


@dataclass(frozen=True)
class Comparison:
    """How close a student is to a teacher on a text.

    `agreement`: share of chunks where argmax of q = W^T p_student equals argmax of p_teacher, on
    the teacher ids that W reaches; `kl_per_chunk`: mean KL(p_teacher || q) in nats (P-KL, support
    `full`, fixed W, first position); `chunks`: number of compared chunks; `bytes_aligned`: share
    of the texts' bytes inside chunks; `kept_mass`: mean teacher probability on the ids that W
    reaches; `student`, `teacher`: bits per byte, both of the same bytes.
    """

    agreement: float
    kl_per_chunk: float
    chunks: int
    bytes_aligned: float
    kept_mass: float
    student: BitsPerByte
    teacher: BitsPerByte

    @property
    def student_bpb(self) -> float:
        """The student's bits per byte on the compared bytes."""
        return self.student.bpb

    @property
    def teacher_bpb(self) -> float:
        """The teacher's bits per byte on the same bytes."""
        return self.teacher.bpb

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "agreement": self.agreement,
            "kl_per_chunk": self.kl_per_chunk,
            "chunks": self.chunks,
            "bytes_aligned": self.bytes_aligned,
            "kept_mass": self.kept_mass,
            "student": self.student.to_dict(),
            "teacher": self.teacher.to_dict(),
        }


@dataclass(frozen=True)
class _Side:
    """One model's part of a window.

    `ids`: what it reads; `rows`: positions of the logits at each compared chunk's start; `scored`:
    positions of the tokens whose nats count.
    """

    ids: np.ndarray
    rows: np.ndarray
    scored: np.ndarray


@dataclass(frozen=True)
class _Pair:
    """A window as both models read it; `bytes` of text are scored on both sides."""

    student: _Side
    teacher: _Side
    bytes: int
    document: int


class _Sums:
    """Everything that is added up over windows."""

    def __init__(self) -> None:
        self.kl = self.hits = self.kept = 0.0
        self.chunks = self.text_bytes = self.aligned_bytes = self.scored_bytes = 0
        self.nats = [0.0, 0.0]
        self.tokens = [0, 0]
        self.documents: set[int] = set()


@torch.no_grad()
def compare(
    student: Any,
    student_vocab: Vocabulary,
    teacher: Any,
    teacher_vocab: Vocabulary,
    texts: str | Iterable[str],
    projection: Projection | None = None,
    *,
    max_length: int = 1024,
    teacher_max_length: int | None = None,
    stride: int | None = None,
    batch_size: int = 1,
    progress: Progress | None = None,
) -> Comparison:
    """Compare a student with a teacher on texts, chunk by chunk.

    Args:
        student, teacher: causal language models (called as transformers' are).
        student_vocab, teacher_vocab: their vocabularies.
        texts: one text, or any number of them; read as a stream.
        projection: the fixed W (None: the identity for one tokenizer, else built with default
            rules).
        max_length: tokens of a window on the student's side, at most the model's own limit;
            `teacher_max_length` the same for the teacher (None: as the student's).
        stride: student tokens that windows advance by (None: half of max_length).
        batch_size: windows that go through the models at once; changes no result beyond rounding.
        progress: called with the number of bytes scored since the last call.

    Raises:
        EvaluationError: no chunk to compare, lengths out of range, heads smaller than the
            vocabularies, probabilities that are not finite.
        ProjectionError: a projection built for other tokenizers.
    """
    if batch_size < 1:
        raise EvaluationError(f"batch_size is {batch_size}; expected at least 1.")
    if projection is not None:
        projection.check_vocabularies(student_vocab, teacher_vocab)
    elif student_vocab.same_as(teacher_vocab):
        projection = Projection.identity(student_vocab)
    else:
        projection = Projection.build(student_vocab, teacher_vocab)
    limits = (
        scoring.context_limit(student, max_length),
        scoring.context_limit(teacher, teacher_max_length or max_length),
    )
    step = check_stride(limits[0], stride)
    strides = (step, max(1, min(limits[1] - 1, round(step * limits[1] / limits[0]))))
    loss = PKL(projection).to(scoring.device_of(student))
    sums = _Sums()
    pairs = _pairs(student_vocab, teacher_vocab, texts, limits, strides, sums)
    with scoring.evaluating(student, teacher):
        readers = scoring.Reader(student, student_vocab), scoring.Reader(teacher, teacher_vocab)
        while block := list(islice(pairs, max(SORTED, batch_size))):
            block.sort(key=lambda pair: -len(pair.student.ids))
            for begin in range(0, len(block), batch_size):
                batch = block[begin : begin + batch_size]
                student_rows = _run(readers[0], [p.student for p in batch], sums, 0)
                teacher_rows = _run(readers[1], [p.teacher for p in batch], sums, 1)
                _compare_rows(loss, student_rows, teacher_rows, sums)
                size = sum(pair.bytes for pair in batch)
                sums.scored_bytes += size
                sums.documents |= {pair.document for pair in batch}
                if progress is not None:
                    progress(size)
    return _result(sums)


def _result(sums: _Sums) -> Comparison:
    if not sums.chunks:
        raise EvaluationError(
            "No chunk could be compared: the texts are empty or shorter than two chunks, or the "
            "two tokenizers have no border in common there. Give longer text, or look at it with "
            "`xtoken align`."
        )
    sides = [
        BitsPerByte(sums.nats[i], sums.scored_bytes, sums.tokens[i], len(sums.documents))
        for i in (0, 1)
    ]
    return Comparison(
        agreement=sums.hits / sums.chunks,
        kl_per_chunk=sums.kl / sums.chunks,
        chunks=sums.chunks,
        bytes_aligned=sums.aligned_bytes / max(sums.text_bytes, 1),
        kept_mass=sums.kept / sums.chunks,
        student=sides[0],
        teacher=sides[1],
    )


def _pairs(
    student_vocab: Vocabulary,
    teacher_vocab: Vocabulary,
    texts: str | Iterable[str],
    limits: tuple[int, int],
    strides: tuple[int, int],
    sums: _Sums,
) -> Iterator[_Pair]:
    number = 0
    for group in scoring.documents(texts):
        ours = scoring.encode_group(student_vocab, group)
        theirs = scoring.encode_group(teacher_vocab, group)
        alignments = align_batch(
            student_vocab,
            teacher_vocab,
            [encoding.ids for encoding in ours],
            [encoding.ids for encoding in theirs],
            student_spans=[encoding.spans for encoding in ours],
            teacher_spans=[encoding.spans for encoding in theirs],
        )
        for mine, other, alignment in zip(ours, theirs, alignments, strict=True):
            sums.text_bytes += mine.content_bytes
            sums.aligned_bytes += int((alignment.byte_stop - alignment.byte_start).sum())
            sides = (
                _Tokens.of(student_vocab, mine, alignment, "student"),
                _Tokens.of(teacher_vocab, other, alignment, "teacher"),
            )
            yield from _cut(sides, alignment, limits, strides, number)
            number += 1


@dataclass(frozen=True)
class _Tokens:
    """One side of an aligned text: ids, leading role tokens, token ranges of the real chunks."""

    ids: np.ndarray
    prefix: int
    starts: np.ndarray
    stops: np.ndarray
    content: np.ndarray

    @classmethod
    def of(cls, vocab: Vocabulary, encoding: Encoding, alignment: Alignment, side: str) -> _Tokens:
        real = ~alignment.is_role
        spans = encoding.spans
        return cls(
            encoding.ids,
            scoring.prefix_length(vocab, encoding),
            getattr(alignment, f"{side}_start")[real].astype(np.int64),
            getattr(alignment, f"{side}_stop")[real].astype(np.int64),
            (spans[:, 0] < spans[:, 1]) & ~vocab.is_special[encoding.ids],
        )

    def window(self, start: int, stop: int, first: int) -> _Side:
        """Return chunks [start, stop), of which [first, stop) are compared."""
        begin, end = int(self.starts[start]), int(self.stops[stop - 1])
        ids = np.concatenate([self.ids[: self.prefix], self.ids[begin:end]])
        shift = begin - self.prefix
        scored = np.arange(int(self.starts[first]), end)
        return _Side(ids, self.starts[first:stop] - shift - 1, scored[self.content[scored]] - shift)


def _cut(
    sides: tuple[_Tokens, _Tokens],
    alignment: Alignment,
    limits: tuple[int, int],
    strides: tuple[int, int],
    number: int,
) -> Iterator[_Pair]:
    real = ~alignment.is_role
    byte_start, byte_stop = alignment.byte_start[real], alignment.byte_stop[real]
    room = [limit - side.prefix for side, limit in zip(sides, limits, strict=True)]
    if min(room) < 2:
        raise EvaluationError(
            f"max_length leaves {min(room)} tokens beside the tokenizer's leading special tokens; "
            f"expected at least 2."
        )
    steps = [min(stride, size - 1) for stride, size in zip(strides, room, strict=True)]
    for window in chunk_windows([(side.starts, side.stops) for side in sides], room, steps):
        first = max(window.first, 1)
        # A window that begins anew (after text that can't be aligned) has nothing before its
        # first chunk on a side without bos.
        if first == window.start and min(side.prefix for side in sides) == 0:
            first += 1
        if first >= window.stop:
            continue
        student, teacher = (side.window(window.start, window.stop, first) for side in sides)
        size = int(byte_stop[window.stop - 1] - byte_start[first])
        yield _Pair(student, teacher, size, number)


def _run(
    reader: scoring.Reader, sides: Sequence[_Side], sums: _Sums, which: int
) -> tuple[Source, Tensor]:
    """Add a side's nats to the sums and return its rows, and which stand at the chunks' starts."""
    source, length = reader.read([side.ids for side in sides])
    index_N = scoring.row_index(source, [side.scored - 1 for side in sides], length)
    targets_N = torch.from_numpy(np.concatenate([side.ids[side.scored] for side in sides]))
    nats_N = scoring.token_nats(source, index_N, targets_N, len(reader.vocab))
    sums.nats[which] += float(nats_N.sum())
    sums.tokens[which] += len(targets_N)
    return source, scoring.row_index(source, [side.rows for side in sides], length)


def _compare_rows(
    loss: PKL, student: tuple[Source, Tensor], teacher: tuple[Source, Tensor], sums: _Sums
) -> None:
    """Add KL, hits and kept mass of rows that stand at the same chunks' starts."""
    rows, start_C = student
    other, teacher_start_C = teacher
    if other.inputs[0].device != start_C.device:
        # The loss runs where the student is, and an output head's weight doesn't travel.
        moved = read_rows(other, teacher_start_C, loss.teacher_size).to(start_C.device)
        other, teacher_start_C = LogitSource(moved), torch.arange(len(moved), device=moved.device)
    one_C = torch.ones_like(start_C)
    no_targets = [start_C.new_full((source.shape[0],), -1) for source in (rows, other)]
    chunks = Chunks(start_C, one_C, teacher_start_C, one_C, *no_targets)
    result = loss(rows, other, chunks)
    hits, _ = chunk_agreement(rows, other, chunks, loss.projector)
    sums.kl += float(result.total)
    sums.hits += float(hits)
    sums.kept += float(result.metrics["kept_mass"][0])
    sums.chunks += len(chunks)
