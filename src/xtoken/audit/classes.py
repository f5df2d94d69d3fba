"""Token classes: what kind of text a token stands for, by its bytes.

Every id belongs to exactly one class. One leading space is not looked at (` the` is a Latin
word), except by numerals, where it is a class of its own.
"""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from xtoken.vocab import Vocabulary

# In the order of a table for people. Letters follow, one class a script (`letters_latin`, ...).
TITLES = {
    "numeral_1": "1-digit numerals (ASCII)",
    "numeral_2": "2-digit numerals (ASCII)",
    "numeral_3": "3-digit numerals (ASCII)",
    "numeral_4plus": "numerals of 4 or more digits (ASCII)",
    "numeral_spaced": "numerals with a leading space (ASCII)",
    "punctuation": "ASCII punctuation, one character",
    "whitespace": "whitespace runs",
    "code": "code: operators, identifier parts, line ends",
    "letters_latin": "letters: Latin",
    "digit_other": "single digits of other scripts",
    "numeral_other": "other numerals",
    "mixed": "letters with other punctuation",
    "symbol": "other punctuation, symbols, emoji, control",
    "byte_fragment": "byte fragments (no valid UTF-8) and byte fallbacks",
    "special": "special tokens (roles)",
    "missing": "missing ids",
}
OTHER_SCRIPTS = "letters_other"
# Numerals and punctuation decide arithmetic and format; the paper's failure is a numeral one.
CRITICAL = ("numeral_1", "numeral_2", "numeral_3", "punctuation")

_SCRIPTS = frozenset(
    """ARABIC ARMENIAN BENGALI BOPOMOFO CANADIAN CHEROKEE COPTIC CYRILLIC DEVANAGARI ETHIOPIC
    GEORGIAN GLAGOLITIC GOTHIC GREEK GUJARATI GURMUKHI HANGUL HEBREW HIRAGANA JAVANESE KANNADA
    KATAKANA KHMER LAO LATIN MALAYALAM MONGOLIAN MYANMAR NKO ORIYA OSMANYA RUNIC SINHALA SYRIAC
    TAMIL TELUGU THAANA THAI TIBETAN TIFINAGH VAI YI""".split()  # noqa: SIM905
)
_ALIASES = {
    "CJK": "han",
    "IDEOGRAPHIC": "han",
    "KANGXI": "han",
    "MICRO": "greek",
    "MODIFIER": "latin",
    "FEMININE": "latin",
    "MASCULINE": "latin",
    "KELVIN": "latin",
    "ANGSTROM": "latin",
    "KATAKANA-HIRAGANA": "katakana",
    "MATHEMATICAL": "mathematical",
    "DOUBLE-STRUCK": "mathematical",
    "SCRIPT": "mathematical",
    "BLACK-LETTER": "mathematical",
}
_JAPANESE = frozenset({"han", "hiragana", "katakana"})
# Inside words: apostrophes, soft hyphen, zero-width joiners.
_WORD_MARKS = frozenset("'’‘ʼ\u00ad\u200b\u200c\u200d")

_DIGIT, _LETTER, _PUNCTUATION, _SPACE, _BREAK, _CONTROL, _HIGH, _APOSTROPHE = (
    1 << bit for bit in range(8)
)


def _byte_bits() -> np.ndarray:
    bits = np.full(256, _HIGH, dtype=np.uint8)
    for byte in range(128):
        char = chr(byte)
        if char.isdigit():
            bits[byte] = _DIGIT
        elif char.isalpha():
            bits[byte] = _LETTER
        elif char == " ":
            bits[byte] = _SPACE
        elif char in "\t\n\r\v\f":
            bits[byte] = _BREAK
        elif char == "'":
            bits[byte] = _APOSTROPHE
        else:
            bits[byte] = _PUNCTUATION if char.isprintable() else _CONTROL
    return bits


_BITS = _byte_bits()


def classify(vocab: Vocabulary) -> tuple[np.ndarray, list[str]]:
    """Give every id its class: (int16[n] index into the list, the list of class keys)."""
    size = len(vocab)
    keys = list(TITLES)
    number = {key: index for index, key in enumerate(keys)}
    classes = np.full(size, number["byte_fragment"], dtype=np.int16)

    with_bytes = np.flatnonzero(vocab.byte_lengths > 0)
    ascii_codes, is_ascii = _classify_ascii(vocab, with_bytes)
    for code, key in enumerate(_ASCII_KEYS):
        classes[with_bytes[is_ascii & (ascii_codes == code)]] = number[key]

    data = vocab.flat_bytes.tobytes()
    rest = with_bytes[~is_ascii]
    starts, stops = vocab.byte_starts[rest].tolist(), vocab.byte_starts[rest + 1].tolist()
    for token, start, stop in zip(rest.tolist(), starts, stops, strict=True):
        try:
            key = classify_text(data[start:stop].decode())
        except UnicodeDecodeError:
            continue  # byte_fragment
        if key not in number:
            number[key] = len(keys)
            keys.append(key)
        classes[token] = number[key]

    # SentencePiece's `<0x41>` is there for text that no piece spells, not for the letter A.
    for token in np.flatnonzero(vocab.byte_lengths == 1).tolist():
        if vocab.kind(token) == "byte":
            classes[token] = number["byte_fragment"]
    classes[vocab.is_special] = number["special"]
    classes[vocab.is_missing | ((vocab.byte_lengths == 0) & ~vocab.is_special)] = number["missing"]
    return classes, keys


_ASCII_KEYS = (
    "numeral_1",
    "numeral_2",
    "numeral_3",
    "numeral_4plus",
    "numeral_spaced",
    "punctuation",
    "whitespace",
    "letters_latin",
    "symbol",
    "code",
)


def _classify_ascii(vocab: Vocabulary, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Classify pure ASCII tokens in one sweep: (code into `_ASCII_KEYS`, bool is ASCII)."""
    bits = _BITS[vocab.flat_bytes]
    starts = vocab.byte_starts[ids]
    if not len(ids):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool)
    # Tokens without bytes take no room, so the next start is where a token ends.
    whole = np.bitwise_or.reduceat(bits, starts)
    spaced = (vocab.flat_bytes[starts] == 0x20) & (vocab.byte_lengths[ids] > 1)
    bits[starts[spaced]] = 0
    body = np.bitwise_or.reduceat(bits, starts)
    length = vocab.byte_lengths[ids] - spaced

    def only(value: np.ndarray, allowed: int) -> np.ndarray:
        return (value & ~np.uint8(allowed)) == 0

    whitespace = only(whole, _SPACE | _BREAK)
    digits = body == _DIGIT
    words = only(body, _LETTER | _APOSTROPHE | _SPACE) & ((body & _LETTER) > 0)
    one_mark = (length == 1) & ((body == _PUNCTUATION) | (body == _APOSTROPHE))
    codes = np.select(
        [
            digits & spaced,
            digits & (length == 1),
            digits & (length == 2),
            digits & (length == 3),
            digits,
            one_mark,
            whitespace,
            words,
            (body & _CONTROL) > 0,
        ],
        [4, 0, 1, 2, 3, 5, 6, 7, 8],
        default=9,
    )
    return codes, (whole & _HIGH) == 0


@cache
def _char_class(char: str) -> str:
    """Return `L:script` for a letter, `M:script` for its marks, else the general category."""
    if char in _WORD_MARKS:
        return "word mark"
    category = unicodedata.category(char)[0]
    if category not in "LM":
        return category
    script = ""
    for word in unicodedata.name(char, "").split()[:2]:
        if word in _SCRIPTS:
            script = word.lower()
        elif word in _ALIASES:
            script = _ALIASES[word]
        if script:
            break
    if category == "M":
        return f"M:{script}" if script else "M"
    return f"L:{script or 'other'}"


def classify_text(text: str) -> str:
    """Return the class of a token that is not pure ASCII, from its text."""
    if text.isspace():
        return "whitespace"
    body = text[1:] if text[0] == " " and len(text) > 1 else text
    found = {_char_class(char) for char in body}
    if found == {"N"}:
        return "digit_other" if len(body) == 1 and body.isdigit() else "numeral_other"
    scripts = {item[2:] for item in found if item[:2] == "L:"}
    if not scripts:
        scripts = {item[2:] for item in found if item[:2] == "M:"}
    if not scripts:
        return "symbol"
    if any(item in ("N", "P", "S", "Z", "C") for item in found):
        return "mixed"
    if len(scripts) == 1:
        return f"letters_{scripts.pop()}"
    return "letters_japanese" if scripts <= _JAPANESE else "letters_several"


def title(key: str) -> str:
    """Return the class's name for people."""
    if key in TITLES:
        return TITLES[key]
    script = key.removeprefix("letters_")
    if script in ("several", "other"):
        return f"letters: {script} scripts"
    return f"letters: {script.capitalize()}"


def sorted_keys(sizes: dict[str, int]) -> list[str]:
    """Order class keys for a table: as in `TITLES`, with other scripts by size after Latin."""
    fixed = list(TITLES)
    after = fixed.index("letters_latin")
    scripts = sorted(
        (key for key in sizes if key not in TITLES),
        key=lambda key: (key == OTHER_SCRIPTS, -sizes[key], key),
    )
    order = [*fixed[: after + 1], *scripts, *fixed[after + 1 :]]
    return [key for key in order if sizes.get(key)]
