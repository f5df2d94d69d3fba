"""Picking columns of a block and adding them up by groups, with cheap backward passes.

Plain autograd scatters a gathered block's gradient element by element. Here the picked columns
are disjoint, so that the way back is one gather too, and sums over groups of columns are
`embedding_bag`s over the transposed block (one row a column), which run at memory speed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


def floor_of(dtype: torch.dtype) -> float:
    """Return what stands for a probability of 0 under a logarithm.

    Far above the smallest number of the format, so that its reciprocal can be added up.
    """
    return torch.finfo(dtype).tiny * 1e8


def pick(x_NV: Tensor, column_P: Tensor) -> Tensor:
    """Return x[:, column]: [N, P], columns in any order and number.

    On a CPU `index_select` along the last dimension goes through the block a column at a time,
    in one thread; `gather` goes row by row, in several.
    """
    if x_NV.device.type == "cpu":
        return x_NV.gather(1, column_P.expand(x_NV.shape[0], -1))
    return x_NV.index_select(1, column_P)


def places(size: int, parts: list[np.ndarray]) -> np.ndarray:
    """Return where each of `size` columns is in the parts laid side by side; absent: at the end."""
    place = np.full(size, sum(len(part) for part in parts), dtype=np.int64)
    begin = 0
    for part in parts:
        place[part] = np.arange(begin, begin + len(part))
        begin += len(part)
    return place


class PickColumns(torch.autograd.Function):
    """Return x[:, part] for disjoint parts; `place_V` (see `places`) leads the gradient back."""

    @staticmethod
    def forward(ctx: Any, x_NV: Tensor, place_V: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
        """Pick the columns."""
        ctx.save_for_backward(place_V, *parts)
        return tuple(pick(x_NV, part) for part in parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Lay the gradients side by side and pick each column's."""
        place_V, *parts = ctx.saved_tensors
        zero_N1 = gradients[0].new_zeros(gradients[0].shape[0], 1)
        side_by_side = torch.cat([*gradients, zero_N1], dim=1)
        return pick(side_by_side, place_V), None, *[None] * len(parts)


def bag_sum(
    table_XN: Tensor, entry_E: Tensor, offset_Y: Tensor, weight_E: Tensor | None = None
) -> Tensor:
    """Return sum_e weight[e] * table[entry[e]] over the entries of each bag: [Y, N].

    Bag y holds the entries offset[y] to offset[y + 1] (exclusive); entries and offsets share
    one integer type.
    """
    if table_XN.shape[1] == 0 or offset_Y.shape[0] == 0:
        return table_XN.new_zeros(offset_Y.shape[0], table_XN.shape[1])
    if weight_E is not None:
        weight_E = weight_E.to(table_XN.dtype)
    return embedding_bag(entry_E, table_XN, offset_Y, mode="sum", per_sample_weights=weight_E)


class LogBagSum(torch.autograd.Function):
    """Return log sum_e weight[e] * exp(x[:, entry[e]]) over the entries of each bag: [N, Y].

    `back_*` are the same entries grouped by the column that they read; `order_E` takes a
    gradient in the entries' order to theirs.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_NX: Tensor,
        weight_E: Tensor,
        entry_E: Tensor,
        offset_Y: Tensor,
        bag_E: Tensor,
        back_entry_E: Tensor,
        back_offset_X: Tensor,
        order_E: Tensor,
    ) -> Tensor:
        """Add up by groups."""
        table_XN = x_NX.t().exp().contiguous()
        sum_YN = bag_sum(table_XN, entry_E, offset_Y, weight_E)
        sum_YN = sum_YN.clamp_min_(floor_of(x_NX.dtype))
        ctx.save_for_backward(
            table_XN, sum_YN, weight_E, entry_E, bag_E, back_entry_E, back_offset_X, order_E
        )
        return sum_YN.log().t().contiguous()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """d log sum / d x[e] = weight[e] exp(x[e]) / sum."""
        (
            table_XN, sum_YN, weight_E, entry_E, bag_E, back_entry_E, back_offset_X, order_E,
        ) = ctx.saved_tensors  # fmt: skip
        ratio_YN = (gradients[0].t() / sum_YN).contiguous()
        x_gradient = weight_gradient = None
        if ctx.needs_input_grad[0]:
            back_XN = bag_sum(ratio_YN, back_entry_E, back_offset_X, weight_E[order_E])
            x_gradient = back_XN.mul_(table_XN).t()
        if ctx.needs_input_grad[1]:
            pieces_EN = table_XN.index_select(0, entry_E) * ratio_YN.index_select(0, bag_E)
            weight_gradient = pieces_EN.sum(1).to(weight_E.dtype)
        return x_gradient, weight_gradient, None, None, None, None, None, None
