"""A tiny pair of tokenizers and models, trained and drawn in the test run."""

from __future__ import annotations

from pathlib import Path

# Enough text for a tokenizer of a few hundred tokens with whole words and numerals in it.
TINY_TEXT = [
    "The quick brown fox jumps over the lazy dog near the river bank.",
    "In 1984 there were 201 people and 37 dogs; by 2024 there were 365 people.",
    "12 + 30 = 42, 47 + 471 = 518, and 100 - 58 = 42.",
    "def add(a, b):\n    return a + b\n",
    "Der Fuchs läuft über die Brücke. El niño come piñas. 狐狸跳过懒狗。",
    "the people of the river and the people of the bank were there",
]


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
