"""Bits per byte: how well a model predicts a text, whatever its vocabulary.

    bits per byte = sum of -log p(token) / (ln 2 * bytes of the scored tokens)

What is scored: every token of a text but its first. The first token has a predecessor only where
a tokenizer begins with a bos, so it is left out for every model, nats and bytes. First tokens may
differ in length between tokenizers; `common_starts` gives the byte from which several models can
be scored on exactly the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from xtoken.encode import Encoding
from xtoken.errors import EvaluationError
from xtoken.evaluation import scoring
from xtoken.evaluation.classes import byte_classes, split_by_class
from xtoken.evaluation.windows import check_stride, token_windows

if TYPE_CHECKING:
    from xtoken.vocab import Vocabulary

LN2 = math.log(2.0)
# Windows that are sorted by length before they are batched; bounds memory on long texts.
SORTED = 256

Progress = Callable[[int], None]


@dataclass(frozen=True)
class BitsPerByte:
    """Nats and bytes of the scored tokens; `by_class` the same for each class of text.

    `documents` counts the texts of which something was scored. Sums over disjoint texts add up.
    """

    nats: float
    bytes: int
    tokens: int
    documents: int
    by_class: Mapping[str, BitsPerByte] = field(default_factory=dict)

    @property
    def bpb(self) -> float:
        """Bits per byte; NaN where no byte was scored."""
        return self.nats / (LN2 * self.bytes) if self.bytes else math.nan

    @property
    def bits(self) -> float:
        """The scored tokens' code length in bits."""
        return self.nats / LN2

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; `by_class` only where it was asked for."""
        data: dict[str, Any] = {
            "bits_per_byte": self.bpb,
            "nats": self.nats,
            "bytes": self.bytes,
            "tokens": self.tokens,
            "documents": self.documents,
        }
        if self.by_class:
            data["by_class"] = {key: part.to_dict() for key, part in self.by_class.items()}
        return data


@dataclass(frozen=True)
class _Piece:
    """One window of one text: what is read, and which of its positions are scored."""

    ids: np.ndarray
    scored: np.ndarray
    sizes: np.ndarray
    shares: list[dict[str, float]] | None
    document: int


@torch.no_grad()
def bits_per_byte(
    model: Any,
    vocab: Vocabulary,
    texts: str | Iterable[str],
    *,
    max_length: int = 1024,
    stride: int | None = None,
    batch_size: int = 1,
    starts: Sequence[int] | None = None,
    by_class: bool = False,
    progress: Progress | None = None,
) -> BitsPerByte:
    """Measure a model's bits per byte on texts.

        -sum log p(token | tokens before it in the window) / (ln 2 * bytes of these tokens)

    Scored are tokens with bytes, but for each text's first (see the module). Special tokens are
    never scored; the softmax goes over the tokenizer's real ids. A text longer than `max_length`
    is read in windows that advance by `stride`, each token scored once; a bos that the tokenizer
    puts first stands first in every window. Bytes are those of the source text; bytes that a
    lossy tokenizer has no token for are not counted.

    Args:
        model: a causal language model (anything called as transformers' are, with `.logits`).
        vocab: its vocabulary.
        texts: one text, or any number of them; read as a stream.
        max_length: tokens of a window, at most the model's own limit.
        stride: tokens that windows advance by (None: half of max_length); every token scored
            outside a text's first window has at least max_length - stride tokens of context.
        batch_size: windows that go through the model at once; changes no result beyond rounding.
        starts: for each text (the empty ones too), score only tokens that begin at or after this
            byte; see `common_starts`.
        by_class: also add up nats and bytes by class of text (numerals, letters, ...); a token
            over several classes is split by bytes.
        progress: called with the number of bytes scored since the last call.

    Raises:
        EvaluationError: nothing to score, a stride or max_length out of range, a head smaller
            than the vocabulary, probabilities that are not finite.
    """
    if batch_size < 1:
        raise EvaluationError(f"batch_size is {batch_size}; expected at least 1.")
    limit = scoring.context_limit(model, max_length)
    step = check_stride(limit, stride)
    pieces = _pieces(vocab, texts, limit, step, starts, by_class)
    nats, size, tokens = 0.0, 0, 0
    seen: set[int] = set()
    classes: dict[str, list[float]] = {}
    with scoring.evaluating(model):
        reader = scoring.Reader(model, vocab)
        while block := list(islice(pieces, max(SORTED, batch_size))):
            block.sort(key=lambda piece: -len(piece.ids))
            for begin in range(0, len(block), batch_size):
                batch = block[begin : begin + batch_size]
                scored_bytes = 0
                for piece, values in zip(batch, _score(reader, batch), strict=True):
                    nats += float(values.sum())
                    tokens += len(values)
                    scored_bytes += int(piece.sizes.sum())
                    seen.add(piece.document)
                    _add_classes(classes, piece, values)
                size += scored_bytes
                if progress is not None:
                    progress(scored_bytes)
    if not tokens:
        raise EvaluationError(
            "No token could be scored: the texts are empty, or have one token each (the first is "
            "never scored). Give a longer text."
        )
    parts = {
        key: BitsPerByte(values[0], round(values[1]), round(values[2]), len(seen))
        for key, values in sorted(classes.items(), key=lambda item: -item[1][1])
    }
    return BitsPerByte(nats, size, tokens, len(seen), parts)


def common_starts(vocabs: Sequence[Vocabulary], texts: Sequence[str]) -> list[int]:
    """Return for each text the first byte from which all tokenizers can be scored.

    It is the smallest position after the first token of each where all have a token border, so
    that models scored from there on are scored on the same bytes. Where there is none it is the
    text's end.
    """
    starts: list[int] = []
    for at in range(0, len(texts), scoring.GROUP):
        group = list(texts[at : at + scoring.GROUP])
        sides = [scoring.encode_group(vocab, group) for vocab in vocabs]
        for text, *encodings in zip(group, *sides, strict=True):
            borders = [set(_borders(e).tolist()) for e in encodings]
            common = set.intersection(*borders) if borders else set()
            starts.append(min(common, default=len(text.encode())))
    return starts


def _borders(encoding: Encoding) -> np.ndarray:
    """Return the byte positions where a token with bytes ends and no other one is open."""
    stop = encoding.spans[encoding.spans[:, 0] < encoding.spans[:, 1], 1]
    if not len(stop):
        return stop
    start = encoding.spans[encoding.spans[:, 0] < encoding.spans[:, 1], 0]
    return stop[np.concatenate([start[1:] >= stop[:-1], [True]])]


def _pieces(
    vocab: Vocabulary,
    texts: str | Iterable[str],
    max_length: int,
    stride: int,
    starts: Sequence[int] | None,
    by_class: bool,
) -> Iterator[_Piece]:
    number = 0
    if starts is not None:
        texts = [texts] if isinstance(texts, str) else list(texts)
        if len(starts) != len(texts):
            raise EvaluationError(
                f"starts has {len(starts)} entries for {len(texts)} texts; give one for each."
            )
        starts = [s for s, text in zip(starts, texts, strict=True) if text]
    for group in scoring.documents(texts):
        for text, encoding in zip(group, scoring.encode_group(vocab, group), strict=True):
            start = None if starts is None else starts[number]
            classes = byte_classes(text) if by_class else None
            yield from _cut(vocab, encoding, max_length, stride, start, classes, number)
            number += 1


def _cut(
    vocab: Vocabulary,
    encoding: Encoding,
    max_length: int,
    stride: int,
    start: int | None,
    classes: tuple[np.ndarray, list[str]] | None,
    number: int,
) -> Iterator[_Piece]:
    ids, spans = encoding.ids, encoding.spans
    sizes = scoring.new_bytes(encoding)
    scored = (spans[:, 0] < spans[:, 1]) & ~vocab.is_special[ids]
    content = np.flatnonzero(scored)
    if len(content) < 2:
        return
    scored[content[0]] = False
    # A token that shares its span with the first one has no border of its own.
    scored &= spans[:, 0] >= (spans[content[0], 1] if start is None else start)
    prefix = scoring.prefix_length(vocab, encoding)
    room = max_length - prefix
    if room < 2:
        raise EvaluationError(
            f"max_length is {max_length}, of which the tokenizer's {prefix} leading special tokens "
            f"leave {room}; expected at least 2."
        )
    for window in token_windows(len(ids) - prefix, room, min(stride, room - 1)):
        first, stop = prefix + window.first, prefix + window.stop
        positions = first + np.flatnonzero(scored[first:stop])
        if not len(positions):
            continue
        shift = window.start  # what the window leaves out between the prefix and its start
        shares = None
        if classes is not None:
            shares = [
                split_by_class(classes, int(spans[p, 1] - sizes[p]), int(spans[p, 1]))
                for p in positions
            ]
        yield _Piece(
            np.concatenate([ids[:prefix], ids[prefix + window.start : stop]]),
            positions - shift,
            sizes[positions],
            shares,
            number,
        )


def _score(reader: scoring.Reader, batch: Sequence[_Piece]) -> list[np.ndarray]:
    """Return the nats of the scored tokens of each window: float64."""
    source, length = reader.read([piece.ids for piece in batch])
    index_N = scoring.row_index(source, [piece.scored - 1 for piece in batch], length)
    targets_N = torch.from_numpy(np.concatenate([piece.ids[piece.scored] for piece in batch]))
    nats_N = scoring.token_nats(source, index_N, targets_N, len(reader.vocab)).cpu().numpy()
    return np.split(nats_N, np.cumsum([len(piece.scored) for piece in batch])[:-1])


def _add_classes(classes: dict[str, list[float]], piece: _Piece, nats: np.ndarray) -> None:
    if piece.shares is None:
        return
    for shares, size, value in zip(piece.shares, piece.sizes.tolist(), nats.tolist(), strict=True):
        for key, share in shares.items():
            sums = classes.setdefault(key, [0.0, 0.0, 0.0])
            sums[0] += value * share
            sums[1] += size * share
            sums[2] += share
