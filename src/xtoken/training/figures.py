"""The figures of the steps between two logs: gathered as they come, divided when they are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from xtoken.training.counts import Counts
from xtoken.training.evaluate import with_kd
from xtoken.training.metrics import Clock, Sums, coverage, peak_memory_gib
from xtoken.training.objective import Objective
from xtoken.training.ranks import Ranks


class StepFigures:
    """Sums, tokens and seconds since the last log, on this rank."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.clock = Clock(device)
        self.restart(0)

    def restart(self, step: int) -> None:
        """Begin anew after `step`."""
        self.sums = Sums()
        self.tokens = 0
        self.since = step

    def note_batches(
        self, batches: Sequence[Mapping[str, Any]], counts: Counts, teachers: Sequence[str]
    ) -> None:
        """Take the step's tokens, chunks and alignment statistics."""
        for batch in batches:
            self.tokens += int(batch["attention_mask"].sum())
            for name, part, whole in coverage(batch["stats"], teachers):
                self.sums.add(name, part, whole)
        self.sums.add("chunks", counts.total_chunks)

    def take(self, step: int, objective: Objective, ranks: Ranks) -> dict[str, float]:
        """Return the figures up to `step`, over all ranks, and begin anew.

        Tokens a second are those of all ranks by this rank's time in steps (saving and
        evaluating are not counted); `time_*` are seconds a step.
        """
        steps = max(step - self.since, 1)
        figures = with_kd(ranks.means(self.sums), objective)
        seconds = self.clock.seconds()
        total = sum(seconds.values())
        tokens = float(ranks.sum(torch.tensor(float(self.tokens))))
        figures["tokens_per_second"] = tokens / total if total else 0.0
        figures["time_step"] = total / steps
        figures.update({f"time_{phase}": spent / steps for phase, spent in seconds.items()})
        figures["memory_gib"] = peak_memory_gib(self.device)
        self.restart(step)
        return figures


def figures_due(step: int, state: Any, args: Any) -> bool:
    """Whether agreement and the teachers' bits per byte are measured in this step.

    They cost a pass over both vocabularies, so only the steps that are logged pay for them.
    """
    if step == 1 or step >= state.max_steps:
        return True
    every = state.logging_steps if args.logging_strategy == "steps" else 10
    return step % max(int(every or 1), 1) == 0
