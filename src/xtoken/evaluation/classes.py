"""Classes of text, byte by byte: the audit's token classes applied to runs of the text itself.

Runs, not tokens, so that every model is asked about the same bytes: `2024` is a numeral of four
digits whether a tokenizer takes it whole or digit by digit. One space before a run belongs to it,
as tokenizers have it.
"""

from __future__ import annotations

import re

import numpy as np

from xtoken.audit.classes import classify_text

# In this order: digits, letters with their marks, one other visible character, whitespace.
_RUN = re.compile(r" ?\d+| ?[^\W\d_]+(?:['’][^\W\d_]+)*| ?[^\w\s]| ?_+|\s+", re.UNICODE)


def byte_classes(text: str) -> tuple[np.ndarray, list[str]]:
    """Return the class of every byte of a text: (int16[bytes] index into the list, class keys)."""
    keys: list[str] = []
    number: dict[str, int] = {}
    lengths: list[int] = []
    codes: list[int] = []
    position = 0
    for run in _RUN.finditer(text):
        for start, stop in ((position, run.start()), (run.start(), run.end())):
            piece = text[start:stop]
            if not piece:
                continue
            key = _class_of(piece)
            if key not in number:
                number[key] = len(keys)
                keys.append(key)
            codes.append(number[key])
            lengths.append(len(piece.encode("utf-8", "surrogatepass")))
        position = run.end()
    rest = text[position:]
    if rest:
        key = _class_of(rest)
        if key not in number:
            number[key] = len(keys)
            keys.append(key)
        codes.append(number[key])
        lengths.append(len(rest.encode("utf-8", "surrogatepass")))
    return np.repeat(np.array(codes, dtype=np.int16), lengths), keys


def _class_of(piece: str) -> str:
    if piece.isspace():
        return "whitespace"
    body = piece[1:] if piece[0] == " " else piece
    if body.isascii():
        if body.isdigit():
            return f"numeral_{len(body)}" if len(body) < 4 else "numeral_4plus"
        return "letters_latin" if body[0].isalpha() else "punctuation"
    return classify_text(body)


def split_by_class(
    classes: tuple[np.ndarray, list[str]], start: int, stop: int
) -> dict[str, float]:
    """Return the share of each class in bytes [start, stop); the shares add up to 1."""
    codes, keys = classes
    part = codes[start:stop]
    if not len(part):
        return {}
    if (part == part[0]).all():
        return {keys[part[0]]: 1.0}
    counts = np.bincount(part, minlength=len(keys))
    return {keys[i]: float(counts[i]) / len(part) for i in np.flatnonzero(counts)}
