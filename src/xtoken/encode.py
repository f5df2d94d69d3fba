"""Text and chats as token ids, each token with the bytes of the content that it stands for.

The *content stream* is what student and teacher both read: the text itself, prompt plus
completion, or a chat's message contents one after the other. Spans are byte ranges of that stream,
so that two encodings of one content can be aligned, and masked alike, whatever tokens, templates
and normalisers stand between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from xtoken._chat import encode_chat
from xtoken._encoding import (
    ByteSpan,
    Encoding,
    add_roles,
    check_ranges,
    concat,
    encode_contents,
    leading_ids,
    role_id_or_raise,
)
from xtoken._spans import inside
from xtoken.errors import AlignmentError
from xtoken.vocab import Vocabulary

__all__ = [
    "Encoding",
    "concat",
    "encode_chat",
    "encode_prompt_completion",
    "encode_text",
    "encode_texts",
]


def encode_text(
    vocab: Vocabulary,
    text: str,
    *,
    bos: bool | None = None,
    eos: bool = False,
    supervised: Sequence[ByteSpan] | None = None,
) -> Encoding:
    """Encode one document; special tokens written in it (`</s>`, `<|endoftext|>`) stay text.

    `bos` None follows the tokenizer's own habit; `eos` adds the end token. `supervised` lists byte
    ranges of the text that may be training targets (default: all of it); a token is supervised
    when it lies in one entirely, the eos when one of them ends where the text ends.

    Raises:
        DataError: text that is no valid Unicode.
        VocabularyError: a bos or eos that the tokenizer does not have.
        AlignmentError: supervised ranges outside the text.
    """
    spans = None if supervised is None else [supervised]
    return encode_texts(vocab, [text], bos=bos, eos=eos, supervised=spans)[0]


def encode_texts(
    vocab: Vocabulary,
    texts: Sequence[str],
    *,
    bos: bool | None = None,
    eos: bool = False,
    supervised: Sequence[Sequence[ByteSpan] | None] | None = None,
) -> list[Encoding]:
    """Encode many documents as `encode_text` does, tokenised together in Rust.

    `supervised` holds one list of byte ranges (or None) for each text.

    Returns:
        One `Encoding` for each text, in order.

    Raises:
        DataError, VocabularyError, AlignmentError: as `encode_text`; AlignmentError also for
            another number of lists than of texts.
    """
    if supervised is None:
        supervised = [None] * len(texts)
    elif len(supervised) != len(texts):
        raise AlignmentError(
            f"Got supervised ranges for {len(supervised)} texts but {len(texts)} texts; give one "
            "list of ranges (or None) for each text."
        )
    before = leading_ids(vocab, bos)
    after = [role_id_or_raise(vocab, "eos")] if eos else []
    contents = encode_contents(vocab, texts, "text")
    encodings = []
    for body, allowed in zip(contents, supervised, strict=True):
        size = body.content_bytes
        if allowed is not None:
            check_ranges(allowed, size)
            mask = inside(body.spans, allowed) & body.supervised
            body = replace(body, supervised=mask)
        closed = allowed is None or any(stop == size for _, stop in allowed)
        encodings.append(add_roles(vocab, body, before, after, supervise_after=closed))
    return encodings


def encode_prompt_completion(
    vocab: Vocabulary,
    prompt: str,
    completion: str,
    *,
    bos: bool | None = None,
    eos: bool = True,
) -> Encoding:
    """Encode a prompt and its completion, of which only the completion is supervised.

    The content is prompt + completion. Both are tokenised on their own, as at inference, where the
    prompt is cut into tokens before there is a completion; so no token straddles their border, and
    every byte of the completion is supervised.

    Raises:
        DataError: text that is no valid Unicode.
        VocabularyError: a bos or eos that the tokenizer does not have.
    """
    if not prompt:
        return encode_text(vocab, completion, bos=bos, eos=eos)
    (head,) = encode_contents(vocab, [prompt], "text")
    (tail,) = encode_contents(vocab, [completion], "continued")
    head = replace(head, supervised=np.zeros_like(head.supervised))
    after = [role_id_or_raise(vocab, "eos")] if eos else []
    return add_roles(
        vocab, concat([head, tail]), leading_ids(vocab, bos), after, supervise_after=True
    )
