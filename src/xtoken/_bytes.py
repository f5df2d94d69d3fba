"""The bytes behind every id of a `tokenizers.Tokenizer`, whatever its family.

Four spellings exist: the GPT-2 byte alphabet (byte-level BPE), SentencePiece pieces (U+2581 for a
space, `<0xHH>` for a byte), WordPiece (`##` continues a word) and plain text. Which one holds is
read from the model, the decoder and the pre-tokenizer; never guessed from the tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

Spelling = Literal["byte_level", "sentencepiece", "wordpiece", "plain"]
Kind = Literal["piece", "byte", "added", "special", "missing"]
KINDS: tuple[Kind, ...] = ("piece", "byte", "added", "special", "missing")

SPACE_MARK = "▁"
BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
FILLER = re.compile(r"\[PAD(\d+)\]")


def byte_alphabet() -> dict[str, int]:
    """Return GPT-2's alphabet: printable Latin-1 stands for itself, the rest for U+0100 onwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(0x100 + offset): byte for offset, byte in enumerate(others)})
    return table


ALPHABET = byte_alphabet()
LETTER = {byte: letter for letter, byte in ALPHABET.items()}


class _ToLatin1(dict[int, str]):
    """Alphabet letter -> the Latin-1 character of its byte; what is no letter can't be encoded."""

    def __missing__(self, key: int) -> str:
        return "\u0100"


_TO_LATIN1 = _ToLatin1((ord(letter), chr(byte)) for letter, byte in ALPHABET.items())


def component(part: Any) -> list[dict[str, Any]]:
    """Return a normaliser, pre-tokenizer or decoder as a flat list of its JSON descriptions."""
    if part is None:
        return []
    described = json.loads(part.__getstate__())
    return _flatten(described)


def _flatten(described: dict[str, Any]) -> list[dict[str, Any]]:
    if described.get("type") == "Sequence":
        inner = next(value for value in described.values() if isinstance(value, list))
        return [leaf for item in inner for leaf in _flatten(item)]
    return [described]


def maps_space(part: dict[str, Any]) -> bool:
    """Tell whether a component writes a space as U+2581 (or reads it back)."""
    if part["type"] == "Metaspace":
        return True
    return part["type"] == "Replace" and {
        part["pattern"].get("String"),
        part["content"],
    } == {" ", SPACE_MARK}


def spelling_of(backend: Any) -> Spelling:
    """Return how the tokenizer's model writes its tokens."""
    parts = [
        *component(backend.normalizer),
        *component(backend.pre_tokenizer),
        *component(backend.decoder),
    ]
    if type(backend.model).__name__ == "WordPiece":
        return "wordpiece"
    if any(part["type"] == "ByteLevel" for part in parts):
        return "byte_level"
    if any(maps_space(part) or part["type"] == "ByteFallback" for part in parts):
        return "sentencepiece"
    return "plain"


@dataclass(frozen=True)
class TokenTable:
    """What `read_tokens` returns; arrays run over ids 0 .. size - 1.

    `token_bytes` has b"" for role tokens and holes; `kinds` indexes `KINDS`; `texts` holds the
    tokens as the tokenizer spells them ("" for holes); `raw_size` counts filler rows too.
    """

    spelling: Spelling
    texts: list[str]
    token_bytes: list[bytes]
    kinds: np.ndarray
    raw_size: int
    hidden: list[str]

    def cut(self, size: int) -> TokenTable:
        """Return the table without the ids from `size` on, which text must not produce then."""
        gone = [text for text in self.texts[size:] if text]
        return replace(
            self,
            texts=self.texts[:size],
            token_bytes=self.token_bytes[:size],
            kinds=self.kinds[:size],
            hidden=[*self.hidden, *gone],
        )


def read_tokens(backend: Any, control: Collection[int]) -> TokenTable:
    """Read the bytes and kind of every id.

    An id in `control` is `special`: a role, no bytes. Any other added token is ordinary text that
    is matched before the model runs (Gemma's runs of newlines, Qwen's `<think>`): `added`, with
    its UTF-8 text as bytes. Rows that a GGUF file fills up with `[PAD<own id>]` are no tokens:
    `missing`, and cut off at the end. `hidden` lists added tokens that the tokenizer does not flag
    special but that must never be read from text: control tokens and fillers.
    """
    vocabulary: dict[str, int] = backend.get_vocab(with_added_tokens=True)
    added: dict[int, Any] = backend.get_added_tokens_decoder()
    raw_size = max(vocabulary.values(), default=-1) + 1
    texts = [""] * raw_size
    present = np.zeros(raw_size, dtype=bool)
    for text, index in vocabulary.items():
        texts[index] = text
    present[list(vocabulary.values())] = True
    for index, token in added.items():
        texts[index] = token.content

    fillers = [
        index
        for index, text in enumerate(texts)
        if text.startswith("[PAD") and (m := FILLER.fullmatch(text)) and int(m[1]) == index
    ]
    present[fillers] = False
    size = int(present.nonzero()[0].max(initial=-1)) + 1

    spelling = spelling_of(backend)
    kinds = np.where(present[:size], KINDS.index("piece"), KINDS.index("missing")).astype(np.int8)
    token_bytes = _model_bytes(backend, spelling, texts[:size], kinds)
    for index, token in added.items():
        # Gemma lists its runs of spaces as added tokens spelt "▁▁": pieces that the model reaches
        # by merges, from spaces.
        spelt = spelling == "sentencepiece" and SPACE_MARK in token.content
        if index < size and present[index] and not spelt:
            token_bytes[index] = token.content.encode()
            kinds[index] = KINDS.index("added")
    for index in control:
        token_bytes[index] = b""
        kinds[index] = KINDS.index("special")
    for index in np.flatnonzero(kinds == KINDS.index("missing")).tolist():
        token_bytes[index] = b""
    hidden = [
        texts[index]
        for index in [*fillers, *control]
        if index in added and not added[index].special
    ]
    return TokenTable(spelling, texts[:size], token_bytes, kinds, raw_size, hidden)


def _model_bytes(backend: Any, spelling: Spelling, texts: list[str], kinds: np.ndarray) -> list:
    if spelling == "byte_level":
        suffix = getattr(backend.model, "end_of_word_suffix", None)
        return [_from_alphabet(text, suffix) for text in texts]
    if spelling == "wordpiece":
        mark = getattr(backend.model, "continuing_subword_prefix", "##")
        return [text.removeprefix(mark).encode() if mark else text.encode() for text in texts]
    if spelling == "sentencepiece":
        pieces = [text.replace(SPACE_MARK, " ").encode() for text in texts]
        for index, text in enumerate(texts):
            if len(text) == 6 and (match := BYTE_PIECE.fullmatch(text)):
                pieces[index] = bytes.fromhex(match[1])
                kinds[index] = KINDS.index("byte")
        return pieces
    return [text.encode() for text in texts]


def _from_alphabet(text: str, suffix: str | None) -> bytes:
    if suffix:
        text = text.removesuffix(suffix)
    try:
        return text.translate(_TO_LATIN1).encode("latin-1")
    except UnicodeEncodeError:
        return text.encode()  # not in the alphabet: a token added as text by the vocabulary's maker
