"""Differences between two tokenizers' special tokens: roles and thinking marks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xtoken.audit.model import MarkRow, RoleRow

if TYPE_CHECKING:
    from xtoken.projection import Projection
    from xtoken.vocab import Vocabulary

ROLES = ("bos", "eos", "end_of_turn", "pad", "unk")
MARKS = ("<think>", "</think>", "<thinking>", "<reasoning>", "[THINK]", "<|channel|>")


def compare_roles(
    student: Vocabulary, teacher: Vocabulary, projection: Projection
) -> tuple[RoleRow, ...]:
    """Say for each role which tokens play it, and whether probability gets from one to the other.

    A role is paired when W sends the student's token to the teacher's, or to where the teacher's
    token folds.
    """
    rows = []
    for role in ROLES:
        student_id, teacher_id = student.role_id(role), teacher.role_id(role)
        paired = False
        if student_id is not None and teacher_id is not None:
            target = int(projection.indices[student_id, 0])
            paired = target >= 0 and target in (
                teacher_id,
                int(projection.teacher_fold[teacher_id]),
            )
        rows.append(
            RoleRow(
                role=role,
                student_id=student_id,
                student_text=_text(student, student_id),
                teacher_id=teacher_id,
                teacher_text=_text(teacher, teacher_id),
                paired=paired,
            )
        )
    return tuple(rows)


def compare_marks(student: Vocabulary, teacher: Vocabulary) -> tuple[MarkRow, ...]:
    """Say how many tokens each thinking mark takes, for marks that either side uses.

    A side uses a mark if it is one token there or stands in its chat template.
    """
    counts = [_mark_tokens(vocab) for vocab in (student, teacher)]
    rows = []
    for mark in MARKS:
        in_use = any(
            side[mark] == 1 or mark in (vocab.chat_template or "")
            for side, vocab in zip(counts, (student, teacher), strict=True)
        )
        if in_use:
            rows.append(MarkRow(mark, counts[0][mark], counts[1][mark]))
    return tuple(rows)


def _mark_tokens(vocab: Vocabulary) -> dict[str, int | None]:
    specials = {vocab.token_text(int(token)) for token in vocab.is_special.nonzero()[0]}
    pieces = vocab.tokenize_bytes([mark.encode() for mark in MARKS])
    counts: dict[str, int | None] = {}
    for mark, ids in zip(MARKS, pieces, strict=True):
        one = mark in specials or vocab.id_for_bytes(mark.encode()) is not None
        spelt = len(ids) if ids and not vocab.is_special[list(ids)].any() else None
        counts[mark] = 1 if one else spelt
    return counts


def _text(vocab: Vocabulary, token: int | None) -> str | None:
    return None if token is None else vocab.token_text(token)
