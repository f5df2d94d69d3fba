"""What a micro-batch contributes: cross-entropy and each teacher's loss, as sums and counts.

No trainer, no ranks, no scaling: the same object serves the training step, the forward-only
pass of exact dynamic scaling, and evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from xtoken.errors import TrainingError
from xtoken.losses import LossResult, cross_entropy
from xtoken.losses.base import Chunks
from xtoken.training.counts import IGNORED, next_targets
from xtoken.training.metrics import Clock, Sums

LN2 = math.log(2.0)
# Rows of teacher logits that are turned into log-probabilities at a time for `teacher_bpb`.
BLOCK_ROWS = 256


class DenseTeacher(Protocol):
    """Anything that gives next-token logits for a batch, without gradient."""

    def signal(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return logits [B, T, U or more]."""
        ...


Agreement = Callable[[Tensor, Tensor, Chunks], tuple[Tensor, Tensor]]


@dataclass
class TeacherTerm:
    """One teacher's part of the loss.

    `agreement(student_logits_NV, teacher_logits_MU, chunks) -> (hits, count)` measures top-1
    agreement under the fixed projection, whatever the loss is; None leaves it out.
    `byte_lengths` (int[U]) are the bytes of the teacher's tokens, for its bits per byte.
    """

    name: str
    teacher: DenseTeacher
    loss: Callable[[Tensor, Tensor, Chunks], LossResult]
    weight: float = 1.0
    agreement: Agreement | None = None
    byte_lengths: Tensor | None = None


@dataclass
class Parts:
    """A micro-batch's sums: `ce` over tokens, `kd[m]` over teacher m's chunks, and figures."""

    ce: LossResult
    kd: list[LossResult]
    sums: Sums = field(default_factory=Sums)


def student_inputs(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return what the student's forward takes, with positions counted from the first real token.

    Position ids are given only where padding stands on the left: models count from the padded
    start otherwise, which shifts absolute positions.
    """
    mask = batch["attention_mask"]
    inputs = {"input_ids": batch["input_ids"], "attention_mask": mask}
    if "position_ids" in batch:
        inputs["position_ids"] = batch["position_ids"]
    elif not bool(mask[:, 0].all()):
        inputs["position_ids"] = (mask.long().cumsum(-1) - 1).clamp_min(0)
    return inputs


class Objective:
    """The terms of a run: the student's cross-entropy and one term for each teacher.

    Args:
        teachers: the teachers' terms, in the order of `batch["teachers"]`.
        byte_lengths: int[V], bytes of the student's tokens; gives `bpb`. None leaves it out.
        chunks_of: `(batch, teacher_index) -> Chunks`; the data package's by default.
    """

    def __init__(
        self,
        teachers: Sequence[TeacherTerm],
        *,
        byte_lengths: Tensor | None = None,
        chunks_of: Callable[[Mapping[str, Any], int], Chunks] | None = None,
    ) -> None:
        if chunks_of is None:
            from xtoken.data.collate import chunks_from_batch

            chunks_of = chunks_from_batch
        self.teachers = list(teachers)
        self.byte_lengths = byte_lengths
        self.chunks_of = chunks_of

    @property
    def weights(self) -> list[float]:
        """The teachers' weights w_m."""
        return [term.weight for term in self.teachers]

    @property
    def names(self) -> list[str]:
        """The teachers' names."""
        return [term.name for term in self.teachers]

    def count_chunks(self, batch: Mapping[str, Any], index: int) -> int:
        """Return the supervised chunks of a batch that teacher `index`'s loss divides by.

        A loss that reads only some kinds of chunks says so itself (`loss.count`).
        """
        count = getattr(self.teachers[index].loss, "count", None)
        if count is None:
            return int(batch["teachers"][index]["chunks"].shape[0])
        return int(count(self.chunks_of(batch, index)))

    def __call__(
        self,
        student: nn.Module,
        batch: Mapping[str, Any],
        *,
        with_teachers: bool = True,
        figures: bool = False,
        clock: Clock | None = None,
        backward_clock: bool = False,
    ) -> Parts:
        """Run student and teachers on a batch.

        Args:
            student: the (wrapped) student; called without labels.
            batch: a collated batch on the student's device.
            with_teachers: False runs the student alone (`kd` is then empty).
            figures: also measure agreement and the teachers' bits per byte.
            clock: told which phase begins.
            backward_clock: let the clock see where the loss's backward ends.
        """
        enter = clock.enter if clock is not None else lambda phase: None
        enter("student")
        logits_BSV = student(**student_inputs(batch), use_cache=False).logits
        if backward_clock and logits_BSV.requires_grad:
            logits_BSV.register_hook(lambda gradient: enter("student"))
        logits_NV = logits_BSV.reshape(-1, logits_BSV.shape[-1])
        enter("loss")
        targets_N = next_targets(batch["labels"])
        parts = Parts(ce=cross_entropy(logits_NV, targets_N), kd=[])
        parts.sums.add("ce", parts.ce.total, parts.ce.count)
        self._student_bytes(parts, logits_NV, targets_N)
        for index, term in enumerate(self.teachers if with_teachers else ()):
            parts.kd.append(
                self._teacher(index, term, logits_NV, batch, parts.sums, figures, enter)
            )
        return parts

    def _teacher(
        self,
        index: int,
        term: TeacherTerm,
        logits_NV: Tensor,
        batch: Mapping[str, Any],
        sums: Sums,
        figures: bool,
        enter: Callable[[str | None], None],
    ) -> LossResult:
        chunks = self.chunks_of(batch, index)
        if len(chunks) == 0:
            zero = torch.zeros((), dtype=torch.float32, device=logits_NV.device)
            return LossResult(total=zero, count=zero.clone())
        enter("teacher")
        part = batch["teachers"][index]
        with torch.no_grad():
            logits_BTU = term.teacher.signal(part["input_ids"], part["attention_mask"])
        teacher_MU = logits_BTU.reshape(-1, logits_BTU.shape[-1]).to(logits_NV.device)
        enter("loss")
        result = term.loss(logits_NV, teacher_MU, chunks)
        sums.add(f"kd/{term.name}", result.total, result.count)
        for name, (total, count) in result.metrics.items():
            self._figure(sums, name, term.name, total, count)
        if figures:
            enter("figures")
            with torch.no_grad():
                if term.agreement is not None:
                    hits, count = term.agreement(logits_NV.detach(), teacher_MU, chunks)
                    self._figure(sums, "agreement", term.name, hits, count)
                if term.byte_lengths is not None:
                    term.byte_lengths = term.byte_lengths.to(teacher_MU.device)
                    nats, size = realised_nats(teacher_MU, chunks, term.byte_lengths)
                    self._figure(sums, "teacher_bpb", term.name, nats, size * LN2)
            enter("loss")
        return result

    def _figure(self, sums: Sums, name: str, teacher: str, total: Tensor, count: Tensor) -> None:
        sums.add(name, total, count)
        if len(self.teachers) > 1:
            sums.add(f"{name}/{teacher}", total, count)

    def _student_bytes(self, parts: Parts, logits_NV: Tensor, targets_N: Tensor) -> None:
        """Add the student's bits per byte: an eos has nats but no bytes, so it stays out."""
        if self.byte_lengths is None:
            return
        self.byte_lengths = self.byte_lengths.to(targets_N.device)
        supervised_N = targets_N != IGNORED
        size_N = self.byte_lengths[targets_N.clamp_min(0)] * supervised_N
        rows = (supervised_N & (size_N == 0)).nonzero().squeeze(1)
        nats = parts.ce.total.detach()
        if len(rows):
            with torch.no_grad():
                without_bytes = cross_entropy(logits_NV[rows], targets_N[rows])
            nats = nats - without_bytes.total
        parts.sums.add("bpb", nats, size_N.sum() * LN2)


def realised_nats(
    logits_MU: Tensor, chunks: Chunks, byte_lengths_U: Tensor
) -> tuple[Tensor, Tensor]:
    """Return (nats, bytes) of the teacher tokens with bytes inside supervised chunks.

    nats = - sum_r log softmax(logits[r])[target[r]] over the chunks' rows, on the real
    vocabulary (`len(byte_lengths_U)` columns); bytes is the sum of those tokens' lengths.
    """
    count_C = chunks.teacher_count_C
    first = torch.repeat_interleave(chunks.teacher_start_C, count_C)
    ends_C = count_C.cumsum(0)
    offset = torch.arange(int(ends_C[-1]), device=first.device) - torch.repeat_interleave(
        ends_C - count_C, count_C
    )
    rows = first + offset
    targets = chunks.teacher_target_M[rows]
    # An eos that closes the text has nats but no bytes.
    has_bytes = byte_lengths_U[targets] > 0
    rows, targets = rows[has_bytes], targets[has_bytes]
    size = byte_lengths_U.shape[0]
    nats = torch.zeros((), dtype=torch.float64, device=logits_MU.device)
    for block, target in zip(rows.split(BLOCK_ROWS), targets.split(BLOCK_ROWS), strict=True):
        logits = logits_MU[block, :size].float()
        realised = logits.gather(1, target[:, None]).squeeze(1)
        nats += (logits.logsumexp(-1) - realised).sum().double()
    return nats, byte_lengths_U[targets].sum()


def not_finite(parts: Parts, objective: Objective) -> str | None:
    """Return which of the sums is NaN or infinite, None if none is (waits for the device)."""
    totals = {"ce": parts.ce.total.detach()}
    for term, result in zip(objective.teachers, parts.kd, strict=False):
        totals[f"kd/{term.name}"] = result.total.detach()
    if bool(torch.isfinite(torch.stack([total.float() for total in totals.values()])).all()):
        return None
    values = ", ".join(f"{name} = {float(total)}" for name, total in totals.items())
    return f"the loss is not finite ({values})"


def refuse_silent_teachers(objective: Objective, chunks: Sequence[float]) -> None:
    """Raise TrainingError if a teacher that has weight had no supervised chunk at all."""
    for term, seen in zip(objective.teachers, chunks, strict=True):
        if term.weight and seen == 0:
            raise TrainingError(
                f"teacher {term.name} had no supervised chunk in the whole data, so its loss was "
                "never computed: check that the supervised spans are not empty, and that sequences "
                "are not cut before them (data.max_length, data.teacher_max_length)"
            )


def frozen_rng(device: torch.device) -> Any:
    """Return a context that puts the CPU's and the device's random states back at its end."""
    if device.type == "cuda":
        return torch.random.fork_rng(devices=[device])
    return torch.random.fork_rng(devices=[]) if device.type == "cpu" else nullcontext()
