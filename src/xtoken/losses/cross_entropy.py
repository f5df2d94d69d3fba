"""The student's own next-token cross-entropy, as a sum and a count."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import nll_loss

from xtoken.errors import LossError
from xtoken.losses.base import Chunks, LossResult
from xtoken.losses.blocks import Term, run_terms
from xtoken.losses.loss import Loss
from xtoken.losses.pooling import Rows
from xtoken.losses.sources import Source, as_source

IGNORED = -100


class CrossEntropy(Loss):
    """-sum of log softmax(logits)[target], as a loss without a teacher.

    Each supervised row is a chunk of one student token; see `target_chunks`.
    """

    kind: ClassVar[str] = "cross_entropy"
    # A label that the model excludes costs what it costs elsewhere: infinity.
    floors: ClassVar[bool] = False

    def __init__(self, vocabulary_size: int) -> None:
        super().__init__(np.zeros(vocabulary_size, dtype=bool), np.zeros(0, dtype=bool))

    def block(self, student: Rows, teacher: Any, state: Any = None) -> LossResult:
        """See `Loss.block`."""
        return self.result(nll_loss(student.logp_RV, student.target_R, reduction="none"))


def target_chunks(targets_N: Tensor) -> Chunks:
    """Return a chunk for each row whose target is not -100."""
    start_C = (targets_N != IGNORED).nonzero().squeeze(1)
    count_C = torch.ones_like(start_C)
    return Chunks(start_C, count_C, start_C, count_C, targets_N, targets_N)


def cross_entropy_term(
    student: Tensor | Source,
    targets_N: Tensor,
    *,
    weight: float = 1.0,
    vocabulary_size: int | None = None,
) -> Term:
    """Return cross-entropy as one of several losses on a student, for `run_terms`.

    Arguments and errors as for `cross_entropy`; `weight` is its factor in the total.
    """
    shape = as_source(student).shape
    if len(shape) != 2 or targets_N.shape != shape[:1]:
        raise LossError(
            f"cross_entropy: logits_NV has shape {tuple(shape)} and targets_N "
            f"{tuple(targets_N.shape)}; expected [N, V] and [N] (targets already shifted: row r "
            f"predicts targets_N[r])."
        )
    columns = int(shape[1]) if vocabulary_size is None else vocabulary_size
    if columns > shape[1]:
        raise LossError(
            f"cross_entropy: vocabulary_size is {vocabulary_size}, but logits_NV has only "
            f"{shape[1]} columns."
        )
    if targets_N.dtype != torch.int64:
        raise LossError(f"cross_entropy: targets_N is {targets_N.dtype}; expected torch.int64.")
    bad_N = (targets_N != IGNORED) & ((targets_N < 0) | (targets_N >= columns))
    if bool(bad_N.any()):
        row = int(bad_N.nonzero()[0, 0])
        raise LossError(
            f"cross_entropy: targets_N holds {int(bad_N.sum())} ids that the vocabulary doesn't "
            f"have; row {row} holds {int(targets_N[row])}. Ids of 0 to {columns - 1} were "
            f"expected, or {IGNORED} where none is supervised."
        )
    return Term(CrossEntropy(columns), target_chunks(targets_N), None, weight)


def cross_entropy(
    student: Tensor | Source, targets_N: Tensor, *, vocabulary_size: int | None = None
) -> LossResult:
    """Return -sum of log softmax(logits)[target] over rows whose target is not -100.

    Args:
        student: logits, float[N, V or more] (maths is float32 or wider), or `Hidden`.
        targets_N: int64[N], the id that each row predicts, -100 where none is supervised.
        vocabulary_size: leave out the columns from here on (padded rows of a head); None keeps
            all, as the model's own training did.

    Returns:
        `total` in float32 (float64 for float64 logits), `count` = supervised rows.

    Raises:
        LossError: shapes or types that don't fit, ids outside the vocabulary, or rows without a
            finite logit.
    """
    source = as_source(student)
    term = cross_entropy_term(source, targets_N, vocabulary_size=vocabulary_size)
    total, (result,) = run_terms(source, [term])
    return LossResult(total, result.count, result.metrics)
