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
        slots_X = np.array([node.slots for node in nodes], dtype=np.int64)
        ends_X = np.array([node.ends for node in nodes], dtype=bool)
        base_X = np.cumsum(slots_X) - slots_X
        number_X = np.arange(len(nodes))
        counted = [node.counted for node in nodes]
        many_X = [len(token) for token, _ in counted]
        split_X = [len(node.split) for node in nodes]

        def on_device(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(device)

        chunk_X, depth_X = (np.array(of, dtype=np.int64) for of in (chunks, depths))
        picks = np.repeat(chunk_X, many_X), _join([token for token, _ in counted])
        whole_slot = _join([event for _, event in counted]) + np.repeat(base_X, many_X)
        split_slot = _join([node.split_event for node in nodes]) + np.repeat(base_X, split_X)
        assert split.later_start_C is not None
        chunk = on_device(chunk_X)
        return cls(
            chunk_X=chunk,
            later_X=split.later_start_C[chunk] + on_device(depth_X - 1),
            picks=(on_device(picks[0]), on_device(picks[1])),
            whole_slot=on_device(whole_slot),
            split_term=on_device(np.repeat(number_X, split_X)),
            split_token=on_device(_join([node.split for node in nodes])),
            split_slot=on_device(split_slot),
            slot_term_E=on_device(np.repeat(number_X, slots_X)),
            rest_term=on_device(number_X[ends_X]),
            rest_slot=on_device((base_X + slots_X - 1)[ends_X]),
        )

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


def _join(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype=np.int64), *arrays])
