"""Small Llamas: the teacher that does sums well, and the student's start that has seen few."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks.miniature.problems import Mixture, plans, written
from benchmarks.miniature.sizes import Lesson, Shape
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from xtoken import Vocabulary
from xtoken.data import PairCollator, PairedDataset, Record, build_dataset
from xtoken.training import Objective

MAX_LENGTH = 128


def new_model(shape: Shape, vocab: Vocabulary, seed: int) -> LlamaForCausalLM:
    """Return a random Llama with tied embeddings."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocab),
            hidden_size=shape.hidden,
            intermediate_size=shape.inner,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            bos_token_id=vocab.role_id("bos"),
            eos_token_id=vocab.role_id("eos"),
            pad_token_id=vocab.role_id("pad"),
        )
    )


def rows_of(
    texts: Sequence[str], student: Vocabulary, teachers: Sequence[Vocabulary] = ()
) -> PairedDataset:
    """Encode and align documents, one a row, in their order."""
    records = [Record("text", f"document {i}", text=text) for i, text in enumerate(texts)]
    return build_dataset(records, student, teachers, max_length=MAX_LENGTH)


def batches_of(
    rows: PairedDataset, size: int, collate: PairCollator, device: str = "cpu"
) -> Iterator[dict[str, Any]]:
    """Yield the rows in batches of `size`, the last one shorter, on the device."""
    for begin in range(0, len(rows), size):
        batch = collate([rows[i] for i in range(begin, min(begin + size, len(rows)))])
        yield on_device(batch, device)


def on_device(batch: Any, device: str) -> Any:
    """Move every tensor of a batch."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, dict):
        return {key: on_device(value, device) for key, value in batch.items()}
    return [on_device(part, device) for part in batch]


def documents(mixture: Mixture) -> int:
    """Return the documents in a batch."""
    return mixture.sums + mixture.words + mixture.prose


def rate_at(step: int, steps: int, warm_up: int) -> float:
    """Return the share of the learning rate at a step: linear up, then linear down to a tenth."""
    if step < warm_up:
        return (step + 1) / warm_up
    return 1.0 - 0.9 * (step - warm_up) / max(steps - warm_up, 1)


def optimizer_of(model: torch.nn.Module, rate: float) -> torch.optim.AdamW:
    """Return AdamW as every training here uses it."""
    return torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=1e-2)


def pretrained(
    place: Path,
    shape: Shape,
    vocab: Vocabulary,
    lesson: Lesson,
    prose: Sequence[str],
    *,
    seed: int,
    anneal: bool,
    device: str,
) -> LlamaForCausalLM:
    """Return a model trained by cross-entropy, from disk if it was made before.

    `anneal` lowers the learning rate to the end; a start isn't, as its training goes on.
    """
    if (place / "config.json").exists():
        return LlamaForCausalLM.from_pretrained(place).to(device)
    mixture, steps, rate = lesson.mixture, lesson.steps, lesson.rate
    texts = [written(plan) for plan in plans(mixture, steps, "train", prose, seed)]
    rows, collate = rows_of(texts, vocab), PairCollator.of(vocab, [])
    model = new_model(shape, vocab, seed).to(device)
    objective, optimizer = Objective([]), optimizer_of(model, rate)
    for step, batch in enumerate(batches_of(rows, documents(mixture), collate, device)):
        share = rate_at(step, steps, 50) if anneal else min((step + 1) / 50, 1.0)
        optimizer.param_groups[0]["lr"] = rate * share
        parts = objective(model, batch)
        (parts.ce.total / parts.ce.count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(
                f"  {place.name} {step}: ce {float(parts.ce.total.detach() / parts.ce.count):.3f}"
            )
    partial = place.with_name(place.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    partial.replace(place)
    return model


def copy_of(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Return an independent copy to train."""
    return copy.deepcopy(model).train()


class KeptLogits:
    """A teacher that remembers its logits by batch, so that the losses of a column share them."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.model = model.eval().requires_grad_(False)
        self.kept: dict[bytes, Tensor] = {}

    @torch.no_grad()
    def signal(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return logits [B, T, U], kept in half precision (the models' are well inside it)."""
        key = input_ids.cpu().numpy().tobytes()
        if key not in self.kept:
            logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
            self.kept[key] = logits.half()
        return self.kept[key].float()
