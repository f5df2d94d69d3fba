"""Learned W: the weights of a projection's rows, trained with the student under P-KL."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from xtoken.losses.projector import Projector

if TYPE_CHECKING:
    from xtoken.projection import Projection


class LearnedWeights(nn.Module):
    """One logit for each entry of W that isn't a plain match, softmax over each row's entries.

        weight[e] = exp(logit[e]) / sum over entries of the same row of exp(logit)

    Initialised at log weight, so that training starts from the fixed W (whose rows sum to one).
    Exact rows have one entry and stay as they are. Train it with its own learning rate (1e-2 in
    the paper) and without gradient clipping. Source: X-Token (arXiv 2605.21699).

    Attributes:
        logit_E: float32 parameter, in the order of the projector's entries.
    """

    def __init__(self, projector: Projector) -> None:
        super().__init__()
        self.logit_E = nn.Parameter(projector.entry_weight_E.log())
        self.register_buffer("row_E", projector.entry_student_E.long(), persistent=False)
        self.rows = int(projector.mixed_student_X.shape[0])

    def forward(self) -> Tensor:
        """Return the weights, differentiable in the logits: float32[E]."""
        row_E: Tensor = self.row_E  # type: ignore[assignment]
        top_X = self.logit_E.detach().new_full((self.rows,), -torch.inf)
        top_X = top_X.scatter_reduce(0, row_E, self.logit_E.detach(), "amax")
        power_E = (self.logit_E - top_X[row_E]).exp()
        sum_X = power_E.new_zeros(self.rows).index_add(0, row_E, power_E)
        return power_E / sum_X[row_E]

    @torch.no_grad()
    def export(self, projection: Projection, projector: Projector) -> Projection:
        """Return the projection with the learned weights in place of its own.

        Entries keep their places: the first of a row need not be the heaviest any more.

        Args:
            projection: what the projector was made of.
            projector: gives each entry's row and slot.
        """
        weights = np.array(projection.weights, dtype=np.float32)
        row_E = projector.mixed_student_X[projector.entry_student_E.long()].cpu().numpy()
        slot_E = projector.entry_slot_E.cpu().numpy()
        weights[row_E, slot_E] = self().float().cpu().numpy()
        rules = {**projection.rules, "learned": True}
        return replace(projection, weights=weights, rules=rules)
