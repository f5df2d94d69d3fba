"""The pair on a sample text: both encodings, their alignment, what is used and not matched."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from xtoken.audit.model import FrequentToken, TextStatistics
from xtoken.errors import DataError
from xtoken.projection.tokens import printable

if TYPE_CHECKING:
    from xtoken.audit.coverage import SideClasses
    from xtoken.projection import Projection
    from xtoken.projection.explain import Piece
    from xtoken.vocab import Vocabulary

# Texts are cut into documents of about this many characters, at line ends where there are any.
DOCUMENT = 8_192
# Documents that are encoded together.
GROUP = 32
FREQUENT = 20
KINDS = ("1:1", "1:N", "N:1", "M:N")


@dataclass(frozen=True)
class EncodedText:
    """A sample text on both sides: token counts by id, and what the alignment found."""

    documents: int
    bytes: int
    total_bytes: int
    student_counts: np.ndarray
    teacher_counts: np.ndarray
    kinds: np.ndarray
    aligned_bytes: int
    student_exact: bool
    teacher_exact: bool


def split_texts(
    texts: str | Iterable[str], max_bytes: int, *, document: int = DOCUMENT
) -> tuple[list[str], int, int]:
    """Cut texts into documents: (documents, their bytes, bytes of all texts).

    `document`: characters of one at most.

    Where all texts together are longer than `max_bytes`, documents are taken evenly over them.

    Raises:
        DataError: there is no text.
    """
    documents: list[str] = []
    for text in [texts] if isinstance(texts, str) else texts:
        start = 0
        while start < len(text):
            stop = start + document
            if stop < len(text):
                line_end = text.rfind("\n", start, stop)
                stop = line_end + 1 if line_end > start else stop
            documents.append(text[start:stop])
            start = stop
    sizes = [len(part.encode("utf-8", "surrogatepass")) for part in documents]
    total = sum(sizes)
    if total == 0:
        raise DataError("The sample text is empty; give a file with some text in it.")
    if total > max_bytes:
        step = total / max_bytes
        chosen = sorted({int(i * step) for i in range(int(len(documents) / step) + 1)})
        chosen = [index for index in chosen if index < len(documents)]
        documents = [documents[index] for index in chosen]
        sizes = [sizes[index] for index in chosen]
    return documents, sum(sizes), total


def encode_both(
    student: Vocabulary,
    teacher: Vocabulary,
    texts: str | Iterable[str],
    max_bytes: int,
    progress: Callable[[int], None] | None = None,
) -> EncodedText:
    """Encode a sample text on both sides and align it, a group of documents at a time.

    `progress` is called with each group's bytes.
    """
    from xtoken.align import align_batch
    from xtoken.encode import encode_texts

    documents, size, total = split_texts(texts, max_bytes)
    sides = (student, teacher)
    counts = [np.zeros(len(vocab), dtype=np.int64) for vocab in sides]
    exact = [True, True]
    kinds = np.zeros(len(KINDS), dtype=np.int64)
    aligned = 0
    for begin in range(0, len(documents), GROUP):
        group = documents[begin : begin + GROUP]
        encoded = [encode_texts(vocab, group, bos=False, eos=False) for vocab in sides]
        ids = [[encoding.ids for encoding in side] for side in encoded]
        spans = [[encoding.spans for encoding in side] for side in encoded]
        alignments = align_batch(
            student, teacher, *ids, student_spans=spans[0], teacher_spans=spans[1]
        )
        for alignment in alignments:
            kinds += np.bincount(alignment.kind[~alignment.is_role], minlength=len(KINDS))
            aligned += int((alignment.byte_stop - alignment.byte_start).sum())
        for i, side in enumerate(encoded):
            counts[i] += np.bincount(np.concatenate(ids[i]), minlength=len(counts[i]))
            exact[i] = exact[i] and all(encoding.exact for encoding in side)
        if progress is not None:
            progress(sum(len(part.encode("utf-8", "surrogatepass")) for part in group))
    return EncodedText(
        documents=len(documents),
        bytes=size,
        total_bytes=total,
        student_counts=counts[0],
        teacher_counts=counts[1],
        kinds=kinds,
        aligned_bytes=aligned,
        student_exact=exact[0],
        teacher_exact=exact[1],
    )


def text_statistics(
    encoded: EncodedText, student: SideClasses, teacher: SideClasses, projection: Projection
) -> TextStatistics:
    """Put the figures of a sample text together."""
    student_tokens = int(encoded.student_counts.sum())
    teacher_tokens = int(encoded.teacher_counts.sum())
    chunks = int(encoded.kinds.sum())
    return TextStatistics(
        documents=encoded.documents,
        bytes=encoded.bytes,
        total_bytes=encoded.total_bytes,
        sampled=encoded.bytes < encoded.total_bytes,
        student_tokens=student_tokens,
        teacher_tokens=teacher_tokens,
        student_tokens_per_byte=student_tokens / encoded.bytes,
        teacher_tokens_per_byte=teacher_tokens / encoded.bytes,
        reach_share=_share(encoded.student_counts, projection.indices[:, 0] >= 0),
        exact_share=_share(encoded.student_counts, student.exact),
        teacher_exact_share=_share(encoded.teacher_counts, teacher.exact),
        byte_coverage=encoded.aligned_bytes / encoded.bytes,
        chunks={kind: int(count) for kind, count in zip(KINDS, encoded.kinds, strict=True)},
        one_to_one_share=float(encoded.kinds[0]) / max(chunks, 1),
        student_encodes_exactly=encoded.student_exact,
        teacher_encodes_exactly=encoded.teacher_exact,
        frequent_inexact=_frequent(encoded.student_counts, student, projection),
    )


def _share(counts: np.ndarray, chosen: np.ndarray) -> float:
    return float(counts[chosen].sum()) / max(int(counts.sum()), 1)


def _frequent(
    counts: np.ndarray, student: SideClasses, projection: Projection
) -> tuple[FrequentToken, ...]:
    """Return the text's most used student tokens without exact partner, most used first."""
    ids = np.flatnonzero((counts > 0) & ~student.exact & ~student.vocab.is_special)
    ids = ids[np.lexsort((ids, -counts[ids]))][:FREQUENT]
    total = int(counts.sum())
    found = []
    for token in ids.tolist():
        row = projection.explain(token)
        found.append(
            FrequentToken(
                student_id=token,
                text=printable(row.bytes),
                count=int(counts[token]),
                share=float(counts[token]) / total,
                class_key=student.keys[student.class_of[token]],
                kind=row.kind,
                pieces=tuple((_name(piece), piece.weight) for piece in row.pieces),
            )
        )
    return tuple(found)


def _name(piece: Piece) -> str:
    return printable(piece.bytes) if piece.bytes else f"<{'/'.join(piece.roles)}>"
