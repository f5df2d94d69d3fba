"""Run losses over blocks of chunks: rows in, loss and gradient out, the block dropped.

One autograd function serves every loss, alone or several on the same student. Its forward pass
goes through the chunks in blocks; each block reads its rows, runs the loss on them with gradients
switched on, and adds the rows' gradient to a buffer of the size that the gradient has anyway.
Memory is that buffer plus one block, whatever the number of chunks. Where rows come from an
output head, blocks lie in parts (`parts.py`), each of which goes through the head once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from xtoken.losses.base import Chunks, LossResult
from xtoken.losses.checks import check_rows
from xtoken.losses.parts import Part, Piece, Wanted, cut_parts, rows_of
from xtoken.losses.pooling import Rows
from xtoken.losses.sources import Source, write_rows

if TYPE_CHECKING:
    from xtoken.losses.loss import Loss

# Bytes of float32 logits, both sides together, that a block may hold. On a CPU a block should
# stay in the cache; a GPU wants enough work a kernel.
BLOCK_BYTES = {"cpu": 2**23, "cuda": 2**28}
LEAST_BLOCK_ROWS = 8
# The same for what goes through an output head at a time: each time all of its weight is read.
HEAD_BYTES = {"cpu": 2**27, "cuda": 2**29}
LEAST_HEAD_ROWS = 16


@dataclass(frozen=True)
class Term:
    """One loss of a step on a student: which chunks, which teacher, which factor.

    Attributes:
        loss: any loss.
        chunks: its supervised chunks.
        teacher: where the teacher's rows come from; None for a loss without one.
        weight: factor of this loss in the total (and so of its gradient).
    """

    loss: Loss
    chunks: Chunks
    teacher: Source | None
    weight: float = 1.0


@cache
def _keep_freed_memory() -> None:
    """Let the C allocator keep buffers of a block's size for the next block.

    glibc hands freed buffers above a limit back to the system, and new ones cost a page fault
    every 4 kB, more than a softmax does. The limit rises to the largest buffer freed so far, up
    to 32 MiB: free one (never touched). Elsewhere this does nothing.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)


def run_terms(
    student: Source,
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
        student: where the student's rows come from.
        terms: the losses.
        block_rows: rows of each side that a loss sees at a time (a longer chunk is a block of its
            own); None fits them to the device.
        head_rows: rows of each side that go through an output head at a time; None fits them.
    """
    device = student.inputs[0].device
    terms = list(terms)
    for i, term in enumerate(terms):
        teacher_shape = None if term.teacher is None else term.teacher.shape
        term.loss.check(student.shape, teacher_shape, term.chunks)
        chosen_C = term.loss.select(term.chunks)
        if chosen_C is not None:
            terms[i] = replace(term, chunks=term.chunks.select(chosen_C))
        if any(buffer.device != device for buffer in term.loss.buffers()):
            term.loss.to(device)
    if device.type == "cpu":
        _keep_freed_memory()
    job = _Job(student, terms, block_rows, head_rows)
    total = _Blockwise.apply(job, *student.inputs, *job.parameters)
    return total, job.results


class _Blockwise(torch.autograd.Function):
    """Losses and gradients in the forward pass, a block at a time."""

    @staticmethod
    def forward(ctx: Any, job: _Job, *inputs: Tensor) -> Tensor:
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


@dataclass
class _Job:
    """One call: what to run, and what each loss came to."""

    student: Source
    terms: list[Term]
    block_rows: int | None
    head_rows: int | None
    results: list[LossResult] = field(default_factory=list)

    def __post_init__(self) -> None:
        parameters = {id(p): p for t in self.terms for p in t.loss.parameters()}
        self.parameters = [p for p in parameters.values() if p.requires_grad]
        sources = [self.student, *(t.teacher for t in self.terms if t.teacher is not None)]
        wide = any(x.dtype == torch.float64 for source in sources for x in source.inputs)
        self.dtype = torch.float64 if wide else torch.float32
        self.device = self.student.inputs[0].device
        row_bytes = 4 * max(t.loss.student_size + t.loss.teacher_size for t in self.terms)
        kind = self.device.type if self.device.type in BLOCK_BYTES else "cuda"
        if self.block_rows is None:
            self.block_rows = max(LEAST_BLOCK_ROWS, BLOCK_BYTES[kind] // row_bytes)
        if self.head_rows is None:
            self.head_rows = max(LEAST_HEAD_ROWS, HEAD_BYTES[kind] // row_bytes)

    # ------------------------------------------------------------------ all parts

    def run(self, wanted: list[bool]) -> tuple[Tensor, list[Tensor | None]]:
        """Go through everything: the total, and a gradient for each input that wants one."""
        inputs = len(self.student.inputs)
        want_rows = any(wanted[:inputs])
        once = self._once()
        buffers = self.student.buffers(wanted[:inputs], once)
        weights = [torch.zeros_like(p) if w else None
                   for p, w in zip(self.parameters, wanted[inputs:], strict=True)]  # fmt: skip
        zero = torch.zeros((), dtype=self.dtype, device=self.device)
        self.results = [
            LossResult(zero.clone(), torch.tensor(float(len(t.chunks)), device=self.device))
            for t in self.terms
        ]
        states = [t.loss.prepare(self._teacher_blocks(t)) for t in self.terms]
        size = max(t.loss.student_size for t in self.terms)
        scratch: Tensor | None = None
        for part in self._parts(self.terms):
            logits = self.student.open(part.student_index_R, size, keep=want_rows)
            rows_gradient: Tensor | None = buffers[0]
            if want_rows and not self.student.whole:
                if scratch is None or scratch.shape[0] < logits.shape[0]:
                    scratch = torch.empty(logits.shape, dtype=self.dtype, device=self.device)
                rows_gradient = scratch[: logits.shape[0]].zero_()
            for piece in part.pieces:
                self._run_piece(
                    piece, logits, rows_gradient if want_rows else None, weights,
                    states[piece.number], once is not None,
                )  # fmt: skip
            if want_rows and rows_gradient is not None:
                self.student.close(buffers, part.student_index_R, rows_gradient)
        total = sum(
            (r.total * t.weight for r, t in zip(self.results, self.terms, strict=True)), zero
        )
        return total, [*buffers, *weights]

    def _parts(self, terms: list[Term]) -> Iterator[Part]:
        assert self.head_rows is not None
        wanted = [Wanted(t.chunks, t.loss.rows == "first", t.teacher) for t in terms]
        return cut_parts(self.student, wanted, self.head_rows)

    def _once(self) -> Tensor | None:
        """Return the student rows to be read, if each is read once; None otherwise."""
        if not self.student.whole or len(self.terms) != 1:
            return None
        (term,) = self.terms
        first = term.loss.rows == "first"
        index_R = rows_of(term.chunks.student_start_C, term.chunks.student_count_C, first)
        seen_N = torch.zeros(self.student.shape[0], dtype=torch.bool, device=self.device)
        seen_N[index_R] = True
        return index_R if int(seen_N.sum()) == index_R.shape[0] else None

    def _teacher_blocks(self, term: Term) -> Iterator[Rows]:
        """Yield all of a term's teacher rows, for `Loss.prepare` (most losses never ask)."""
        for part in self._parts([term]):
            for piece in part.pieces:
                logits = self._open_teacher(term, piece)
                for block in self._blocks(term, piece.chunks):
                    yield self._read(term, "teacher", logits, block)[0]

    def _open_teacher(self, term: Term, piece: Piece) -> Tensor:
        assert term.teacher is not None
        return term.teacher.open(piece.teacher_index_R, term.loss.teacher_size, keep=False)

    # ------------------------------------------------------------------ one loss in one part

    def _run_piece(
        self,
        piece: Piece,
        logits: Tensor,
        rows_gradient: Tensor | None,
        weights: list[Tensor | None],
        state: Any,
        once: bool,
    ) -> None:
        term, result = self.terms[piece.number], self.results[piece.number]
        teacher_logits = None if term.teacher is None else self._open_teacher(term, piece)
        leaves: list[Tensor] = [
            p for p, w in zip(self.parameters, weights, strict=True) if w is not None
        ]
        kept = [w for w in weights if w is not None]
        want_any = rows_gradient is not None or bool(kept)
        for block in self._blocks(term, piece.chunks):
            student, index_R = self._read(term, "student", logits, block)
            teacher = None
            if teacher_logits is not None:
                teacher, _ = self._read(term, "teacher", teacher_logits, block)
            student.logits_RV.requires_grad_(rows_gradient is not None)
            # Autocast would run sums in half precision.
            with torch.set_grad_enabled(want_any), torch.autocast(self.device.type, enabled=False):
                found = term.loss.block(student, teacher, state)
            result.total += found.total.detach()
            for name, (value, count) in found.metrics.items():
                old = result.metrics.get(name, (0.0, 0.0))
                result.metrics[name] = (old[0] + value, old[1] + count)
            if not want_any or not found.total.requires_grad:
                continue
            gradients = list(
                torch.autograd.grad(
                    found.total,
                    ([] if rows_gradient is None else [student.logits_RV]) + leaves,
                    found.total.new_tensor(term.weight),
                    materialize_grads=True,
                )
            )
            if rows_gradient is not None:
                gradient_RV = gradients.pop(0)
                if term.loss.temperature != 1.0:
                    gradient_RV = gradient_RV / term.loss.temperature
                write_rows(rows_gradient, index_R, gradient_RV, once=once)
            for weight, gradient in zip(kept, gradients, strict=True):
                weight += gradient

    def _blocks(self, term: Term, chunks: Chunks) -> Iterator[Chunks]:
        """Cut chunks into blocks of at most `block_rows` rows a side (or one chunk)."""
        assert self.block_rows is not None
        bounds = [*range(0, len(chunks), self.block_rows), len(chunks)]
        if term.loss.rows == "all" and len(chunks):
            longest_C = torch.maximum(chunks.student_count_C, chunks.teacher_count_C)
            bounds, rows = [0], 0
            for c, count in enumerate(longest_C.tolist()):
                if rows and rows + count > self.block_rows:
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

    def _read(
        self, term: Term, side: Literal["student", "teacher"], logits: Tensor, block: Chunks
    ) -> tuple[Rows, Tensor]:
        """Read one side's rows of a block, made ready; return them and where they came from."""
        loss, first = term.loss, term.loss.rows == "first"
        start_C, count_C = getattr(block, f"{side}_start_C"), getattr(block, f"{side}_count_C")
        target = block.student_target_N if side == "student" else block.teacher_target_M
        index_R = rows_of(start_C, count_C, first)
        step_C = torch.ones_like(count_C) if first else count_C
        size = getattr(loss, f"{side}_size")
        logits_RV = logits[:, :size].index_select(0, index_R).to(self.dtype)
        check_rows(loss.kind, f"{side}_logits", logits_RV, getattr(loss, f"{side}_masked_X"))
        if loss.temperature != 1.0:
            logits_RV.div_(loss.temperature)
        return Rows(logits_RV, step_C.cumsum(0) - step_C, count_C, target[index_R]), index_R
