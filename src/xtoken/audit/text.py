"""The pair on a sample text: both encodings, their alignment, what is used and not matched."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
    student: Vocabulary, teacher: Vocabulary, texts: str | Iterable[str], max_bytes: int
) -> EncodedText:
    """Encode a sample text on both sides and align it."""
    from xtoken.align import align_batch
    from xtoken.encode import encode_texts

    documents, size, total = split_texts(texts, max_bytes)
    ours = encode_texts(student, documents, bos=False, eos=False)
    theirs = encode_texts(teacher, documents, bos=False, eos=False)
    alignments = align_batch(
        student,
        teacher,
        [encoding.ids for encoding in ours],
        [encoding.ids for encoding in theirs],
        student_spans=[encoding.spans for encoding in ours],
        teacher_spans=[encoding.spans for encoding in theirs],
    )
    kinds = np.zeros(len(KINDS), dtype=np.int64)
    aligned = 0
    for alignment in alignments:
        kinds += np.bincount(alignment.kind[~alignment.is_role], minlength=len(KINDS))
        aligned += int((alignment.byte_stop - alignment.byte_start).sum())
    return EncodedText(
        documents=len(documents),
        bytes=size,
        total_bytes=total,
        student_counts=_counts(student, [encoding.ids for encoding in ours]),
        teacher_counts=_counts(teacher, [encoding.ids for encoding in theirs]),
        kinds=kinds,
        aligned_bytes=aligned,
        student_exact=all(encoding.exact for encoding in ours),
        teacher_exact=all(encoding.exact for encoding in theirs),
    )


def _counts(vocab: Vocabulary, ids: Sequence[np.ndarray]) -> np.ndarray:
    return np.bincount(np.concatenate(ids), minlength=len(vocab))


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
