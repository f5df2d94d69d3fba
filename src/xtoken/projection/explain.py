"""What a row of a projection says, in words' reach: bytes, kind, pieces with weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from xtoken.errors import ProjectionError
from xtoken.projection.tokens import TokenTable, printable

if TYPE_CHECKING:
    from xtoken.projection.matrix import Projection

RowKind = Literal["exact", "role", "multi-token", "empty", "masked"]
TeacherKind = Literal["reached", "folded", "unreached", "masked"]


@dataclass(frozen=True)
class Piece:
    """A token on the other side and its weight in W."""

    token: int
    weight: float
    bytes: bytes
    roles: tuple[str, ...]

    @classmethod
    def of(cls, table: TokenTable, token: int, weight: float) -> Piece:
        """Look the token up in its table."""
        return cls(token, weight, table.token_bytes(token), tuple(table.roles.get(token, ())))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; `text` is the bytes with escapes, `hex` the bytes."""
        return {"id": self.token, "weight": self.weight, **_shown(self.bytes, self.roles)}


@dataclass(frozen=True)
class Explanation:
    """One student token's row: where its probability goes."""

    student_id: int
    bytes: bytes
    roles: tuple[str, ...]
    kind: RowKind
    pieces: tuple[Piece, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "student_id": self.student_id,
            "kind": self.kind,
            **_shown(self.bytes, self.roles),
            "pieces": [piece.to_dict() for piece in self.pieces],
        }


@dataclass(frozen=True)
class TeacherExplanation:
    """One teacher token's column: which student tokens give it probability.

    `kind`: `reached` (some row of W points at it), `folded` (none does; under support `full` its
    mass is added to `fold`), `unreached` (neither), `masked` (in no distribution).
    """

    teacher_id: int
    bytes: bytes
    roles: tuple[str, ...]
    kind: TeacherKind
    sources: tuple[Piece, ...]
    fold: Piece | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "teacher_id": self.teacher_id,
            "kind": self.kind,
            **_shown(self.bytes, self.roles),
            "sources": [piece.to_dict() for piece in self.sources],
            "fold": None if self.fold is None else self.fold.to_dict(),
        }


def _shown(data: bytes, roles: tuple[str, ...]) -> dict[str, Any]:
    return {"text": printable(data), "hex": data.hex(), "roles": list(roles)}


def row_kind(projection: Projection, student_id: int) -> RowKind:
    """Say what kind of row a student id has."""
    if projection.student_masked[student_id]:
        return "masked"
    if not projection.weights[student_id].any():
        return "empty"
    if projection.student_tokens is not None and student_id in projection.student_tokens.roles:
        return "role"
    return "exact" if projection.exact[student_id] else "multi-token"


def explain_row(projection: Projection, student_id: int) -> Explanation:
    """Return a student token's bytes, kind and teacher pieces with their weights."""
    student, teacher = _tables(projection)
    student.check_id(student_id, "student")
    row = zip(
        projection.indices[student_id].tolist(),
        projection.weights[student_id].tolist(),
        strict=True,
    )
    return Explanation(
        student_id=student_id,
        bytes=student.token_bytes(student_id),
        roles=tuple(student.roles.get(student_id, ())),
        kind=row_kind(projection, student_id),
        pieces=tuple(Piece.of(teacher, token, weight) for token, weight in row if weight > 0),
    )


def explain_column(projection: Projection, teacher_id: int) -> TeacherExplanation:
    """Return a teacher token's bytes and the student tokens that map to it, heaviest first."""
    student, teacher = _tables(projection)
    teacher.check_id(teacher_id, "teacher")
    rows, slots = np.nonzero((projection.indices == teacher_id) & (projection.weights > 0))
    weights = projection.weights[rows, slots]
    fold = int(projection.teacher_fold[teacher_id])
    kind: TeacherKind
    if projection.teacher_masked[teacher_id]:
        kind = "masked"
    elif projection.teacher_reached[teacher_id]:
        kind = "reached"
    else:
        kind = "folded" if fold >= 0 else "unreached"
    return TeacherExplanation(
        teacher_id=teacher_id,
        bytes=teacher.token_bytes(teacher_id),
        roles=tuple(teacher.roles.get(teacher_id, ())),
        kind=kind,
        sources=tuple(
            Piece.of(student, int(rows[i]), float(weights[i])) for i in np.lexsort((rows, -weights))
        ),
        fold=Piece.of(teacher, fold, 1.0) if fold >= 0 else None,
    )


def projection_stats(projection: Projection) -> dict[str, Any]:
    """Count rows by kind, entries a row, and how much of the teacher is reached.

    Keys: `student_size`, `teacher_size`; rows: `exact`, `role`, `multi_token`, `empty`,
    `student_masked` (they add up to `student_size`), `cut_rows` (more pieces than slots);
    `entries`, `entries_per_row`; teacher ids: `teacher_reached`, `teacher_folded`,
    `teacher_unreached`, `teacher_masked` (they add up to `teacher_size`); `common_pairs` (GOLD),
    `extended_pairs` (H-KL).
    """
    entries = (projection.weights > 0).sum(axis=1)
    special = np.zeros(projection.student_size, dtype=bool)
    if projection.student_tokens is not None:
        special[list(projection.student_tokens.roles)] = True
    filled = (entries > 0) & ~projection.student_masked
    reached = projection.teacher_reached
    folded = ~reached & (projection.teacher_fold >= 0)
    histogram = np.bincount(entries[filled])
    return {
        "student_size": projection.student_size,
        "teacher_size": projection.teacher_size,
        "exact": int((filled & projection.exact & ~special).sum()),
        "role": int((filled & special).sum()),
        "multi_token": int((filled & ~projection.exact & ~special).sum()),
        "empty": int(projection.empty_rows.sum()),
        "student_masked": int(projection.student_masked.sum()),
        "cut_rows": int(projection.rules.get("cut_rows", 0)),
        "entries": int(entries.sum()),
        "entries_per_row": {str(count): int(rows) for count, rows in enumerate(histogram) if rows},
        "teacher_reached": int(reached.sum()),
        "teacher_folded": int(folded.sum()),
        "teacher_unreached": int((~reached & ~folded & ~projection.teacher_masked).sum()),
        "teacher_masked": int(projection.teacher_masked.sum()),
        "common_pairs": len(projection.common_student),
        "extended_pairs": len(projection.extended_pairs()[0]),
    }


def _tables(projection: Projection) -> tuple[TokenTable, TokenTable]:
    if projection.student_tokens is None or projection.teacher_tokens is None:
        raise ProjectionError(
            "This projection was made from bare arrays and knows no token bytes; "
            "build it with Projection.build to explain rows."
        )
    return projection.student_tokens, projection.teacher_tokens
