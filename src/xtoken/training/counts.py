"""What one optimizer step divides by: counts over the accumulation window and all ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

IGNORED = -100


@dataclass(frozen=True)
class Counts:
    """Global numbers of supervised tokens, and of supervised chunks for each teacher.

    The Trainer hands this through as `num_items_in_batch`.
    """

    tokens: float
    chunks: tuple[float, ...]

    @property
    def total_chunks(self) -> float:
        """Chunks of all teachers together."""
        return sum(self.chunks)


def next_targets(labels_BS: Tensor) -> Tensor:
    """Return targets_N (int64[B * S]): row b * S + s holds the label of position s + 1.

    A row's last position predicts nothing inside the row, so its target is -100.
    """
    targets_BS = torch.full_like(labels_BS, IGNORED)
    targets_BS[:, :-1] = labels_BS[:, 1:]
    return targets_BS.reshape(-1)


ChunkCounter = Callable[[Mapping[str, Any], int], Tensor | int]


def local_counts(
    batches: Sequence[Mapping[str, Any]], teachers: int, count_chunks: ChunkCounter
) -> Tensor:
    """Return float64[1 + teachers] on the CPU: this rank's tokens, then chunks a teacher."""
    counts = torch.zeros(1 + teachers, dtype=torch.float64)
    for batch in batches:
        counts[0] += int((batch["labels"][:, 1:] != IGNORED).sum())
        for index in range(teachers):
            counts[1 + index] += int(count_chunks(batch, index))
    return counts


def drop_examples(batch: dict[str, Any], keep_B: Tensor) -> dict[str, Any]:
    """Return the batch with the examples where `keep_B` is False left out of every loss.

    Their labels become -100 and their chunks go; the tensors keep their shapes, so ranks stay
    in step. Used for the examples that a sampler repeats to give all ranks equal batches.
    """
    batch = dict(batch)
    columns = batch["input_ids"].shape[1]
    keep_B = keep_B.to(batch["labels"].device)
    batch["labels"] = torch.where(keep_B[:, None], batch["labels"], IGNORED)
    batch["teachers"] = [dict(part) for part in batch["teachers"]]
    for part in batch["teachers"]:
        chunks = part["chunks"]
        owner_C = torch.div(chunks[:, 0], columns, rounding_mode="floor")
        part["chunks"] = chunks[keep_B.to(chunks.device)[owner_C]]
    return batch
