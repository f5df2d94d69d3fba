"""Where a loss's logit rows come from, and where their gradient goes."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Source(Protocol):
    """Where logit rows come from: logits, or hidden states and an output head."""

    inputs: list[Tensor]  # tensors that may want a gradient

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the logits."""
        ...

    def read(self, index_R: Tensor, size: int) -> Tensor:
        """Return the first `size` logits of these rows, a copy without gradient: [R, size]."""
        ...

    def buffers(self, wanted: list[bool], index_N: Tensor) -> list[Tensor | None]:
        """Return a gradient buffer for each input that wants one; `index_N` will be read."""
        ...

    def add_gradient(
        self, buffers: list[Tensor | None], index_R: Tensor, gradient_RV: Tensor
    ) -> None:
        """Add the gradient of rows that were read (cut to the first columns) to the buffers."""
        ...


class LogitSource:
    """Logits that are there as a whole."""

    def __init__(self, logits_NV: Tensor) -> None:
        self.inputs = [logits_NV]
        self.once = False

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the logits (whatever they are: `Loss.check` judges)."""
        return tuple(self.inputs[0].shape)  # type: ignore[return-value]

    def read(self, index_R: Tensor, size: int) -> Tensor:
        """Return a copy of rows of the logits."""
        return self.inputs[0].detach()[:, :size].index_select(0, index_R)

    def buffers(self, wanted: list[bool], index_N: Tensor) -> list[Tensor | None]:
        """Return a buffer of the logits' own shape and precision.

        Where each row is read once at most, only the others are set to zero: a pass over a
        tensor of this size costs about as much as the loss's own softmax.
        """
        if not wanted[0]:
            return [None]
        logits_NV = self.inputs[0]
        unread_N = torch.ones(logits_NV.shape[0], dtype=torch.bool, device=logits_NV.device)
        unread_N[index_N] = False
        unread = unread_N.nonzero().squeeze(1)
        self.once = unread.shape[0] + index_N.shape[0] == logits_NV.shape[0]
        if not self.once:
            return [torch.zeros_like(logits_NV)]
        return [torch.empty_like(logits_NV).index_fill_(0, unread, 0.0)]

    def add_gradient(
        self, buffers: list[Tensor | None], index_R: Tensor, gradient_RV: Tensor
    ) -> None:
        """Write or add to the rows of the logits' gradient."""
        buffer = buffers[0]
        assert buffer is not None
        size = gradient_RV.shape[1]
        gradient_RV = gradient_RV.to(buffer.dtype)
        if self.once:
            buffer[:, :size].index_copy_(0, index_R, gradient_RV)
            if buffer.shape[1] > size:
                buffer[:, size:].index_fill_(0, index_R, 0.0)
        else:
            buffer[:, :size].index_add_(0, index_R, gradient_RV)
