"""When two vocabularies are one: a fingerprint of ids, and texts that tell pipelines apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

# Same ids do not make the same tokenizer: digits may be split or not, Unicode normalised or not,
# a space put first or not. These texts differ wherever known families do.
SAMENESS_PROBES = (
    "The quick brown fox, 1984 and 201 more.\n\n\tdef f(x_1):\n        return x ** 2 == 1e-05\r\n",
    "  leading and trailing spaces   ",
    "na\u00efve caf\u00e9 \ufb01 \u212b e\u0301 \u00a0\ufeff \u72d0\u72f8\u8df3\u8fc7\u61d2\u72d7 "
    "\u0645\u0631\u062d\u0628\u0627 \u0928\u092e\u0938\u094d\u0924\u0947 "
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f3f3\ufe0f\u200d\U0001f308 \u2581x",
    "<s> </s> <think> <|im_end|> <|endoftext|> don't I'LL we've 12345678 $x^2$ ___",
)


def fingerprint_of(
    byte_lengths: np.ndarray,
    flat_bytes: np.ndarray,
    is_missing: np.ndarray,
    roles: Iterable[tuple[int, frozenset[str]]],
) -> str:
    """Return the SHA-256 (hex) of every id's bytes, holes and (id, roles) pairs."""
    digest = hashlib.sha256(b"xtoken vocabulary 1\n")
    digest.update(byte_lengths.astype("<i4").tobytes())
    digest.update(flat_bytes.tobytes())
    digest.update(np.packbits(is_missing).tobytes())
    for index, names in roles:
        digest.update(f"\n{index} {','.join(sorted(names))}".encode())
    return digest.hexdigest()
