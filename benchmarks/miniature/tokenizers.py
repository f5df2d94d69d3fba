"""Three byte-level BPE tokenizers that differ exactly where it matters.

split    every digit is a token of its own (as Qwen, Gemma, SmolLM2)
keep     numerals of one to three digits are whole (as Llama-3, o200k)
keep2    cut as `keep` cuts, with merges learnt from other text: Python's own documentation
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from xtoken import Vocabulary

WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {
    "split": WORDS % r"\p{N}",
    "keep": WORDS % r"\p{N}{1,3}",
    "keep2": WORDS % r"\p{N}{1,3}",
}
SPECIALS = ["<s>", "</s>", "<pad>"]
# Every numeral stands in the corpus more often than any word, so that all of them are merged
# first, whatever the rest of the corpus holds.
NUMERAL_REPEATS = 400


def train_tokenizer(kind: str, texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a kind (a key of `PATTERNS`), with bos, eos and pad."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERNS[kind]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=SPECIALS,
        show_progress=False,
    )
    if kind == "keep2":
        texts = list(topics.values())
    numerals = "\n".join(str(n) for n in range(1000))
    tokenizer.train_from_iterator([*texts, *[numerals] * NUMERAL_REPEATS], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def vocabulary(kind: str, folder: Path, texts: Sequence[str], vocab_size: int) -> Vocabulary:
    """Return a tokenizer's vocabulary, trained on the first call and read from disk after."""
    place = folder / f"tokenizer-{kind}"
    if not (place / "tokenizer.json").exists():
        partial = place.with_name(place.name + ".partial")
        train_tokenizer(kind, texts, vocab_size).save_pretrained(partial)
        partial.replace(place)
    vocab = Vocabulary.from_pretrained(place)
    if kind != "split":
        broken = [n for n in range(1000) if vocab.id_for_bytes(str(n).encode()) is None]
        if broken:
            raise ValueError(f"{kind}: {len(broken)} numerals are no token, {broken[:5]}, ...")
    return vocab
