"""P-KL: project the student's distribution onto the teacher's vocabulary, then KL."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from xtoken.errors import LossError
from xtoken.losses.base import Direction, LossResult, Pooling, Support
from xtoken.losses.checks import check_choice, check_top_k
from xtoken.losses.divergence import divergence
from xtoken.losses.loss import MASKED, Loss, mass_metric
from xtoken.losses.pooling import POOLINGS, Rows, rest_log_prob, segment_mean
from xtoken.losses.projector import Projector

if TYPE_CHECKING:
    from xtoken.projection import Projection

SUPPORTS: tuple[Support, ...] = ("full", "reached", "topk_rest", "topk_batch")
# Teacher ids of a position beyond these carry under a percent of its mass on ordinary text.
DEFAULT_TOP_K = 64
# (code): ids kept for a whole batch.
DEFAULT_BATCH_TOP_K = 8192
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
            `topk_batch`: the k reached ids with the largest teacher logit anywhere in the batch,
            both sides renormalised; depends on how a batch is split (for comparison only).
        top_k: k of the two top-k supports; 64 for `topk_rest`, 8192 for `topk_batch`.
        jsd_beta: mixture weight under `jsd` (0.5).

    Metrics: `kept_mass`, the teacher's mass at the first position on the ids that W reaches
    (`full`, `reached`), or on the chosen k (`topk_rest`, `topk_batch`).

    Raises:
        LossError: a setting out of range, one that would be ignored, or a W that reaches
            nothing.
    """

    kind: ClassVar[str] = "p_kl"
    poolings: ClassVar[tuple[Pooling, ...]] = POOLINGS

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
    ) -> None:
        super().__init__(
            projection.student_size,
            projection.teacher_size,
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
        default = DEFAULT_TOP_K if support == "topk_rest" else DEFAULT_BATCH_TOP_K
        self.top_k = min(top_k or default, self.projector.columns)

    def prepare(self, teacher_blocks: Iterable[Rows]) -> Tensor | None:
        """Return the columns of `topk_batch`: int64[k], ascending; None for other supports."""
        if self.support != "topk_batch":
            return None
        best_U: Tensor | None = None
        for block in teacher_blocks:
            self.check_rows(block.logits_RV, "teacher_logits_MU")
            block_U = block.logits_RV.amax(0)
            best_U = block_U if best_U is None else torch.maximum(best_U, block_U)
        if best_U is None:
            return None
        best_R = best_U[self.projector.reached_R]
        # Stable, so that of equal logits the lower ids are kept whatever the device.
        order_R = torch.sort(best_R, descending=True, stable=True).indices
        return order_R[: self.top_k].sort().values

    def block(self, student: Rows, teacher: Rows, state: Any = None) -> LossResult:
        """See `Loss.block`; `state` is what `prepare` returned."""
        q_log_CR = self._student(student, state)
        p_log_CR, kept_CR = self._teacher(teacher, state)
        if self.support == "topk_rest":
            q_log_CR, p_log_CR, kept_CR = self._top_k_rest(q_log_CR, p_log_CR, kept_CR)
        per_chunk_C = divergence(p_log_CR, q_log_CR, self.direction, self.jsd_beta)
        count = per_chunk_C.new_tensor(float(per_chunk_C.shape[0]))
        return LossResult(
            self.scale(per_chunk_C), count, {"kept_mass": mass_metric(kept_CR.sum(-1))}
        )

    def project(self, p_CV: Tensor) -> Tensor:
        """Return W^T p on the reached ids; learned W puts its own weights here."""
        return self.projector.project(p_CV)

    def _student(self, rows: Rows, columns: Tensor | None) -> Tensor:
        """Return log q of each chunk on the support's columns: [C, R]."""
        projector = self.projector
        logp_RV = self.log_probs(rows, projector.student_masked_X, "student_logits_NV")
        if self.pooling == "mean":
            # The projection is linear: the mean first, then one projection a chunk.
            p_CV = segment_mean(logp_RV.exp(), rows)
        else:
            p_CV = rows.first(logp_RV).exp()
        q_CR = self.project(p_CV)
        if columns is not None:
            q_CR = q_CR.index_select(1, columns)
        if self.pooling == "mean":
            return (q_CR / (q_CR.sum(-1, keepdim=True) + MEAN_EPSILON) + MEAN_EPSILON).log()
        if self.support in ("reached", "topk_batch"):
            q_CR = q_CR / q_CR.sum(-1, keepdim=True)
        q_log_CR = q_CR.clamp_min(torch.finfo(q_CR.dtype).tiny).log()
        if self.pooling == "chain_rule":
            q_log_CR = q_log_CR + rest_log_prob(logp_RV, rows).unsqueeze(1)
        return q_log_CR

    @torch.no_grad()
    def _teacher(self, rows: Rows, columns: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return log p of each chunk on the columns, and p there before folding: [C, R] both."""
        projector = self.projector
        logp_RU = self.log_probs(rows, projector.teacher_masked_X, "teacher_logits_MU")
        if self.pooling == "first":
            logp_RU = rows.first(logp_RU)
        support_RR, kept_RR = self._on_support(logp_RU, columns)
        kept_CR = rows.first(kept_RR).exp()
        if self.pooling == "mean":
            return segment_mean(support_RR, rows), kept_CR
        p_log_CR = rows.first(support_RR)
        if self.pooling == "chain_rule":
            p_log_CR = p_log_CR + rest_log_prob(logp_RU, rows).unsqueeze(1)
        return p_log_CR, kept_CR

    def _on_support(self, logp_RU: Tensor, columns: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return log p on the columns, summing to one a row, and log p there before folding."""
        reached_R = self.projector.reached_R
        if columns is not None:
            reached_R = reached_R[columns]
        kept_RR = logp_RU.index_select(1, reached_R)
        if self.support in ("reached", "topk_batch"):
            return kept_RR - kept_RR.logsumexp(-1, keepdim=True), kept_RR
        folded_RR = self.projector.fold(logp_RU.exp())
        total_R = folded_RR.sum(-1, keepdim=True)
        log_RR = (folded_RR / total_R).log().clamp_min(MASKED)
        return log_RR, kept_RR

    def _top_k_rest(
        self, q_log_CR: Tensor, p_log_CR: Tensor, kept_CR: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Keep the k heaviest ids of each chunk's p and add one bucket with the rest."""
        tiny = torch.finfo(q_log_CR.dtype).tiny
        top_log_CK, top_CK = p_log_CR.topk(self.top_k, dim=-1)
        # The rest is summed, not one minus the top: it has to be exactly 0 when k is all.
        p_rest_C = p_log_CR.exp().scatter(1, top_CK, 0.0).sum(-1, keepdim=True)
        q_rest_C = q_log_CR.exp().scatter(1, top_CK, 0.0).sum(-1, keepdim=True)
        p_log = torch.cat([top_log_CK, p_rest_C.log().clamp_min(MASKED)], dim=-1)
        q_log = torch.cat([q_log_CR.gather(1, top_CK), q_rest_C.clamp_min(tiny).log()], dim=-1)
        return q_log, p_log, kept_CR.gather(1, top_CK)
