"""Batches that know which examples they hold, and how ranks share them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Sampler

Collator = Callable[[list[Any]], dict[str, Any]]


class IndexedDataset(Dataset):
    """A dataset whose items carry their position, so that a bad batch can be named."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return int(index), self.dataset[index]


class IndexedStream(IterableDataset):
    """The same for a dataset that can only be read in order."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        return enumerate(iter(self.dataset))


def indexed(dataset: Any) -> IndexedDataset | IndexedStream:
    """Wrap a dataset; already wrapped ones come back as they are."""
    if isinstance(dataset, IndexedDataset | IndexedStream):
        return dataset
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        return IndexedStream(dataset)
    return IndexedDataset(dataset)


class IndexedCollator:
    """Collates the examples and adds `indices` (int64[B]).

    Logging statistics become plain numbers: they never need to travel to a device.
    """

    def __init__(self, collator: Collator) -> None:
        self.collator = collator

    def __call__(self, items: Sequence[tuple[int, Any]]) -> dict[str, Any]:
        """Return the batch of these (position, example) pairs."""
        batch = self.collator([example for _, example in items])
        batch["indices"] = torch.tensor([index for index, _ in items], dtype=torch.int64)
        batch["stats"] = plain(batch.get("stats", {}))
        return batch


def plain(value: Any) -> Any:
    """Turn the tensors in nested dicts and lists into Python numbers and lists."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


class RankBatches(Sampler[list[int]]):
    """One rank's share of a dataset read in order, the same number of batches on every rank.

    Batch i goes to rank i mod ranks. A rank that would get one batch less repeats its first
    (or batch 0), which `evaluate` runs, so that collective operations match, and doesn't count.
    """

    def __init__(self, length: int, batch_size: int, rank: int, ranks: int) -> None:
        every = [
            list(range(start, min(start + batch_size, length)))
            for start in range(0, length, batch_size)
        ]
        self.batches = every[rank::ranks]
        self.real = len(self.batches)
        rounds = -(-len(every) // ranks)
        if every:
            filler = self.batches[0] if self.batches else every[0]
            self.batches += [filler] * (rounds - len(self.batches))

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


def repeated_positions(
    batch_in_epoch: int, size: int, *, batch_size: int, rank: int, ranks: int, length: int
) -> Tensor:
    """Return bool[size]: which examples of a rank's batch are the sampler's fill-up repeats.

    `accelerate` gives rank r the batches r, r + ranks, ... of an epoch and starts over from the
    first examples to make all ranks' batches equal; positions at or past `length` are those.
    """
    first = (batch_in_epoch * ranks + rank) * batch_size
    return torch.arange(first, first + size) >= length


def position_in_epoch(step: int, micro_batch: int, *, batches: int, accumulate: int) -> int:
    """Return which of an epoch's `batches` (a rank's own) a step's micro-batch is.

    `step` counts optimizer steps from the run's start; an epoch's last may hold fewer
    micro-batches than `accumulate`.
    """
    return step % -(-batches // accumulate) * accumulate + micro_batch
