"""Hidden states and an output head in place of logits, for any loss and either side.

    loss(Hidden(student_states_ND, OutputHead(weight_VD)), teacher_logits_MU, chunks)

Blocks of the rows that the loss reads go through the head, give loss and gradient, and are
dropped: full logits never exist. The rows' gradient goes back through the head at once, into
buffers of the size that the gradients of states and head have anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from xtoken.errors import LossError
from xtoken.losses.base import SignalKind

# Bytes of a product that is made to be added to a sum in another precision.
PRODUCT_BYTES = 2**26


@dataclass(frozen=True)
class OutputHead:
    """What turns a hidden state into logits: cap * tanh(scale * (h W^T + b) / cap).

    Attributes:
        weight_VD: float[V or more, D]; a tied embedding is as good as any other weight.
        bias_V: float[V or more] or None.
        scale: multiplies the product (Cohere's `logit_scale`; Granite divides: give 1 / value).
        soft_cap: Gemma's `final_logit_softcapping`; None: no capping.

    Raises:
        LossError: a weight or bias of another shape, a scale or cap that is no positive number.
    """

    weight_VD: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    soft_cap: float | None = None

    def __post_init__(self) -> None:
        weight = tuple(self.weight_VD.shape)
        if len(weight) != 2:
            raise LossError(f"OutputHead: weight_VD has shape {weight}; expected [V, D].")
        if self.bias_V is not None and tuple(self.bias_V.shape) != weight[:1]:
            raise LossError(
                f"OutputHead: bias_V has shape {tuple(self.bias_V.shape)}, but weight_VD has "
                f"{weight}; expected ({weight[0]},)."
            )
        for name, value in (("scale", self.scale), ("soft_cap", self.soft_cap)):
            if value is not None and not 0 < value < float("inf"):
                raise LossError(
                    f"OutputHead: {name} is {value}; expected a positive number"
                    f"{'' if name == 'scale' else ', or None for no capping'}."
                )


class Hidden:
    """Hidden states as a source of logit rows.

    Args:
        states_ND: float[N, D], one row for each position, as logits would have.
        head: an `OutputHead`, or any module that maps [R, D] to [R, V or more] (an adapted head,
            for instance). A module costs more memory: its weights' gradient is found by autograd
            block by block.
        dtype: precision of an `OutputHead`'s matrix product; None takes autocast's where it is
            on, else the states' own. (A module sees to that itself.) What a weight's gradient
            in half precision loses when a block is added to it is kept beside it until the end,
            in memory of the weight's own size, so that many blocks lose no more than one.
        columns: a module's output size, needed if it has no `out_features`.

    Raises:
        LossError: states and weight that don't fit, an unknown number of columns, a `dtype` for a
            module, or a head that is neither.
    """

    signal: SignalKind = "dense"
    whole = False

    def __init__(
        self,
        states_ND: Tensor,
        head: OutputHead | nn.Module,
        *,
        dtype: torch.dtype | None = None,
        columns: int | None = None,
    ) -> None:
        device = states_ND.device.type
        if not isinstance(head, OutputHead | nn.Module):
            raise LossError(
                f"Hidden: head is a {type(head).__name__}; expected an OutputHead, or an nn.Module "
                f"whose parameters can be found."
            )
        if dtype is not None and not isinstance(head, OutputHead):
            raise LossError(
                f"Hidden: dtype is {dtype}, but the head is a module, which has its own precision; "
                f"leave it out (autocast acts on a module as always)."
            )
        if dtype is None:
            autocast = torch.is_autocast_enabled(device)
            dtype = torch.get_autocast_dtype(device) if autocast else states_ND.dtype
        self.head: _Linear | _Module
        if isinstance(head, OutputHead):
            self.head = _Linear(head, dtype)
            D = head.weight_VD.shape[-1]
            if states_ND.dim() != 2 or states_ND.shape[1] != D:
                raise LossError(
                    f"states_ND has shape {tuple(states_ND.shape)}, but the head's weight has "
                    f"{tuple(head.weight_VD.shape)}; expected states [N, {D}]."
                )
        else:
            found = columns if columns is not None else getattr(head, "out_features", None)
            if found is None:
                raise LossError("a module as head needs `columns`, the number of its logits.")
            self.head = _Module(head, int(found))
        self.inputs = [states_ND, *self.head.parameters]

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns of the logits."""
        return self.inputs[0].shape[0], self.head.columns

    def buffers(self, wanted: Sequence[bool]) -> list[Tensor | None]:
        """Return zeros for the states and each weight that want a gradient."""
        return [
            torch.zeros_like(tensor, dtype=self._sum_dtype(tensor)) if want else None
            for tensor, want in zip(self.inputs, wanted, strict=True)
        ]

    def _sum_dtype(self, tensor: Tensor) -> torch.dtype:
        """Return the precision of an input's gradient while blocks are added to it."""
        large = self.inputs[:2] if isinstance(self.head, _Linear) else self.inputs[:1]
        if any(tensor is one for one in large):
            return tensor.dtype
        return torch.promote_types(tensor.dtype, torch.float32)

    def finish(self) -> None:
        """Drop what only lives until the last block."""
        self.head.finish()

    def open(self, index_R: Tensor, size: int, *, keep: bool) -> Tensor:
        """Run rows through the head."""
        states_RD = self.inputs[0].detach().index_select(0, index_R)
        return self.head.forward(states_RD, size, keep)

    def close(self, buffers: list[Tensor | None], index_R: Tensor, gradient_RV: Tensor) -> None:
        """Take the rows' gradient back through the head."""
        states_RD = self.head.backward(gradient_RV, buffers[0] is not None, buffers[1:])
        if buffers[0] is not None and states_RD is not None:
            buffers[0].index_add_(0, index_R, states_RD.to(buffers[0].dtype))


class _Linear:
    """An `OutputHead`, with the products of its backward pass written out."""

    def __init__(self, head: OutputHead, dtype: torch.dtype) -> None:
        self.scale, self.cap, self.dtype = head.scale, head.soft_cap, dtype
        self.parameters = [head.weight_VD] + ([] if head.bias_V is None else [head.bias_V])
        self.columns = int(head.weight_VD.shape[0])
        self.cast = [tensor.detach().to(dtype) for tensor in self.parameters]
        self.states_RD = self.tanh_RV = torch.empty(0)
        self.lost_VD: Tensor | None = None

    def forward(self, states_RD: Tensor, size: int, keep: bool) -> Tensor:
        """Return float32 (or wider) logits."""
        self.states_RD = states_RD.to(self.dtype)
        bias = self.cast[1][:size] if len(self.cast) > 1 else None
        with torch.autocast(states_RD.device.type, enabled=False):
            logits_RV = linear(self.states_RD, self.cast[0][:size], bias)
        logits_RV = logits_RV.to(torch.promote_types(self.dtype, torch.float32))
        if self.scale != 1.0:
            logits_RV *= self.scale
        if self.cap is not None:
            logits_RV.div_(self.cap).tanh_()
            self.tanh_RV = logits_RV.clone() if keep else logits_RV
            logits_RV = logits_RV * self.cap
        return logits_RV

    def backward(
        self, gradient_RV: Tensor, want_states: bool, buffers: Sequence[Tensor | None]
    ) -> Tensor | None:
        """Add to the weights' buffers (in place: a product of their size is never made)."""
        if self.cap is not None:
            gradient_RV = gradient_RV * (1.0 - self.tanh_RV.square_())
        if self.scale != 1.0:
            gradient_RV = gradient_RV * self.scale
        size = gradient_RV.shape[1]
        if len(buffers) > 1 and buffers[1] is not None:
            buffers[1][:size] += gradient_RV.sum(0)
        gradient_RV = gradient_RV.to(self.dtype)
        with torch.autocast(gradient_RV.device.type, enabled=False):
            if buffers[0] is not None:
                self._add_product(buffers[0], gradient_RV)
            return gradient_RV @ self.cast[0][:size] if want_states else None

    def finish(self) -> None:
        """Drop what sums in half precision have lost: it is less than their last digit."""
        self.lost_VD = None

    def _add_product(self, sum_VD: Tensor, gradient_RV: Tensor) -> None:
        """Add gradient^T states, of which no more than `PRODUCT_BYTES` are ever held."""
        half = sum_VD.element_size() < 4
        size = gradient_RV.shape[1]
        if sum_VD.dtype == self.dtype and not half:
            sum_VD[:size].addmm_(gradient_RV.t(), self.states_RD)
            return
        if half and self.lost_VD is None:
            self.lost_VD = torch.zeros_like(sum_VD)
        step = max(1, PRODUCT_BYTES // (4 * self.states_RD.shape[1]))
        for begin in range(0, size, step):
            rows = slice(begin, min(begin + step, size))
            product = gradient_RV[:, rows].t() @ self.states_RD
            if self.lost_VD is None:
                sum_VD[rows] += product
            else:
                _add_compensated(sum_VD[rows], self.lost_VD[rows], product)


def _add_compensated(sum_: Tensor, lost: Tensor, term: Tensor) -> None:
    """Add to a sum in half precision; what its last digit can't hold is kept for the next time.

    Source: Kahan's compensated summation.
    """
    exact = term.float() + lost
    exact += sum_
    sum_.copy_(exact)
    lost.copy_(exact - sum_)


class _Module:
    """Any module as head; autograd finds its backward pass."""

    def __init__(self, module: nn.Module, columns: int) -> None:
        self.module, self.columns = module, columns
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.states_RD = self.logits_RV = torch.empty(0)

    def forward(self, states_RD: Tensor, size: int, keep: bool) -> Tensor:
        """Return float32 (or wider) logits."""
        with torch.set_grad_enabled(keep):
            self.states_RD = states_RD.requires_grad_(keep)
            logits_RV = self.module(self.states_RD)
            wide = torch.promote_types(logits_RV.dtype, torch.float32)
            self.logits_RV = logits_RV[:, :size].to(wide)
        return self.logits_RV.detach()

    def backward(
        self, gradient_RV: Tensor, want_states: bool, buffers: Sequence[Tensor | None]
    ) -> Tensor | None:
        """Add to the parameters' buffers."""
        pairs = [(p, b) for p, b in zip(self.parameters, buffers, strict=True) if b is not None]
        found = torch.autograd.grad(
            self.logits_RV,
            [self.states_RD, *(p for p, _ in pairs)],
            gradient_RV.to(self.logits_RV.dtype),
            materialize_grads=True,
        )
        for (_, buffer), gradient in zip(pairs, found[1:], strict=True):
            buffer += gradient
        return found[0] if want_states else None

    def finish(self) -> None:
        """Drop the last block's graph."""
        self.states_RD = self.logits_RV = torch.empty(0)
