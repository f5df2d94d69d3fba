"""The frame of every loss: checks first, then blocks of chunks, each through `block`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from xtoken.errors import LossError
from xtoken.losses.base import Chunks, Direction, LossResult, Pooling, SignalKind
from xtoken.losses.blocks import Term, run_terms
from xtoken.losses.checks import (
    check_beta,
    check_choice,
    check_chunks,
    check_logits,
    check_temperature,
)
from xtoken.losses.divergence import DIRECTIONS
from xtoken.losses.parts import RowsRead
from xtoken.losses.pooling import Rows
from xtoken.losses.signals import TopK
from xtoken.losses.sources import Source, as_source

SIGNALS: dict[SignalKind, str] = {
    "dense": "logits over its whole vocabulary",
    "topk": "its k likeliest ids (TopK)",
    "realised": "the realised tokens' log-probabilities alone (Realised)",
}


class Loss(nn.Module):
    """A sum over chunks of a divergence between teacher and student.

    Subclasses set `kind` and `poolings`, keep their tables as buffers, and implement `block`.
    A loss knows tensors, chunks and a projection: no model, tokenizer or configuration.

    Attributes:
        kind: the loss's name in a run file.
        accepts: teacher signals that it can use.
        rows: `first` if only the first logit row of each chunk is read, `all` if each token's is,
            `path` if the loss says for each chunk (in its note) how far it reads.
        student_size, teacher_size: V and U; logit columns beyond them are never looked at.
        student_masked_X, teacher_masked_X: ids that take part in no distribution.
        temperature: tau; both logits are divided by it and the loss is multiplied by tau^2.
    """

    kind: ClassVar[str]
    accepts: frozenset[SignalKind] = frozenset({"dense"})
    signal_hint: ClassVar[str] = ""
    poolings: ClassVar[tuple[Pooling, ...]] = ("first",)
    # Probabilities of next to nothing count as `floor_of` the precision.
    floors: ClassVar[bool] = True
    # The temperature acts on events, which the loss sees to itself, instead of on logits.
    tempers_events: ClassVar[bool] = False

    student_masked_X: Tensor
    teacher_masked_X: Tensor

    def __init__(
        self,
        student_masked: np.ndarray,
        teacher_masked: np.ndarray,
        *,
        temperature: float = 1.0,
        pooling: Pooling = "first",
        direction: Direction = "teacher_to_student",
        jsd_beta: float | None = None,
    ) -> None:
        super().__init__()
        check_temperature(self.kind, temperature)
        check_choice(self.kind, "pooling", pooling, self.poolings)
        check_choice(self.kind, "direction", direction, DIRECTIONS)
        if jsd_beta is not None:
            check_beta(self.kind, jsd_beta)
            check_choice(self.kind, "direction (jsd_beta is given)", direction, ("jsd",))
        self.student_size = len(student_masked)
        self.teacher_size = len(teacher_masked)
        self._keep("student_masked_X", np.flatnonzero(student_masked))
        self._keep("teacher_masked_X", np.flatnonzero(teacher_masked))
        self.temperature = float(temperature)
        self.pooling: Pooling = pooling
        self.direction: Direction = direction
        self.jsd_beta = 0.5 if jsd_beta is None else float(jsd_beta)

    @property
    def rows(self) -> RowsRead:
        """Which logit rows of a chunk are read."""
        return "first" if self.pooling == "first" else "all"

    @property
    def reads_targets(self) -> bool:
        """Whether the realised ids of a chunk's tokens matter."""
        return self.rows != "first"

    def select(self, chunks: Chunks) -> Tensor | None:
        """Return bool[C], the chunks that the loss reads (and counts); None means all."""
        return None

    def count(self, chunks: Chunks) -> int:
        """Return how many of the chunks the loss counts, without looking at logits."""
        chosen_C = self.select(chunks)
        return len(chunks) if chosen_C is None else int(chosen_C.sum())

    def annotate(self, chunks: Chunks) -> tuple[Chunks, dict[str, tuple[Tensor, Tensor]]]:
        """Return the chunks that are read, with notes for `block`, and metrics known by now."""
        chosen_C = self.select(chunks)
        return (chunks if chosen_C is None else chunks.select(chosen_C)), {}

    def prepare(self, teacher_blocks: Iterable[Rows]) -> Any:
        """Return what `block` needs of the whole batch's teacher rows; None for most losses."""
        return None

    def block(self, student: Rows, teacher: Any, state: Any = None) -> LossResult:
        """Return the loss of a block of chunks by plain differentiable operations."""
        raise NotImplementedError

    def forward(
        self, student: Tensor | Source, teacher: Tensor | Source, chunks: Chunks
    ) -> LossResult:
        """Return the sum over chunks, differentiable in what the student's logits come from.

        Args:
            student: logits, float[N, V or more] in any precision (maths is float32 or wider), or
                hidden states and an output head (`Hidden`).
            teacher: logits, float[M, U or more], or `Hidden`, or a smaller signal (`TopK`,
                `Realised`) where the loss accepts it; gets no gradient.
            chunks: which rows belong together, on the logits' device.

        Raises:
            LossError: a signal that the loss can't use, shapes that don't fit, rows outside the
                logits, rows without a finite logit.
        """
        total, (result,) = run_terms(as_source(student), [Term(self, chunks, as_source(teacher))])
        return LossResult(total, result.count, result.metrics)

    # ------------------------------------------------------------------ for subclasses

    def _keep(self, name: str, ids: np.ndarray | Tensor) -> None:
        """Register ids as an int64 buffer that isn't saved with a model."""
        self.register_buffer(name, torch.as_tensor(ids).long(), persistent=False)

    def check(self, student: Source, teacher: Source | None, chunks: Chunks) -> None:
        """Refuse signals, shapes and chunks that don't fit, before any work is done."""
        check_logits(self.kind, "student_logits_NV", student.shape, self.student_size)
        if teacher is not None:
            if teacher.signal not in self.accepts:
                raise LossError(
                    f"{self.kind}: the teacher gives {SIGNALS[teacher.signal]}, but this loss as "
                    f"it is set needs {' or '.join(SIGNALS[s] for s in sorted(self.accepts))}."
                    f"{self.signal_hint}"
                )
            if teacher.signal == "dense":
                check_logits(self.kind, "teacher_logits_MU", teacher.shape, self.teacher_size)
            if isinstance(teacher, TopK):
                teacher.check(self.kind, self.teacher_size)
        rows = None if teacher is None else teacher.shape[0]
        sizes = (self.student_size, self.teacher_size) if self.reads_targets else None
        check_chunks(self.kind, chunks, student.shape[0], rows, sizes)

    def result(self, per_chunk_C: Tensor, **figures_C: Tensor) -> LossResult:
        """Return tau^2 times the sum over chunks, their count, and sums of detached figures."""
        count = per_chunk_C.new_tensor(float(per_chunk_C.shape[0]))
        metrics = {name: (figure_C.detach().sum(), count) for name, figure_C in figures_C.items()}
        return LossResult(per_chunk_C.sum() * self.temperature**2, count, metrics)
