"""H-KL: KL on the pairs that two vocabularies share, sorted L1 on the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from xtoken.errors import LossError
from xtoken.losses.base import Direction, LossResult, Pooling
from xtoken.losses.checks import check_top_k, check_weight
from xtoken.losses.columns import PickColumns, pick, places
from xtoken.losses.divergence import divergence
from xtoken.losses.loss import Loss
from xtoken.losses.pooling import POOLINGS, Rows, pool_log_probs
from xtoken.losses.sorted_l1 import sorted_l1

if TYPE_CHECKING:
    from xtoken.projection import Projection


class PartitionLoss(Loss):
    """A divergence on common pairs plus sorted L1 on the rest; what H-KL and GOLD share."""

    poolings: ClassVar[tuple[Pooling, ...]] = POOLINGS

    common_student_X: Tensor
    common_teacher_X: Tensor
    rest_student_X: Tensor
    rest_teacher_X: Tensor
    student_place_V: Tensor

    def __init__(
        self,
        projection: Projection,
        pairs: tuple[np.ndarray, np.ndarray],
        *,
        direction: Direction,
        temperature: float,
        pooling: Pooling,
        uld_top_k: int | None,
        jsd_beta: float | None,
    ) -> None:
        super().__init__(
            projection.student_masked,
            projection.teacher_masked,
            temperature=temperature,
            pooling=pooling,
            direction=direction,
            jsd_beta=jsd_beta,
        )
        if uld_top_k is not None:
            size = max(self.student_size, self.teacher_size)
            check_top_k(self.kind, "uld_top_k", uld_top_k, size, "the larger vocabulary")
        self.uld_top_k = uld_top_k
        if len(pairs[0]) == 0:
            raise LossError(
                f"{self.kind}: the two tokenizers have no token in common "
                f"({self.student_size} student ids, {self.teacher_size} teacher ids), so there "
                f"is nothing for KL to act on; take loss kind path_kl, which needs no common set."
            )
        for side, common, masked in (
            ("student", pairs[0], projection.student_masked),
            ("teacher", pairs[1], projection.teacher_masked),
        ):
            in_rest = ~np.asarray(masked, dtype=bool)
            in_rest[common] = False
            rest = np.flatnonzero(in_rest)
            self._keep(f"common_{side}_X", common)
            self._keep(f"rest_{side}_X", rest)
            if side == "student":
                self._keep("student_place_V", places(len(masked), [np.asarray(common), rest]))

    def weights(self) -> tuple[float, float]:
        """Return the weights of the common part and of the rest."""
        raise NotImplementedError

    def block(self, student: Rows, teacher: Rows, state: Any = None) -> LossResult:
        """See `Loss.block`."""
        with torch.no_grad():
            logp_RU = teacher.logp_RV
            teacher_first = teacher.first(logp_RU)
            teacher_CU = pool_log_probs(logp_RU, teacher, self.pooling)
            teacher_common = pick(teacher_CU, self.common_teacher_X)
            teacher_rest = pick(teacher_CU, self.rest_teacher_X).exp()
        student_common, student_rest = PickColumns.apply(
            pool_log_probs(student.logp_RV, student, self.pooling),
            self.student_place_V,
            self.common_student_X,
            self.rest_student_X,
        )
        common_C = divergence(teacher_common, student_common, self.direction, self.jsd_beta)
        rest_C = sorted_l1(student_rest.exp(), teacher_rest, self.uld_top_k)
        lambda_kl, lambda_uld = self.weights()
        return self.result(
            lambda_kl * common_C + lambda_uld * rest_C,
            kept_mass=pick(teacher_first, self.common_teacher_X).exp().sum(-1),
            common=common_C,
            rest=rest_C,
        )


class HKL(PartitionLoss):
    """H-KL of X-Token (arXiv 2605.21699), a sum over chunks.

        loss = tau^2 * sum over chunks of
               lambda_kl  * sum over common pairs (v, u) of p_T[u] (log p_T[u] - log p_S[v])
             + lambda_uld * sum_i |s_(i) - t_(i)|    over the rest, sorted descending

    Log-probabilities are the full vocabulary's, so the common part can be negative.

    Args:
        projection: gives the common pairs: exact matches, and each other student token's best
            teacher token where its weight is at least `threshold`.
        direction, temperature: as for every loss; the direction concerns the common part.
        pooling: `first`, `chain_rule`, or `mean` (of log-probabilities on both sides, as the
            public code has it).
        threshold: least weight of a pair that is not exact (0.6).
        lambda_kl, lambda_uld: weights of the two parts (1 and 1).
        uld_top_k: sort only the k largest of the rest ((code): 8192); None sorts all.
        jsd_beta: mixture weight under `jsd` (0.5).

    Metrics: `kept_mass`, the teacher's mass on the common set at the first position; `common` and
    `rest`, the two parts before their weights and tau^2.

    Raises:
        LossError: an empty common set, or a setting out of range.
    """

    kind: ClassVar[str] = "h_kl"

    def __init__(
        self,
        projection: Projection,
        *,
        direction: Direction = "teacher_to_student",
        temperature: float = 1.0,
        pooling: Pooling = "first",
        threshold: float = 0.6,
        lambda_kl: float = 1.0,
        lambda_uld: float = 1.0,
        uld_top_k: int | None = None,
        jsd_beta: float | None = None,
    ) -> None:
        check_weight(self.kind, "threshold", threshold)
        super().__init__(
            projection,
            projection.extended_pairs(threshold),
            direction=direction,
            temperature=temperature,
            pooling=pooling,
            uld_top_k=uld_top_k,
            jsd_beta=jsd_beta,
        )
        check_weight(self.kind, "lambda_kl", lambda_kl)
        check_weight(self.kind, "lambda_uld", lambda_uld)
        self.threshold = threshold
        self.lambda_kl, self.lambda_uld = float(lambda_kl), float(lambda_uld)

    def weights(self) -> tuple[float, float]:
        """Return (lambda_kl, lambda_uld)."""
        return self.lambda_kl, self.lambda_uld
