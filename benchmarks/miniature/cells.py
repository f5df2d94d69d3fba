"""One cell of the grid: a loss, a column and a seed; one student trained and measured."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from benchmarks.miniature.columns import Column, Prose
from benchmarks.miniature.metrics import NumeralMass, greedy, held_out_problems, measure
from benchmarks.miniature.models import (
    KeptLogits,
    batches_of,
    copy_of,
    documents,
    optimizer_of,
    rate_at,
    rows_of,
)
from benchmarks.miniature.problems import Plan, half, plans, written
from benchmarks.miniature.sizes import Size
from benchmarks.miniature.variants import VARIANTS
from torch import Tensor

from xtoken.data import PairCollator
from xtoken.losses import LossResult, make_loss
from xtoken.training import Combine, Objective, TeacherTerm
from xtoken.training.combine import combined, scale_of, weighted_kd

LEARNED_RATE = 1e-2
PROSE_TOKENS = 28
ANSWER_TOKENS = 8
VALIDATION_STEPS = 6
WARM_UP = 20


@dataclass(frozen=True)
class Row:
    """A row of the grid: how a student is taught."""

    kind: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    gamma: float = 0.1
    scaling: str = "dynamic"
    ce: float = 1.0
    kd: float = 1.0
    variant: str | None = None
    on_teacher_text: bool = False


# The form that X-Token's paper argues about: KL on the common part, both weights 1.
GOLD_OF_THE_PAPER = {
    "direction": "teacher_to_student",
    "weights": "fixed",
    "lambda_kl": 1.0,
    "lambda_uld": 1.0,
}
ROWS: dict[str, Row] = {
    "continued": Row(),
    "gold": Row("gold", GOLD_OF_THE_PAPER),
    "p_kl": Row("p_kl"),
    "path_kl": Row("path_kl"),
    "csd": Row("csd"),
    "p_kl_gamma0": Row("p_kl", gamma=0.0),
    "strict": Row("strict"),
    "bpm": Row("bpm"),
    "alm": Row("alm"),
    "h_kl": Row("h_kl"),
    "p_kl_learned": Row("p_kl", {"weights": "learned"}),
    "p_kl_fixed_scale": Row("p_kl", scaling="fixed"),
    "h_kl_fixed_scale": Row("h_kl", scaling="fixed"),
    "path_kl_fixed_scale": Row("path_kl", scaling="fixed"),
    "sequence_kd": Row(on_teacher_text=True),
    "uld": Row("uld"),
    "gold_trl": Row("gold"),
    "gold_fixed_scale": Row("gold", GOLD_OF_THE_PAPER, scaling="fixed"),
    "alm_fixed_scale": Row("alm", scaling="fixed"),
    "csd_fixed_scale": Row("csd", scaling="fixed"),
    "strict_fixed_scale": Row("strict", scaling="fixed"),
    "bpm_fixed_scale": Row("bpm", scaling="fixed"),
    "path_kl_without_labels": Row("path_kl", scaling="fixed", ce=0.0),
    "p_kl_gamma0_fixed_scale": Row("p_kl", gamma=0.0, scaling="fixed"),
    "p_kl_learned_fixed_scale": Row("p_kl", {"weights": "learned"}, scaling="fixed"),
    "p_kl_chain_rule_fixed_scale": Row("p_kl", {"pooling": "chain_rule"}, scaling="fixed"),
    "p_kl_mean_fixed_scale": Row("p_kl", {"pooling": "mean"}, scaling="fixed"),
    "p_kl_reached_fixed_scale": Row("p_kl", {"support": "reached"}, scaling="fixed"),
    "p_kl_topk_fixed_scale": Row("p_kl", {"support": "topk_rest"}, scaling="fixed"),
    "path_kl_root_alone": Row("path_kl", scaling="fixed", variant="root_alone"),
    "path_kl_without_boundary": Row("path_kl", scaling="fixed", variant="without_boundary"),
    "path_kl_without_ends": Row("path_kl", scaling="fixed", variant="without_ends"),
    "path_kl_kd4": Row("path_kl", scaling="fixed", kd=4.0),
    "h_kl_kd4": Row("h_kl", scaling="fixed", kd=4.0),
}


@dataclass(frozen=True)
class Bench:
    """What all cells of a column share."""

    column: Column
    teacher: KeptLogits
    prose: Prose
    size: Size

    @classmethod
    def of(cls, column: Column, prose: Prose, size: Size) -> Bench:
        """Make a bench; its teacher remembers what it has read."""
        return cls(column, KeptLogits(column.teacher_model), prose, size)


def loss_of(row: Row, column: Column) -> Any:
    """Return the row's loss, by the library's own name for it, or a variant of Path-KL."""
    if row.variant is not None:
        return VARIANTS[row.variant](column.projection(), column.student, column.teacher)
    return make_loss(
        row.kind or "",
        student_vocab=column.student,
        teacher_vocab=column.teacher,
        projection=column.projection(row.gamma),
        **row.settings,
    )


def texts_for(bench: Bench, row: Row, steps: int, seed: int) -> list[str]:
    """Return the documents of a training, in order; sequence-level KD's are the teacher's own."""
    found = plans(bench.size.mixture, steps, "train", bench.prose.train, seed)
    if not row.on_teacher_text:
        return [written(plan) for plan in found]
    answers = teacher_answers(bench, found)
    return [written(plan, answers) for plan in found]


def teacher_answers(bench: Bench, found: Sequence[Plan]) -> dict[str, str]:
    """Return what the teacher goes on with after each prompt, greedily.

    A problem's answer goes to the end of its line; prose goes on from the middle of a piece.
    """
    prose = list(dict.fromkeys(half(plan) for plan in found if isinstance(plan, str)))
    problems = list(
        dict.fromkeys(p.prompt for plan in found if not isinstance(plan, str) for p in plan)
    )
    model, vocab = bench.column.teacher_model, bench.column.teacher
    answers = dict(zip(prose, greedy(model, vocab, prose, PROSE_TOKENS), strict=True))
    made = greedy(model, vocab, problems, ANSWER_TOKENS)
    for prompt, text in zip(problems, made, strict=True):
        answers[prompt] = text.split("\n")[0] + "\n"
    return answers


def step_loss(
    objective: Objective, model: Any, batch: dict[str, Any], settings: Combine
) -> tuple[Tensor, float, float]:
    """Return the loss of one optimizer step, and the global values of CE and KD."""
    parts = objective(model, batch)
    ce = parts.ce.total / parts.ce.count
    if not objective.teachers:
        return ce, float(ce.detach()), 0.0
    kd = weighted_kd([r.total for r in parts.kd], objective.weights, [float(parts.kd[0].count)])
    scale = scale_of(ce, kd) if settings.scaled else 1.0
    return combined(ce, kd, settings, scale), float(ce.detach()), float(kd.detach())


def train(
    bench: Bench, name: str, seed: int, rate: float, steps: int, record: bool = True
) -> tuple[Any, list[dict[str, float]], int]:
    """Train a copy of the start; returns it, figures over training, and the tokens it read."""
    row, column, size = ROWS[name], bench.column, bench.size
    torch.manual_seed(seed)
    model = copy_of(column.start)
    objective, optimizer = Objective([]), optimizer_of(model, rate)
    if row.kind is not None:
        loss = loss_of(row, column).to(size.device)
        objective = Objective([TeacherTerm("teacher", bench.teacher, loss)])
        learned = list(loss.parameters())
        if learned:
            optimizer.add_param_group({"params": learned, "lr": LEARNED_RATE, "weight_decay": 0.0})
    teachers = [column.teacher] if row.kind is not None else []
    rows = rows_of(texts_for(bench, row, steps, seed), column.student, teachers)
    collate = PairCollator.of(column.student, teachers)
    settings = Combine(scaling=row.scaling, ce=row.ce, kd=row.kd)  # type: ignore[arg-type]
    watch = NumeralMass(column.student, held_out_problems(100)[0], size.device)
    history, tokens = [], 0
    for step, batch in enumerate(batches_of(rows, documents(size.mixture), collate, size.device)):
        if record and step % size.record_every == 0:
            history.append({"step": step, **watch(model)})
        tokens += int(batch["attention_mask"].sum())
        optimizer.param_groups[0]["lr"] = rate * rate_at(step, steps, WARM_UP)
        total, ce, kd = step_loss(objective, model, batch, settings)
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if history and history[-1]["step"] == step:
            history[-1] |= {"ce": ce, "kd": kd}
    if record:
        history.append({"step": steps, **watch(model)})
    return model, history, tokens


@cache
def _validation_texts(size: Size, prose: tuple[str, ...]) -> list[str]:
    found = plans(size.mixture, VALIDATION_STEPS, "validation", prose, 99)
    return [written(plan) for plan in found if not isinstance(plan, str)]


@torch.no_grad()
def validation_ce(bench: Bench, model: Any) -> float:
    """Return cross-entropy a token on the validation split's problems: what a rate is chosen by.

    On problems alone, since sums are what the grid asks about: on prose a low rate always wins
    for so few steps, as the start's own rate was never lowered.
    """
    texts = _validation_texts(bench.size, tuple(bench.prose.validation))
    total: LossResult | None = None
    nats, count = 0.0, 0.0
    collate = PairCollator.of(bench.column.student, [])
    for batch in batches_of(rows_of(texts, bench.column.student), 32, collate, bench.size.device):
        total = Objective([])(model, batch).ce
        nats, count = nats + float(total.total), count + float(total.count)
    return nats / count


def sweep(bench: Bench, name: str) -> dict[str, Any]:
    """Try each learning rate shortly with a seed of its own; returns the rates and the best."""
    found = {}
    for rate in bench.size.learning_rates:
        model, _, _ = train(bench, name, 777, rate, bench.size.sweep_steps, record=False)
        found[f"{rate:g}"] = validation_ce(bench, model)
    return {
        "validation_ce_of_problems": found,
        "rate": float(min(found, key=lambda key: found[key])),
    }


def run_cell(bench: Bench, name: str, seed: int, rate: float) -> dict[str, Any]:
    """Train and measure one student; returns what a cell's JSON holds."""
    began = time.process_time()
    model, history, tokens = train(bench, name, seed, rate, bench.size.cell_steps)
    trained = time.process_time()
    texts = bench.prose.held_out[: bench.size.prose_texts]
    figures = measure(model, bench.column, bench.teacher, texts, bench.size.held_out_problems)
    return {
        "row": name,
        "column": bench.column.name,
        "seed": seed,
        "size": bench.size.name,
        "learning_rate": rate,
        "steps": bench.size.cell_steps,
        "tokens": tokens,
        "figures": figures,
        "history": history,
        "seconds": {
            "training": round(trained - began, 1),
            "measuring": round(time.process_time() - trained, 1),
        },
    }
