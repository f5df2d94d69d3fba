"""Strict 1:1: KL where both models say one token, on the ids that they share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from xtoken.errors import LossError
from xtoken.losses.base import Chunks, Direction, LossResult
from xtoken.losses.columns import PickColumns, pick, places
from xtoken.losses.divergence import divergence
from xtoken.losses.events import rest_terms
from xtoken.losses.loss import Loss
from xtoken.losses.pooling import Rows

if TYPE_CHECKING:
    from xtoken.projection import Projection


class SharedIdsLoss(Loss):
    """What losses over shared ids and REST have in common."""

    shared_student_X: Tensor
    shared_teacher_X: Tensor
    rest_student_X: Tensor
    rest_teacher_X: Tensor
    student_place_V: Tensor

    def __init__(
        self,
        projection: Projection,
        *,
        direction: Direction,
        temperature: float,
        jsd_beta: float | None,
    ) -> None:
        super().__init__(
            projection.student_masked,
            projection.teacher_masked,
            temperature=temperature,
            direction=direction,
            jsd_beta=jsd_beta,
        )
        shared_student, shared_teacher = projection.exact_pairs()
        if len(shared_student) == 0:
            raise LossError(
                f"{self.kind}: the two tokenizers have no token in common "
                f"({self.student_size} student ids, {self.teacher_size} teacher ids); take loss "
                f"kind path_kl, which needs no common set."
            )
        student_rest = ~np.asarray(projection.student_masked, dtype=bool)
        teacher_rest = ~np.asarray(projection.teacher_masked, dtype=bool)
        student_rest[shared_student] = False
        teacher_rest[shared_teacher] = False
        parts = [np.asarray(shared_student), np.flatnonzero(student_rest)]
        self._keep("shared_student_X", parts[0])
        self._keep("rest_student_X", parts[1])
        self._keep("student_place_V", places(self.student_size, parts))
        self._keep("shared_teacher_X", np.asarray(shared_teacher))
        self._keep("rest_teacher_X", np.flatnonzero(teacher_rest))

    def shared(self, student_CV: Tensor, teacher_CU: Tensor) -> tuple[Tensor, Tensor]:
        """Return the divergence over shared ids and REST, and the teacher's shared mass: [C]."""
        shared_CX, rest_CX = PickColumns.apply(
            student_CV, self.student_place_V, self.shared_student_X, self.rest_student_X
        )
        with torch.no_grad():
            teacher_CX = pick(teacher_CU, self.shared_teacher_X)
            teacher_rest_CX = pick(teacher_CU, self.rest_teacher_X)
            mass_C = teacher_CX.exp().sum(-1)
        terms_C = rest_terms(teacher_rest_CX, rest_CX, self.direction, self.jsd_beta)
        return divergence(teacher_CX, shared_CX, self.direction, self.jsd_beta) + terms_C, mass_C


class Strict(SharedIdsLoss):
    """Strict 1:1 (arXiv 2610.08448), a sum over the chunks of one token on either side.

        loss = tau^2 * sum over 1:1 chunks of
               sum over shared ids of p_T log(p_T / p_S) + r_T log(r_T / r_S)

    with r the mass of all other ids of each side: without that bucket every unshared student id
    would be pushed down (X-Token's Proposition 1). Where the student has no other id, the bucket
    is left out of the default direction: it would be infinite whatever the student does. Other
    chunks are left out and not counted.

    Args:
        projection: gives the exact pairs and the masked ids.
        direction, temperature, jsd_beta: as for every loss.

    Metrics: `kept_mass`, the teacher's mass on the shared ids.

    Raises:
        LossError: no shared ids, or a setting out of range.
    """

    kind: ClassVar[str] = "strict"

    def __init__(
        self,
        projection: Projection,
        *,
        direction: Direction = "teacher_to_student",
        temperature: float = 1.0,
        jsd_beta: float | None = None,
    ) -> None:
        super().__init__(
            projection, direction=direction, temperature=temperature, jsd_beta=jsd_beta
        )

    def select(self, chunks: Chunks) -> Tensor:
        """Return which chunks are 1:1: bool[C]."""
        return (chunks.student_count_C == 1) & (chunks.teacher_count_C == 1)

    def block(self, student: Rows, teacher: Rows, state: Any = None) -> LossResult:
        """See `Loss.block`."""
        with torch.no_grad():
            teacher_CU = teacher.logp_RV
        per_chunk_C, mass_C = self.shared(student.logp_RV, teacher_CU)
        return self.result(per_chunk_C, kept_mass=mass_C)
