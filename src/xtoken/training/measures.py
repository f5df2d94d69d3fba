"""Figures of a teacher that its logits give beside the loss, read in blocks."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from xtoken.losses.base import Chunks
from xtoken.losses.pooling import expand_rows
from xtoken.losses.sources import Source, as_source, read_rows

# Rows of logits that are turned into log-probabilities at a time.
BLOCK_ROWS = 256


def logit_blocks(source: Source, rows_R: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (rows_B, float32 logits [B, size]) of some rows, a block at a time."""
    for rows_B in rows_R.split(BLOCK_ROWS):
        yield rows_B, read_rows(source, rows_B, size).float()


@torch.no_grad()
def realised_nats(
    teacher: Tensor | Source, chunks: Chunks, byte_lengths_U: Tensor
) -> tuple[Tensor, Tensor]:
    """Return (nats, bytes) of the teacher tokens with bytes inside supervised chunks.

    nats = - sum_r log softmax(logits[r])[target[r]] over the chunks' rows, on the real
    vocabulary (`len(byte_lengths_U)` columns); bytes is the sum of those tokens' lengths.
    """
    source = as_source(teacher)
    rows_R = expand_rows(chunks.teacher_start_C, chunks.teacher_count_C)
    targets_R = chunks.teacher_target_M[rows_R]
    # An eos that closes the text has nats but no bytes.
    rows_R = rows_R[byte_lengths_U[targets_R] > 0]
    nats = torch.zeros((), dtype=torch.float64, device=rows_R.device)
    for rows_B, logits_BU in logit_blocks(source, rows_R, byte_lengths_U.shape[0]):
        targets_B = chunks.teacher_target_M[rows_B]
        realised_B = logits_BU.gather(1, targets_B[:, None]).squeeze(1)
        nats += (logits_BU.logsumexp(-1) - realised_B).sum().double()
    return nats, byte_lengths_U[chunks.teacher_target_M[rows_R]].sum()
