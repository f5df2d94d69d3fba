"""What is measured on held-out data: sums, word problems, bits per byte, numerals, agreement."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from benchmarks.miniature.columns import Column
from benchmarks.miniature.models import batches_of, rows_of
from benchmarks.miniature.problems import (
    TEMPLATES,
    Problem,
    operand_pairs,
    sum_problem,
    word_problem,
)
from torch import Tensor
from transformers import LlamaForCausalLM

from xtoken import Vocabulary, encode_text
from xtoken.data import PairCollator
from xtoken.data.collate import chunks_from_batch
from xtoken.evaluation import bits_per_byte
from xtoken.losses import Projector, agreement

NEW_TOKENS = 6


@torch.no_grad()
def greedy(
    model: LlamaForCausalLM, vocab: Vocabulary, prompts: Sequence[str], new_tokens: int
) -> list[str]:
    """Return what a model goes on with, greedily, up to eos; prompts of a length go together."""
    ids = [encode_text(vocab, prompt).ids for prompt in prompts]
    by_length: dict[int, list[int]] = {}
    for index, own in enumerate(ids):
        by_length.setdefault(len(own), []).append(index)
    found = [""] * len(prompts)
    for members in by_length.values():
        for begin in range(0, len(members), 512):
            part = members[begin : begin + 512]
            read = torch.tensor(np.stack([ids[i] for i in part]), device=model.device)
            made, past = [], None
            for _ in range(new_tokens):
                output = model(input_ids=read, past_key_values=past, use_cache=True)
                past = output.past_key_values
                read = output.logits[:, -1, : len(vocab)].argmax(-1, keepdim=True)
                made.append(read)
            for i, tokens in zip(part, torch.cat(made, 1).tolist(), strict=True):
                found[i] = text_of(vocab, tokens)
    return found


def text_of(vocab: Vocabulary, ids: Iterable[int]) -> str:
    """Return the text of ids up to the first role token."""
    parts = []
    for token in ids:
        if vocab.is_special[token]:
            break
        parts.append(vocab.token_bytes(token))
    return b"".join(parts).decode("utf-8", "replace")


def leading_number(text: str) -> int | None:
    """Return the number that a text begins with, None if it begins otherwise."""
    digits = text[: len(text) - len(text.lstrip("0123456789"))]
    return int(digits) if digits and len(digits) < 8 and text != digits else None


def held_out_problems(limit: int) -> tuple[list[Problem], list[Problem]]:
    """Return sums and word problems about pairs that no training saw."""
    pairs = operand_pairs("held_out")
    if len(pairs) > limit:
        few = [pair for pair in pairs if sum(pair) < 10]
        pairs = few + random.Random(7).sample([p for p in pairs if sum(p) >= 10], limit - len(few))
    sums = [sum_problem(pair) for pair in pairs]
    words = [word_problem(pair, i % len(TEMPLATES)) for i, pair in enumerate(pairs[: limit // 2])]
    return sums, words


def exact_match(
    model: LlamaForCausalLM, vocab: Vocabulary, problems: Sequence[Problem]
) -> dict[str, float]:
    """Return the share of right answers, overall and by digits of the answer, and the counts."""
    made = greedy(model, vocab, [problem.prompt for problem in problems], NEW_TOKENS)
    hits: dict[str, list[bool]] = {}
    for problem, text in zip(problems, made, strict=True):
        hit = leading_number(text) == problem.answer
        for key in ("all", f"{len(str(problem.answer))}_digits"):
            hits.setdefault(key, []).append(hit)
    found = {key: float(np.mean(values)) for key, values in sorted(hits.items())}
    return {**found, **{f"n_{key}": float(len(values)) for key, values in hits.items()}}


class NumeralMass:
    """Probability on multi-digit numeral tokens, and on the right one, where one comes next.

    At the answers of held-out sums. A tokenizer without such tokens is asked about its digits.
    """

    def __init__(self, vocab: Vocabulary, problems: Sequence[Problem], device: str) -> None:
        lengths = [
            len(b) if (b := vocab.token_bytes(i)).isdigit() else 0 for i in range(len(vocab))
        ]
        least = 2 if max(lengths) > 1 else 1
        self.tokens = torch.tensor([i for i, n in enumerate(lengths) if n >= least], device=device)
        several = [problem for problem in problems if problem.answer >= 10]
        texts = [problem.prompt + problem.completion for problem in several]
        self.batch = next(
            batches_of(rows_of(texts, vocab), len(texts), PairCollator.of(vocab, []), device)
        )
        self.place = torch.tensor(
            [len(encode_text(vocab, problem.prompt).ids) - 1 for problem in several], device=device
        )
        self.size = len(vocab)

    @torch.no_grad()
    def __call__(self, model: LlamaForCausalLM) -> dict[str, float]:
        """Return means over the problems: `mass`, `right` (probability of the gold token)."""
        logits = model(
            input_ids=self.batch["input_ids"], attention_mask=self.batch["attention_mask"]
        ).logits[..., : self.size]
        row = torch.arange(len(self.place), device=self.place.device)
        p_NV = logits[row, self.place].softmax(-1)
        gold = self.batch["input_ids"][row, self.place + 1]
        return {
            "mass": float(p_NV[:, self.tokens].sum(-1).mean()),
            "right": float(p_NV[row, gold].mean()),
        }


@torch.no_grad()
def agreement_with(model: Any, column: Column, teacher: Any, texts: Sequence[str]) -> float:
    """Return the share of chunks on which student and teacher agree, under the fixed W."""
    projector = Projector(column.projection()).to(model.device)
    rows = rows_of(texts, column.student, [column.teacher])
    collate = PairCollator.of(column.student, [column.teacher])
    hits, count = 0.0, 0.0
    for batch in batches_of(rows, 32, collate, str(model.device)):
        part = batch["teachers"][0]
        student_BSV = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).logits
        teacher_BTU: Tensor = teacher.signal(part["input_ids"], part["attention_mask"])
        hit, all_ = agreement(
            student_BSV.flatten(0, 1),
            teacher_BTU.flatten(0, 1),
            chunks_from_batch(batch, 0),
            projector,
        )
        hits, count = hits + float(hit), count + float(all_)
    return hits / count


def bytes_measured(
    model: Any, vocab: Vocabulary, prose: Sequence[str], problems: Sequence[Problem]
) -> dict[str, float]:
    """Return bits per byte: of prose, of problems' text, and of all numerals in both."""
    pieces = [text[:200] for text in prose]
    sums = [problem.prompt + problem.completion for problem in problems]
    of_prose = bits_per_byte(model, vocab, pieces, max_length=128, batch_size=32, by_class=True)
    of_sums = bits_per_byte(model, vocab, sums, max_length=128, batch_size=64, by_class=True)
    numerals = [
        part
        for whole in (of_prose, of_sums)
        for key, part in whole.by_class.items()
        if key.startswith("numeral")
    ]
    nats, size = sum(p.nats for p in numerals), sum(p.bytes for p in numerals)
    return {
        "bpb_prose": of_prose.bpb,
        "bpb_problems": of_sums.bpb,
        "bpb_overall": (of_prose.bits + of_sums.bits) / (of_prose.bytes + of_sums.bytes),
        "bpb_numerals": nats / (np.log(2.0) * size),
    }


def measure(
    model: LlamaForCausalLM, column: Column, teacher: Any, prose: Sequence[str], problems: int
) -> dict[str, Any]:
    """Return every held-out figure of a student."""
    model.eval()
    sums, words = held_out_problems(problems)
    few = sums[:: max(len(sums) // 100, 1)] + words[:: max(len(words) // 30, 1)]
    texts = [p.prompt + p.completion for p in few] + [text[:200] for text in prose]
    return {
        "sums": exact_match(model, column.student, sums),
        "word_problems": exact_match(model, column.student, words)["all"],
        **bytes_measured(model, column.student, prose, few),
        "numerals": NumeralMass(column.student, sums, str(model.device))(model),
        "agreement": agreement_with(model, column, teacher, texts),
    }
