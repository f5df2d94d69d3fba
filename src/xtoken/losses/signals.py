"""What a teacher may give instead of logits: its k likeliest ids, or the realised tokens alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xtoken.errors import LossError
from xtoken.losses.base import SignalKind


class _Stored:
    """A teacher's figures as a source of rows that are there as a whole and want no gradient."""

    signal: SignalKind
    whole = True
    inputs: list[Tensor]

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns."""
        return tuple(self.inputs[0].shape)

    def buffers(self, wanted: Sequence[bool]) -> list[Tensor | None]:
        """Nothing here wants a gradient."""
        return [None]

    def open(self, index_R: Tensor, size: int, *, keep: bool) -> Tensor:
        """Return all rows."""
        return self.inputs[0].detach()

    def close(self, buffers: list[Tensor | None], index_R: Tensor, gradient_RV: Tensor) -> None:
        """Take no gradient."""

    def finish(self) -> None:
        """Do nothing."""


class TopK(_Stored):
    """The k likeliest ids of each row with their log-probabilities; the rest of 1 is REST.

    Args:
        ids_MK: int64[M, K], teacher ids, each once a row; -1 fills up rows with fewer.
        logp_MK: float[M, K], log-probabilities under the teacher's full vocabulary, at
            temperature 1.

    Raises:
        LossError: shapes or types that don't fit. What no vocabulary is needed for is found here,
            ids beyond it or twice in a row when a loss is given them.
    """

    signal: SignalKind = "topk"

    def __init__(self, ids_MK: Tensor, logp_MK: Tensor) -> None:
        if ids_MK.dim() != 2 or ids_MK.shape != logp_MK.shape:
            raise LossError(
                f"TopK: ids_MK has shape {tuple(ids_MK.shape)} and logp_MK "
                f"{tuple(logp_MK.shape)}; expected both [M, K]."
            )
        if ids_MK.dtype != torch.int64 or not logp_MK.is_floating_point():
            raise LossError(
                f"TopK: ids_MK is {ids_MK.dtype} and logp_MK {logp_MK.dtype}; expected "
                f"torch.int64 and a floating-point type."
            )
        self.ids_MK = ids_MK
        self.inputs = [logp_MK.masked_fill(ids_MK < 0, -torch.inf)]

    def check(self, loss: str, size: int) -> None:
        """Refuse ids beyond a vocabulary of `size` ids, and ids that stand in a row twice."""
        if self.ids_MK.numel() == 0:
            return
        sorted_MK = self.ids_MK.sort(dim=1).values
        twice_M = ((sorted_MK[:, 1:] == sorted_MK[:, :-1]) & (sorted_MK[:, 1:] >= 0)).any(1)
        if int(sorted_MK[:, 0].min()) < -1:
            raise LossError(
                f"{loss}: the teacher's TopK signal holds id {int(sorted_MK.min())}; expected ids "
                f"of its vocabulary, or -1 to fill up."
            )
        if int(sorted_MK[:, -1].max()) >= size:
            raise LossError(
                f"{loss}: the teacher's TopK signal holds id {int(sorted_MK.max())}; its "
                f"vocabulary has {size} ids. Was it stored for another teacher?"
            )
        if bool(twice_M.any()):
            row = int(twice_M.nonzero()[0, 0])
            raise LossError(
                f"{loss}: the teacher's TopK signal has an id twice in {int(twice_M.sum())} rows, "
                f"the first of them row {row}: {self.ids_MK[row].tolist()[:16]}. Each once was "
                f"expected (-1 fills up)."
            )


class Realised(_Stored):
    """The log-probability of the token that each row predicts, and nothing else.

    Args:
        logp_M: float[M]; rows of no token may hold anything.

    Raises:
        LossError: not one number a row, or not of a floating-point type.
    """

    signal: SignalKind = "realised"

    def __init__(self, logp_M: Tensor) -> None:
        if logp_M.dim() != 1:
            raise LossError(
                f"Realised: logp_M has shape {tuple(logp_M.shape)}; expected [M], one number a row."
            )
        if not logp_M.is_floating_point():
            raise LossError(f"Realised: logp_M is {logp_M.dtype}; expected a floating-point type.")
        self.inputs = [logp_M.unsqueeze(1)]
