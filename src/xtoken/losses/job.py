"""One call of one or several losses: parts, blocks, gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from xtoken.losses.base import Chunks, LossResult
from xtoken.losses.checks import check_rows, check_stored
from xtoken.losses.parts import (
    Part,
    Piece,
    Wanted,
    Which,
    cut_parts,
    later_rows,
    reads_of,
    rows_of,
)
from xtoken.losses.pooling import Rows
from xtoken.losses.signals import TopK
from xtoken.losses.sources import RowGradient, Source, as_source

if TYPE_CHECKING:
    from xtoken.losses.loss import Loss

# Bytes of float32 logits, both sides together, that a block may hold. On a CPU a block should
# stay in the cache; a GPU wants enough work a kernel.
BLOCK_BYTES = {"cpu": 2**23, "cuda": 2**28}
LEAST_BLOCK_ROWS = 8
# The same for what goes through an output head at a time: each time all of its weight is read,
# and each time the whole gradient of the weight is added to.
HEAD_BYTES = {"cpu": 2**28, "cuda": 2**29}
LEAST_HEAD_ROWS = 16


@dataclass(frozen=True)
class Term:
    """One loss of a step on a student: which chunks, which teacher, which factor.

    Attributes:
        loss: any loss.
        chunks: its supervised chunks.
        teacher: where the teacher's rows come from (logits, float[M, U or more], become a source);
            None for a loss without one.
        weight: factor of this loss in the total (and so of its gradient), finite.
    """

    loss: Loss
    chunks: Chunks
    teacher: Source | None
    weight: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.teacher, Tensor):
            object.__setattr__(self, "teacher", as_source(self.teacher))


@dataclass
class Job:
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
        row_bytes = 4 * max(_columns(term) for term in self.terms)
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
        buffers = self.student.buffers(wanted[:inputs])
        weights = [torch.zeros_like(p) if w else None
                   for p, w in zip(self.parameters, wanted[inputs:], strict=True)]  # fmt: skip
        zero = torch.zeros((), dtype=self.dtype, device=self.device)
        self.results = [
            LossResult(zero.clone(), torch.tensor(float(len(t.chunks)), device=self.device))
            for t in self.terms
        ]
        states = [t.loss.prepare(self._teacher_blocks(t)) for t in self.terms]
        size = max(t.loss.student_size for t in self.terms)
        whole: RowGradient | None = None
        if self.student.whole and buffers[0] is not None:
            whole = RowGradient(buffers[0])
        scratch: Tensor | None = None
        for part in self._parts(self.terms):
            logits = self.student.open(part.student_index_R, size, keep=want_rows)
            gradient = whole
            if want_rows and whole is None:
                if scratch is None or scratch.shape[0] < logits.shape[0]:
                    scratch = torch.empty(logits.shape, dtype=self.dtype, device=self.device)
                gradient = RowGradient(scratch[: logits.shape[0]])
            for piece in part.pieces:
                self._run_piece(piece, logits, gradient, weights, states[piece.number])
            if gradient is not None and whole is None:
                self.student.close(buffers, part.student_index_R, gradient.finish())
        if whole is not None:
            whole.finish()
        self.student.finish()
        total = sum(
            (r.total * t.weight for r, t in zip(self.results, self.terms, strict=True)), zero
        )
        return total, [*buffers, *weights]

    def _parts(self, terms: list[Term]) -> Iterator[Part]:
        assert self.head_rows is not None
        wanted = [Wanted(t.chunks, t.loss.rows, t.teacher) for t in terms]
        return cut_parts(self.student, wanted, self.head_rows)

    def _teacher_blocks(self, term: Term) -> Iterator[Rows]:
        """Yield all of a term's teacher rows, for `Loss.prepare` (most losses never ask)."""
        for part in self._parts([term]):
            for piece in part.pieces:
                logits = self._open_teacher(term, piece)
                for block in self._blocks(term, piece.chunks):
                    yield self._read(term, "teacher", logits, block)

    def _open_teacher(self, term: Term, piece: Piece) -> Tensor:
        assert term.teacher is not None
        return term.teacher.open(piece.teacher_index_R, term.loss.teacher_size, keep=False)

    # ------------------------------------------------------------------ one loss in one part

    def _run_piece(
        self,
        piece: Piece,
        logits: Tensor,
        gradient: RowGradient | None,
        weights: list[Tensor | None],
        state: Any,
    ) -> None:
        """Run one loss over its blocks; add to the gradients of rows and parameters."""
        term, result = self.terms[piece.number], self.results[piece.number]
        teacher_logits = None if term.teacher is None else self._open_teacher(term, piece)
        pairs = [(p, w) for p, w in zip(self.parameters, weights, strict=True) if w is not None]
        wanted = gradient is not None or bool(pairs)
        for block in self._blocks(term, piece.chunks):
            student = self._read(term, "student", logits, block)
            teacher = None
            if teacher_logits is not None:
                teacher = self._read(term, "teacher", teacher_logits, block)
            rows: list[tuple[Tensor, Tensor]] = []
            if gradient is not None:
                rows = _leaves(term, student, block)
            # Autocast would run sums in half precision.
            with torch.set_grad_enabled(wanted), torch.autocast(self.device.type, enabled=False):
                found = term.loss.block(student, teacher, state)
            result.total += found.total.detach()
            for name, (value, count) in found.metrics.items():
                old = result.metrics.get(name, (0.0, 0.0))
                result.metrics[name] = (old[0] + value, old[1] + count)
            if not found.total.requires_grad:
                continue
            leaves = [leaf for leaf, _ in rows] + [p for p, _ in pairs]
            weight = found.total.new_tensor(term.weight)
            gradients = torch.autograd.grad(found.total, leaves, weight, materialize_grads=True)
            on_logits = term.loss.temperature == 1.0 or term.loss.tempers_events
            for (_, index_R), gradient_RV in zip(rows, gradients, strict=False):
                assert gradient is not None
                gradient.add(
                    index_R, gradient_RV if on_logits else gradient_RV / term.loss.temperature
                )
            for (_, sum_), found_ in zip(pairs, gradients[len(rows) :], strict=True):
                sum_ += found_

    def _blocks(self, term: Term, chunks: Chunks) -> Iterator[Chunks]:
        """Cut chunks into blocks of about `block_rows` rows a side (one chunk at least)."""
        assert self.block_rows is not None
        bounds = [*range(0, len(chunks), self.block_rows), len(chunks)]
        if term.loss.rows != "first" and len(chunks):
            reads_C = torch.maximum(
                reads_of(term.loss.rows, "student", chunks),
                reads_of(term.loss.rows, "teacher", chunks),
            )
            if term.loss.rows == "path":
                reads_C = (reads_C + 1) // 2  # later rows go through less than first ones
            bounds, rows = [0], 0
            for c, reads in enumerate(reads_C.tolist()):
                if rows and rows + reads > self.block_rows:
                    bounds.append(c)
                    rows = 0
                rows += reads
            bounds.append(len(chunks))
        for begin, end in pairwise(bounds):
            yield chunks.select(slice(begin, end))

    def _read(self, term: Term, side: Which, logits: Tensor, block: Chunks) -> Rows:
        """Read one side's rows of a block and make them ready."""
        loss, source = term.loss, self.student if side == "student" else term.teacher
        start_C, count_C = getattr(block, f"{side}_start_C"), getattr(block, f"{side}_count_C")
        target = block.student_target_N if side == "student" else block.teacher_target_M
        whole = source is not None and source.whole
        if loss.rows == "path":
            later_index_D, later_C = later_rows(side, block)
            later_DV, _ = self._ready(loss, side, logits, later_index_D, whole)
            first_C = torch.arange(len(start_C), device=start_C.device)
            first_RV, max_R = self._ready(loss, side, logits, start_C, whole)
            return Rows(first_RV, first_C, count_C, target[start_C], block.note_CX,
                        later_DV, later_C.cumsum(0) - later_C, max_R=max_R)  # fmt: skip
        index_R = rows_of(loss.rows, side, block)
        reads_C = reads_of(loss.rows, side, block)
        local_C = reads_C.cumsum(0) - reads_C
        if source is not None and source.signal != "dense":
            given_RK = logits.index_select(0, index_R).to(self.dtype)
            check_stored(loss.kind, source.signal, given_RK)
            ids_RK = source.ids_MK[index_R] if isinstance(source, TopK) else None
            return Rows(given_RK, local_C, count_C, target[index_R], ids_RK=ids_RK,
                        signal=source.signal)  # fmt: skip
        logits_RV, max_R = self._ready(loss, side, logits, index_R, whole)
        return Rows(logits_RV, local_C, count_C, target[index_R], max_R=max_R)

    def _ready(
        self, loss: Loss, side: Which, logits: Tensor, index_R: Tensor, whole: bool
    ) -> tuple[Tensor, Tensor]:
        """Return a copy of some rows (cut, in the right precision, masked, tempered), their max."""
        size = getattr(loss, f"{side}_size")
        logits_RV = logits[:, :size].index_select(0, index_R).to(self.dtype)
        max_R = check_rows(
            loss.kind,
            f"{side}_logits",
            logits_RV,
            getattr(loss, f"{side}_masked_X"),
            temperature=1.0 if loss.tempers_events else loss.temperature,
            floors=loss.floors,
            index_R=index_R if whole else None,
        )
        if loss.temperature != 1.0 and not loss.tempers_events:
            logits_RV.div_(loss.temperature)
            max_R = max_R / loss.temperature
        return logits_RV, max_R


def _columns(term: Term) -> int:
    """Return how many logits a row has on both sides; a teacher that gives less forms none."""
    if term.teacher is None:
        return term.loss.student_size
    if isinstance(term.teacher, TopK):  # which of its ids fold into one is found pair by pair
        return term.loss.student_size + term.teacher.shape[1] ** 2
    dense = term.teacher.signal == "dense"
    return term.loss.student_size + (term.loss.teacher_size if dense else 0)


def _leaves(term: Term, student: Rows, block: Chunks) -> list[tuple[Tensor, Tensor]]:
    """Return the student's tensors that want a gradient now, and the rows that each came from."""
    if term.loss.rows != "path":
        found = [(student.logits_RV, rows_of(term.loss.rows, "student", block))]
    else:
        found = [(student.logits_RV, block.student_start_C)]
        if student.later_DV is not None and student.later_DV.shape[0]:
            found.append((student.later_DV, later_rows("student", block)[0]))
    for leaf, _ in found:
        leaf.requires_grad_()
    return found
