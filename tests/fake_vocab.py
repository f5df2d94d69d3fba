"""A vocabulary made of a plain list of tokens, for tests that need exact control over ids."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

ROLES = ("bos", "eos", "end_of_turn", "pad", "unk", "special")


class FakeVocabulary:
    """Tokens are bytes (with a kind), a frozenset of roles, or None (a missing id).

    It tokenises greedily, longest token first. It has what `xtoken.Vocabulary` offers and what
    projections and the audit use, nothing else.
    """

    def __init__(
        self,
        tokens: Sequence[bytes | frozenset[str] | None],
        *,
        kinds: dict[int, str] | None = None,
        rows: int | None = None,
        name: str = "fake",
    ) -> None:
        self.name = name
        self.rows = rows
        self.lossy = False
        self.normalizes = False
        self.dummy_prefix = False
        self.notes: tuple[str, ...] = ()
        self.chat_template = None
        self._tokens = list(tokens)
        data = [token if isinstance(token, bytes) else b"" for token in tokens]
        self.byte_lengths = np.array([len(item) for item in data], dtype=np.int32)
        self.flat_bytes = np.frombuffer(b"".join(data), dtype=np.uint8)
        self.byte_starts = np.concatenate([[0], np.cumsum(self.byte_lengths)]).astype(np.int64)
        self.is_special = np.array([isinstance(token, frozenset) for token in tokens], dtype=bool)
        self.is_missing = np.array([token is None for token in tokens], dtype=bool)
        self._kinds = kinds or {}
        text = repr([(t if not isinstance(t, frozenset) else sorted(t)) for t in tokens])
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._tokens)

    def token_bytes(self, token: int) -> bytes:
        value = self._tokens[token]
        return value if isinstance(value, bytes) else b""

    def roles(self, token: int) -> frozenset[str]:
        value = self._tokens[token]
        return value if isinstance(value, frozenset) else frozenset()

    def role(self, token: int) -> str | None:
        roles = self.roles(token)
        return next((role for role in ROLES if role in roles), None)

    def role_id(self, role: str) -> int | None:
        return next((i for i in range(len(self)) if role in self.roles(i)), None)

    def token_text(self, token: int) -> str:
        names = "/".join(sorted(self.roles(token)))
        return f"<{names}>" if names else self.token_bytes(token).decode(errors="replace")

    def same_as(self, other: FakeVocabulary) -> bool:
        return self.fingerprint == other.fingerprint

    def kind(self, token: int) -> str:
        value = self._tokens[token]
        if isinstance(value, bytes):
            return self._kinds.get(token, "piece")
        return "missing" if value is None else "special"

    def ids_for_bytes(self, data: bytes) -> tuple[int, ...]:
        order = ("piece", "byte", "added")
        ids = [i for i, token in enumerate(self._tokens) if isinstance(token, bytes)]
        ids = [i for i in ids if self._tokens[i] == data]
        return tuple(sorted(ids, key=lambda i: (order.index(self.kind(i)), i)))

    def id_for_bytes(self, data: bytes, kind: str | None = None) -> int | None:
        ids = self.ids_for_bytes(data)
        if kind is not None:
            ids = tuple(i for i in ids if self.kind(i) == kind) or ids
        return ids[0] if ids else None

    def tokenize_bytes(self, pieces: Sequence[bytes]) -> list[tuple[int, ...]]:
        return [self._tokenize(piece) for piece in pieces]

    def _tokenize(self, data: bytes) -> tuple[int, ...]:
        ids, position = [], 0
        while position < len(data):
            for stop in range(len(data), position, -1):
                token = self.id_for_bytes(data[position:stop])
                if token is not None:
                    ids.append(token)
                    position = stop
                    break
            else:
                unk = self.role_id("unk")
                return () if unk is None else (unk,)
        return tuple(ids)


def roles(*names: str) -> frozenset[str]:
    """Return a role token for `FakeVocabulary`."""
    return frozenset(names)
