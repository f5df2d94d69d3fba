"""What bits per byte and comparisons share: models run on windows, tokens' log-probabilities."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from xtoken.encode import Encoding, encode_texts
from xtoken.errors import EvaluationError
from xtoken.losses.sources import LogitSource, Source, read_rows
from xtoken.output_head import HeadUnreachableError, ModelHead

if TYPE_CHECKING:
    from xtoken.vocab import Vocabulary

# Rows of logits that are widened to float32 at a time.
BLOCK_ROWS = 256
# Documents that are encoded together.
GROUP = 64


@contextmanager
def evaluating(*models: Any) -> Iterator[None]:
    """Put models into evaluation mode without gradients, and back into their mode at the end."""
    was = [getattr(model, "training", False) for model in models]
    for model in models:
        if hasattr(model, "eval"):
            model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for model, training in zip(models, was, strict=True):
            if training:
                model.train()


def device_of(model: Any) -> torch.device:
    """Return the device that a model's inputs belong on."""
    device = getattr(model, "device", None)
    return torch.device("cpu") if device is None else torch.device(device)


def context_limit(model: Any, max_length: int) -> int:
    """Return `max_length`, or the model's own limit where that is lower."""
    config = getattr(model, "config", None)
    limit = getattr(config, "max_position_embeddings", None)
    return min(max_length, limit) if isinstance(limit, int) and limit > 1 else max_length


def documents(texts: str | Iterable[str]) -> Iterator[list[str]]:
    """Yield groups of texts that are not empty; one string is one text."""
    group: list[str] = []
    for text in [texts] if isinstance(texts, str) else texts:
        if not isinstance(text, str):
            raise EvaluationError(
                f"texts holds a {type(text).__name__}; expected strings, or one string."
            )
        if text:
            group.append(text)
        if len(group) == GROUP:
            yield group
            group = []
    if group:
        yield group


def encode_group(vocab: Vocabulary, group: Sequence[str]) -> list[Encoding]:
    """Encode texts with the beginning that the tokenizer itself gives them, without an end."""
    return encode_texts(vocab, group, eos=False)


def prefix_length(vocab: Vocabulary, encoding: Encoding) -> int:
    """Return how many role tokens stand before the text (a bos: 1)."""
    content = (encoding.spans[:, 0] < encoding.spans[:, 1]) & ~vocab.is_special[encoding.ids]
    found = np.flatnonzero(content)
    before = encoding.ids[: int(found[0]) if len(found) else len(encoding)]
    return int(np.cumprod(vocab.is_special[before]).sum())


def new_bytes(encoding: Encoding) -> np.ndarray:
    """Return int64[n]: how many bytes each token adds to those before it.

    Tokens whose border is not known share a span; its bytes count once.
    """
    start, stop = encoding.spans[:, 0], encoding.spans[:, 1]
    reached = np.maximum.accumulate(np.concatenate([[0], stop[:-1]])) if len(stop) else stop
    return np.maximum(stop - np.maximum(start, reached), 0)


class Reader:
    """Runs a model on windows of ids and gives rows of its logits.

    Where logits are large and the output head can be reached they never exist as a whole.

    Args:
        model: a causal language model (anything called as transformers' are, with `.logits`).
        vocab: its vocabulary.
    """

    def __init__(self, model: Any, vocab: Vocabulary) -> None:
        self.model, self.vocab = model, vocab
        self._head: ModelHead | None = None
        if hasattr(model, "get_output_embeddings"):
            with suppress(HeadUnreachableError):
                self._head = ModelHead(model)

    def read(self, windows: Sequence[np.ndarray]) -> tuple[Source, int]:
        """Return the rows of windows, padded on the right to L, and L: row b * L + t.

        Raises EvaluationError where the head has fewer rows than the vocabulary has ids.
        """
        inputs = _inputs(self.model, self.vocab, windows)
        source: Source | None = None
        if self._head is not None and self._head.worthwhile(inputs["input_ids"]):
            try:
                source = self._head.run(lambda: self.model(**inputs, use_cache=False))
            except HeadUnreachableError:  # found out only now: it is called more than once
                self._head = None
        if source is None:
            source = LogitSource(self.model(**inputs, use_cache=False).logits.flatten(0, 1))
        if source.shape[-1] < len(self.vocab):
            raise EvaluationError(
                f"The model gives {source.shape[-1]:,} logits a token, but the tokenizer "
                f"{self.vocab.name} has {len(self.vocab):,} ids; give the model's own tokenizer."
            )
        return source, inputs["input_ids"].shape[1]


def _inputs(model: Any, vocab: Vocabulary, windows: Sequence[np.ndarray]) -> dict[str, Tensor]:
    """Return `input_ids` and `attention_mask`, [B, L] on the model's device."""
    longest = max(len(window) for window in windows)
    pad = vocab.role_id("pad")
    input_ids = np.full((len(windows), longest), 0 if pad is None else pad, dtype=np.int64)
    mask = np.zeros((len(windows), longest), dtype=np.int64)
    for row, window in enumerate(windows):
        input_ids[row, : len(window)] = window
        mask[row, : len(window)] = 1
    device = device_of(model)
    return {
        "input_ids": torch.from_numpy(input_ids).to(device),
        "attention_mask": torch.from_numpy(mask).to(device),
    }


def row_index(source: Source, positions: Sequence[np.ndarray], length: int) -> Tensor:
    """Return the flat rows of positions in each window: int64, where the source's rows are."""
    rows = [position + number * length for number, position in enumerate(positions)]
    return torch.from_numpy(np.concatenate(rows)).to(source.inputs[0].device)


def token_nats(source: Source, index_N: Tensor, targets_N: Tensor, size: int) -> Tensor:
    """Return -log softmax(logits of the row)[target] over the first `size` ids: float64[N].

    Raises EvaluationError where a value is not finite.
    """
    parts = []
    targets_N = targets_N.to(index_N.device)
    for index, targets in zip(index_N.split(BLOCK_ROWS), targets_N.split(BLOCK_ROWS), strict=True):
        logits = read_rows(source, index, size)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        realised = logits.gather(1, targets.unsqueeze(1)).squeeze(1)
        parts.append((logits.logsumexp(-1) - realised).double())
    nats_N = torch.cat(parts)
    if not bool(torch.isfinite(nats_N).all()):
        raise EvaluationError(
            "The model gives a token that stands in the text no probability, or NaN; its weights "
            "may be damaged, or its dtype too narrow (try float32)."
        )
    return nats_N
