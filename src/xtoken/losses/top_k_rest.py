"""The k heaviest columns of a measure, and one bucket with the rest of each side."""

from __future__ import annotations

import torch
from torch import Tensor

from xtoken.losses.columns import floor_of
from xtoken.losses.pooling import MASKED


def keep_top(p_log_CR: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Return the k heaviest columns [C, k] and log p there with REST at the end [C, k + 1]."""
    top_log_CK, top_CK = p_log_CR.topk(top_k, dim=-1)
    # The rest is summed, not one minus the top: it has to be exactly 0 when k is all.
    rest_C1 = p_log_CR.exp().scatter_(1, top_CK, 0.0).sum(-1, keepdim=True)
    return top_CK, torch.cat([top_log_CK, rest_C1.log().clamp_min(MASKED)], dim=-1)


def rest_of(q_log_CR: Tensor, top_CK: Tensor) -> Tensor:
    """Return log q on the given columns with REST at the end: [C, k + 1]."""
    rest_C1 = q_log_CR.exp().scatter(1, top_CK, 0.0).sum(-1, keepdim=True)
    rest_log_C1 = rest_C1.clamp_min(floor_of(q_log_CR.dtype)).log()
    return torch.cat([q_log_CR.gather(1, top_CK), rest_log_C1], dim=-1)


def merge_listed(column_CK: Tensor, logp_CK: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return columns [C, k], log p there with REST at the end [C, k + 1], and which are used.

    Listed ids that fold into one column add up; ids without a column (-1) are left out and the
    others renormalised. REST is what the list doesn't hold. Columns that stand in for nothing
    (of merged ids, or filling up) are not used: bool[C, k].
    """
    p_CK = logp_CK.exp()
    listed_C1 = p_CK.sum(-1, keepdim=True)
    p_CK = p_CK.masked_fill(column_CK < 0, 0.0)
    rest_C1 = (1.0 - listed_C1).clamp_min(0.0)
    total_C1 = p_CK.sum(-1, keepdim=True) + rest_C1
    same_CKK = column_CK.unsqueeze(2) == column_CK.unsqueeze(1)
    earlier_KK = torch.ones(2 * (p_CK.shape[1],), dtype=torch.bool, device=p_CK.device).tril(-1)
    first_CK = ~(same_CKK & earlier_KK).any(-1) & (column_CK >= 0)
    merged_CK = (same_CKK * p_CK.unsqueeze(1)).sum(-1).masked_fill(~first_CK, 0.0)
    if top_k < merged_CK.shape[1]:
        kept_CK, place_CK = merged_CK.topk(top_k, dim=-1)
        rest_C1 = rest_C1 + (merged_CK.sum(-1, keepdim=True) - kept_CK.sum(-1, keepdim=True))
        merged_CK, first_CK = kept_CK, first_CK.gather(1, place_CK)
        column_CK = column_CK.gather(1, place_CK)
    p_log = (torch.cat([merged_CK, rest_C1.clamp_min(0.0)], dim=-1) / total_C1).log()
    return column_CK.clamp_min(0), p_log.clamp_min(MASKED), first_CK
