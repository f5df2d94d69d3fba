"""From a chunk's positions to one distribution a chunk, on either side.

first       the distribution at the chunk's first position: the one place where both models
            have read the same bytes
chain_rule  that, times the probabilities of the chunk's remaining realised tokens
            (unnormalised); the merge of the X-Token paper and of GOLD, and the rule that TRL
            calls `observed`
mean        a mean over the chunk's positions; which mean is each loss's own (method by the
            public code of X-Token, kept for comparison)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xtoken.losses.base import Pooling, SignalKind

# Stands for -inf in front of a softmax: the probability is exactly 0, and differences of two
# masked values are 0 instead of NaN.
MASKED = -1e30

POOLINGS: tuple[Pooling, ...] = ("first", "chain_rule", "mean")


@dataclass(frozen=True)
class Rows:
    """One side's logit rows of a block of chunks, made ready for a softmax.

    Attributes:
        logits_RV: float32 or float64, cut to the vocabulary's real size and divided by the
            temperature; masked ids hold `MASKED`. All rows of the chunks in order, or the first
            row of each alone when the loss reads no more.
        start_C: int64, the chunk's first row among these.
        count_C: int64, tokens of the chunk (also where only its first row is here).
        target_R: int64, the id that each row predicts.
        note_CX: what the loss wrote down about each chunk, if it did.
        later_DV: under `path`, the rows beyond each chunk's first that the loss reads, chunk by
            chunk from later_start_C on; `logits_RV` then holds the first rows alone.
        ids_RK: of a teacher that gives its k likeliest ids: these; `logits_RV` then holds their
            log-probabilities.
        signal: what `logits_RV` holds: logits, or what else a teacher gives.
        max_R: the largest of each row of logits (known, since rows are looked at for NaN).
    """

    logits_RV: Tensor
    start_C: Tensor
    count_C: Tensor
    target_R: Tensor
    note_CX: Tensor | None = None
    later_DV: Tensor | None = None
    later_start_C: Tensor | None = None
    ids_RK: Tensor | None = None
    signal: SignalKind = "dense"
    max_R: Tensor | None = None

    @property
    def logp_RV(self) -> Tensor:
        """Log-probabilities of the rows, masked ids left out."""
        return torch.log_softmax(self.logits_RV, dim=-1)

    @property
    def chunk_R(self) -> Tensor:
        """int64[R], the chunk of each row; only where all rows of the chunks are here."""
        chunk_C = torch.arange(len(self.start_C), device=self.start_C.device)
        return chunk_C.repeat_interleave(self.count_C, output_size=self.logits_RV.shape[0])

    def first(self, value_RX: Tensor) -> Tensor:
        """Return the chunks' first rows of something that has one row a logit row."""
        if value_RX.shape[0] == self.start_C.shape[0]:
            return value_RX  # one row a chunk
        return value_RX.index_select(0, self.start_C)


def expand_rows(start_C: Tensor, count_C: Tensor) -> Tensor:
    """Return all rows of the chunks, chunk by chunk: int64[sum of counts]."""
    total = int(count_C.sum())
    before_C = count_C.cumsum(0) - count_C
    offset_C = start_C - before_C
    return offset_C.repeat_interleave(count_C, output_size=total) + torch.arange(
        total, device=start_C.device
    )


def segment_sum(value_RX: Tensor, rows: Rows) -> Tensor:
    """Return the sum over each chunk's rows: [C, ...]."""
    shape = (rows.start_C.shape[0], *value_RX.shape[1:])
    return value_RX.new_zeros(shape).index_add(0, rows.chunk_R, value_RX)


def segment_mean(value_RX: Tensor, rows: Rows) -> Tensor:
    """Return the mean over each chunk's rows: [C, ...]."""
    count_C = rows.count_C.to(value_RX.dtype)
    return segment_sum(value_RX, rows) / count_C.reshape(-1, *[1] * (value_RX.dim() - 1))


def rest_log_prob(logp_RV: Tensor, rows: Rows) -> Tensor:
    """Return each chunk's sum of log p(realised token) over its tokens after the first: [C]."""
    target_R = rows.target_R.clamp_min(0)
    realised_R = logp_RV.gather(1, target_R.unsqueeze(1)).squeeze(1)
    is_first_R = torch.zeros_like(target_R, dtype=torch.bool)
    is_first_R[rows.start_C] = True
    return segment_sum(realised_R.masked_fill(is_first_R, 0.0), rows)


def pool_log_probs(logp_RV: Tensor, rows: Rows, pooling: Pooling) -> Tensor:
    """Return one vector of log-probabilities a chunk: [C, V]; `mean` is the mean of logs."""
    if pooling == "mean":
        return segment_mean(logp_RV, rows)
    first_CV = rows.first(logp_RV)
    if pooling == "chain_rule":
        return first_CV + rest_log_prob(logp_RV, rows).unsqueeze(1)
    return first_CV
