"""Evaluation on held-out data: each rank takes its share, sums are added up, divided once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from xtoken.training.batches import Collator, RankBatches, indexed
from xtoken.training.combine import Combine, combined, scale_of
from xtoken.training.metrics import Sums
from xtoken.training.objective import Objective


def evaluation_loader(
    dataset: Any, collator: Collator, *, batch_size: int, rank: int, ranks: int, workers: int
) -> DataLoader:
    """Return this rank's batches of a dataset, in order, with random states left alone."""
    dataset = indexed(dataset)
    return DataLoader(
        dataset,
        batch_sampler=RankBatches(len(dataset), batch_size, rank, ranks),
        collate_fn=collator,
        num_workers=workers,
        # A loader draws a seed when it starts; from the global generator that would make
        # training depend on how often it is evaluated.
        generator=torch.Generator(),
    )


@torch.no_grad()
def run_objective(
    model: nn.Module,
    loader: DataLoader,
    objective: Objective,
    *,
    prepare: Callable[[Any], Any],
    after_batch: Callable[[], None],
) -> Sums:
    """Return the sums of every figure over a rank's batches, its filler batches left out."""
    model.eval()
    sums = Sums()
    real = getattr(loader.batch_sampler, "real", len(loader))
    for position, batch in enumerate(loader):
        parts = objective(model, prepare(batch), figures=True)
        if position < real:
            sums.merge(parts.sums)
            sums.add("examples", batch["input_ids"].shape[0], 0.0)
        after_batch()
    return sums


def with_kd(means: dict[str, float], objective: Objective) -> dict[str, float]:
    """Return the figures with `kd` = sum_m w_m kd/<teacher m> put in.

    Where teachers are chosen a sample, `kd_chosen/<teacher m>` stands for the second factor.
    """
    kind = "kd" if objective.selection is None else "kd_chosen"
    parts = [
        term.weight * means[f"{kind}/{term.name}"]
        for term in objective.teachers
        if f"{kind}/{term.name}" in means
    ]
    return {**means, "kd": sum(parts)} if parts else dict(means)


def evaluation_loss(means: dict[str, float], combine: Combine) -> float:
    """Return the training loss's formula on the evaluation's global CE and KD."""
    ce, kd = torch.tensor([means.get("ce", 0.0), means.get("kd", 0.0)], dtype=torch.float64)
    return float(combined(ce, kd, combine, scale_of(ce, kd) if combine.scaled else 1.0))
