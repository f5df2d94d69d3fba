"""Evaluation with logits in blocks of positions: the results of whole logits, never held."""

from __future__ import annotations

from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from xtoken import Vocabulary, output_head
from xtoken.audit.suppression import measure_suppression
from xtoken.evaluation import bits_per_byte, compare, scoring
from xtoken.losses import job

TEXTS = [
    "The quick brown fox jumps over 201 lazy dogs near the river bank. 🦊 Ünïcödé!",
    "x",
    "In 1984 there were 201 people and 37 dogs; by 2024 there were 365 people.\n\n" * 3,
    "狐狸跳过懒狗。 مرحبا",
]
HEADS = {
    "plain": ("llama", {}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "soft cap": ("gemma2", {"head_dim": 16, "final_logit_softcapping": 5.0}),
    "scaled": ("cohere", {"logit_scale": 0.3}),
}


def model_for(vocab: Vocabulary, kind: str, seed: int) -> Any:
    """A model with more rows than ids and large logits, so that either's neglect would show."""
    name, extra = HEADS[kind]
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        name,
        vocab_size=len(vocab) + 5,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        **extra,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20.0)
    return model


@pytest.fixture(scope="module")
def vocabs(tiny_pair) -> tuple[Vocabulary, Vocabulary]:
    return tuple(Vocabulary.from_pretrained(folder) for folder in tiny_pair)


def in_blocks(monkeypatch: pytest.MonkeyPatch, rows: int, vocab: Vocabulary) -> list[int]:
    """Let every batch count as large, a few rows go through heads at a time; returns head rows."""
    monkeypatch.setitem(output_head.HELD_BYTES, "cpu", 0)
    monkeypatch.setattr(scoring, "BLOCK_ROWS", rows)
    monkeypatch.setitem(job.HEAD_BYTES, "cpu", rows * 4 * len(vocab))
    monkeypatch.setattr(job, "LEAST_HEAD_ROWS", 1)
    seen: list[int] = []
    forward = output_head.nn.Linear.forward

    def counted(self: Any, states: torch.Tensor) -> torch.Tensor:
        if self.out_features == len(vocab) + 5:
            seen.append(states.shape[-2])
        return forward(self, states)

    monkeypatch.setattr(output_head.nn.Linear, "forward", counted)
    return seen


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize(("rows", "length", "batch"), [(1, 13, 3), (7, 31, 2), (256, 64, 5)])
def test_blocks_change_nothing(
    vocabs, monkeypatch: pytest.MonkeyPatch, kind: str, rows: int, length: int, batch: int
) -> None:
    ours, theirs = vocabs
    student, teacher = model_for(ours, kind, 1), model_for(theirs, "plain", 2)
    windows: dict[str, Any] = {"max_length": length, "batch_size": batch}
    whole = bits_per_byte(student, ours, TEXTS, by_class=True, **windows).to_dict()
    compared = compare(student, ours, teacher, theirs, TEXTS, **windows).to_dict()
    seen = in_blocks(monkeypatch, rows, ours)
    parts = bits_per_byte(student, ours, TEXTS, by_class=True, **windows).to_dict()
    assert flat(parts) == pytest.approx(flat(whole), rel=1e-5)
    found = compare(student, ours, teacher, theirs, TEXTS, **windows).to_dict()
    assert flat(found) == pytest.approx(flat(compared), rel=1e-4)
    # The model itself formed logits of one position a window, beside the trial run's four.
    assert seen
    assert set(seen) <= {1, output_head.TRIAL_TOKENS}


def flat(values: dict[str, Any], at: str = "") -> dict[str, float]:
    found: dict[str, float] = {}
    for key, value in values.items():
        found |= flat(value, f"{at}{key}/") if isinstance(value, dict) else {at + key: value}
    return found


def test_small_logits_are_formed_at_once(vocabs, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = vocabs
    model = model_for(ours, "plain", 1)
    sources = []
    read = scoring.token_nats
    monkeypatch.setattr(scoring, "token_nats", lambda s, *a: (sources.append(s), read(s, *a))[1])
    bits_per_byte(model, ours, TEXTS)
    assert all(source.whole for source in sources)
    in_blocks(monkeypatch, 8, ours)
    sources.clear()
    bits_per_byte(model, ours, TEXTS)
    assert not any(source.whole for source in sources)


def test_heads_that_are_out_of_reach_give_whole_logits(
    vocabs, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = vocabs
    student, teacher = model_for(ours, "plain", 1), model_for(theirs, "plain", 2)
    plain = student.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        return SimpleNamespace(logits=0.5 * plain(*args, **kwargs).logits)

    student.forward = forward
    whole = compare(student, ours, teacher, theirs, TEXTS).to_dict()
    in_blocks(monkeypatch, 8, ours)
    found = compare(student, ours, teacher, theirs, TEXTS).to_dict()
    assert flat(found) == pytest.approx(flat(whole), rel=1e-4)
    assert found["student"] == whole["student"]


def test_heads_that_are_called_twice_give_whole_logits(
    vocabs, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, _ = vocabs
    model = model_for(ours, "plain", 1)
    whole = bits_per_byte(model, ours, TEXTS).nats
    plain = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        plain(*args, **kwargs)
        return plain(*args, **kwargs)

    model.forward = forward
    in_blocks(monkeypatch, 8, ours)
    assert bits_per_byte(model, ours, TEXTS).nats == whole


def test_offloaded_heads_are_not_reached(vocabs) -> None:
    ours, _ = vocabs
    model = model_for(ours, "plain", 1).to("meta")
    with pytest.raises(output_head.HeadUnreachableError, match="offloaded"):
        output_head.ModelHead(model)


def test_the_suppression_check_reads_blocks_too(vocabs, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = vocabs
    student, teacher = model_for(ours, "tied", 1), model_for(theirs, "plain", 2)

    def measured() -> Any:
        return measure_suppression(student, ours, theirs, TEXTS, teacher=teacher)

    whole = asdict(measured())
    in_blocks(monkeypatch, 8, ours)
    found = asdict(measured())
    for key, value in whole.items():
        if isinstance(value, int | float):
            assert found[key] == pytest.approx(value, rel=1e-5), key
