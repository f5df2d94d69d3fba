"""Several teachers side by side, ranked for one student by what their tokenizers allow.

The order, each step deciding only where the one before is level:

1. the same tokenizer as the student's: nothing is lost;
2. reach, to a whole percent: the share of the student's tokens whose bytes the teacher can write,
   times the share of the text's bytes that align. What is out of reach can't be taught;
3. the number of task-critical classes with exact partners on both sides. A class outside is
   seen through its pieces only;
4. the share of the student's tokens with an exact partner, since those are compared id for id.

With a text tokens are weighted by how often it uses them, without one every id counts once. The
ranking says nothing about how good the teachers are as models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from xtoken.audit.classes import CRITICAL
from xtoken.audit.model import AuditReport
from xtoken.audit.verdict import critical_outside
from xtoken.errors import UsageError

RANKING_VERSION = 2

ORDER = (
    "the same tokenizer first; then the share of {what} in reach, to a percent (what is out of "
    "reach can't be taught); then the critical classes with exact partners (others go by pieces); "
    "then the share of exact tokens (compared id for id)"
)


@dataclass(frozen=True)
class RankedTeacher:
    """A teacher's place and the figures that decide it.

    `reach`, `exact_share`: shares of the student's tokens, weighted by the text where there is
    one; `critical_inside` of `critical_classes` have exact partners, `critical_outside` names the
    others. Text figures are None without a text.
    """

    rank: int
    teacher: str
    loss: str
    x_token: str | None
    same_tokenizer: bool
    reach: float
    critical_inside: int
    critical_classes: int
    critical_outside: tuple[str, ...]
    exact_share: float
    overlap_student: float
    overlap_teacher: float
    one_to_one_share: float | None
    byte_coverage: float | None
    teacher_tokens_per_byte: float | None
    suppressed_gradient: float | None
    warnings: int


@dataclass(frozen=True)
class Ranking:
    """Teachers for one student, the best first, with their audits in the same order.

    `order` says in one sentence by what they are ranked and why; `weighted_by_text` whether
    shares follow the use of tokens in a text.
    """

    student: str
    order: str
    weighted_by_text: bool
    teachers: tuple[RankedTeacher, ...]
    audits: tuple[AuditReport, ...]
    version: int = RANKING_VERSION

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values: keys as the fields, `audits` as `AuditReport.to_dict()`."""
        teachers = [asdict(teacher) for teacher in self.teachers]
        for teacher in teachers:
            teacher["critical_outside"] = list(teacher["critical_outside"])
        return {
            "version": self.version,
            "student": self.student,
            "order": self.order,
            "weighted_by_text": self.weighted_by_text,
            "teachers": teachers,
            "audits": [report.to_dict() for report in self.audits],
        }


def rank_teachers(reports: Sequence[AuditReport]) -> Ranking:
    """Rank teachers for one student from their audits (see the module for the order).

    Raises:
        UsageError: no audit, audits of several students, or some with a text and some without.
    """
    if not reports:
        raise UsageError("No audit was given; expected at least one teacher.")
    students = {report.student.fingerprint for report in reports}
    if len(students) > 1 or len({report.text is None for report in reports}) > 1:
        raise UsageError(
            "Teachers are ranked for one student on one text; the audits are of "
            f"{len(students)} students, {sum(report.text is not None for report in reports)} of "
            f"{len(reports)} with a text."
        )
    ordered = sorted(reports, key=_key)
    weighted = reports[0].text is not None
    what = "the text's tokens and bytes" if weighted else "the student's tokens"
    return Ranking(
        student=reports[0].student.name,
        order=f"Ranked by tokenizer alone: {ORDER.format(what=what)}.",
        weighted_by_text=weighted,
        teachers=tuple(_ranked(place, report) for place, report in enumerate(ordered, 1)),
        audits=tuple(ordered),
    )


def _key(report: AuditReport) -> tuple[object, ...]:
    place = _ranked(0, report)
    return (
        not place.same_tokenizer,
        -round(100 * place.reach),
        -place.critical_inside,
        -place.exact_share,
    )


def _ranked(place: int, report: AuditReport) -> RankedTeacher:
    outside = critical_outside(report.classes)
    present = [
        row for row in report.classes if row.key in CRITICAL and row.student_ids + row.teacher_ids
    ]
    text = report.text
    coverage = report.coverage
    if text is None:
        size = max(coverage["exact"] + coverage["multi_token"] + coverage["empty"], 1)
        exact, reach = coverage["exact"] / size, 1 - coverage["empty"] / size
    else:
        exact, reach = text.exact_share, text.reach_share * text.byte_coverage
    if report.same_tokenizer:
        exact = reach = 1.0
    return RankedTeacher(
        rank=place,
        teacher=report.teacher.name,
        loss=report.verdict.loss,
        x_token=report.verdict.x_token,
        same_tokenizer=report.same_tokenizer,
        reach=min(max(reach, 0.0), 1.0),
        critical_inside=len(present) - len(outside),
        critical_classes=len(present),
        critical_outside=tuple(row.title for row in outside),
        exact_share=min(exact, 1.0),
        overlap_student=report.overlap.student_share,
        overlap_teacher=report.overlap.teacher_share,
        one_to_one_share=None if text is None else text.one_to_one_share,
        byte_coverage=None if text is None else text.byte_coverage,
        teacher_tokens_per_byte=None if text is None else text.teacher_tokens_per_byte,
        suppressed_gradient=None if report.suppression is None else report.suppression.gradient,
        warnings=len(report.warnings),
    )
