"""Run losses over blocks of chunks: rows in, loss and gradient out, the block dropped.

One autograd function serves every loss, alone or several on the same student. Its forward pass
goes through the chunks in blocks; each block reads its rows, runs the loss on them with gradients
switched on, and adds the rows' gradient to a buffer of the size that the gradient has anyway.
Memory is that buffer plus one block, whatever the number of chunks. Where rows come from an
output head, blocks lie in parts (`parts.py`), each of which goes through the head once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from xtoken.errors import LossError
from xtoken.losses.base import LossResult
from xtoken.losses.job import Job, Term
from xtoken.losses.sources import Source, as_source

__all__ = ["Term", "run_terms"]


@cache
def _keep_freed_memory() -> None:
    """Let the C allocator keep buffers of a block's size for the next block.

    glibc hands freed buffers above a limit back to the system, and new ones cost a page fault
    every 4 kB, more than a softmax does. The limit rises to the largest buffer freed so far, up
    to 32 MiB: free one (never touched). Elsewhere this does nothing.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)


def run_terms(
    student: Tensor | Source,
    terms: Sequence[Term],
    *,
    block_rows: int | None = None,
    head_rows: int | None = None,
) -> tuple[Tensor, list[LossResult]]:
    """Return sum_i weight_i * loss_i and each loss by itself.

    The sum is differentiable in the student's inputs and in the losses' own parameters, in one
    backward pass that costs nothing more; the single results carry no gradient. Rows that
    several losses read go through an output head once.

    Args:
        student: logits, float[N, V or more], or `Hidden`.
        terms: the losses, one at least.
        block_rows: rows of each side that a loss sees at a time (a longer chunk is a block of its
            own); None fits them to the device.
        head_rows: rows of each side that go through an output head at a time; None fits them.

    Returns:
        The sum, a scalar in float32 (float64 where an input is), and a `LossResult` a term.

    Raises:
        LossError: what `Loss.forward` raises, of any term; no term, a weight that is not finite,
            fewer than one row.
    """
    student = as_source(student)
    device = student.inputs[0].device
    terms = list(terms)
    if not terms:
        raise LossError("run_terms: terms is empty; expected one loss at least.")
    for name, rows in (("block_rows", block_rows), ("head_rows", head_rows)):
        if rows is not None and rows < 1:
            raise LossError(f"run_terms: {name} is {rows}; expected at least 1.")
    for term in terms:
        if not math.isfinite(term.weight):
            raise LossError(
                f"run_terms: the weight of {term.loss.kind} is {term.weight}; expected a finite "
                f"number."
            )
    known: list[dict[str, tuple[Tensor, Tensor]]] = [{} for _ in terms]
    for i, term in enumerate(terms):
        term.loss.check(student, term.teacher, term.chunks)
        chunks, known[i] = term.loss.annotate(term.chunks)
        terms[i] = replace(term, chunks=chunks)
        if any(buffer.device != device for buffer in term.loss.buffers()):
            term.loss.to(device)
    if device.type == "cpu":
        _keep_freed_memory()
    job = Job(student, terms, block_rows, head_rows)
    total = _Blockwise.apply(job, *student.inputs, *job.parameters)
    for result, metrics in zip(job.results, known, strict=True):
        result.metrics.update(metrics)
    return total, job.results


class _Blockwise(torch.autograd.Function):
    """Losses and gradients in the forward pass, a block at a time."""

    @staticmethod
    def forward(ctx: Any, job: Job, *inputs: Tensor) -> Tensor:
        wanted = list(ctx.needs_input_grad[1:])
        total, buffers = job.run(wanted)
        ctx.job, ctx.wanted, ctx.buffers = job, wanted, buffers
        ctx.save_for_backward(*inputs)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # Reading them makes autograd's checks: freed twice, or changed since the forward pass.
        inputs = ctx.saved_tensors
        buffers, ctx.buffers = ctx.buffers, None
        if buffers is None:  # a second backward pass through a retained graph
            _, buffers = ctx.job.run(ctx.wanted)
        one = gradients[0].device.type == "cpu" and float(gradients[0]) == 1.0
        found: list[Tensor | None] = [None]
        for tensor, buffer in zip(inputs, buffers, strict=True):
            if buffer is not None and not one:
                # In place: the buffer is handed over, a copy would double the peak.
                buffer.mul_(gradients[0].to(buffer.dtype))
            found.append(None if buffer is None else buffer.to(tensor.dtype))
        return tuple(found)
