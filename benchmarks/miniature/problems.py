"""Sums and word problems, split by operand pair, and documents made of them and of prose."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Part = Literal["train", "validation", "held_out"]
Pair = tuple[int, int]
# Operands are 0 .. 99, so that answers have one to three digits.
OPERANDS = 100
TEMPLATES = (
    ("Tom has {a} apples and buys {b} more. Now Tom has ", "{c} apples.\n"),
    ("A shelf holds {a} books. With {b} more, it holds ", "{c} books.\n"),
    ("There are {a} boys and {b} girls. Together they are ", "{c} children.\n"),
)


@dataclass(frozen=True)
class Problem:
    """A prompt, what should follow, and the number that decides whether it is right."""

    prompt: str
    completion: str
    answer: int


def operand_pairs(part: Part) -> list[Pair]:
    """Return the ordered pairs of a part; (a, b) and (b, a) are always in the same one.

    Of every ten unordered pairs with equally many digits in their sum, eight are for training.
    """
    by_digits: dict[int, list[Pair]] = {}
    for a in range(OPERANDS):
        for b in range(a, OPERANDS):
            by_digits.setdefault(len(str(a + b)), []).append((a, b))
    chosen: list[Pair] = []
    for digits in sorted(by_digits):
        pairs = by_digits[digits]
        random.Random(digits).shuffle(pairs)
        tenth = max(len(pairs) // 10, 1)
        own = {
            "held_out": pairs[:tenth],
            "validation": pairs[tenth : 2 * tenth],
            "train": pairs[2 * tenth :],
        }[part]
        chosen += [pair for a, b in own for pair in dict.fromkeys([(a, b), (b, a)])]
    return chosen


def sum_problem(pair: Pair) -> Problem:
    """Return `a+b=` with its answer and a line break."""
    a, b = pair
    return Problem(f"{a}+{b}=", f"{a + b}\n", a + b)


def word_problem(pair: Pair, template: int) -> Problem:
    """Return a sentence that asks for the sum."""
    prompt, completion = TEMPLATES[template]
    a, b = pair
    return Problem(prompt.format(a=a, b=b), completion.format(c=a + b), a + b)


@dataclass(frozen=True)
class Mixture:
    """How many documents of each kind a step's batch holds, and how long they are."""

    sums: int = 14
    words: int = 4
    prose: int = 6
    sums_a_document: int = 6
    words_a_document: int = 2
    prose_characters: int = 160


# What a document is made of, before anything is put into it.
Plan = list[Problem] | str


def plans(mixture: Mixture, steps: int, part: Part, prose: Sequence[str], seed: int) -> list[Plan]:
    """Return `steps` batches of documents, end to end: lists of problems, and pieces of prose."""
    rng = random.Random(seed)
    pairs = operand_pairs(part)
    found: list[Plan] = []
    for _ in range(steps):
        for _ in range(mixture.sums):
            found.append([sum_problem(rng.choice(pairs)) for _ in range(mixture.sums_a_document)])
        for _ in range(mixture.words):
            found.append(
                [
                    word_problem(rng.choice(pairs), rng.randrange(len(TEMPLATES)))
                    for _ in range(mixture.words_a_document)
                ]
            )
        for _ in range(mixture.prose):
            text = rng.choice(prose)
            begin = rng.randrange(max(len(text) - mixture.prose_characters, 1))
            begin = text.find(" ", begin) + 1
            found.append(text[begin : begin + mixture.prose_characters])
    return found


def written(plan: Plan, answers: Mapping[str, str] | None = None) -> str:
    """Return a document's text; `answers` maps a prompt to what a teacher goes on with."""
    if isinstance(plan, str):
        if answers is None:
            return plan
        prompt = half(plan)
        return prompt + answers[prompt]
    if answers is None:
        return "".join(problem.prompt + problem.completion for problem in plan)
    return "".join(problem.prompt + answers[problem.prompt] for problem in plan)


def half(text: str) -> str:
    """Return the first half of a piece of prose, up to the end of a word."""
    return text[: max(text.rfind(" ", 0, len(text) // 2), 1)]
