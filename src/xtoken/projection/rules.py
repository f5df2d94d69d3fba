"""The rules that fill a projection: exact bytes, roles, pieces, longest prefix, reverse pass.

Every rule is a function of two vocabularies and returns plain arrays; `build.py` puts them
together. Shapes: V student ids, U teacher ids, R tokens looked at, K kept entries a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from xtoken.vocab import Vocabulary

# Which shared role decides when a role token could pair with several: what ends a text or a turn
# is learnt from a teacher, `bos` and `pad` are hardly ever predicted. `special` (anything else
# without bytes) says nothing about meaning and pairs with nobody.
PAIRING_ORDER = ("end_of_turn", "eos", "bos", "unk", "pad")
ENDINGS = frozenset({"eos", "end_of_turn"})


def token_bytes_list(vocab: Vocabulary, ids: np.ndarray) -> list[bytes]:
    """Return the bytes of many ids; faster than asking one by one."""
    data = vocab.flat_bytes.tobytes()
    starts = vocab.byte_starts[ids].tolist()
    stops = vocab.byte_starts[ids + 1].tolist()
    return [data[start:stop] for start, stop in zip(starts, stops, strict=True)]


def all_token_bytes(vocab: Vocabulary) -> list[bytes]:
    """Return every id's bytes, b"" for role tokens and holes."""
    return token_bytes_list(vocab, np.arange(len(vocab)))


def exact_targets(student: Vocabulary, teacher: Vocabulary) -> np.ndarray:
    """Return for each student id the teacher id with the same bytes, -1 for none: int32[V].

    Where several teacher ids have the bytes: the same kind (piece, byte fallback, added token),
    then the id that the tokenizer itself emits, then the lower id.
    """
    targets = np.full(len(student), -1, dtype=np.int32)
    with_bytes = np.flatnonzero(student.byte_lengths > 0)
    for token, data in zip(with_bytes.tolist(), token_bytes_list(student, with_bytes), strict=True):
        ids = teacher.ids_for_bytes(data)
        if len(ids) == 1:
            targets[token] = ids[0]
        elif ids:
            same_kind = teacher.id_for_bytes(data, kind=student.kind(token))
            targets[token] = ids[0] if same_kind is None else same_kind
    return targets


def role_targets(student: Vocabulary, teacher: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """Pair role tokens: (int32[V] teacher id or -1, bool[V] whether a role is shared).

    Two role tokens pair when their sets of roles intersect (`special` apart), as in alignment.
    Among several candidates: the first shared role in `PAIRING_ORDER`, then the larger
    intersection, then the id that plays the role in the teacher's tokenizer, then the lower id.
    A token that ends texts or turns (`eos`, `end_of_turn`) and has no such partner goes to the
    other tokenizer's other ending; that pair is not exact.
    """
    targets = np.full(len(student), -1, dtype=np.int32)
    shares_role = np.zeros(len(student), dtype=bool)
    candidates = _pairing_roles(teacher)
    for token, roles in _pairing_roles(student).items():
        ranked = []
        for candidate, candidate_roles in candidates.items():
            shared = roles & candidate_roles
            if shared:
                order = min(PAIRING_ORDER.index(role) for role in shared)
                plays = teacher.role_id(PAIRING_ORDER[order]) == candidate
                ranked.append((order, -len(shared), not plays, candidate))
        if ranked:
            targets[token] = min(ranked)[-1]
            shares_role[token] = True
        elif roles & ENDINGS:
            endings = [c for c, candidate_roles in candidates.items() if candidate_roles & ENDINGS]
            played = {teacher.role_id(role) for role in ENDINGS}
            if endings:
                targets[token] = min(endings, key=lambda c: (c not in played, c))
    return targets, shares_role


def _pairing_roles(vocab: Vocabulary) -> dict[int, frozenset[str]]:
    """Role tokens that may pair, with their roles (`special` alone may not)."""
    found = {}
    for token in np.flatnonzero(vocab.is_special).tolist():
        roles = frozenset(vocab.roles(token)).intersection(PAIRING_ORDER)
        if roles:
            found[token] = roles
    return found


def piece_rows(
    vocab: Vocabulary, tokens: Sequence[bytes], max_pieces: int
) -> tuple[np.ndarray, np.ndarray]:
    """Tokenise byte strings with `vocab`: (int32[R, K] first K pieces, -1 = none; int32[R] count).

    Without dummy prefix, normaliser or special tokens; bytes that are no valid UTF-8 go through
    byte tokens. A string that the tokenizer can only answer with a role token (`unk`) has no
    pieces.
    """
    pieces = vocab.tokenize_bytes(tokens)
    counts = np.fromiter((len(row) for row in pieces), dtype=np.int32, count=len(pieces))
    flat = np.fromiter(chain.from_iterable(pieces), dtype=np.int32, count=int(counts.sum()))
    row_of = np.repeat(np.arange(len(pieces)), counts)
    column_of = np.arange(len(flat)) - np.repeat(np.cumsum(counts) - counts, counts)
    kept = column_of < max_pieces
    rows = np.full((len(pieces), max_pieces), -1, dtype=np.int32)
    rows[row_of[kept], column_of[kept]] = flat[kept]
    unusable = (vocab.is_special | vocab.is_missing)[flat]
    if unusable.any():
        rows[row_of[unusable]] = -1
        counts[row_of[unusable]] = 0
    return rows, counts


def decay_weights(rows: np.ndarray, beta: float, gamma: float) -> np.ndarray:
    """Return beta * gamma^i for the i-th piece, 0 where there is none: float64[R, K]."""
    weights = beta * gamma ** np.arange(rows.shape[1], dtype=np.float64)
    return np.where(rows >= 0, weights[None, :], 0.0)


def longest_prefix_rows(teacher: Vocabulary, tokens: Sequence[bytes]) -> np.ndarray:
    """Return the longest teacher token that is a byte prefix of each string: int32[R, 1], -1."""
    longest = int(teacher.byte_lengths.max(initial=0))
    rows = np.full((len(tokens), 1), -1, dtype=np.int32)
    for row, data in enumerate(tokens):
        for length in range(min(len(data), longest), 0, -1):
            token = teacher.id_for_bytes(data[:length])
            if token is not None:
                rows[row, 0] = token
                break
    return rows


def merge_entries(
    row_of: np.ndarray, target: np.ndarray, weight: np.ndarray, size: int, max_entries: int
) -> tuple[np.ndarray, np.ndarray]:
    """Add up equal targets in a row, keep the heaviest, make rows sum to one.

    Args:
        row_of, target, weight: one entry each, any order; entries of weight 0 are dropped.
        size: number of rows R.
        max_entries: K; ties go to the entry that came first.

    Returns:
        int32[R, K] (-1 = empty) and float32[R, K], heaviest first; a row without entries is
        empty.
    """
    indices = np.full((size, max_entries), -1, dtype=np.int32)
    weights = np.zeros((size, max_entries), dtype=np.float64)
    kept = weight > 0
    row_of, target, weight = row_of[kept], target[kept], weight[kept]
    if len(row_of):
        order = np.lexsort((np.arange(len(row_of)), target, row_of))
        row_of, target, weight = row_of[order], target[order], weight[order]
        first = np.ones(len(row_of), dtype=bool)
        first[1:] = (row_of[1:] != row_of[:-1]) | (target[1:] != target[:-1])
        starts = np.flatnonzero(first)
        came = order[starts]
        row_of, target = row_of[starts], target[starts]
        weight = np.add.reduceat(weight, starts)
        order = np.lexsort((came, -weight, row_of))
        row_of, target, weight = row_of[order], target[order], weight[order]
        counts = np.bincount(row_of, minlength=size)
        slot = np.arange(len(row_of)) - np.repeat(np.cumsum(counts) - counts, counts)
        kept = slot < max_entries
        indices[row_of[kept], slot[kept]] = target[kept]
        weights[row_of[kept], slot[kept]] = weight[kept]
        total = weights.sum(axis=1, keepdims=True)
        np.divide(weights, total, out=weights, where=total > 0)
    return indices, weights.astype(np.float32)
