"""What a projection keeps of a tokenizer: each id's bytes and roles, enough to explain itself.

A saved projection carries one table a side (one to two megabytes), so that `xtoken project show`
needs neither tokenizer, and a mismatch can name the first id that differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from xtoken.errors import ProjectionError

if TYPE_CHECKING:
    from xtoken.vocab import Vocabulary


@dataclass(frozen=True)
class TokenTable:
    """Bytes and roles of every id of one tokenizer.

    `flat_bytes` uint8: all tokens' bytes, one after the other; `byte_starts` int64[n + 1]:
    token i is `flat_bytes[byte_starts[i] : byte_starts[i + 1]]` (empty for role tokens and
    missing ids); `roles`: id -> role names, for role tokens only.
    """

    name: str
    fingerprint: str
    flat_bytes: np.ndarray
    byte_starts: np.ndarray
    roles: Mapping[int, tuple[str, ...]]

    @classmethod
    def of(cls, vocab: Vocabulary) -> TokenTable:
        """Take the table of a vocabulary (arrays are shared, not copied)."""
        roles = {
            int(token): tuple(sorted(vocab.roles(int(token))))
            for token in np.flatnonzero(vocab.is_special)
        }
        return cls(vocab.name, vocab.fingerprint, vocab.flat_bytes, vocab.byte_starts, roles)

    def __len__(self) -> int:
        return len(self.byte_starts) - 1

    def check_id(self, token: int, side: str) -> None:
        """Raise ProjectionError if `token` is no id of this tokenizer."""
        if not 0 <= token < len(self):
            raise ProjectionError(
                f"{side} id {token} does not exist: {self.name} has {len(self):,} ids "
                f"(0 to {len(self) - 1})."
            )

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of an id; empty for a role token or a missing id."""
        return self._data[self.byte_starts[token] : self.byte_starts[token + 1]]

    def find(self, data: bytes) -> tuple[int, ...]:
        """Return the ids with exactly these bytes, lowest first (empty when there are none)."""
        if not data:
            return ()
        lengths = np.diff(self.byte_starts)
        same_length = np.flatnonzero(lengths == len(data)).tolist()
        return tuple(token for token in same_length if self.token_bytes(token) == data)

    @cached_property
    def _data(self) -> bytes:
        return self.flat_bytes.tobytes()


def printable(data: bytes) -> str:
    """Write bytes for a person: UTF-8 text with escapes for what can't be shown."""
    text = data.decode("utf-8", errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
