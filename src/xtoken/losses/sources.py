"""Where a loss's logit rows come from, and where their gradient goes.

A source is opened for a set of rows, gives their logits, and takes the gradient of these logits
back before the next set is opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Source(Protocol):
    """Logits, or hidden states with an output head."""

    inputs: list[Tensor]  # the tensors that may want a gradient
    whole: bool  # logits are there as a whole: opened once, for all rows

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns of the logits (whatever they are: `Loss.check` judges)."""
        ...

    def buffers(self, wanted: Sequence[bool], once_N: Tensor | None) -> list[Tensor | None]:
        """Return a gradient buffer for each input that wants one.

        `once_N`: the rows whose gradient will be written, each once; None: added to zeros.
        """
        ...

    def open(self, index_R: Tensor, size: int, *, keep: bool) -> Tensor:
        """Return the first `size` logits of these rows (all rows if `whole`), no gradient.

        `keep`: `close` will be called with their gradient.
        """
        ...

    def close(self, buffers: list[Tensor | None], index_R: Tensor, gradient_RV: Tensor) -> None:
        """Add what the gradient of the opened rows means for the inputs to their buffers."""
        ...


class LogitSource:
    """Logits that are there as a whole; their gradient is written straight into its buffer."""

    whole = True

    def __init__(self, logits_NV: Tensor) -> None:
        self.inputs = [logits_NV]

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns."""
        return tuple(self.inputs[0].shape)

    def buffers(self, wanted: Sequence[bool], once_N: Tensor | None) -> list[Tensor | None]:
        """Return a buffer of the logits' own shape and precision.

        Where each row is written once, only the others are set to zero: a pass over a tensor of
        this size costs about as much as the loss's own softmax.
        """
        if not wanted[0]:
            return [None]
        logits_NV = self.inputs[0]
        if once_N is None:
            return [torch.zeros_like(logits_NV)]
        unread_N = torch.ones(logits_NV.shape[0], dtype=torch.bool, device=logits_NV.device)
        unread_N[once_N] = False
        return [torch.empty_like(logits_NV).index_fill_(0, unread_N.nonzero().squeeze(1), 0.0)]

    def open(self, index_R: Tensor, size: int, *, keep: bool) -> Tensor:
        """Return a view of all rows."""
        return self.inputs[0].detach()[:, :size]

    def close(self, buffers: list[Tensor | None], index_R: Tensor, gradient_RV: Tensor) -> None:
        """Do nothing: the gradient is in its place already."""


def write_rows(buffer_NV: Tensor, index_R: Tensor, gradient_RV: Tensor, *, once: bool) -> None:
    """Write rows of a gradient (each once; columns beyond it become 0), or add to them."""
    size = gradient_RV.shape[1]
    gradient_RV = gradient_RV.to(buffer_NV.dtype)
    if not once:
        buffer_NV[:, :size].index_add_(0, index_R, gradient_RV)
        return
    buffer_NV[:, :size].index_copy_(0, index_R, gradient_RV)
    if buffer_NV.shape[1] > size:
        buffer_NV[:, size:].index_fill_(0, index_R, 0.0)


def as_source(rows: Tensor | Source) -> Source:
    """Return logits as a source; a source stays what it is."""
    return LogitSource(rows) if isinstance(rows, Tensor) else rows
