"""Several teachers: which one teaches which sample, and how much.

The choice is made a sample (a sequence of the batch) at a time from what the teachers think of
that sample alone, so it doesn't depend on how a batch is split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from xtoken.errors import ConfigError
from xtoken.losses.base import Chunks
from xtoken.losses.pooling import expand_rows
from xtoken.losses.sources import Source
from xtoken.training.measures import logit_blocks


@dataclass(frozen=True)
class Selection:
    """How the teachers' static weights are redistributed over one sample.

    With w_m the static weights, W their sum and s_mb teacher m's score on sample b,

        sum     w_mb = W * w_m s_mb / sum_m' w_m' s_m'b
        best    w_mb = W for the teacher with the largest s_mb (of equal ones the first), else 0

    and the score s is, in nats over the sample's supervised chunks,

        ce        exp(-c), c = - sum of log p_T of the realised teacher tokens, divided by the
                  number of *student* tokens, which is the same for every teacher
        entropy   exp(-h), h = mean entropy of p_T at the chunks' first positions
        max_prob  mean of max p_T there

    Teachers with weight 0, or without a supervised chunk in the sample, have no part in it.

    Source: X-Token (arXiv 2605.21699), adaptive teacher weights by ce, entropy and max-prob
    (which it found a little behind static ones); the exact forms are this library's.
    """

    teachers: Literal["sum", "best"]
    criterion: Literal["ce", "entropy", "max_prob"]

    def __post_init__(self) -> None:
        if self.teachers not in ("sum", "best"):
            raise ConfigError(f"Selection.teachers is {self.teachers!r}; expected sum or best")
        if self.criterion not in ("ce", "entropy", "max_prob"):
            raise ConfigError(
                f"Selection.criterion is {self.criterion!r}; expected ce, entropy or max_prob"
            )

    def factors(self, score_MB: Tensor, weights: Sequence[float]) -> Tensor:
        """Return w_mb / w_m, what each sample's loss is multiplied by: float64[M, B].

        Args:
            score_MB: the scores; NaN where a teacher has no chunk.
            weights: the static weights, finite and not negative.
        """
        weight_M1 = torch.tensor(weights, dtype=torch.float64, device=score_MB.device)[:, None]
        open_MB = ~score_MB.isnan() & (weight_M1 > 0)
        score_MB = score_MB.double().masked_fill(~open_MB, -1.0)
        if self.teachers == "best":
            share_MB = torch.zeros_like(score_MB).scatter_(0, score_MB.argmax(0)[None], 1.0)
            share_MB = share_MB * open_MB
        else:
            # A score that underflows still has a part: it may be the only one.
            part_MB = weight_M1 * score_MB.clamp_min(1e-300) * open_MB
            share_MB = part_MB / part_MB.sum(0).clamp_min(1e-300)
        return share_MB * weight_M1.sum() / weight_M1.clamp_min(1e-300)

    @torch.no_grad()
    def score(
        self, teacher: Source, chunks: Chunks, owner_C: Tensor, samples: int, size: int
    ) -> Tensor:
        """Return a teacher's score on each sample: float64[B], NaN without a chunk.

        Args:
            teacher: its rows.
            chunks: its supervised chunks.
            owner_C: int64[C], the sample of each chunk.
            samples: B.
            size: U, the teacher's real vocabulary.
        """
        sums_B = torch.zeros(samples, dtype=torch.float64, device=owner_C.device)
        rows_R, owner_R = chunks.teacher_start_C, owner_C
        count_C = torch.ones_like(owner_C)
        if self.criterion == "ce":
            rows_R = expand_rows(chunks.teacher_start_C, chunks.teacher_count_C)
            owner_R = owner_C.repeat_interleave(chunks.teacher_count_C)
            count_C = chunks.student_count_C
        done = 0
        for rows_B, logits_BU in logit_blocks(teacher, rows_R, size):
            value_B = self._value(logits_BU.log_softmax(-1), chunks.teacher_target_M[rows_B])
            sums_B.index_add_(0, owner_R[done : done + len(rows_B)], value_B.double())
            done += len(rows_B)
        counts_B = torch.zeros_like(sums_B).index_add_(0, owner_C, count_C.double())
        mean_B = sums_B / counts_B  # 0 / 0 is NaN, as promised
        return mean_B if self.criterion == "max_prob" else (-mean_B).exp()

    def _value(self, logp_RU: Tensor, target_R: Tensor) -> Tensor:
        if self.criterion == "ce":
            return -logp_RU.gather(1, target_R[:, None]).squeeze(1)
        if self.criterion == "max_prob":
            return logp_RU.amax(-1).exp()
        return -(logp_RU.exp() * logp_RU.clamp_min(torch.finfo(logp_RU.dtype).min)).sum(-1)
