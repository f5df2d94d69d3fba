"""A private copy of a tokenizer's Rust backend, switched between four ways of encoding.

text      as the tokenizer encodes a document, but special tokens written in it stay text
chat      the same, with special tokens parsed: what a rendered chat template needs
continued what follows some text already encoded: like text, without a dummy prefix
isolated  a piece out of the middle of a text: no dummy prefix, no normaliser, no specials

The user's own tokenizer object is never touched (truncation, padding and
`encode_special_tokens` are state of the backend).
"""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Literal

from xtoken._bytes import SPACE_MARK, component, maps_space

Mode = Literal["text", "chat", "continued", "isolated"]


def adds_prefix(part: dict[str, Any]) -> bool:
    """Tell whether a normaliser or pre-tokenizer puts a space before the text."""
    if part["type"] == "Metaspace":
        return part.get("prepend_scheme", "always") != "never"
    if part["type"] == "ByteLevel":
        return bool(part.get("add_prefix_space"))
    return part["type"] == "Prepend" and part["prepend"] == SPACE_MARK


def build_components(normalizer: list[dict], pre_tokenizer: list[dict]) -> tuple[Any, Any]:
    """Build a normaliser and a pre-tokenizer from JSON descriptions (None where empty)."""
    from tokenizers import Tokenizer

    described: dict[str, Any] = {
        "version": "1.0",
        "normalizer": {"type": "Sequence", "normalizers": normalizer} if normalizer else None,
        "pre_tokenizer": (
            {"type": "Sequence", "pretokenizers": pre_tokenizer} if pre_tokenizer else None
        ),
        "added_tokens": [],
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }
    built = Tokenizer.from_str(json.dumps(described))
    return built.normalizer, built.pre_tokenizer


def private_copy(backend: Any) -> Any:
    """Copy a backend without truncation and padding; its model, never changed here, is shared.

    A full copy takes 0.6 s for a vocabulary of 128k tokens, nearly all of it for the model.
    """
    from tokenizers import Tokenizer, models

    # Components are small, and copied by their JSON form: not all of them can be pickled.
    shell = Tokenizer(models.BPE())
    for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        if (part := getattr(backend, name)) is not None:
            setattr(shell, name, part)
    shell = Tokenizer.from_str(shell.to_str())
    shell.model = backend.model
    added = backend.get_added_tokens_decoder()
    # In the order of their ids, as a tokenizer.json is read: new ids are counted up.
    for special, run in groupby((added[i] for i in sorted(added)), lambda token: token.special):
        (shell.add_special_tokens if special else shell.add_tokens)(list(run))
    found = shell.get_added_tokens_decoder()
    if {i: token.content for i, token in found.items()} == {
        i: token.content for i, token in added.items()
    }:
        return shell
    copied = copy.deepcopy(backend)  # holes between the added tokens' ids
    copied.no_truncation()
    copied.no_padding()
    return copied


class Engine:
    """Encodes batches of texts with one backend; safe to share between threads."""

    def __init__(self, backend: Any, hidden: Sequence[str], *, keep_normalizer: bool):
        from tokenizers import AddedToken

        self._backend = private_copy(backend)
        self.added_around = self._specials_around()
        self.prefix_per_segment = self._prefixes_each_segment()
        self._backend.post_processor = None  # a ByteLevel one would trim spaces off the offsets
        if hidden:
            self._backend.add_special_tokens(
                [AddedToken(text, special=True, normalized=False) for text in hidden]
            )
        natural = (self._backend.normalizer, self._backend.pre_tokenizer)
        self._modes = {
            "text": natural,
            "chat": natural,
            "continued": self._without_prefix(keep_normalizer=True),
            "isolated": self._without_prefix(keep_normalizer),
        }
        self._mode: Mode = "text"
        self._backend.encode_special_tokens = True
        self._lock = threading.Lock()

    def encode(self, texts: Sequence[str], mode: Mode) -> list[Any]:
        """Encode texts to `tokenizers.Encoding`s with character offsets; adds no specials."""
        with self._lock:
            self._switch(mode)
            return self._backend.encode_batch(texts, add_special_tokens=False)

    def encode_ids(self, texts: Sequence[str], mode: Mode) -> list[list[int]]:
        """Encode texts to ids, without the cost of offsets."""
        with self._lock:
            self._switch(mode)
            encoded = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return [item.ids for item in encoded]

    def run_model(self, text: str) -> list[int]:
        """Run the model alone (merges) on one pre-token, in the model's own spelling."""
        return [token.id for token in self._backend.model.tokenize(text)]

    def _switch(self, mode: Mode) -> None:
        if mode == self._mode:
            return
        normalizer, pre_tokenizer = self._modes[mode]
        self._backend.normalizer = normalizer
        self._backend.pre_tokenizer = pre_tokenizer
        self._backend.encode_special_tokens = mode != "chat"
        self._mode = mode

    def _without_prefix(self, keep_normalizer: bool) -> tuple[Any, Any]:
        kept = [
            part
            for part in component(self._backend.normalizer)
            if maps_space(part) or part["type"] == "ByteLevel" or keep_normalizer
        ]
        pre_tokenizer = [
            {**part, "prepend_scheme": "never"}
            if part["type"] == "Metaspace"
            else {**part, "add_prefix_space": False}
            if part["type"] == "ByteLevel"
            else part
            for part in component(self._backend.pre_tokenizer)
        ]
        return build_components([part for part in kept if not adds_prefix(part)], pre_tokenizer)

    def _specials_around(self) -> tuple[list[int], list[int]]:
        """Return the ids that the tokenizer adds before and after a text by itself."""
        probe = "a"
        bare = self._backend.encode(probe, add_special_tokens=False).ids
        full = self._backend.encode(probe, add_special_tokens=True).ids
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return full[:start], full[start + len(bare) :]
        return [], []

    def _prefixes_each_segment(self) -> bool:
        """Tell whether text after a special token gets a dummy prefix of its own too."""
        parts = [*component(self._backend.normalizer), *component(self._backend.pre_tokenizer)]
        return any(adds_prefix(part) and part.get("prepend_scheme") != "first" for part in parts)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        del state["_lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()
