"""Diagnose a pair of tokenizers: what matches, what does not, and which loss to take."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from xtoken.audit.coverage import (
    byte_strings,
    class_rows,
    describe,
    measure_overlap,
    merge_small_scripts,
    other_digits,
    student_side,
    table_8_counts,
    teacher_side,
)
from xtoken.audit.model import (
    AuditReport,
    AuditWarning,
    ClassRow,
    FrequentToken,
    MarkRow,
    Overlap,
    RoleRow,
    Suppression,
    SuppressionRow,
    TextStatistics,
    Tokenizer,
    Verdict,
)
from xtoken.audit.ranking import RankedTeacher, Ranking, rank_teachers
from xtoken.audit.roles import compare_marks, compare_roles
from xtoken.audit.suppression import measure_suppression
from xtoken.audit.text import encode_both, text_statistics
from xtoken.audit.verdict import decide, warn
from xtoken.projection import Projection

if TYPE_CHECKING:
    from xtoken.vocab import Vocabulary

__all__ = [
    "AuditReport",
    "AuditWarning",
    "ClassRow",
    "FrequentToken",
    "MarkRow",
    "Overlap",
    "RankedTeacher",
    "Ranking",
    "RoleRow",
    "Suppression",
    "SuppressionRow",
    "TextStatistics",
    "Tokenizer",
    "Verdict",
    "audit",
    "measure_suppression",
    "rank_teachers",
    "table_8_counts",
]

MAX_TEXT_BYTES = 4 * 2**20


def audit(
    student_vocab: Vocabulary,
    teacher_vocab: Vocabulary,
    texts: str | Iterable[str] | None = None,
    *,
    projection: Projection | None = None,
    max_text_bytes: int = MAX_TEXT_BYTES,
    progress: Callable[[int], None] | None = None,
) -> AuditReport:
    """Compare two tokenizers as bytes and choose a loss for the pair.

    Args:
        student_vocab, teacher_vocab: the two tokenizers.
        texts: a sample of the text that training will see; classes are then also counted as the
            text uses them, and both encodings are aligned.
        projection: W of this pair, if it exists already (built with default rules otherwise).
        max_text_bytes: longer text is sampled evenly down to about this size, and the report
            says so.
        progress: called with the bytes of text encoded since the last call.

    Raises:
        ProjectionError: `projection` was built for other tokenizers.
        DataError: `texts` holds no text.

    Source: X-Token (arXiv 2605.21699), coverage of token classes.
    """
    if projection is None:
        projection = Projection.build(student_vocab, teacher_vocab)
    else:
        projection.check_vocabularies(student_vocab, teacher_vocab)
    same = student_vocab.same_as(teacher_vocab)
    encoded = None
    if texts is not None:
        encoded = encode_both(student_vocab, teacher_vocab, texts, max_text_bytes, progress)
    student_strings, teacher_strings = byte_strings(student_vocab), byte_strings(teacher_vocab)
    student = student_side(
        student_vocab, projection, None if encoded is None else encoded.student_counts
    )
    teacher = teacher_side(
        teacher_vocab,
        projection,
        student_strings,
        None if encoded is None else encoded.teacher_counts,
    )
    overlap = measure_overlap(student_strings, teacher_strings)
    student, teacher = merge_small_scripts(student, teacher)
    rows = class_rows(student, teacher)
    text = None
    if encoded is not None:
        text = text_statistics(encoded, student, teacher, projection)
    facts = (
        describe(student_vocab, len(student_strings)),
        describe(teacher_vocab, len(teacher_strings)),
    )
    roles = compare_roles(student_vocab, teacher_vocab, projection)
    marks = compare_marks(student_vocab, teacher_vocab)
    coverage = projection.stats()
    return AuditReport(
        student=facts[0],
        teacher=facts[1],
        same_tokenizer=same,
        verdict=decide(same, rows, overlap),
        overlap=overlap,
        coverage=coverage,
        classes=rows,
        other_digits=other_digits(student),
        roles=roles,
        marks=marks,
        warnings=warn(
            *facts,
            same=same,
            overlap=overlap,
            coverage=coverage,
            roles=roles,
            marks=marks,
            text=text,
        ),
        text=text,
    )
