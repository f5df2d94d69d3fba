"""Chats: each tokenizer's own template around the same message contents.

The template renders the chat as the model knows it; `xtoken._contents` finds the contents in the
rendered text; tokens inside them get spans in the content stream, the template's own tokens lie
outside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from xtoken._contents import Located, locate_contents, read_messages
from xtoken._encoding import Encoding, check_ids, encode_with_offsets, utf8
from xtoken._spans import OUTSIDE, byte_positions, spans_from_offsets
from xtoken.errors import DataError, UsageError, VocabularyError
from xtoken.vocab import Vocabulary

Supervise = Literal["assistant", "all"]
CLOSING_ROLES = frozenset(("eos", "end_of_turn"))
Offsets = list[tuple[int, int]]


def encode_chat(
    vocab: Vocabulary,
    messages: Sequence[Mapping[str, Any]],
    *,
    chat_template: str | None = None,
    supervise: Supervise = "assistant",
    template_kwargs: Mapping[str, Any] | None = None,
) -> Encoding:
    """Encode a chat with the tokenizer's template, spans over the concatenated contents.

    The content stream is the messages' contents one after the other, as given. Template tokens
    have span (-1, -1), also a token that holds both template text and content; such a token is
    supervised where the template's part of it is white space. The end-of-turn (or eos) that follows
    a content has (p, p), p being that content's end, and is supervised with it. `supervise` picks
    the messages whose contents are training targets. `chat_template` overrides the tokenizer's
    own; `template_kwargs` are handed to it (`tools`, `enable_thinking`, ...). Special tokens
    written in a content stay text.

    Raises `VocabularyError` when there is no template, `DataError` when a message is malformed or
    the template drops or rewrites a content so that it can't be found again.
    """
    if supervise not in ("assistant", "all"):
        raise UsageError(f"supervise is {supervise!r}; expected 'assistant' or 'all'.")
    template = chat_template if chat_template is not None else vocab.chat_template
    if template is None:
        raise VocabularyError(
            f"{vocab.name} has no chat template, so a chat can't be encoded with it; pass "
            "chat_template=... (a Jinja string), or turn the messages into plain text."
        )
    plain = read_messages(messages)

    def render(changed: Sequence[Mapping[str, Any]]) -> str:
        return _render(vocab, changed, template, template_kwargs or {})

    rendered = render(plain)
    located = locate_contents(render, plain, rendered)
    ids, offsets = _tokens(vocab, rendered, located)
    check_ids(vocab, ids, rendered)
    return _assemble(vocab, plain, rendered, located, ids, offsets, supervise)


def _render(
    vocab: Vocabulary,
    messages: Sequence[Mapping[str, Any]],
    template: str,
    options: Mapping[str, Any],
) -> str:
    from jinja2 import TemplateError

    try:
        rendered = vocab.tokenizer.apply_chat_template(
            list(messages), chat_template=template, tokenize=False, **options
        )
    except TemplateError as error:
        raise DataError(
            f"The chat template of {vocab.name} refuses this chat: {error}. "
            "Change the messages' roles and order, or pass another chat_template=..."
        ) from error
    return str(rendered)


def _tokens(
    vocab: Vocabulary, rendered: str, located: Sequence[Located]
) -> tuple[list[int], Offsets]:
    """Encode the rendered chat, with special tokens parsed in the template but not in contents."""
    ids, offsets = encode_with_offsets(vocab, rendered, "chat")
    special = np.flatnonzero(vocab.is_control(np.array(ids, np.int64))).tolist()
    own = [i for i in special if not _in_content(vocab, rendered, ids[i], offsets[i], located)]
    if len(own) == len(special):
        return ids, offsets

    # Cut at the template's special tokens, as the tokenizer does, and read what lies between them
    # as plain text.
    cuts = [(offsets[i], ids[i]) for i in own]
    ids, offsets, reached = [], [], 0
    for (start, stop), index in [*cuts, ((len(rendered), len(rendered)), -1)]:
        if reached < start:
            prefixed = reached == 0 or vocab.engine.prefix_per_segment
            run, places = encode_with_offsets(
                vocab, rendered[reached:start], "text" if prefixed else "continued"
            )
            ids += run
            offsets += [(low + reached, high + reached) for low, high in places]
        if index >= 0:
            ids.append(index)
            offsets.append((start, stop))
        reached = stop
    return ids, offsets


def _in_content(
    vocab: Vocabulary,
    rendered: str,
    index: int,
    offset: tuple[int, int],
    located: Sequence[Located],
) -> bool:
    """Tell whether a special token was read from a content rather than from the template."""
    text = vocab.token_text(index) if index < len(vocab) else rendered[slice(*offset)]
    # The offsets of a token with lstrip or rstrip also hold the white space it swallowed.
    start = offset[0] + max(rendered[slice(*offset)].find(text), 0)
    return any(start < piece.stop and piece.start < start + len(text) for piece in located)


def _assemble(
    vocab: Vocabulary,
    messages: Sequence[Mapping[str, Any]],
    rendered: str,
    located: Sequence[Located],
    ids: list[int],
    offsets: Offsets,
    supervise: Supervise,
) -> Encoding:
    """Turn spans in the rendered chat into spans in the content stream.

    Whether a token lies in a content is decided by bytes: the character offsets of byte-fallback
    tokens may reach over a whole run of unknown characters.
    """
    source = rendered.encode()
    places, _ = spans_from_offsets(vocab, ids, offsets, rendered, source)
    array = np.array(ids, np.int64)
    special = vocab.is_special[array]
    real = (places[:, 0] < places[:, 1]) & ~special
    at = byte_positions(rendered)
    spans = np.full((len(ids), 2), OUTSIDE, np.int64)
    supervised = np.zeros(len(ids), bool)
    contents = [message["content"] for message in messages]
    ends = np.cumsum([len(utf8(content)) for content in contents])
    size = int(ends[-1])

    covered = 0
    for order, piece in enumerate(located):
        content = contents[piece.message]
        wanted = supervise == "all" or messages[piece.message]["role"] == "assistant"
        low, high = int(at[piece.start]), int(at[piece.stop])
        # Byte of the stream minus byte of the rendering, for this content.
        shift = int(ends[piece.message]) - len(content[piece.content_start :].encode()) - low
        border = at[located[order + 1].start] if order + 1 < len(located) else at[-1]

        within = real & (places[:, 0] >= low) & (places[:, 1] <= high)
        spans[within] = places[within] + shift
        supervised[within] = wanted
        straddling = real & ~within & (places[:, 0] < high) & (places[:, 1] > low)
        for index in np.flatnonzero(straddling):
            start, stop = places[index]
            # In no chunk, but a fair target of cross-entropy: else the first word of every answer
            # would never be learnt under templates that put a space before it.
            if not (source[start:low] + source[high:stop]).strip():
                supervised[index] = wanted
        covered += _exact_bytes(vocab, array[within], rendered[piece.start : piece.stop])

        following = np.flatnonzero(special & (places[:, 0] >= high) & (places[:, 0] < border))
        if len(following) and vocab.roles(ids[following[0]]) & CLOSING_ROLES:
            spans[following[0]] = ends[piece.message]
            supervised[following[0]] = wanted

    first = at[located[0].start] if located else at[-1]
    opening = np.flatnonzero(special & (places[:, 0] < first))
    if len(opening) and "bos" in vocab.roles(ids[opening[0]]):
        spans[opening[0]] = 0
    return Encoding(array, spans, supervised, size, covered == size)


def _exact_bytes(vocab: Vocabulary, ids: np.ndarray, text: str) -> int:
    """Return the bytes of a content if the tokens in it spell exactly them, else 0."""
    content = text.encode()
    joined = vocab.join_bytes(ids.tolist())
    same = joined == content or (vocab.dummy_prefix and joined == b" " + content)
    return len(content) if same else 0
