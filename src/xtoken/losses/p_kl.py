"""P-KL: project the student's distribution onto the teacher's vocabulary, then KL."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from xtoken.errors import LossError
from xtoken.losses.base import Direction, LossResult, Pooling, Support
from xtoken.losses.checks import check_choice, check_top_k
from xtoken.losses.columns import floor_of, pick
from xtoken.losses.divergence import divergence
from xtoken.losses.learned import LearnedWeights
from xtoken.losses.loss import Loss
from xtoken.losses.p_kl_fused import LeftOut, ProjectedKL
from xtoken.losses.pooling import MASKED, POOLINGS, Rows, rest_log_prob, segment_mean
from xtoken.losses.projector import Projector
from xtoken.losses.top_k_fused import ListedKL
from xtoken.losses.top_k_rest import keep_top, merge_listed, rest_of

if TYPE_CHECKING:
    from xtoken.projection import Projection

Weights = Literal["fixed", "learned"]
WEIGHTS: tuple[Weights, ...] = ("fixed", "learned")
SUPPORTS: tuple[Support, ...] = ("full", "reached", "topk_rest", "topk_batch")
# Ids kept of a position; what is beyond them goes to REST.
DEFAULT_TOP_K = 64
# (code): ids kept for a whole batch.
DEFAULT_BATCH_TOP_K = 8192
# The learning rate of learned W; far above the student's.
DEFAULT_WEIGHTS_RATE = 1e-2
# (code): added inside and outside the student's renormalisation under pooling `mean`.
MEAN_EPSILON = 1e-10


class PKL(Loss):
    """P-KL of X-Token (arXiv 2605.21699), a sum over chunks.

        q[u] = sum_v W[v, u] * p_student[v]
        loss = tau^2 * sum over chunks of KL(p_teacher || q)      (or the other directions)

    Args:
        projection: W, and which ids take part.
        direction: `teacher_to_student` (default), `student_to_teacher` or `jsd`.
        temperature: tau, divides both logits.
        pooling: `first` compares the distributions at the chunk's first position.
            `chain_rule` multiplies each by the probability of its remaining realised tokens.
            `mean` follows the public code: q is the mean projected probability, renormalised on
            the columns with 1e-10 added inside and outside; p is the exponential of the mean of
            the teacher's log-probabilities (geometric, not renormalised: three confident
            positions keep a tenth of the mass; for comparison only).
        support: which teacher ids are compared.
            `full`: all ids that W reaches; the mass of the others is added to the first teacher
            piece of their first student piece; ids without one are left out.
            `reached`: the ids that W reaches, both sides renormalised on them (biased).
            `topk_rest`: the position's k heaviest ids of `full` and one bucket with the rest of
            each side: a lower bound of `full`, equal to it when k is all.
            With a `TopK` signal the ids that it lists stand for the heaviest, and what it
            doesn't list is REST even where it would fold into a listed id.
            `topk_batch`: the k reached ids with the largest teacher logit anywhere in the batch,
            both sides renormalised; depends on how a batch is split (for comparison only).
        top_k: k of the two top-k supports; 64 for `topk_rest`, 8192 for `topk_batch`.
        jsd_beta: mixture weight under `jsd` (0.5).
        weights: `fixed`, or `learned`: the loss then has parameters (`LearnedWeights`) that are
            trained with the student; give them to the optimizer with their own learning rate.

    Metrics: `kept_mass`, the teacher's mass at the first position on the ids that W reaches
    (`full`, `reached`), or on the chosen k (`topk_rest`, `topk_batch`).

    Raises:
        LossError: a setting out of range, one that would be ignored, or a W that reaches
            nothing.
    """

    kind: ClassVar[str] = "p_kl"
    poolings: ClassVar[tuple[Pooling, ...]] = POOLINGS
    signal_hint: ClassVar[str] = (
        " P-KL takes a TopK signal with support topk_rest, pooling first and temperature 1; "
        "realised log-probabilities are for alm."
    )

    def __init__(
        self,
        projection: Projection,
        *,
        direction: Direction = "teacher_to_student",
        temperature: float = 1.0,
        pooling: Pooling = "first",
        support: Support = "full",
        top_k: int | None = None,
        jsd_beta: float | None = None,
        weights: Weights = "fixed",
        weights_learning_rate: float | None = None,
    ) -> None:
        super().__init__(
            projection.student_masked,
            projection.teacher_masked,
            temperature=temperature,
            pooling=pooling,
            direction=direction,
            jsd_beta=jsd_beta,
        )
        check_choice(self.kind, "support", support, SUPPORTS)
        if top_k is not None:
            check_choice(
                self.kind, "support (top_k is given)", support, ("topk_rest", "topk_batch")
            )
            check_top_k(self.kind, "top_k", top_k, self.teacher_size, "the teacher's vocabulary")
        self.support: Support = support
        self.projector = Projector(projection)
        if self.projector.columns == 0:
            raise LossError(
                "p_kl: the projection reaches no teacher id, so there is nothing to compare; "
                "look at `xtoken audit` for this pair."
            )
        check_choice(self.kind, "weights", weights, WEIGHTS)
        self.learned = LearnedWeights(self.projector) if weights == "learned" else None
        if weights_learning_rate is not None:
            check_choice(
                self.kind, "weights (weights_learning_rate is given)", weights, ("learned",)
            )
            if not 0.0 < weights_learning_rate < float("inf"):
                raise LossError(
                    f"p_kl: weights_learning_rate is {weights_learning_rate}; expected a finite "
                    f"number above 0 (the paper's is {DEFAULT_WEIGHTS_RATE})."
                )
        self.learning_rate = weights_learning_rate or DEFAULT_WEIGHTS_RATE
        if (support, pooling, temperature) == ("topk_rest", "first", 1.0):
            self.accepts = frozenset({"dense", "topk"})
        default = DEFAULT_TOP_K if support == "topk_rest" else DEFAULT_BATCH_TOP_K
        self.top_k = min(top_k or default, self.projector.columns)

    def prepare(self, teacher_blocks: Iterable[Rows]) -> Tensor | None:
        """Return the columns of `topk_batch`: int64[k], ascending; None for other supports."""
        if self.support != "topk_batch":
            return None
        best_U: Tensor | None = None
        for block in teacher_blocks:
            block_U = block.logits_RV.amax(0)
            best_U = block_U if best_U is None else torch.maximum(best_U, block_U)
        if best_U is None:
            return None
        best_R = best_U[self.projector.reached_R]
        # Stable, so that of equal logits the same ids are kept whatever the device.
        order_R = torch.sort(best_R, descending=True, stable=True).indices
        return order_R[: self.top_k].sort().values

    def block(self, student: Rows, teacher: Rows, state: Any = None) -> LossResult:
        """See `Loss.block`; `state` is what `prepare` returned."""
        if self._fused():
            if self.support == "topk_rest":
                return self._block_listed(student, teacher, state)
            return self._block_fused(student, teacher)
        student_parts = self._student(student, state)
        with torch.no_grad():
            if self.support == "topk_rest":
                top_CK, p_log, used_CK, kept = self._top(teacher, state)
                teacher_parts = [p_log]
            else:
                teacher_parts, kept = self._teacher(teacher, state)
        if self.support == "topk_rest":
            unused = torch.nn.functional.pad(~used_CK, (0, 1))
            student_parts = [rest_of(student_parts[0], top_CK).masked_fill(unused, MASKED)]
        per_chunk_C: Tensor = torch.zeros_like(kept)
        for p_log_CX, q_log_CX in zip(teacher_parts, student_parts, strict=True):
            per_chunk_C = per_chunk_C + divergence(
                p_log_CX, q_log_CX, self.direction, self.jsd_beta
            )
        return self.result(per_chunk_C, kept_mass=kept)

    def _fused(self) -> bool:
        forward = self.direction == "teacher_to_student"
        fits = self.support in ("full", "topk_rest") and self.pooling == "first" and forward
        return fits and self.learned is None

    def _block_fused(self, student: Rows, teacher: Rows) -> LossResult:
        """Return what `block` does, for P-KL's default settings, in less time."""
        out = LeftOut.columns(self.projector.unfolded_X)
        lost_C = None if out.nothing else out.log_mass(teacher.logits_RV)
        per_chunk_C, kept_C, _, sum_C, _ = ProjectedKL.apply(
            student.logits_RV, teacher.logits_RV, self.projector, None, out, None, student.max_R,
            teacher.max_R,
        )  # fmt: skip
        if lost_C is not None:
            kept_C = kept_C * torch.sigmoid(sum_C - lost_C)
        return self.result(per_chunk_C, kept_mass=kept_C)

    def _block_listed(self, student: Rows, teacher: Rows, state: Any) -> LossResult:
        """Return the same under `topk_rest`, without forming a column of q that isn't listed."""
        with torch.no_grad():
            top_CK, p_log, used_CK, kept = self._top(teacher, state)
        per_chunk_C = ListedKL.apply(student.logits_RV, top_CK, p_log, used_CK, self.projector)
        return self.result(per_chunk_C, kept_mass=kept)

    # Measures are lists of parts whose divergences add up: [plain, mixed] columns where nothing
    # has to look across them, else one part with all columns.

    def _student(self, rows: Rows, columns: Tensor | None) -> list[Tensor]:
        """Return log q of each chunk."""
        logp_RV = rows.logp_RV
        if self.pooling == "mean":
            # The projection is linear: the mean first, then one projection a chunk.
            mean_CV = segment_mean(logp_RV.exp(), rows)
            logp_CV = mean_CV.clamp_min(floor_of(mean_CV.dtype)).log()
        else:
            logp_CV = rows.first(logp_RV)
        weight_E = None if self.learned is None else self.learned()
        parts = list(self.projector.log_project(logp_CV, weight_E))
        if self.support == "full" and self.pooling == "first":
            return parts
        q_log_CR = torch.cat(parts, dim=1)
        if columns is not None:
            q_log_CR = q_log_CR.index_select(1, columns)
        if self.pooling == "mean":
            q_CR = q_log_CR.exp()
            return [(q_CR / (q_CR.sum(-1, keepdim=True) + MEAN_EPSILON) + MEAN_EPSILON).log()]
        if self.support in ("reached", "topk_batch"):
            q_log_CR = q_log_CR.log_softmax(-1)
        if self.pooling == "chain_rule":
            q_log_CR = q_log_CR + rest_log_prob(logp_RV, rows).unsqueeze(1)
        return [q_log_CR]

    def _teacher(self, rows: Rows, columns: Tensor | None) -> tuple[list[Tensor], Tensor]:
        """Return log p of each chunk, and the mass on its columns before folding: [C].

        Under `topk_rest` the mass is left a column each, [C, R], until the k are chosen.
        """
        logp_RU = rows.logp_RV
        read_RU = rows.first(logp_RU) if self.pooling != "mean" else logp_RU
        if self.support in ("reached", "topk_batch"):
            reached = self.projector.reached_R
            kept = pick(read_RU, reached if columns is None else reached[columns])
            parts = [kept.log_softmax(-1)]
            kept = kept.exp().sum(-1)
        else:
            foldable_RU, share_R = self._foldable(read_RU)
            if self.projector.unfolded_X.numel():
                foldable_RU = foldable_RU.log_softmax(-1)
            *parts, folded_R = self.projector.log_fold(foldable_RU)
            kept = (1.0 - folded_R) * share_R
            if self.support == "topk_rest":
                kept = pick(read_RU, self.projector.reached_R).exp()
            if self.support == "topk_rest" or self.pooling != "first":
                parts = [torch.cat(parts, dim=1)]
        if self.pooling == "mean":
            return [segment_mean(parts[0], rows)], rows.first(kept)
        if self.pooling == "chain_rule":
            parts = [parts[0] + rest_log_prob(logp_RU, rows).unsqueeze(1)]
        return parts, kept

    def _foldable(self, logits_RU: Tensor) -> tuple[Tensor, Tensor | float]:
        """Return logits with ids that fold nowhere masked, and the mass of all the others."""
        unfolded_X = self.projector.unfolded_X
        if unfolded_X.numel() == 0:
            return logits_RU, 1.0
        masked_RU = logits_RU.index_fill(1, unfolded_X, MASKED)
        unfolded_R = pick(logits_RU, unfolded_X).logsumexp(-1)
        return masked_RU, torch.sigmoid(masked_RU.logsumexp(-1) - unfolded_R)

    def _top(self, rows: Rows, state: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the k columns, log p there with REST, which of them are used, and their mass.

        [C, k], [C, k + 1], bool[C, k] and, before folding where that is known, [C].
        """
        if rows.signal == "topk":
            assert rows.ids_RK is not None
            column_CK = self.projector.column_U[rows.ids_RK.clamp_min(0)]
            column_CK = column_CK.masked_fill(rows.ids_RK < 0, -1)
            top_CK, p_log, used_CK = merge_listed(column_CK, rows.logits_RV, self.top_k)
            return top_CK, p_log, used_CK, p_log[:, :-1].exp().sum(-1)
        (p_log_CR,), kept_CR = self._teacher(rows, state)
        top_CK, p_log = keep_top(p_log_CR, self.top_k)
        used_CK = torch.ones_like(top_CK, dtype=torch.bool)
        return top_CK, p_log, used_CK, kept_CR.gather(1, top_CK).sum(-1)
