"""What a tokenizer does to text before its model sees it, and what that costs in exactness."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from xtoken._bytes import KINDS, SPACE_MARK, TokenTable, component, maps_space
from xtoken._engine import adds_prefix

DROPS_SPACE = ("BertPreTokenizer", "Whitespace", "WhitespaceSplit", "CharDelimiterSplit")
NORMAL_FORMS = ("NFC", "NFD", "NFKC", "NFKD")
# Bytes that occur in no UTF-8 text; DeepSeek's vocabulary leaves them out.
NEVER_IN_UTF8 = frozenset((0xC0, 0xC1, *range(0xF5, 0x100)))
# Bytes of ordinary text. Vocabularies trained without the full alphabet (SmolLM2, Falcon) lack a
# few of the others: control characters and the lead bytes of unassigned planes.
ORDINARY_BYTES = frozenset((0x09, 0x0A, 0x0D, *range(0x20, 0x7F), *range(0x80, 0xF1))) - {
    0xC0,
    0xC1,
}


@dataclass(frozen=True)
class Traits:
    """Exactness of a tokenizer; `notes` are sentences for people.

    `drops_space`: white space between words has no token, so pieces can't be checked by bytes.
    """

    lossy: bool
    drops_space: bool
    normalizes: bool
    dummy_prefix: bool
    notes: tuple[str, ...]

    def with_note(self, note: str) -> Traits:
        """Return the same traits with one more note."""
        return replace(self, notes=(*self.notes, note))


def find_traits(backend: Any, table: TokenTable) -> Traits:
    """Read exactness off the backend's normaliser, pre-tokenizer and model."""
    normalizer = component(backend.normalizer)
    pre_tokenizer = component(backend.pre_tokenizer)
    notes: list[str] = []

    changing = [
        part
        for part in normalizer
        if not (maps_space(part) or adds_prefix(part) or part["type"] == "ByteLevel")
    ]
    notes += [sentence for part in changing if (sentence := _describe(part))]

    drops = any(
        part["type"] in DROPS_SPACE or part.get("behavior") in ("Removed", "removed")
        for part in pre_tokenizer
    )
    if drops:
        notes.append("drops white space between words, so spans come from character offsets")
    word_end = bool(getattr(backend.model, "end_of_word_suffix", None))
    if word_end:
        notes.append("marks the ends of words instead of spaces, so spans come from offsets")
    absent = _absent_bytes(table)
    if absent & ORDINARY_BYTES:
        notes.append("has no tokens for some characters, which become the unk token or vanish")
    elif absent:
        listed = ", ".join(f"0x{byte:02X}" for byte in sorted(absent))
        notes.append(f"has no token for the rare bytes {listed}; characters with them vanish")
    prefix = any(adds_prefix(part) for part in [*normalizer, *pre_tokenizer])
    if prefix:
        notes.append("puts a space before the text, which stands for no byte of it")
    if table.spelling == "sentencepiece":
        notes.append(f"reads U+2581 ({SPACE_MARK}) in a text as a space")
    drops_space = drops or word_end
    lossy = drops_space or bool(absent & ORDINARY_BYTES)
    return Traits(lossy, drops_space, bool(changing), prefix, tuple(notes))


def _absent_bytes(table: TokenTable) -> frozenset[int]:
    kinds = ("byte",) if table.spelling == "sentencepiece" else ("piece", "added")
    wanted = {KINDS.index(kind) for kind in kinds}
    single = {
        piece[0]
        for piece, kind in zip(table.token_bytes, table.kinds.tolist(), strict=True)
        if len(piece) == 1 and kind in wanted
    }
    return frozenset(range(256)) - NEVER_IN_UTF8 - single


def _describe(part: dict[str, Any]) -> str:
    kind = part["type"]
    if kind in NORMAL_FORMS:
        return f"applies Unicode {kind} to the text"
    if kind == "BertNormalizer":
        steps = [
            "lower-cases" if part.get("lowercase") else "",
            "strips accents" if part.get("strip_accents") or part.get("lowercase") else "",
            "removes control characters" if part.get("clean_text") else "",
        ]
        return ", ".join(step for step in steps if step) or "normalises white space"
    return {
        "Lowercase": "lower-cases the text",
        "StripAccents": "strips accents",
        "Strip": "strips white space at the ends of the text",
        "Nmt": "removes control characters",
        "Precompiled": "applies SentencePiece's own character map to the text",
        "Replace": "replaces characters in the text",
        "Prepend": "puts characters before the text",
    }.get(kind, f"changes the text ({kind})")
