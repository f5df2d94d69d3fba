"""What makes arrays a projection, and two tokenizers different ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xtoken.errors import ProjectionError
from xtoken.projection.tokens import TokenTable

if TYPE_CHECKING:
    from xtoken.projection.matrix import Projection
    from xtoken.vocab import Vocabulary


def first_difference(table: TokenTable, vocab: Vocabulary) -> str:
    """Say in half a sentence where two tokenizers first differ."""
    other = TokenTable.of(vocab)
    for token in range(min(len(table), len(other))):
        ours, theirs = table.token_bytes(token), other.token_bytes(token)
        if ours != theirs:
            return f"; the first id that differs is {token}: {ours!r} there, {theirs!r} here"
    if len(table) != len(other):
        return "; the ids that both have are the same"
    return "; the bytes are the same, the roles differ"


def check_arrays(projection: Projection) -> None:
    """Refuse arrays that can't be a projection: shapes, ranges, row sums."""
    indices, weights = projection.indices, projection.weights
    size, teacher_size = len(projection.indices), len(projection.teacher_masked)
    if indices.ndim != 2 or weights.shape != indices.shape:
        raise ProjectionError(
            f"indices and weights must both be [V, K]; given {indices.shape} and {weights.shape}."
        )
    for name, array, length in (
        ("exact", projection.exact, size),
        ("student_masked", projection.student_masked, size),
        ("teacher_fold", projection.teacher_fold, teacher_size),
        ("common_teacher", projection.common_teacher, len(projection.common_student)),
        ("student_tokens", projection.student_tokens, size),
        ("teacher_tokens", projection.teacher_tokens, teacher_size),
    ):
        if array is not None and len(array) != length:
            raise ProjectionError(f"{name} has {len(array)} entries; expected {length}.")
    for name, ids, low, high in (
        ("indices", indices, -1, teacher_size),
        ("teacher_fold", projection.teacher_fold, -1, teacher_size),
        ("common_teacher", projection.common_teacher, 0, teacher_size),
        ("common_student", projection.common_student, 0, size),
    ):
        if ids.size and (ids.min() < low or ids.max() >= high):
            raise ProjectionError(
                f"{name} holds ids from {ids.min()} to {ids.max()}; "
                f"expected {low} to {high - 1} (the tokenizer's real size)."
            )
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise ProjectionError("weights must be finite and not negative.")
    if (weights[indices < 0] != 0).any():
        raise ProjectionError("weights must be 0 in empty slots (index -1).")
