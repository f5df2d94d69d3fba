"""The `Encoding` type and the steps that text and chat encoding share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from xtoken._engine import Mode
from xtoken._spans import OUTSIDE, exact_spans, spans_from_offsets
from xtoken.errors import AlignmentError, DataError, VocabularyError
from xtoken.vocab import Vocabulary

ByteSpan = tuple[int, int]
PAIRING_ROLES = frozenset(("bos", "eos", "end_of_turn"))


@dataclass(frozen=True)
class Encoding:
    """Token ids with byte spans in the content stream.

    `ids` int64[n]; `spans` int64[n, 2]: half-open byte ranges, (p, p) for a role token that stands
    at content byte p and may pair by role (bos, eos, end_of_turn), (-1, -1) for what lies outside
    (template text, a bare dummy prefix); `supervised` bool[n]: may be a training target;
    `content_bytes`: length of the whole stream; `exact`: the tokens' bytes are the content, so
    that no span had to be guessed from offsets.
    """

    ids: np.ndarray
    spans: np.ndarray
    supervised: np.ndarray
    content_bytes: int
    exact: bool

    def __len__(self) -> int:
        return len(self.ids)

    def truncate(self, max_length: int) -> Encoding:
        """Return the first `max_length` tokens; the content stream they point into stays whole."""
        if len(self) <= max_length:
            return self
        return replace(
            self,
            ids=self.ids[:max_length],
            spans=self.spans[:max_length],
            supervised=self.supervised[:max_length],
        )


def concat(encodings: Sequence[Encoding]) -> Encoding:
    """Join encodings into one (packing): content streams follow each other, spans are shifted."""
    if not encodings:
        return Encoding(
            np.zeros(0, np.int64), np.zeros((0, 2), np.int64), np.zeros(0, bool), 0, True
        )
    shifted, base = [], 0
    for encoding in encodings:
        shifted.append(np.where(encoding.spans == OUTSIDE, OUTSIDE, encoding.spans + base))
        base += encoding.content_bytes
    return Encoding(
        ids=np.concatenate([encoding.ids for encoding in encodings]),
        spans=np.concatenate(shifted),
        supervised=np.concatenate([encoding.supervised for encoding in encodings]),
        content_bytes=base,
        exact=all(encoding.exact for encoding in encodings),
    )


def encode_contents(vocab: Vocabulary, texts: Sequence[str], mode: Mode) -> list[Encoding]:
    """Encode bare texts, no role tokens around them; everything but unknowns is supervised."""
    contents = [utf8(text) for text in texts]
    encodings = []
    for text, content, ids in zip(
        texts, contents, vocab.engine.encode_ids(texts, mode), strict=True
    ):
        spans, exact = exact_spans(vocab, ids, content), True
        if spans is None:
            ids, offsets = encode_with_offsets(vocab, text, mode)
            check_ids(vocab, ids, text)
            spans, exact = spans_from_offsets(vocab, ids, offsets, text, content)
        array = np.array(ids, np.int64)
        supervised = (spans[:, 0] < spans[:, 1]) & ~vocab.is_special[array]
        encodings.append(Encoding(array, spans, supervised, len(content), exact))
    return encodings


def encode_with_offsets(
    vocab: Vocabulary, text: str, mode: Mode
) -> tuple[list[int], list[tuple[int, int]]]:
    """Encode one text to ids and character ranges; but in a chat, text yields no control tokens.

    A model may read `</s>` or `<0x41>` as the control or byte token of that name by its own merges
    or scores, past the tokenizer's handling of special tokens; such a token is spelt out again.
    """
    (encoded,) = vocab.engine.encode([text], mode)
    ids, offsets = encoded.ids, encoded.offsets
    if mode != "chat":
        array = np.array(ids, np.int64)
        suspects = vocab.is_control(array) | vocab.is_byte[np.minimum(array, len(vocab) - 1)]
        for place in reversed(np.flatnonzero(suspects).tolist()):
            low, high = offsets[place]
            spelt: tuple[int, ...] = ()
            if ids[place] >= len(vocab) or text[low:high] == vocab.token_text(ids[place]):
                spelt = vocab.tokenize_literal(text[low:high])
            if spelt:
                ids[place : place + 1] = spelt
                offsets[place : place + 1] = [(low, high)] * len(spelt)
    return ids, offsets


def check_ids(vocab: Vocabulary, ids: Sequence[int], text: str) -> None:
    """Raise `VocabularyError` where a tokenizer gives an id that its model has no row for."""
    beyond = max(ids, default=0)
    if beyond >= len(vocab):
        raise VocabularyError(
            f"{vocab.name} encodes {text[:40]!r} with id {beyond}, but only ids up to "
            f"{len(vocab) - 1} belong to it (the model has no row for the others). Change the text "
            "or chat template, or use the tokenizer that was made for the model."
        )


def utf8(text: str) -> bytes:
    """Return the text's UTF-8 bytes; raises `DataError` for a lone surrogate."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"The text has a lone surrogate (U+{ord(text[error.start]):04X}) at character "
            f"{error.start}, which no UTF-8 text can hold; decode the source with "
            "errors='replace', or drop this record."
        ) from error


def role_id_or_raise(vocab: Vocabulary, role: str) -> int:
    """Return the id that plays a role; raises `VocabularyError` where there is none."""
    index = vocab.role_id(role)
    if index is None:
        raise VocabularyError(
            f"{vocab.name} has no {role} token, but one was asked for; pass {role}=False, or name "
            f"the token in the tokenizer ({role}_token in tokenizer_config.json)."
        )
    return index


def leading_ids(vocab: Vocabulary, bos: bool | None) -> list[int]:
    """Return the ids to put before a document: bos if asked for, or the tokenizer's own habit."""
    if bos is None:
        return [index for index in vocab.engine.added_around[0] if index < len(vocab)]
    return [role_id_or_raise(vocab, "bos")] if bos else []


def check_ranges(ranges: Sequence[ByteSpan], size: int) -> None:
    """Raise `AlignmentError` for a byte range that does not lie in a content of `size` bytes."""
    for start, stop in ranges:
        if not 0 <= start <= stop <= size:
            raise AlignmentError(
                f"The supervised range ({start}, {stop}) does not lie in the text, which has "
                f"{size} bytes; ranges are byte offsets with start <= stop."
            )


def add_roles(
    vocab: Vocabulary,
    body: Encoding,
    before: Sequence[int],
    after: Sequence[int],
    *,
    supervise_after: bool,
) -> Encoding:
    """Put role tokens before and after a content; what may pair by role gets a span (p, p)."""
    if not before and not after:
        return body
    size = body.content_bytes

    def stand(ids: Sequence[int], position: int) -> np.ndarray:
        spans = [
            (position, position) if vocab.roles(index) & PAIRING_ROLES else (OUTSIDE, OUTSIDE)
            for index in ids
        ]
        return np.array(spans, np.int64).reshape(len(ids), 2)

    return replace(
        body,
        ids=np.concatenate([np.array(before, np.int64), body.ids, np.array(after, np.int64)]),
        spans=np.concatenate([stand(before, 0), body.spans, stand(after, size)]),
        supervised=np.concatenate(
            [
                np.zeros(len(before), bool),
                body.supervised,
                np.full(len(after), supervise_after, bool),
            ]
        ),
    )
