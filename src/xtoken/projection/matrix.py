"""The projection W: student ids to weighted teacher ids, with what losses need beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xtoken.errors import ProjectionError
from xtoken.projection.checks import check_arrays, first_difference
from xtoken.projection.explain import (
    Explanation,
    TeacherExplanation,
    explain_column,
    explain_row,
    projection_stats,
)
from xtoken.projection.tokens import TokenTable

if TYPE_CHECKING:
    from xtoken.projection.build import Rule
    from xtoken.vocab import Vocabulary

FORMAT_VERSION = 1
H_KL_THRESHOLD = 0.6


@dataclass(frozen=True, eq=False)
class Projection:
    """Sparse W of shape V x U: row s says which teacher tokens stand for student token s.

        q[u] = sum_s W[s, u] * p_student[s]

    A row sums to one, or is empty (reported by `stats`). Sizes are the tokenizers' real sizes;
    padded rows of a model's head are never in it. Source: X-Token (arXiv 2605.21699), with
    bytes in place of strings.

    Attributes:
        indices: int32[V, K], teacher ids, heaviest first, -1 = empty slot.
        weights: float32[V, K], 0 in empty slots.
        exact: bool[V], the row's one target has the same bytes or shares a role. Never inferred
            from a weight: `00` may have weight 1 on `0`.
        student_masked: bool[V], ids in no distribution: missing ids, role tokens without partner.
        teacher_masked: bool[U], the same for the teacher.
        teacher_fold: int32[U], support `full`: u itself if reached by W, else the first teacher
            piece of u's first student piece, -1 if masked or if there is none.
        common_student, common_teacher: int32[n], the strict partition: exact pairs, one to one.
        rules: how W was made (names and values).
        student_tokens, teacher_tokens: bytes and roles of both tokenizers; None only for a
            projection made from bare arrays.
    """

    indices: np.ndarray
    weights: np.ndarray
    exact: np.ndarray
    student_masked: np.ndarray
    teacher_masked: np.ndarray
    teacher_fold: np.ndarray
    common_student: np.ndarray
    common_teacher: np.ndarray
    rules: Mapping[str, Any] = field(default_factory=dict)
    student_tokens: TokenTable | None = None
    teacher_tokens: TokenTable | None = None
    version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        check_arrays(self)

    # ------------------------------------------------------------------ making one

    @classmethod
    def build(
        cls,
        student_vocab: Vocabulary,
        teacher_vocab: Vocabulary,
        max_pieces: int = 4,
        beta: float = 0.9,
        gamma: float = 0.1,
        reverse: bool = False,
        *,
        rule: Rule = "multi_token",
    ) -> Projection:
        """Build W from two vocabularies; see `xtoken.projection.build.build_projection`."""
        from xtoken.projection.build import build_projection

        return build_projection(
            student_vocab,
            teacher_vocab,
            max_pieces=max_pieces,
            beta=beta,
            gamma=gamma,
            reverse=reverse,
            rule=rule,
        )

    @classmethod
    def identity(cls, vocab: Vocabulary) -> Projection:
        """Return W = I over a vocabulary; missing ids are masked, role tokens map to themselves."""
        from xtoken.projection.build import identity_projection

        return identity_projection(vocab)

    @classmethod
    def from_arrays(
        cls,
        indices: np.ndarray,
        weights: np.ndarray,
        exact: np.ndarray,
        teacher_size: int,
        **fields: Any,
    ) -> Projection:
        """Make a projection from bare arrays, with plain defaults for everything else.

        Defaults: nothing masked, unreached teacher ids fold nowhere (-1), common pairs are the
        exact rows (the lowest student id where several share a target).
        """
        indices = np.asarray(indices, dtype=np.int32)
        weights = np.asarray(weights, dtype=np.float32)
        exact = np.asarray(exact, dtype=bool)
        if "common_student" not in fields:
            rows = np.flatnonzero(exact)
            targets, first = np.unique(indices[rows, 0], return_index=True)
            order = np.argsort(rows[first])
            fields["common_student"] = rows[first][order].astype(np.int32)
            fields["common_teacher"] = targets[order].astype(np.int32)
        if "teacher_fold" not in fields:
            fold = np.full(teacher_size, -1, dtype=np.int32)
            reached = np.unique(indices[weights > 0])
            fold[reached] = reached
            fields["teacher_fold"] = fold
        fields.setdefault("student_masked", np.zeros(len(indices), dtype=bool))
        fields.setdefault("teacher_masked", np.zeros(teacher_size, dtype=bool))
        return cls(indices, weights, exact, **fields)

    # ------------------------------------------------------------------ sizes and names

    @property
    def student_size(self) -> int:
        """V, the student tokenizer's real size."""
        return int(self.indices.shape[0])

    @property
    def teacher_size(self) -> int:
        """U, the teacher tokenizer's real size."""
        return int(self.teacher_masked.shape[0])

    @property
    def max_entries(self) -> int:
        """K, slots a row."""
        return int(self.indices.shape[1])

    @property
    def student_fingerprint(self) -> str:
        """Fingerprint of the student's vocabulary; empty when made from bare arrays."""
        return "" if self.student_tokens is None else self.student_tokens.fingerprint

    @property
    def teacher_fingerprint(self) -> str:
        """Fingerprint of the teacher's vocabulary; empty when made from bare arrays."""
        return "" if self.teacher_tokens is None else self.teacher_tokens.fingerprint

    # ------------------------------------------------------------------ what losses ask

    @cached_property
    def teacher_reached(self) -> np.ndarray:
        """bool[U]: some row of W gives this teacher id probability."""
        reached = np.zeros(self.teacher_size, dtype=bool)
        reached[self.indices[self.weights > 0]] = True
        return reached

    @cached_property
    def empty_rows(self) -> np.ndarray:
        """bool[V]: rows without an entry although the id is not masked."""
        return ~(self.weights > 0).any(axis=1) & ~self.student_masked

    def exact_pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the strict common set (GOLD): (int32[n] student ids, int32[n] teacher ids).

        One to one, ascending student ids. Where several student ids have one teacher partner
        (`A` and `<0x41>`), the one of the same kind stays, then the id that the student's
        tokenizer itself emits, then the lower id.
        """
        return self.common_student, self.common_teacher

    def extended_pairs(self, threshold: float = H_KL_THRESHOLD) -> tuple[np.ndarray, np.ndarray]:
        """Return H-KL's common set: exact pairs, and each row's best target above a weight.

        A row that is not exact joins with its heaviest teacher id when that weight is at least
        `threshold`. On collision the exact pair wins, then the heavier pair, then the lower
        student id. Returns (int32[n] student ids, int32[n] teacher ids), ascending student ids.
        """
        taken = np.zeros(self.teacher_size, dtype=bool)
        taken[self.common_teacher] = True
        best, target = np.zeros(self.student_size), np.zeros(self.student_size, dtype=np.int64)
        if self.max_entries:  # a learned W's heaviest entry may stand anywhere in its row
            slot = self.weights.argmax(axis=1)
            best = self.weights[np.arange(self.student_size), slot]
            target = self.indices[np.arange(self.student_size), slot]
        rows = np.flatnonzero(~self.exact & (best > 0) & (best >= np.float32(threshold)))
        rows = rows[~taken[target[rows]]]
        order = np.lexsort((rows, -best[rows], target[rows]))
        targets, first = np.unique(target[rows[order]], return_index=True)
        student = np.concatenate([self.common_student, rows[order][first]])
        teacher = np.concatenate([self.common_teacher, targets])
        order = np.argsort(student, kind="stable")
        return student[order].astype(np.int32), teacher[order].astype(np.int32)

    # ------------------------------------------------------------------ for people

    def explain(self, student_id: int) -> Explanation:
        """Return a student token's bytes, kind and teacher pieces with their weights."""
        return explain_row(self, student_id)

    def explain_teacher(self, teacher_id: int) -> TeacherExplanation:
        """Return a teacher token's bytes and the student tokens that map to it, heaviest first."""
        return explain_column(self, teacher_id)

    def stats(self) -> dict[str, Any]:
        """Return counts of rows by kind, entries a row, and how much of the teacher is reached."""
        return projection_stats(self)

    # ------------------------------------------------------------------ files

    def save(self, path: str | Path) -> None:
        """Write W to one safetensors file; see `xtoken.projection.store.save_projection`."""
        from xtoken.projection.store import save_projection

        save_projection(self, path)

    @classmethod
    def load(
        cls,
        path: str | Path,
        student_vocab: Vocabulary | None = None,
        teacher_vocab: Vocabulary | None = None,
    ) -> Projection:
        """Read W; a given vocabulary must be the one it was built for, else ProjectionError."""
        from xtoken.projection.store import load_projection

        return load_projection(path, student_vocab, teacher_vocab)

    def check_vocabularies(
        self,
        student_vocab: Vocabulary | None = None,
        teacher_vocab: Vocabulary | None = None,
        *,
        source: str = "the projection",
    ) -> None:
        """Raise ProjectionError if W was built for other tokenizers than the given ones."""
        for side, table, vocab in (
            ("student", self.student_tokens, student_vocab),
            ("teacher", self.teacher_tokens, teacher_vocab),
        ):
            if vocab is None or (table is not None and table.fingerprint == vocab.fingerprint):
                continue
            if table is None:
                raise ProjectionError(
                    f"{source} was made from bare arrays and names no {side} tokenizer; "
                    f"build one for {vocab.name}."
                )
            raise ProjectionError(
                f"{source} was built for the {side} tokenizer {table.name!r} "
                f"({len(table):,} ids, fingerprint {table.fingerprint[:12]}), but the {side} here "
                f"is {vocab.name!r} ({len(vocab):,} ids, fingerprint {vocab.fingerprint[:12]})"
                f"{first_difference(table, vocab)}. Build a projection for this pair, or give "
                f"the tokenizer that it was built for."
            )
