"""Weights that belong to a loss (a learned projection): trained beside the student, not in it.

They get a parameter group of their own: the loss's `learning_rate` (1e-2 if it names none), no
weight decay, no gradient clipping. They are in no wrapped module, so what DDP and the Trainer do
for a model's weights is done here: averaging gradients over ranks, zeroing, saving, resuming.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from xtoken.errors import TrainingError
from xtoken.training.objective import Objective
from xtoken.training.ranks import Ranks

FILE = "losses.safetensors"
LEARNING_RATE = 1e-2


class LossWeights:
    """The trainable weights of an objective's losses; most objectives have none."""

    def __init__(self, objective: Objective, device: torch.device) -> None:
        self.losses = [
            term.loss
            for term in objective.teachers
            if isinstance(term.loss, nn.Module) and any(True for _ in _trainable(term.loss))
        ]
        for loss in self.losses:
            loss.to(device)

    def __bool__(self) -> bool:
        return bool(self.losses)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All of them."""
        return [parameter for loss in self.losses for parameter in _trainable(loss)]

    def add_to(self, optimizer: torch.optim.Optimizer) -> None:
        """Give each loss's weights a parameter group."""
        for loss in self.losses:
            rate = float(getattr(loss, "learning_rate", LEARNING_RATE))
            optimizer.add_param_group(
                {"params": list(_trainable(loss)), "lr": rate, "weight_decay": 0.0}
            )

    def average(self, ranks: Ranks) -> None:
        """Average gradients over ranks, as DDP does for the student's."""
        if ranks.count == 1:
            return
        for parameter in self.parameters:
            # A rank whose batches had no chunk has no gradient; the others wait for its zeros.
            gradient = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
            parameter.grad = ranks.sum(gradient) / ranks.count

    def zero_grad(self) -> None:
        """Drop the gradients after an update."""
        for parameter in self.parameters:
            parameter.grad = None

    def save(self, folder: Path) -> None:
        """Write the weights of all losses into a checkpoint."""
        if self.losses:
            save_file({name: value.contiguous() for name, value in self._state()}, folder / FILE)

    def load(self, folder: Path) -> None:
        """Read them back.

        Raises TrainingError if the checkpoint has none or other ones.
        """
        if not self.losses:
            return
        path = folder / FILE
        stored = load_file(path) if path.exists() else {}
        with torch.no_grad():
            for name, value in self._state():
                if name not in stored or stored[name].shape != value.shape:
                    raise TrainingError(
                        f"checkpoint {folder} has no weights {name} of shape {tuple(value.shape)} "
                        "for the run's loss; resume with the loss settings of the run that wrote it"
                    )
                value.copy_(stored[name])

    def _state(self) -> Iterator[tuple[str, torch.Tensor]]:
        for index, loss in enumerate(self.losses):
            for name, parameter in loss.named_parameters():
                if parameter.requires_grad:
                    yield f"{index}.{name}", parameter.detach()


def _trainable(loss: Any) -> Iterator[nn.Parameter]:
    return (parameter for parameter in loss.parameters() if parameter.requires_grad)
