"""Run a loss over blocks of chunks: rows in, loss and gradient out, the block dropped.

One autograd function serves every loss. Its forward pass goes through the chunks in blocks; each
block reads its rows from a source, runs the loss on them with gradients switched on, and adds
the rows' gradient to a buffer of the size that the gradient has anyway. Memory is that buffer
plus one block, whatever the number of chunks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from xtoken.losses.base import Chunks, LossResult
from xtoken.losses.pooling import Rows, expand_rows

if TYPE_CHECKING:
    from xtoken.losses.loss import Loss

BLOCK_ROWS = 64


class Source(Protocol):
    """Where logit rows come from: logits, or hidden states and an output head."""

    inputs: list[Tensor]  # tensors that may want a gradient

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the logits."""
        ...

    def read(self, index_R: Tensor) -> Tensor:
        """Return the logits of these rows: [R, columns], no gradient."""
        ...

    def buffers(self, wanted: list[bool]) -> list[Tensor | None]:
        """Return a zeroed gradient buffer for each input that wants one."""
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

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the logits (whatever they are: `Loss.check` judges)."""
        return tuple(self.inputs[0].shape)  # type: ignore[return-value]

    def read(self, index_R: Tensor) -> Tensor:
        """Return rows of the logits."""
        return self.inputs[0].detach().index_select(0, index_R)

    def buffers(self, wanted: list[bool]) -> list[Tensor | None]:
        """Return zeros of the logits' own shape and precision."""
        return [torch.zeros_like(self.inputs[0]) if wanted[0] else None]

    def add_gradient(
        self, buffers: list[Tensor | None], index_R: Tensor, gradient_RV: Tensor
    ) -> None:
        """Add to the rows of the logits' gradient."""
        assert buffers[0] is not None
        target = buffers[0][:, : gradient_RV.shape[1]]
        target.index_add_(0, index_R, gradient_RV.to(target.dtype))


@dataclass
class _Job:
    """One call of a loss: what to run, and what it found."""

    loss: Loss
    student: Source
    teacher: Source
    chunks: Chunks
    block_rows: int
    metrics: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def blocks(self) -> Iterator[Chunks]:
        """Cut the chunks into blocks of at most `block_rows` rows a side (or one chunk)."""
        chunks, size = self.chunks, self.block_rows
        if self.loss.rows == "first" or len(chunks) == 0:
            bounds = [*range(0, len(chunks), size), len(chunks)]
        else:
            longest_C = torch.maximum(chunks.student_count_C, chunks.teacher_count_C)
            bounds = [0]
            rows = 0
            for c, count in enumerate(longest_C.tolist()):
                if rows and rows + count > size:
                    bounds.append(c)
                    rows = 0
                rows += count
            bounds.append(len(chunks))
        for begin, end in pairwise(bounds):
            yield Chunks(
                chunks.student_start_C[begin:end],
                chunks.student_count_C[begin:end],
                chunks.teacher_start_C[begin:end],
                chunks.teacher_count_C[begin:end],
                chunks.student_target_N,
                chunks.teacher_target_M,
            )

    def index(self, start_C: Tensor, count_C: Tensor) -> Tensor:
        """Return the rows to read: all of each chunk's, or its first."""
        return start_C if self.loss.rows == "first" else expand_rows(start_C, count_C)

    def rows(self, logits_RV: Tensor, index_R: Tensor, count_C: Tensor, target_N: Tensor) -> Rows:
        """Wrap logits that were read; starts become positions among them."""
        first = self.loss.rows == "first"
        step_C = torch.ones_like(count_C) if first else count_C
        return Rows(logits_RV, step_C.cumsum(0) - step_C, count_C, target_N[index_R])

    def teacher_rows(self, block: Chunks) -> Rows:
        """Read the teacher's rows of a block."""
        index_R = self.index(block.teacher_start_C, block.teacher_count_C)
        logits_RU = self.teacher.read(index_R)[:, : self.loss.teacher_size]
        return self.rows(
            logits_RU.to(self.dtype), index_R, block.teacher_count_C, block.teacher_target_M
        )

    @property
    def dtype(self) -> torch.dtype:
        """float64 if either side is, else float32."""
        inputs = [*self.student.inputs, *self.teacher.inputs]
        wide = any(tensor.dtype == torch.float64 for tensor in inputs)
        return torch.float64 if wide else torch.float32


def run_blocks(
    loss: Loss,
    student: Source,
    teacher: Source,
    chunks: Chunks,
    *,
    block_rows: int = BLOCK_ROWS,
) -> LossResult:
    """Return the loss over all chunks, differentiable in the student's inputs and the loss's own.

    Args:
        loss: any loss; its `block` is called once a block.
        student, teacher: where the logit rows come from.
        chunks: the supervised chunks of the batch.
        block_rows: rows of each side in memory at a time (a longer chunk is a block of its own).
    """
    loss.check(student.shape, teacher.shape, chunks)
    chosen_C = loss.select(chunks)
    if chosen_C is not None:
        chunks = chunks.select(chosen_C)
    device = student.inputs[0].device
    if any(buffer.device != device for buffer in loss.buffers()):
        loss.to(device)
    job = _Job(loss, student, teacher, chunks, block_rows)
    parameters = [p for p in loss.parameters() if p.requires_grad]
    total = _Blockwise.apply(job, *student.inputs, *parameters)
    count = torch.tensor(float(len(chunks)), device=device)
    return LossResult(total, count, job.metrics)


class _Blockwise(torch.autograd.Function):
    """Loss and gradients in the forward pass, a block at a time."""

    @staticmethod
    def forward(ctx: Any, job: _Job, *inputs: Tensor) -> Tensor:
        wanted = list(ctx.needs_input_grad[1:])
        total, job.metrics, buffers = _run(job, wanted)
        ctx.job, ctx.wanted, ctx.buffers = job, wanted, buffers
        ctx.save_for_backward(*inputs)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        # The checks of autograd: freed twice, or changed in place since the forward pass.
        inputs = ctx.saved_tensors
        buffers, ctx.buffers = ctx.buffers, None
        if buffers is None:  # a second backward pass through a retained graph
            _, _, buffers = _run(ctx.job, ctx.wanted)
        found: list[Tensor | None] = [None]
        for tensor, buffer in zip(inputs, buffers, strict=True):
            if buffer is not None:
                # In place: the buffer was handed over, a copy would double the peak.
                buffer = buffer.mul_(gradient.to(buffer.dtype)).to(tensor.dtype)
            found.append(buffer)
        return tuple(found)


def _run(
    job: _Job, wanted: list[bool]
) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]], list[Tensor | None]]:
    """Go through the blocks: (total, metrics, gradient buffers of the inputs)."""
    loss, dtype = job.loss, job.dtype
    inputs = len(job.student.inputs)
    parameters = [p for p in loss.parameters() if p.requires_grad]
    buffers = job.student.buffers(wanted[:inputs])
    weights = [
        torch.zeros_like(p) if want else None
        for p, want in zip(parameters, wanted[inputs:], strict=True)
    ]
    want_logits = any(wanted[:inputs])
    total = torch.zeros((), dtype=dtype, device=job.student.inputs[0].device)
    metrics: dict[str, tuple[Tensor, Tensor]] = {}
    state = loss.prepare(job.teacher_rows(block) for block in job.blocks())
    for block in job.blocks():
        index_R = job.index(block.student_start_C, block.student_count_C)
        logits_RV = job.student.read(index_R)[:, : loss.student_size].to(dtype)
        with torch.set_grad_enabled(any(wanted)):
            logits_RV = logits_RV.detach().requires_grad_(want_logits)
            student = job.rows(logits_RV, index_R, block.student_count_C, block.student_target_N)
            result = loss.block(student, job.teacher_rows(block), state)
        total += result.total.detach()
        for name, (value, count) in result.metrics.items():
            old = metrics.get(name)
            metrics[name] = (value, count) if old is None else (old[0] + value, old[1] + count)
        leaves = [logits_RV] if want_logits else []
        leaves += [p for p, w in zip(parameters, weights, strict=True) if w is not None]
        if leaves and result.total.requires_grad:
            gradients = list(torch.autograd.grad(result.total, leaves, allow_unused=True))
            if want_logits:
                gradient_RV = gradients.pop(0)
                if gradient_RV is not None:
                    job.student.add_gradient(buffers, index_R, gradient_RV)
            for weight, gradient in zip(
                [w for w in weights if w is not None], gradients, strict=True
            ):
                if gradient is not None:
                    weight += gradient
    return total, metrics, [*buffers, *weights]
