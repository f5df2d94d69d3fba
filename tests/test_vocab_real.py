"""Real tokenizers: the bytes of an encoding are the bytes of the text, for every one of them."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tiny_tokenizers import TEXTS
from xtoken.encode import encode_chat, encode_text, encode_texts
from xtoken.vocab import Vocabulary

CORE = ["llama-3", "qwen2", "gpt-2", "llama-spm", "phi-3"]
CORE += ["starcoder", "deepseek-llm", "falcon", "smollm2"]
NAMES = [*CORE, "gemma-3", "bert-uncased", "o200k"]
# Vocabularies that lack a few control bytes lose such characters; they say so in their notes.
LACKING = {"smollm2", "falcon", "starcoder"}
SPECIALS = (
    "a <s></s> <unk> <|endoftext|><|im_end|> <|eot_id|> <|end|> <bos> <eos> [CLS] [PAD151650]"
)

Finder = Callable[[str], Path]


@cache
def read(path: Path) -> Vocabulary:
    return Vocabulary.from_pretrained(path)


@pytest.fixture(params=NAMES)
def vocab(request, asset_dir: Finder) -> Vocabulary:
    return read(asset_dir(f"vocab/{request.param}"))


def real_texts(asset_dir: Finder, limit: int = 12_000) -> list[str]:
    """Return llama.cpp's test strings and this repository's own code as text."""
    vectors = asset_dir("gguf") / "ggml-vocab-llama-bpe.gguf.inp"
    texts = vectors.read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    source = Path(__file__).read_text(encoding="utf-8")
    return [*texts, source[:limit], *TEXTS.values(), SPECIALS]


def normalised(vocab: Vocabulary, text: str) -> str:
    return unicodedata.normalize("NFC", text) if vocab.normalizes else text


def check_spans(vocab: Vocabulary, text: str) -> None:
    encoding = encode_text(vocab, text, bos=False)
    content = text.encode()
    spans = encoding.spans[encoding.spans[:, 0] < encoding.spans[:, 1]]
    assert (np.diff(spans[:, 0]) >= 0).all()
    assert (np.diff(spans[:, 1]) >= 0).all()
    assert not vocab.is_missing[encoding.ids].any()
    if vocab.lossy:
        return
    assert not vocab.is_special[encoding.ids].any()
    if vocab.spelling == "sentencepiece":
        assert encoding.exact == ("\u2581" not in text)
        content = content.replace("\u2581".encode(), b" ")
    elif any(f"0x{byte:02X}" in " ".join(vocab.notes) for byte in normalised(vocab, text).encode()):
        assert not encoding.exact  # SmolLM2, Falcon and StarCoder lack a few rare bytes
        return
    else:
        assert encoding.exact == (normalised(vocab, text) == text)
        content = normalised(vocab, text).encode()
    joined = vocab.join_bytes(encoding.ids)
    assert joined == content or (vocab.dummy_prefix and joined == b" " + content)
    assert (spans[1:, 0] <= spans[:-1, 1]).all()
    if text:
        assert (spans[0, 0], spans[-1, 1]) == (0, len(text.encode()))


def test_bytes_of_an_encoding_are_the_bytes_of_the_text(vocab, asset_dir):
    for text in real_texts(asset_dir):
        check_spans(vocab, text)


def test_u2581_in_a_text(vocab):
    for text in ("\u2581", "a\u2581b \u2581 c", "\u2581\u2581the"):
        check_spans(vocab, text)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=st.text(max_size=30))
def test_random_text(vocab, text):
    check_spans(vocab, text)


def test_ids_are_those_of_transformers(vocab, asset_dir):
    """Special strings apart, which data text may not parse."""
    texts = [text.replace("<", "(").replace("[", "(") for text in real_texts(asset_dir)]
    own = vocab.tokenizer(texts, add_special_tokens=False, padding=False, truncation=False)
    for text, expected, encoding in zip(
        texts, own["input_ids"], encode_texts(vocab, texts, bos=False), strict=True
    ):
        assert encoding.ids.tolist() == expected, text[:40]
    habit = vocab.tokenizer("the fox", padding=False)["input_ids"]
    ours = encode_text(vocab, "the fox").ids.tolist()
    assert habit[: len(ours)] == ours


def test_every_token_reads_back(vocab):
    sample = [i for i in range(0, len(vocab), 7) if vocab.byte_lengths[i]]
    pieces = [vocab.token_bytes(index) for index in sample]
    if vocab.lossy:
        return
    for piece, ids in zip(pieces, vocab.tokenize_bytes(pieces), strict=True):
        assert vocab.join_bytes(ids) == piece


def test_special_strings_stay_text(vocab):
    special = np.flatnonzero(vocab.is_special)
    names = [vocab.token_text(index) for index in special[:40]]
    unk = vocab.role_id("unk") if vocab.lossy else None
    for name, encoding in zip(
        names, encode_texts(vocab, [f"x {name}y" for name in names], bos=False), strict=True
    ):
        assert set(encoding.ids[vocab.is_special[encoding.ids]].tolist()) <= {unk}, name
        if not vocab.lossy:
            assert (
                vocab.join_bytes(encoding.ids).lstrip(b" ")
                == normalised(vocab, f"x {name}y")
                .replace("\u2581", " " if vocab.spelling == "sentencepiece" else "\u2581")
                .encode()
            )


@pytest.mark.parametrize(
    ("name", "size", "rows"),
    [
        ("qwen2", 151_646, 151_936),  # the GGUF is filled up with [PAD151646] ...
        ("phi-3", 32_011, 32_064),
        ("gpt-2", 50_257, None),
        ("llama-spm", 32_000, None),
        ("smollm2", 49_152, None),
        ("gemma-3", 262_144, None),
        ("bert-uncased", 30_522, None),
    ],
)
def test_real_size(asset_dir, name, size, rows):
    vocab = read(asset_dir(f"vocab/{name}"))
    assert (len(vocab), vocab.rows) == (size, rows)
    assert not vocab.is_missing.any()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama-3", {"bos": "<|begin_of_text|>", "end_of_turn": "<|eot_id|>"}),
        ("qwen2", {"eos": "<|endoftext|>", "end_of_turn": "<|im_end|>"}),
        ("gpt-2", {"bos": "<|endoftext|>", "eos": "<|endoftext|>", "end_of_turn": None}),
        ("llama-spm", {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "end_of_turn": None}),
        ("phi-3", {"bos": "<s>", "eos": "<|endoftext|>", "end_of_turn": "<|end|>"}),
        ("gemma-3", {"bos": "<bos>", "eos": "<eos>", "end_of_turn": "<end_of_turn>"}),
        ("bert-uncased", {"bos": "[CLS]", "eos": "[SEP]", "pad": "[PAD]", "unk": "[UNK]"}),
        ("smollm2", {"eos": "<|im_end|>", "end_of_turn": "<|im_end|>"}),
    ],
)
def test_roles(asset_dir, name, expected):
    vocab = read(asset_dir(f"vocab/{name}"))
    for role, text in expected.items():
        index = vocab.role_id(role)
        assert (index if index is None else vocab.token_text(index)) == text
        assert index is None or role in vocab.roles(index)


def test_numerals(asset_dir):
    whole = {name: read(asset_dir(f"vocab/{name}")) for name in ("llama-3", "gpt-2")}
    split = {name: read(asset_dir(f"vocab/{name}")) for name in ("qwen2", "smollm2", "llama-spm")}
    for vocab in whole.values():
        assert vocab.id_for_bytes(b"201") is not None
    for vocab in split.values():
        assert vocab.ids_for_bytes(b"201") == ()
        (ids,) = vocab.tokenize_bytes([b"201"])
        assert [vocab.token_bytes(i) for i in ids] == [b"2", b"0", b"1"]


def test_gemma_newlines_prefer_the_id_that_is_emitted(asset_dir):
    vocab = read(asset_dir("vocab/gemma-3"))
    ids = vocab.ids_for_bytes(b"\n")
    assert [vocab.kind(index) for index in ids] == ["added", "byte"]
    assert vocab.token_bytes(encode_text(vocab, "\n\n\n", bos=False).ids[0]) == b"\n\n\n"
    pairs = [i for i in range(len(vocab)) if vocab.kind(i) == "byte"]
    doubled = [i for i in pairs if len(vocab.ids_for_bytes(vocab.token_bytes(i))) == 2]
    assert len(doubled) > 90
    assert all(vocab.ids_for_bytes(vocab.token_bytes(i))[0] != i for i in doubled)


def test_a_gguf_file_reads_as_its_directory(asset_dir):
    vocab = Vocabulary.from_pretrained(asset_dir("gguf") / "ggml-vocab-gpt-2.gguf")
    assert vocab.same_as(read(asset_dir("vocab/gpt-2")))
    assert vocab.rows == 50_257


def test_a_padded_gguf_file(asset_dir):
    vocab = Vocabulary.from_pretrained(asset_dir("gguf") / "ggml-vocab-phi-3.gguf")
    assert (len(vocab), vocab.rows) == (32_011, 32_064)
    assert vocab.same_as(read(asset_dir("vocab/phi-3")))


@pytest.mark.slow
def test_a_gguf_file_has_no_ids_beyond_its_rows(asset_dir):
    # transformers adds a token of its own to this file's 128,256.
    vocab = Vocabulary.from_pretrained(asset_dir("gguf") / "ggml-vocab-llama-bpe.gguf")
    assert len(vocab) == vocab.rows == 128_256


def test_model_and_tokenizer_directories_agree(asset_dir):
    model = read(asset_dir("models/smollm2-135m"))
    assert model.rows == 49_152
    assert model.fingerprint == read(asset_dir("vocab/smollm2")).fingerprint
    assert not model.same_as(read(asset_dir("vocab/starcoder")))  # also 49,152 ids


@pytest.mark.parametrize("name", ["smollm2", "qwen2", "phi-3"])
def test_chats_in_their_own_templates(asset_dir, name):
    vocab = read(asset_dir(f"vocab/{name}"))
    messages = [
        {"role": "user", "content": "user: what is 201 + 1984?"},
        {"role": "assistant", "content": "It is 2185 <|im_end|> 狐狸 👩‍👩‍👧‍👦."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes,\n\n  quite sure."},
    ]
    encoding = encode_chat(vocab, messages)
    stream = "".join(message["content"] for message in messages).encode()
    assert encoding.exact
    assert encoding.content_bytes == len(stream)
    marks = np.zeros(len(stream), bool)
    for (start, stop), on in zip(encoding.spans, encoding.supervised, strict=True):
        if start < stop and on:
            marks[start:stop] = True
    supervised = np.frombuffer(stream, np.uint8)[marks].tobytes()
    assert supervised == (messages[1]["content"] + messages[3]["content"]).encode()
    closing = encoding.ids == vocab.role_id("end_of_turn")
    assert encoding.supervised[closing].sum() == 2
    assert (encoding.spans[closing, 0] == encoding.spans[closing, 1]).all()


def test_speed(asset_dir):
    import time

    vocab = read(asset_dir("vocab/llama-3"))
    text = Path(__file__).read_text(encoding="utf-8")[:4000]
    encode_texts(vocab, [text])
    begun = time.process_time()
    encodings = encode_texts(vocab, [text] * 200)
    assert sum(map(len, encodings)) / (time.process_time() - begun) > 50_000
