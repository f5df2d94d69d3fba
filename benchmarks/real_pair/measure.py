"""What is measured on held-out data, before and after: the same for start, teacher and rows."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from benchmarks.miniature.metrics import greedy, leading_number
from benchmarks.miniature.problems import Problem
from benchmarks.real_pair.cases import addition

from xtoken import Vocabulary
from xtoken.evaluation import BitsPerByte, bits_per_byte, compare
from xtoken.evaluation.bpb import common_starts
from xtoken.evaluation.scoring import evaluating

TASKS = ("lambada_openai", "piqa")
OPERANDS = {"1_digit": (0, 10), "2_digits": (10, 100)}
SHOTS = 6
NEW_TOKENS = 6
# Prompts that go through a model at once; a large vocabulary's logits are held for all of them.
TOGETHER = 10
MAX_LENGTH = 512


@dataclass(frozen=True)
class Measured:
    """How much is measured: sums of each size, and rows of lm-eval's tasks from local files."""

    problems: int = 60
    task_data: Path | None = None
    task_rows: int = 100
    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)


def few_shot(name: str, count: int) -> list[Problem]:
    """Return additions with one- or two-digit operands behind worked examples, all distinct."""
    low, high = OPERANDS[name]
    pairs = [(a, b) for a in range(low, high) for b in range(low, high)]
    drawn = random.Random(11).sample(pairs, min(SHOTS + count, len(pairs)))
    shown = "".join(p.prompt + p.completion for p in (addition(*pair) for pair in drawn[:SHOTS]))
    asked = [addition(*pair) for pair in drawn[SHOTS:]]
    return [Problem(shown + p.prompt, p.completion, p.answer) for p in asked]


def exact_match(model: Any, vocab: Vocabulary, problems: Sequence[Problem]) -> float:
    """Return the share of right answers, decoded greedily up to the line's end."""
    hits = 0
    for begin in range(0, len(problems), TOGETHER):
        part = problems[begin : begin + TOGETHER]
        made = greedy(model, vocab, [problem.prompt for problem in part], NEW_TOKENS)
        hits += sum(
            leading_number(t.lstrip(" ")) == p.answer for t, p in zip(made, part, strict=True)
        )
    return hits / len(problems)


def bytes_of(
    model: Any, vocab: Vocabulary, vocabs: Sequence[Vocabulary], texts: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Return bits per byte by domain and by class of text, on bytes that both models score."""
    domains: dict[str, BitsPerByte] = {}
    for name, own in texts.items():
        starts = common_starts(vocabs, own)
        domains[name] = bits_per_byte(
            model, vocab, own, max_length=MAX_LENGTH, batch_size=4, starts=starts, by_class=True
        )
    classes: dict[str, list[float]] = {}
    for part in domains.values():
        for key, value in part.by_class.items():
            kind = key.split("_")[0] if key.startswith(("numeral", "letters")) else key
            sums = classes.setdefault("numerals" if kind == "numeral" else kind, [0.0, 0.0])
            sums[0] += value.nats
            sums[1] += value.bytes
    return {
        "bpb": {name: part.bpb for name, part in domains.items()},
        "bytes": {name: part.bytes for name, part in domains.items()},
        "bpb_by_class": {
            key: nats / (math.log(2.0) * size) for key, (nats, size) in classes.items() if size
        },
    }


def tasks_of(model: Any, vocab: Vocabulary, measured: Measured) -> dict[str, float]:
    """Return lm-eval's figures on local files, nothing where there are none."""
    if measured.task_data is None:
        return {}
    from xtoken.evaluation.tables import lm_eval_values
    from xtoken.evaluation.task_data import find_task_data
    from xtoken.evaluation.tasks import find_tasks, run_tasks

    data = find_task_data(measured.task_data, TASKS)
    if not data:
        return {}
    results = run_tasks(
        model, vocab, find_tasks(list(data), data), limit=measured.task_rows, batch_size=8
    )
    return lm_eval_values(results)


@torch.no_grad()
def measure(
    model: Any, vocabs: tuple[Vocabulary, Vocabulary], teacher: Any, measured: Measured
) -> dict[str, Any]:
    """Return every held-out figure of a student, or of the teacher itself.

    `vocabs` are the student's and the teacher's; a student is compared with the teacher too.
    """
    vocab = vocabs[1] if model is teacher else vocabs[0]
    with evaluating(model):
        figures = bytes_of(model, vocab, vocabs, measured.texts)
        figures["sums"] = {
            name: exact_match(model, vocab, few_shot(name, measured.problems)) for name in OPERANDS
        }
        figures["tasks"] = tasks_of(model, vocab, measured)
    if model is not teacher:
        prose = list(measured.texts["prose"])
        found = compare(model, vocab, teacher, vocabs[1], prose, max_length=MAX_LENGTH)
        figures |= {"agreement": found.agreement, "kl_per_chunk": found.kl_per_chunk}
    return figures
