"""BPM: the teacher's mass on the longest student token that begins each teacher token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from xtoken.errors import LossError
from xtoken.losses.base import Direction, LossResult
from xtoken.losses.columns import PickColumns, pick, places
from xtoken.losses.divergence import divergence
from xtoken.losses.events import rest_terms
from xtoken.losses.loss import Loss
from xtoken.losses.pooling import Rows
from xtoken.losses.projector import Projector
from xtoken.projection import Projection
from xtoken.projection.rules import (
    exact_targets,
    longest_prefix_rows,
    role_targets,
    token_bytes_list,
)

if TYPE_CHECKING:
    from xtoken.vocab import Vocabulary


def byte_prefixes(student_vocab: Vocabulary, teacher_vocab: Vocabulary) -> np.ndarray:
    """Return for each teacher id the longest student token that begins its bytes: int32[U].

    -1 where no student token does. Role tokens go to the role token that they pair with; equal
    vocabularies map each id to itself.
    """
    if student_vocab.fingerprint == teacher_vocab.fingerprint:
        return np.where(teacher_vocab.is_missing, -1, np.arange(len(teacher_vocab)))
    exact = exact_targets(teacher_vocab, student_vocab)
    roles, _ = role_targets(teacher_vocab, student_vocab)
    found = np.where(exact >= 0, exact, roles).astype(np.int32)
    rest = np.flatnonzero((exact < 0) & (teacher_vocab.byte_lengths > 0))
    found[rest] = longest_prefix_rows(student_vocab, token_bytes_list(teacher_vocab, rest))[:, 0]
    return found


class BPM(Loss):
    """Byte-prefix matching (arXiv 2607.22334), a sum over chunks at their first position.

        m[v] = sum of p_T[u] over teacher tokens u whose longest byte prefix among the student's
               tokens is v
        loss = tau^2 * sum over chunks of
               sum over these v of m log(m / p_S) + r_T log(r_T / r_S)

    with r the residual of each side: teacher tokens without a prefix, student tokens that are
    nobody's longest prefix.

    Args:
        projection: the masked ids of both sides.
        student_vocab, teacher_vocab: their tokens' bytes and roles.
        direction, temperature, jsd_beta: as for every loss.

    Metrics: `kept_mass`, the teacher's mass that maps to a student token.

    Raises:
        LossError: no teacher token maps anywhere, or a setting out of range.
        ProjectionError: a projection built for other tokenizers.
    """

    kind: ClassVar[str] = "bpm"

    plain_student_P: Tensor
    mixed_student_Y: Tensor
    rest_student_X: Tensor
    rest_teacher_X: Tensor
    student_place_V: Tensor

    def __init__(
        self,
        projection: Projection,
        student_vocab: Vocabulary,
        teacher_vocab: Vocabulary,
        *,
        direction: Direction = "teacher_to_student",
        temperature: float = 1.0,
        jsd_beta: float | None = None,
    ) -> None:
        super().__init__(
            projection.student_masked,
            projection.teacher_masked,
            temperature=temperature,
            direction=direction,
            jsd_beta=jsd_beta,
        )
        projection.check_vocabularies(student_vocab, teacher_vocab)
        # A projection the other way round, with one entry a row, does the adding up.
        prefix_U = byte_prefixes(student_vocab, teacher_vocab)
        self.projector = Projector(
            Projection.from_arrays(
                prefix_U[:, None],
                (prefix_U >= 0).astype(np.float32)[:, None],
                np.zeros(len(prefix_U), dtype=bool),
                teacher_size=self.student_size,
                student_masked=projection.teacher_masked,
                teacher_masked=projection.student_masked,
            )
        )
        if self.projector.columns == 0:
            raise LossError(
                "bpm: no teacher token begins with a student token's bytes, so there is nothing "
                "to compare; look at `xtoken audit` for this pair."
            )
        columns = self.projector.plain_teacher_P, self.projector.mixed_teacher_Y
        mapped = np.concatenate(
            [self.projector.plain_student_P.numpy(), self.projector.mixed_student_X.numpy()]
        )
        teacher_rest = ~np.asarray(projection.teacher_masked, dtype=bool)
        teacher_rest[mapped] = False
        student_rest = ~np.asarray(projection.student_masked, dtype=bool)
        student_rest[self.projector.reached_R.numpy()] = False
        parts = [*(column.numpy() for column in columns), np.flatnonzero(student_rest)]
        for name, part in zip(
            ("plain_student_P", "mixed_student_Y", "rest_student_X"), parts, strict=True
        ):
            self._keep(name, part)
        self._keep("student_place_V", places(self.student_size, parts))
        self._keep("rest_teacher_X", np.flatnonzero(teacher_rest))

    def block(self, student: Rows, teacher: Rows, state: Any = None) -> LossResult:
        """See `Loss.block`."""
        with torch.no_grad():
            teacher_CU = teacher.logp_RV
            teacher_parts = self.projector.log_project(teacher_CU)
            teacher_rest_CX = pick(teacher_CU, self.rest_teacher_X)
        *student_parts, rest_CX = PickColumns.apply(
            student.logp_RV,
            self.student_place_V,
            self.plain_student_P,
            self.mixed_student_Y,
            self.rest_student_X,
        )
        how = self.direction, self.jsd_beta
        per_chunk_C = rest_terms(teacher_rest_CX, rest_CX, *how)
        for teacher_CX, student_CX in zip(teacher_parts, student_parts, strict=True):
            per_chunk_C = per_chunk_C + divergence(teacher_CX, student_CX, *how)
        return self.result(per_chunk_C, kept_mass=1.0 - teacher_rest_CX.exp().sum(-1))
