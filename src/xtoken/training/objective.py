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
from xtoken.losses import Loss, LossResult, Term, cross_entropy, run_terms
from xtoken.losses.base import Chunks
from xtoken.losses.cross_entropy import cross_entropy_term
from xtoken.losses.sources import LogitSource, Source
from xtoken.output_head import ModelHead
from xtoken.training.counts import IGNORED, next_targets
from xtoken.training.measures import realised_nats
from xtoken.training.metrics import Clock, Sums
from xtoken.training.selection import Selection

LN2 = math.log(2.0)


class DenseTeacher(Protocol):
    """Anything that gives next-token logits for a batch, without gradient.

    One that also has `rows(input_ids, attention_mask) -> Source` (flat rows: hidden states with an
    output head, say) is asked for these instead.
    """

    def signal(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return logits [B, T, U or more]."""
        ...


Rows = Tensor | Source
Agreement = Callable[[Rows, Rows, Chunks], tuple[Tensor, Tensor]]


@dataclass
class TeacherTerm:
    """One teacher's part of the loss.

    `agreement(student, teacher, chunks) -> (hits, count)` measures top-1 agreement of rows (logits
    or `Hidden`) under the fixed projection, whatever the loss is; None leaves it out.
    `byte_lengths` (int[U]) are the bytes of the teacher's tokens, for its bits per byte.
    """

    name: str
    teacher: DenseTeacher
    loss: Callable[[Any, Any, Chunks], LossResult]
    weight: float = 1.0
    agreement: Agreement | None = None
    byte_lengths: Tensor | None = None


@dataclass(frozen=True)
class Weights:
    """What a micro-batch's sums are multiplied by: `ce`, and `kd[m]` for teacher m."""

    ce: float
    kd: tuple[float, ...]


@dataclass
class Parts:
    """A micro-batch's sums: `ce` over tokens, `kd[m]` over teacher m's chunks, and figures.

    `weigh(weights)` gives ce * CE + sum_m kd[m] * KD_m, differentiable; by default the sums carry
    gradients themselves.
    """

    ce: LossResult
    kd: list[LossResult]
    sums: Sums = field(default_factory=Sums)
    weigh: Callable[[Weights], Tensor] | None = None

    def loss(self, weights: Weights) -> Tensor:
        """Return the weighted sum of the parts; a part with weight 0 takes no gradient."""
        if self.weigh is not None:
            return self.weigh(weights)
        loss = torch.zeros_like(self.ce.total)
        if weights.ce:
            loss = loss + weights.ce * self.ce.total
        for result, weight in zip(self.kd, weights.kd, strict=False):
            if weight:
                loss = loss + weight * result.total.to(loss.dtype)
        return loss


@dataclass
class _Lesson:
    """One teacher on one micro-batch: its rows, and which chunks count how much."""

    index: int
    term: TeacherTerm
    rows: Source
    chunks: Chunks
    groups: list[tuple[float, Chunks]]


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
        selection: who teaches which sample; None: everyone, by its weight.

    Attributes:
        head: the student's output head, if its logits are to be formed in blocks; needs losses
            of `xtoken.losses`.
    """

    def __init__(
        self,
        teachers: Sequence[TeacherTerm],
        *,
        byte_lengths: Tensor | None = None,
        chunks_of: Callable[[Mapping[str, Any], int], Chunks] | None = None,
        selection: Selection | None = None,
    ) -> None:
        if chunks_of is None:
            from xtoken.data.collate import chunks_from_batch

            chunks_of = chunks_from_batch
        self.teachers = list(teachers)
        self.byte_lengths = byte_lengths
        self.chunks_of = chunks_of
        self.selection = selection
        self.head: ModelHead | None = None

    @property
    def weights(self) -> list[float]:
        """The teachers' weights w_m."""
        return [term.weight for term in self.teachers]

    @property
    def names(self) -> list[str]:
        """The teachers' names."""
        return [term.name for term in self.teachers]

    @property
    def takes_rows(self) -> bool:
        """Whether every loss takes rows of any source, and several of them at once."""
        return all(isinstance(term.loss, Loss) for term in self.teachers)

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
        weights: Weights | None = None,
        with_teachers: bool = True,
        figures: bool = False,
        clock: Clock | None = None,
        backward_clock: bool = False,
    ) -> Parts:
        """Run student and teachers on a batch.

        Args:
            student: the (wrapped) student; called without labels.
            batch: a collated batch on the student's device.
            weights: what the parts will be weighted by, if that is known by now: all losses then
                go through the rows together, once. Else a head that is reached is gone through
                twice, for the sums and for their gradient.
            with_teachers: False runs the student alone (`kd` is then empty).
            figures: also measure agreement and the teachers' bits per byte.
            clock: told which phase begins.
            backward_clock: let the clock see where the loss's backward ends.
        """
        enter = clock.enter if clock is not None else lambda phase: None
        enter("student")
        source = self._student(student, batch)
        rows = source.inputs[0]
        if backward_clock and rows.requires_grad:
            rows.register_hook(lambda gradient: enter("student"))
        enter("teacher")
        lessons = self._lessons(batch, source) if with_teachers else []
        enter("loss")
        targets_N = next_targets(batch["labels"])
        parts = self._run(source, targets_N, lessons, weights)
        if with_teachers:
            self._fill(parts, lessons, rows.device)
        parts.sums.add("ce", parts.ce.total, parts.ce.count)
        enter("figures" if figures else "loss")
        self._student_bytes(parts, source, targets_N)
        for lesson in lessons if figures else ():
            self._figures(parts.sums, lesson, source)
        enter("loss")
        return parts

    def _student(self, student: nn.Module, batch: Mapping[str, Any]) -> Source:
        inputs = student_inputs(batch)
        if self.head is not None and self.head.worthwhile(batch["input_ids"]):
            return self.head.run(lambda: student(**inputs, use_cache=False))
        logits_BSV = student(**inputs, use_cache=False).logits
        return LogitSource(logits_BSV.reshape(-1, logits_BSV.shape[-1]))

    # ---- Teachers --------------------------------------------------------------------------

    def _lessons(self, batch: Mapping[str, Any], source: Source) -> list[_Lesson]:
        """Ask every teacher that has chunks in the batch, then let the selection choose."""
        lessons = []
        for index, term in enumerate(self.teachers):
            chunks = self.chunks_of(batch, index)
            if len(chunks):
                rows = self._teacher(term, batch["teachers"][index], source.inputs[0].device)
                lessons.append(_Lesson(index, term, rows, chunks, [(1.0, chunks)]))
        if self.selection is not None and lessons:
            self._select(lessons, *batch["input_ids"].shape)
        return lessons

    @torch.no_grad()
    def _teacher(
        self, term: TeacherTerm, part: Mapping[str, Tensor], device: torch.device
    ) -> Source:
        ids, mask = part["input_ids"], part["attention_mask"]
        rows = getattr(term.teacher, "rows", None)
        if rows is not None and isinstance(term.loss, Loss):
            return rows(ids, mask)
        logits_BTU = term.teacher.signal(ids, mask)
        return LogitSource(logits_BTU.reshape(-1, logits_BTU.shape[-1]).to(device))

    def _select(self, lessons: list[_Lesson], samples: int, columns: int) -> None:
        """Split each teacher's chunks into groups of samples that have one factor."""
        assert self.selection is not None
        device = lessons[0].chunks.student_start_C.device
        score_MB = torch.full(
            (len(self.teachers), samples), torch.nan, dtype=torch.float64, device=device
        )
        owners = [lesson.chunks.student_start_C // columns for lesson in lessons]
        for lesson, owner_C in zip(lessons, owners, strict=True):
            size = getattr(lesson.term.loss, "teacher_size", lesson.rows.shape[1])
            score_MB[lesson.index] = self.selection.score(
                lesson.rows, lesson.chunks, owner_C, samples, size
            )
        factor_MB = self.selection.factors(score_MB, self.weights)
        for lesson, owner_C in zip(lessons, owners, strict=True):
            factor_C = factor_MB[lesson.index][owner_C]
            lesson.groups = [
                (value, lesson.chunks.select(factor_C == value))
                for value in factor_C.unique().tolist()
                if value
            ]

    # ---- Losses ----------------------------------------------------------------------------

    def _run(
        self,
        source: Source,
        targets_N: Tensor,
        lessons: list[_Lesson],
        weights: Weights | None,
    ) -> Parts:
        """Run the cross-entropy and each lesson's groups; `kd` has one result a group for now."""
        together = self.takes_rows and (not source.whole or weights is not None)
        if not together:
            rows = source.inputs[0]
            kd = [
                lesson.term.loss(rows, _given(lesson), chunks)
                for lesson in lessons
                for _, chunks in lesson.groups
            ]
            return Parts(ce=cross_entropy(rows, targets_N), kd=kd)

        def terms(weights: Weights) -> list[Term]:
            found = [cross_entropy_term(source, targets_N, weight=weights.ce)]
            for lesson in lessons:
                weight = weights.kd[lesson.index]
                found += [
                    Term(lesson.term.loss, chunks, lesson.rows, weight * factor)  # type: ignore[arg-type]
                    for factor, chunks in lesson.groups
                ]
            return found

        known = weights or Weights(1.0, (1.0,) * len(self.teachers))
        with torch.set_grad_enabled(torch.is_grad_enabled() and weights is not None):
            total, (ce, *kd) = run_terms(source, terms(known))
        if weights is not None:
            return Parts(ce=ce, kd=kd, weigh=lambda _: total)
        return Parts(ce=ce, kd=kd, weigh=lambda late: run_terms(source, terms(late))[0])

    def _fill(self, parts: Parts, lessons: list[_Lesson], device: torch.device) -> None:
        """Turn results of groups into one a teacher, and note the figures of each."""
        found = iter(parts.kd)
        zero = torch.zeros((), dtype=torch.float32, device=device)
        results = [LossResult(total=zero, count=zero.clone()) for _ in self.teachers]
        for lesson in lessons:
            name, total = lesson.term.name, zero
            for factor, _ in lesson.groups:
                result = next(found)
                total = total + factor * result.total if factor != 1.0 else total + result.total
                parts.sums.add(f"kd/{name}", result.total, result.count)
                for metric, (value, count) in result.metrics.items():
                    self._figure(parts.sums, metric, name, value, count)
            counted = float(getattr(lesson.term.loss, "count", len)(lesson.chunks))
            results[lesson.index] = LossResult(total, total.new_tensor(counted))
            if self.selection is not None:
                taught = sum(factor * len(chunks) for factor, chunks in lesson.groups)
                share = lesson.term.weight / sum(self.weights)
                parts.sums.add(f"teacher_share/{name}", taught * share, len(lesson.chunks))
                parts.sums.add(f"kd_chosen/{name}", total, counted)
        parts.kd = results

    # ---- Figures ---------------------------------------------------------------------------

    @torch.no_grad()
    def _figures(self, sums: Sums, lesson: _Lesson, source: Source) -> None:
        term, chunks = lesson.term, lesson.chunks
        given = _given(lesson)
        if term.agreement is not None:
            student = source if isinstance(given, Source) else source.inputs[0].detach()
            hits, count = term.agreement(student, given, chunks)
            self._figure(sums, "agreement", term.name, hits, count)
        if term.byte_lengths is not None:
            term.byte_lengths = term.byte_lengths.to(chunks.teacher_start_C.device)
            nats, size = realised_nats(lesson.rows, chunks, term.byte_lengths)
            self._figure(sums, "teacher_bpb", term.name, nats, size * LN2)

    def _figure(
        self,
        sums: Sums,
        name: str,
        teacher: str,
        total: Tensor | float,
        count: Tensor | float,
    ) -> None:
        sums.add(name, total, count)
        if len(self.teachers) > 1:
            sums.add(f"{name}/{teacher}", total, count)

    def _student_bytes(self, parts: Parts, student: Rows, targets_N: Tensor) -> None:
        """Add the student's bits per byte: an eos has nats but no bytes, so it stays out."""
        if self.byte_lengths is None:
            return
        self.byte_lengths = self.byte_lengths.to(targets_N.device)
        supervised_N = targets_N != IGNORED
        size_N = self.byte_lengths[targets_N.clamp_min(0)] * supervised_N
        without_N = supervised_N & (size_N == 0)
        nats = parts.ce.total.detach()
        if bool(without_N.any()):
            with torch.no_grad():
                without = cross_entropy(student, targets_N.masked_fill(~without_N, IGNORED))
            nats = nats - without.total
        parts.sums.add("bpb", nats, size_N.sum() * LN2)


def _given(lesson: _Lesson) -> Any:
    """Return a lesson's rows as its loss takes them: logits for one that isn't this library's."""
    own = isinstance(lesson.term.loss, Loss)
    return lesson.rows if own else lesson.rows.inputs[0]


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
