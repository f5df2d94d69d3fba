"""Tokenizers of a few hundred tokens, one of each family, trained where they are asked for."""

from __future__ import annotations

from functools import cache

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from tiny_models import TINY_TEXT

CONTROL = ["<unk>", "<s>", "</s>"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_level() -> Tokenizer:
    """Byte-level BPE as GPT-2's, with ChatML tokens, `<think>` as added text and a hole."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TINY_TEXT * 4, trainer)
    tokenizer.add_tokens([AddedToken("<think>", normalized=False, special=False)])
    return tokenizer


def nfc_byte_level() -> Tokenizer:
    """The same with Unicode NFC before it, as Qwen's."""
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def _sentencepiece_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(
        TINY_TEXT * 4, trainers.BpeTrainer(vocab_size=300, show_progress=False)
    )
    import json

    model = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    pieces = CONTROL + [f"<0x{byte:02X}>" for byte in range(256)]
    pieces += [piece for piece in model["vocab"] if piece not in pieces]
    return {piece: index for index, piece in enumerate(pieces)}, merges


@cache
def _sentencepiece_parts():
    return _sentencepiece_vocabulary()


def sentencepiece(*, scheme: str = "first") -> Tokenizer:
    """SentencePiece-like BPE with byte fallback.

    Dummy prefix through Metaspace (`first`, `always`), through a normaliser as in Llama-2's
    tokenizer.json (`normalizer`), or none as in Gemma's (`never`).
    """
    vocab, merges = _sentencepiece_parts()
    tokenizer = Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if scheme == "normalizer":
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    elif scheme == "never":
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(CONTROL)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def unigram() -> Tokenizer:
    """Unigram with byte fallback, whose model would read `</s>` in a text as its control piece."""
    vocab, _ = _sentencepiece_parts()
    scores = [
        (piece, 0.0 if index < 3 else -20.0 if piece.startswith("<0x") else -8.0 / len(piece))
        for piece, index in vocab.items()
    ]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(CONTROL)
    return tokenizer


def wordpiece() -> Tokenizer:
    """WordPiece as BERT uncased."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=200, special_tokens=["[UNK]", "[CLS]", "[SEP]", "[PAD]"], show_progress=False
    )
    tokenizer.train_from_iterator(TINY_TEXT * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[
            ("[CLS]", tokenizer.token_to_id("[CLS]")),
            ("[SEP]", tokenizer.token_to_id("[SEP]")),
        ],
    )
    tokenizer.enable_padding(length=64, pad_token="[PAD]", pad_id=tokenizer.token_to_id("[PAD]"))
    tokenizer.enable_truncation(64)
    return tokenizer


FAMILIES = {
    "byte_level": byte_level,
    "nfc_byte_level": nfc_byte_level,
    "sentencepiece_first": lambda: sentencepiece(scheme="first"),
    "sentencepiece_always": lambda: sentencepiece(scheme="always"),
    "sentencepiece_normalizer": lambda: sentencepiece(scheme="normalizer"),
    "sentencepiece_never": lambda: sentencepiece(scheme="never"),
    "unigram": unigram,
    "wordpiece": wordpiece,
}
LOSSLESS = [name for name in FAMILIES if name != "wordpiece"]

# Real text and odd but valid Unicode. U+2581 is left out: a space to SentencePiece (own tests).
TEXTS = {
    "english": 'The 1984 river bank: 201 people, 37 dogs - and it\'s "over" there.',
    "code": "def add(a_1, b):\n    return a_1 + b  # x_y_z\n\tif __name__ == '__main__':\n",
    "mathematics": "∑_{i=1}^n i² = n(n+1)(2n+1)/6, ∀ε>0 ∃δ: |x−y|<δ ⇒ 12345.678e-9 ≠ ½",
    "chinese": "狐狸跳过懒狗。今天是2024年，我们有３６５天。",
    "arabic": "مرحبًا بالعالم، هذه جملةٌ عربيّة ١٢٣.",
    "hindi": "नमस्ते दुनिया, यह हिन्दी में क्षत्रिय १२३ है।",
    "emoji": "👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 ❤️ 🇩🇪🇫🇷 0️⃣",
    "spaces": "   a  b   c    d     ",
    "tabs and newlines": "\t\ta\t\n\n\n\n\tb\n \n  \n",
    "underscores": "_ __ ___a_b__ _x_ snake_case_word",
    "crlf": "line one\r\nline two\r\n\r\n\rthree\n\r",
    "combining": "e\u0301 a\u0308\u0323 n\u0303 o\u0302\u0301 \u0915\u093f \u1100\u1161\u11a8 Å Ω",
    "marks": "\ufeffBOM a\ufeffb \u00a0nbsp\u00a0 \u200b\u2060 \u202eRTL\u202c \u2028\u2029\u0085",
    "control": "a\x00b\x01\x7f\x1b[0m \x0b\x0c",
    "astral": "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𓀀 𠜎 \U000e0001 \U0010ffff \ufffd \ufffe \uffff",
    "literal specials": "<s> </s> <unk> <|endoftext|> <|im_end|> <think> [CLS] [PAD151650] <0x41>",
    "empty": "",
    "one space": " ",
}
