"""Fixtures shared by all tests: no network, real tokenizers from the cache, a tiny model pair."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

ASSETS = Path(
    os.environ.get("XTOKEN_ASSETS", Path(__file__).resolve().parent.parent / ".cache" / "assets")
)

# Enough text for a tokenizer of a few hundred tokens with whole words and numerals in it.
TINY_TEXT = [
    "The quick brown fox jumps over the lazy dog near the river bank.",
    "In 1984 there were 201 people and 37 dogs; by 2024 there were 365 people.",
    "12 + 30 = 42, 47 + 471 = 518, and 100 - 58 = 42.",
    "def add(a, b):\n    return a + b\n",
    "Der Fuchs läuft über die Brücke. El niño come piñas. 狐狸跳过懒狗。",
    "the people of the river and the people of the bank were there",
]


@pytest.fixture(scope="session")
def asset_dir() -> Callable[[str], Path]:
    """Return a function: asset name -> directory; skips, with the command to run, if absent."""

    def find(name: str) -> Path:
        path = ASSETS / name
        if not path.exists():
            pytest.skip(f"{name} is not in {ASSETS}; run `make assets` (or `make assets-all`)")
        return path

    return find


def train_tokenizer(*, vocab_size: int, split_digits: bool):
    """Train a byte-level BPE tokenizer with bos, eos and pad on `TINY_TEXT`."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    digits = r"\p{N}" if split_digits else r"\p{N}{1,3}"
    pattern = rf"[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+|\s+"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "</s>", "<pad>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TINY_TEXT * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def save_tiny_model(folder: Path, tokenizer, *, seed: int, extra_rows: int = 0) -> Path:
    """Save a random two-layer Llama with this tokenizer; `extra_rows` pads its head."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + extra_rows,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Directories of a tiny student (numerals whole) and a tiny teacher (digits split, padded)."""
    root = tmp_path_factory.mktemp("tiny")
    student = train_tokenizer(vocab_size=400, split_digits=False)
    teacher = train_tokenizer(vocab_size=340, split_digits=True)
    return (
        save_tiny_model(root / "student", student, seed=1),
        save_tiny_model(root / "teacher", teacher, seed=2, extra_rows=5),
    )


@pytest.fixture(scope="session")
def tiny_text() -> list[str]:
    """Return the sentences that the tiny tokenizers were trained on."""
    return list(TINY_TEXT)
