"""Which final tokens of one vocabulary complete a prefix to one token of the other."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np

# Prefixes whose completions a table remembers before it forgets them all.
REMEMBERED = 2**16


class Completions:
    """Equivalent completions between a vocabulary that says one token and one that says several.

    After the *prefix* (bytes that the other side has said so far) the pairs are

        (w, k): bytes(w) = prefix + bytes(k), w a whole token here, k a final token there

    Of several ids with the same bytes the lowest counts. Found when first asked for and kept for
    a while: the same prefixes come back all the time.

    Args:
        whole: bytes of the ids on the side that says one token.
        final: bytes of the ids on the side that says several.
    """

    def __init__(self, whole: list[bytes], final: list[bytes]) -> None:
        self._final = _lowest_ids(final)
        lowest = _lowest_ids(whole)
        self._text = sorted(lowest)
        self._whole = [lowest[text] for text in self._text]
        self._found: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}

    def find(self, prefix: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Return (int64[E] whole tokens, int64[E] final tokens) after a prefix."""
        if prefix not in self._found:
            whole, final = [], []
            place = bisect_left(self._text, prefix)
            while place < len(self._text) and self._text[place].startswith(prefix):
                token = self._final.get(self._text[place][len(prefix) :])
                if token is not None:
                    whole.append(self._whole[place])
                    final.append(token)
                place += 1
            if len(self._found) >= REMEMBERED:
                self._found.clear()
            self._found[prefix] = np.array(whole, np.int64), np.array(final, np.int64)
        return self._found[prefix]


def _lowest_ids(tokens: list[bytes]) -> dict[bytes, int]:
    found: dict[bytes, int] = {}
    for token, data in enumerate(tokens):
        if data:
            found.setdefault(data, token)
    return found
