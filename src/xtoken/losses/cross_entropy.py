"""The student's own next-token cross-entropy, as a sum and a count."""

from __future__ import annotations

import torch
from torch import Tensor

from xtoken.errors import LossError
from xtoken.losses.base import LossResult

IGNORED = -100


def cross_entropy(
    logits_NV: Tensor, targets_N: Tensor, *, vocabulary_size: int | None = None
) -> LossResult:
    """Return -sum of log softmax(logits)[target] over rows whose target is not -100.

    Args:
        logits_NV: float[N, V or more]; maths is float32 or wider.
        targets_N: int64[N], the id that each row predicts, -100 where none is supervised.
        vocabulary_size: leave out the columns from here on (padded rows of a head); None keeps
            all, as the model's own training did.

    Returns:
        `total` in float32 (float64 for float64 logits), `count` = supervised rows.

    Raises:
        LossError: shapes that don't fit.
    """
    if logits_NV.dim() != 2 or targets_N.shape != logits_NV.shape[:1]:
        raise LossError(
            f"cross_entropy: logits_NV has shape {tuple(logits_NV.shape)} and targets_N "
            f"{tuple(targets_N.shape)}; expected [N, V] and [N] (targets already shifted: row r "
            f"predicts targets_N[r])."
        )
    if vocabulary_size is not None:
        if vocabulary_size > logits_NV.shape[1]:
            raise LossError(
                f"cross_entropy: vocabulary_size is {vocabulary_size}, but logits_NV has only "
                f"{logits_NV.shape[1]} columns."
            )
        logits_NV = logits_NV[:, :vocabulary_size]
    wide = logits_NV.dtype == torch.float64
    total = torch.nn.functional.cross_entropy(
        logits_NV.to(torch.float64 if wide else torch.float32),
        targets_N,
        ignore_index=IGNORED,
        reduction="sum",
    )
    return LossResult(total, (targets_N != IGNORED).sum().to(total.dtype))
