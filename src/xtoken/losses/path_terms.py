"""Events at nodes of paths: gathers of few logits and sums over few groups."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from xtoken.losses.columns import floor_of
from xtoken.losses.parts import Which
from xtoken.losses.path_notes import Notes
from xtoken.losses.paths import Paths
from xtoken.losses.pooling import MASKED, Rows

# A node on which either side keeps less mass than this is skipped.
LEAST_MASS = 1e-6


@dataclass(frozen=True)
class Terms:
    """Nodes visited in a block along one side's paths, laid end to end.

    X nodes; E slots: the events of each, and its REST where that counts.

    Attributes:
        chunk_X: the chunk of each node.
        later_X: the row after the node's last token, among the split side's later rows.
        picks: (chunk, whole token) of the whole tokens whose paths pass a node, with whole_slot.
        split_term, split_token, split_slot: split tokens of events, with their node and slot.
        slot_term_E: the node of each slot.
        rest_term, rest_slot: the nodes whose REST counts, and its slots.
    """

    chunk_X: Tensor
    later_X: Tensor
    picks: tuple[Tensor, Tensor]
    whole_slot: Tensor
    split_term: Tensor
    split_token: Tensor
    split_slot: Tensor
    slot_term_E: Tensor
    rest_term: Tensor
    rest_slot: Tensor

    @classmethod
    def of(cls, notes: Notes, side: Which, paths: Paths, whole: Rows, split: Rows) -> Terms:
        """Find the nodes that the block's chunks pass, and lay their events end to end."""
        nodes, chunks, depths = notes.nodes(side, paths, whole)
        device = whole.logits_RV.device
        chunk_X = _join([np.array(chunks)], device)
        assert split.later_start_C is not None
        later_X = split.later_start_C[chunk_X] + _join([np.array(depths)], device) - 1
        parts: dict[str, list[np.ndarray]] = {
            name: []
            for name in ("row", "token", "whole_slot", "split_term", "split_token", "split_slot",
                         "slot_term_E", "rest_term", "rest_slot")
        }  # fmt: skip
        base = 0
        for x, (node, chunk) in enumerate(zip(nodes, chunks, strict=True)):
            # Whole tokens of REST drop out where REST doesn't count.
            counts = node.ends | (node.whole_event < node.events)
            parts["row"].append(np.full(int(counts.sum()), chunk))
            parts["token"].append(node.whole[counts])
            parts["whole_slot"].append(base + node.whole_event[counts])
            parts["split_term"].append(np.full(len(node.split), x))
            parts["split_token"].append(node.split)
            parts["split_slot"].append(base + node.split_event)
            parts["slot_term_E"].append(np.full(node.events + node.ends, x))
            if node.ends:
                parts["rest_term"].append(np.array([x]))
                parts["rest_slot"].append(np.array([base + node.events]))
            base += node.events + node.ends
        found = {name: _join(arrays, device) for name, arrays in parts.items()}
        picks = found.pop("row"), found.pop("token")
        return cls(chunk_X=chunk_X, later_X=later_X, picks=picks, **found)

    @property
    def count(self) -> int:
        """X, the number of nodes."""
        return int(self.chunk_X.shape[0])

    def whole_log_mass(self, picked: Tensor, sum_C: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-mass of the slots, renormalised a node [E], and the mass before [X].

        `picked`: the whole side's logits at `picks`; `sum_C`: log sum exp of the chunks' rows.
        """
        log_E = segment_log_sum(picked, self.whole_slot, len(self.slot_term_E))
        sum_X = segment_log_sum(log_E, self.slot_term_E, self.count)
        return log_E - sum_X[self.slot_term_E], (sum_X.detach() - sum_C[self.chunk_X]).exp()

    def split_log_mass(self, later_DV: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return log-mass of the slots, renormalised a node [E], and the mass before [X]."""
        assert later_DV is not None
        logits_XV = later_DV.index_select(0, self.later_X)
        picked = logits_XV[self.split_term, self.split_token]
        log_E = segment_log_sum(picked, self.split_slot, len(self.slot_term_E))
        # REST itself, not 1 - events: it may be tiny. In place, since the rows are a copy.
        masked = logits_XV.new_tensor(MASKED)
        others_X = logits_XV.index_put_((self.split_term, self.split_token), masked).logsumexp(-1)
        log_E = log_E.index_put((self.rest_slot,), others_X[self.rest_term])
        sum_X = segment_log_sum(log_E, self.slot_term_E, self.count)
        with torch.no_grad():
            all_X = torch.logaddexp(sum_X, others_X)
            all_X[self.rest_term] = sum_X[self.rest_term]
            kept_X = (sum_X - all_X).exp()
        return log_E - sum_X[self.slot_term_E], kept_X

    def tempered(self, log_E: Tensor, temperature: float) -> Tensor:
        """Return log-masses divided by tau, renormalised a node."""
        if temperature == 1.0:
            return log_E
        log_E = log_E / temperature
        return log_E - segment_log_sum(log_E, self.slot_term_E, self.count)[self.slot_term_E]


def segment_log_sum(log_E: Tensor, bag_E: Tensor, bags: int) -> Tensor:
    """Return log sum exp over the entries of each bag: [bags]."""
    top = log_E.new_full((bags,), MASKED).scatter_reduce(0, bag_E, log_E.detach(), "amax")
    total = log_E.new_zeros(bags).index_add(0, bag_E, (log_E - top[bag_E]).exp())
    return total.clamp_min(floor_of(log_E.dtype)).log() + top


def _join(arrays: list[np.ndarray], device: torch.device) -> Tensor:
    joined = np.concatenate([np.zeros(0, dtype=np.int64), *arrays]).astype(np.int64)
    return torch.from_numpy(joined).to(device)
