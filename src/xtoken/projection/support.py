"""What losses need beside W: where unreached teacher ids go, and the strict common set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xtoken.projection.rules import role_targets

if TYPE_CHECKING:
    from xtoken.vocab import Vocabulary


def teacher_rest_ids(exact_target: np.ndarray, teacher: Vocabulary) -> np.ndarray:
    """Return the teacher ids with bytes that no student token has: int64[R]."""
    matched = np.zeros(len(teacher), dtype=bool)
    matched[exact_target[exact_target >= 0]] = True
    return np.flatnonzero(~matched & (teacher.byte_lengths > 0))


def fold_targets(
    indices: np.ndarray,
    weights: np.ndarray,
    first_target: np.ndarray,
    teacher_rest: np.ndarray,
    student_pieces: np.ndarray,
    student: Vocabulary,
    teacher: Vocabulary,
) -> np.ndarray:
    """Return where a teacher id's mass goes under support `full`: int32[U], -1 = nowhere.

    `first_target` int32[V]: the first teacher piece of each student id. A reached id folds to
    itself; another to the first teacher piece of its first student piece, role tokens through
    the role token that they pair with.
    """
    fold = np.full(len(teacher), -1, dtype=np.int32)
    reached = np.zeros(len(teacher), dtype=bool)
    reached[indices[weights > 0]] = True

    # Under a reverse pass the K heaviest may leave a first piece out: the heaviest stands in.
    kept = (first_target >= 0) & reached[first_target]
    target = np.where(kept, first_target, indices[:, 0])
    first_student = np.full(len(teacher), -1, dtype=np.int32)
    first_student[teacher_rest] = student_pieces[:, 0]
    role_student, _ = role_targets(teacher, student)
    first_student = np.where(teacher.is_special, role_student, first_student)
    folded = first_student >= 0
    fold[folded] = target[first_student[folded]]
    ids = np.arange(len(teacher), dtype=np.int32)
    return np.where(reached, ids, fold).astype(np.int32)


def common_pairs(
    exact: np.ndarray, target: np.ndarray, student: Vocabulary, teacher: Vocabulary
) -> tuple[np.ndarray, np.ndarray]:
    """Make exact rows one to one: (int32[n] student ids, int32[n] teacher ids).

    Where several student ids have one target: the same kind, then the id that the student's
    tokenizer itself emits, then the lower id.
    """
    rows = np.flatnonzero(exact)
    targets = target[rows]
    counts = np.bincount(targets, minlength=len(teacher))
    keep = counts[targets] == 1
    for teacher_id in np.flatnonzero(counts > 1).tolist():
        group = np.flatnonzero(targets == teacher_id)
        keep[group[_preferred(rows[group].tolist(), teacher_id, student, teacher)]] = True
    return rows[keep].astype(np.int32), targets[keep].astype(np.int32)


def _preferred(ids: list[int], teacher_id: int, student: Vocabulary, teacher: Vocabulary) -> int:
    """Position in `ids` of the student id that stands for a teacher id in the strict partition."""
    if teacher.is_special[teacher_id]:
        chosen = int(role_targets(teacher, student)[0][teacher_id])
    else:
        data = teacher.token_bytes(teacher_id)
        same_kind = student.id_for_bytes(data, kind=teacher.kind(teacher_id))
        found = student.id_for_bytes(data) if same_kind is None else same_kind
        chosen = -1 if found is None else found
    return ids.index(chosen) if chosen in ids else 0
