"""The root of Path-KL: both distributions at a chunk's start, added up by events."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from xtoken.losses.base import Direction
from xtoken.losses.divergence import divergence
from xtoken.losses.p_kl_fused import LeftOut, ProjectedKL
from xtoken.losses.parts import Which
from xtoken.losses.path_notes import Notes
from xtoken.losses.path_terms import LEAST_MASS
from xtoken.losses.paths import NONE, Paths
from xtoken.losses.pooling import Rows
from xtoken.losses.projector import Projector
from xtoken.projection import Projection

if TYPE_CHECKING:
    Picks = tuple[Tensor, Tensor]


# Above any id: a chunk and an id as one number.
ROW = 2**32


class Root(nn.Module):
    """P-KL with one entry a row (a token's event, named by a teacher id), less what has ended.

    After a whole token of one side has ended, the other side's first tokens that would have gone
    on from it don't count; nor do tokens that belong to no event. Both sides are renormalised.
    """

    dropped_X: Tensor

    def __init__(
        self,
        projection: Projection,
        student_paths: Paths,
        teacher_paths: Paths,
        direction: Direction,
        jsd_beta: float,
        temperature: float,
    ) -> None:
        super().__init__()
        self.paths: dict[Which, Paths] = {"student": student_paths, "teacher": teacher_paths}
        self.event_V, self.event_U = student_paths.root_whole, student_paths.root_split
        self.direction, self.jsd_beta, self.temperature = direction, jsd_beta, temperature
        if direction == "jsd" and jsd_beta in (0.0, 1.0):
            self.direction = "teacher_to_student" if jsd_beta == 0.0 else "student_to_teacher"
        student_masked = np.asarray(projection.student_masked, dtype=bool)
        none_V = self.event_V < 0
        self.projector = Projector(
            Projection.from_arrays(
                self.event_V[:, None],
                (~none_V).astype(np.float32)[:, None],
                np.zeros(len(none_V), dtype=bool),
                teacher_size=len(self.event_U),
                student_masked=student_masked | none_V,
                teacher_masked=projection.teacher_masked,
                teacher_fold=self.event_U.astype(np.int32),
            )
        )
        dropped = torch.from_numpy(np.flatnonzero(none_V & ~student_masked))
        self.register_buffer("dropped_X", dropped, persistent=False)
        self._cache: dict[tuple[Which, int], dict[Which, np.ndarray]] = {}

    def forward(
        self, student: Rows, teacher: Rows, notes: Notes, picks: Picks
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return divergence, teacher's mass before folding, log-sums of both, picked logits.

        The log-sums are those of the whole rows; `picks` are (row, column) of student logits.
        The rows are used up: what doesn't count may be masked in them.
        """
        student_CV, teacher_CU = student.logits_RV, teacher.logits_RV
        out_S, out_T = self._left_out(notes, student_CV.device)
        lost = [
            None if out.nothing else out.log_mass(logits.detach())
            for out, logits in ((out_S, student_CV), (out_T, teacher_CU))
        ]
        if self.direction == "teacher_to_student" and self.temperature == 1.0:
            total_C, kept_C, sum_S, sum_T, picked = ProjectedKL.apply(
                student_CV, teacher_CU, self.projector, out_S, out_T, picks,
                student.max_R, teacher.max_R,
            )  # fmt: skip
        else:
            total_C, kept_C, sum_S, sum_T = self._any(
                out_S.mask(student_CV), out_T.mask(teacher_CU)
            )
            picked = student_CV[picks]
        sums = []
        for lost_C, sum_C in zip(lost, (sum_S, sum_T), strict=True):
            if lost_C is not None:
                total_C = total_C.masked_fill(torch.sigmoid(sum_C - lost_C) < LEAST_MASS, 0.0)
                sum_C = torch.logaddexp(sum_C, lost_C)
            sums.append(sum_C)
        return total_C, kept_C, sums[0], sums[1], picked

    def _any(self, student_CV: Tensor, teacher_CU: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Do what `ProjectedKL` does, for any direction and temperature."""
        with torch.no_grad():
            sum_S, sum_T = student_CV.logsumexp(-1), teacher_CU.logsumexp(-1)
            *p_parts, folded_C = self.projector.log_fold(teacher_CU - sum_T.unsqueeze(1))
        q_parts = self.projector.log_project(student_CV.log_softmax(-1))
        p_log, q_log = torch.cat(p_parts, 1), torch.cat(q_parts, 1)
        if self.temperature != 1.0:
            p_log = (p_log / self.temperature).log_softmax(-1)
            q_log = (q_log / self.temperature).log_softmax(-1)
        return divergence(p_log, q_log, self.direction, self.jsd_beta), 1 - folded_C, sum_S, sum_T

    # ------------------------------------------------------------------ what doesn't count

    def _left_out(self, notes: Notes, device: torch.device) -> tuple[LeftOut, LeftOut]:
        """Return what of student and teacher doesn't count at the roots of a block."""
        entries: dict[Which, list[np.ndarray]] = {"student": [], "teacher": []}
        for side in self.paths:
            for c, token in enumerate(notes.before[side]):
                if token != NONE:
                    for other, gone in self._going_on(side, token).items():
                        entries[other].append(c * ROW + gone)
        found = []
        for other, columns_X in (
            ("student", self.dropped_X),
            ("teacher", self.projector.unfolded_X),
        ):
            keys = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *entries[other]]))
            row, token = torch.from_numpy(np.stack([keys // ROW, keys % ROW])).to(device)
            found.append(LeftOut(row, token, columns_X))
        return found[0], found[1]

    def _going_on(self, side: Which, token: int) -> dict[Which, np.ndarray]:
        """Return what doesn't count after a whole token of `side` has ended, on either side.

        The other side's tokens that go on from it; and, where that leaves an event without any
        token on the side that KL divides by, what this side has of the event: KL would be
        infinite. (Tokens without an event don't count anyway.)
        """
        if (side, token) in self._cache:
            return self._cache[side, token]
        mine, theirs = self.event_V, self.event_U
        other: Which = "teacher"
        if side == "teacher":
            mine, theirs, other = theirs, mine, "student"
        gone = self.paths[side].node(self.paths[side].path[token]).split
        gone = gone[theirs[gone] >= 0]
        found: dict[Which, np.ndarray] = {other: gone}
        divisor = {"teacher_to_student": "student", "student_to_teacher": "teacher"}
        if divisor.get(self.direction) == other:
            left = np.bincount(theirs[theirs >= 0], minlength=len(self.event_U))
            left -= np.bincount(theirs[gone], minlength=len(left))
            events = np.unique(theirs[gone])
            found[side] = np.flatnonzero(np.isin(mine, events[left[events] == 0]))
        self._cache[side, token] = found
        return found
