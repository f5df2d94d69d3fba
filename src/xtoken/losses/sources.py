"""Where a loss's logit rows come from, and where their gradient goes.

A source is opened for a set of rows, gives their logits, and takes the gradient of these logits
back before the next set is opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from xtoken.losses.base import SignalKind


@runtime_checkable
class Source(Protocol):
    """Logits, or hidden states with an output head."""

    signal: SignalKind  # what the rows are: logits ("dense"), or less
    inputs: list[Tensor]  # the tensors that may want a gradient
    whole: bool  # logits are there as a whole: opened once, for all rows

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns of the logits (whatever they are: `Loss.check` judges)."""
        ...

    def buffers(self, wanted: Sequence[bool]) -> list[Tensor | None]:
        """Return a gradient buffer for each input that wants one (logits': not yet filled)."""
        ...

    def open(self, index_R: Tensor, size: int, *, keep: bool) -> Tensor:
        """Return the first `size` logits of these rows (all rows if `whole`), no gradient.

        `keep`: `close` will be called with their gradient.
        """
        ...

    def close(self, buffers: list[Tensor | None], index_R: Tensor, gradient_RV: Tensor) -> None:
        """Add what the gradient of the opened rows means for the inputs to their buffers."""
        ...

    def finish(self) -> None:
        """Drop what was only needed between one set of rows and the next."""
        ...


class LogitSource:
    """Logits that are there as a whole; their gradient is written straight into its buffer."""

    signal: SignalKind = "dense"
    whole = True

    def __init__(self, logits_NV: Tensor) -> None:
        self.inputs = [logits_NV]

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns."""
        return tuple(self.inputs[0].shape)

    def buffers(self, wanted: Sequence[bool]) -> list[Tensor | None]:
        """Return memory of the logits' own shape and precision, for `RowGradient` to fill."""
        return [torch.empty_like(self.inputs[0]) if wanted[0] else None]

    def open(self, index_R: Tensor, size: int, *, keep: bool) -> Tensor:
        """Return a view of all rows."""
        return self.inputs[0].detach()[:, :size]

    def close(self, buffers: list[Tensor | None], index_R: Tensor, gradient_RV: Tensor) -> None:
        """Do nothing: the gradient is in its place already."""

    def finish(self) -> None:
        """Do nothing."""


class RowGradient:
    """The gradient of logit rows, filled block by block.

    Rows are written when they come up first, added to when they come again, and set to zero at
    the end if they never came: a pass over a tensor of this size costs about as much as a loss's
    own softmax.
    """

    def __init__(self, buffer_NV: Tensor) -> None:
        self.buffer_NV = buffer_NV
        # On a GPU a look at this mask would wait for the device; zeros are cheap there.
        self.fresh_N = torch.ones(buffer_NV.shape[0], dtype=torch.bool)
        if buffer_NV.device.type != "cpu":
            buffer_NV.zero_()
            self.fresh_N.zero_()

    def add(self, index_R: Tensor, gradient_RV: Tensor) -> None:
        """Add to rows (in any order); columns beyond the gradient's get nothing."""
        size = gradient_RV.shape[1]
        gradient_RV = gradient_RV.to(self.buffer_NV.dtype)
        if not self.fresh_N.any():
            self.buffer_NV[:, :size].index_add_(0, index_R, gradient_RV)
            return
        fresh_R = self.fresh_N[index_R]
        self.fresh_N[index_R] = False
        distinct = index_R.unique().shape[0] == index_R.shape[0]
        if distinct and bool(fresh_R.all()):
            self.buffer_NV[:, :size].index_copy_(0, index_R, gradient_RV)
            if self.buffer_NV.shape[1] > size:
                self.buffer_NV[:, size:].index_fill_(0, index_R, 0.0)
            return
        self.buffer_NV.index_fill_(0, index_R[fresh_R], 0.0)
        self.buffer_NV[:, :size].index_add_(0, index_R, gradient_RV)

    def finish(self) -> Tensor:
        """Return the whole gradient."""
        if bool(self.fresh_N.any()):
            self.buffer_NV.index_fill_(0, self.fresh_N.nonzero().squeeze(1), 0.0)
            self.fresh_N.zero_()
        return self.buffer_NV


def read_rows(source: Source, index_R: Tensor, size: int) -> Tensor:
    """Return the first `size` logits of these rows alone, without gradient: [R, size]."""
    rows = source.open(index_R, size, keep=False)
    return rows.index_select(0, index_R) if source.whole else rows


def as_source(rows: Tensor | Source) -> Source:
    """Return logits as a source; a source stays what it is."""
    return LogitSource(rows) if isinstance(rows, Tensor) else rows
