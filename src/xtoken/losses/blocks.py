"""Run a loss over blocks of chunks: rows in, loss and gradient out, the block dropped.

One autograd function serves every loss. Its forward pass goes through the chunks in blocks; each
block reads its rows from a source, runs the loss on them with gradients switched on, and adds
the rows' gradient to a buffer of the size that the gradient has anyway. Memory is that buffer
plus one block, whatever the number of chunks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from xtoken.losses.base import Chunks, LossResult
from xtoken.losses.checks import check_rows
from xtoken.losses.pooling import Rows, expand_rows
from xtoken.losses.sources import Source

if TYPE_CHECKING:
    from xtoken.losses.loss import Loss

# Bytes of float32 logits, both sides together, that a block may hold. On a CPU a block should
# stay in the cache (and below the size from which the allocator hands every buffer back to the
# system); a GPU wants enough work a kernel.
BLOCK_BYTES = {"cpu": 2**23, "cuda": 2**28}
LEAST_ROWS = 8


@cache
def _keep_freed_memory() -> None:
    """Let the C allocator keep buffers of a block's size for the next block.

    glibc hands freed buffers above a limit back to the system, and new ones cost a page fault
    every 4 kB, more than a softmax does. The limit rises to the largest buffer freed so far, up
    to 32 MiB: free one (never touched). Elsewhere this does nothing.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)


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

    def student_index(self) -> Tensor:
        """Return all student rows that will be read."""
        start_C, count_C = self.chunks.student_start_C, self.chunks.student_count_C
        return start_C if self.loss.rows == "first" else expand_rows(start_C, count_C)

    def read(self, side: Literal["student", "teacher"], block: Chunks) -> tuple[Rows, Tensor]:
        """Read one side's rows of a block, made ready; return them and where they came from."""
        loss, source = self.loss, getattr(self, side)
        start_C, count_C = getattr(block, f"{side}_start_C"), getattr(block, f"{side}_count_C")
        target = block.student_target_N if side == "student" else block.teacher_target_M
        if loss.rows == "first":
            index_R, step_C = start_C, torch.ones_like(count_C)
        else:
            index_R, step_C = expand_rows(start_C, count_C), count_C
        logits_RV = source.read(index_R, getattr(loss, f"{side}_size")).to(self.dtype)
        check_rows(loss.kind, f"{side}_logits", logits_RV, getattr(loss, f"{side}_masked_X"))
        if loss.temperature != 1.0:
            logits_RV.div_(loss.temperature)
        return Rows(logits_RV, step_C.cumsum(0) - step_C, count_C, target[index_R]), index_R

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
    block_rows: int | None = None,
) -> LossResult:
    """Return the loss over all chunks, differentiable in the student's inputs and the loss's own.

    Args:
        loss: any loss; its `block` is called once a block.
        student, teacher: where the logit rows come from.
        chunks: the supervised chunks of the batch.
        block_rows: rows of each side in memory at a time (a longer chunk is a block of its own);
            None fits them to the device.
    """
    loss.check(student.shape, teacher.shape, chunks)
    chosen_C = loss.select(chunks)
    if chosen_C is not None:
        chunks = chunks.select(chosen_C)
    device = student.inputs[0].device
    if any(buffer.device != device for buffer in loss.buffers()):
        loss.to(device)
    if block_rows is None:
        room = BLOCK_BYTES.get(device.type, BLOCK_BYTES["cuda"])
        block_rows = max(LEAST_ROWS, room // (4 * (loss.student_size + loss.teacher_size)))
    if device.type == "cpu":
        _keep_freed_memory()
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
    buffers = job.student.buffers(wanted[:inputs], job.student_index())
    weights = [
        torch.zeros_like(p) if want else None
        for p, want in zip(parameters, wanted[inputs:], strict=True)
    ]
    want_logits = any(wanted[:inputs])
    total = torch.zeros((), dtype=dtype, device=job.student.inputs[0].device)
    metrics: dict[str, tuple[Tensor, Tensor]] = {}
    state = loss.prepare(job.read("teacher", block)[0] for block in job.blocks())
    for block in job.blocks():
        student, index_R = job.read("student", block)
        teacher, _ = job.read("teacher", block)
        student.logits_RV.requires_grad_(want_logits)
        # Autocast would run the sums in half precision.
        with torch.set_grad_enabled(any(wanted)), torch.autocast(total.device.type, enabled=False):
            result = loss.block(student, teacher, state)
        total += result.total.detach()
        for name, (value, count) in result.metrics.items():
            old = metrics.get(name)
            metrics[name] = (value, count) if old is None else (old[0] + value, old[1] + count)
        leaves = [student.logits_RV] if want_logits else []
        leaves += [p for p, w in zip(parameters, weights, strict=True) if w is not None]
        if leaves:
            if not result.total.requires_grad:  # nothing in this block depends on the student
                result.total = sum((leaf.sum() * 0.0 for leaf in leaves), result.total)
            gradients = list(torch.autograd.grad(result.total, leaves, materialize_grads=True))
            if want_logits:
                gradient_RV = gradients.pop(0)
                if loss.temperature != 1.0:
                    gradient_RV = gradient_RV / loss.temperature
                job.student.add_gradient(buffers, index_R, gradient_RV)
            for weight, gradient in zip(
                [w for w in weights if w is not None], gradients, strict=True
            ):
                weight += gradient
    return total, metrics, [*buffers, *weights]
