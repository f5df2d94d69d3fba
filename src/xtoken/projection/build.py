"""Build a projection from two vocabularies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from xtoken.errors import UsageError
from xtoken.projection.matrix import Projection
from xtoken.projection.rules import (
    decay_weights,
    exact_targets,
    longest_prefix_rows,
    merge_entries,
    piece_rows,
    role_targets,
    token_bytes_list,
)
from xtoken.projection.support import common_pairs, fold_targets, teacher_rest_ids
from xtoken.projection.tokens import TokenTable

if TYPE_CHECKING:
    from xtoken.vocab import Vocabulary

Rule = Literal["multi_token", "longest_prefix"]
RULES: tuple[Rule, ...] = ("multi_token", "longest_prefix")


def build_projection(
    student_vocab: Vocabulary,
    teacher_vocab: Vocabulary,
    *,
    max_pieces: int = 4,
    beta: float = 0.9,
    gamma: float = 0.1,
    reverse: bool = False,
    rule: Rule = "multi_token",
) -> Projection:
    """Build W: exact matches by bytes, roles with roles, everything else by pieces.

        exact row:  W[s, u] = 1 where bytes(s) = bytes(u)
        other rows: W[s, t_i] += beta * gamma^i, i < K, for the teacher's pieces t_0 t_1 ... of
                    bytes(s); equal targets add up; rows are divided by their sum

    Args:
        student_vocab, teacher_vocab: the two tokenizers; their real sizes are V and U.
        max_pieces: K, the most entries a row may have (and pieces that are looked at).
        beta: weight of a first piece. Divided out of every row, so that it matters only with
            `reverse`, where it weighs the teacher's pass against the student's.
        gamma: decay from one piece to the next; 0 keeps the first piece only, 1 weighs all alike.
        reverse: also tokenise each teacher token that has no exact partner with the student and
            add beta * gamma^i to W[s_i, u]; exact rows are never touched. Forward rows are
            divided by their sum before, all rows again after.
        rule: `multi_token` as above, or `longest_prefix`: the longest teacher token that is a
            byte prefix of the student token takes the whole row.

    Raises:
        UsageError: a setting is out of range.

    Source: X-Token (arXiv 2605.21699). Two vocabularies with one fingerprint give W = I.
    """
    _check_settings(max_pieces, beta, gamma, reverse, rule)
    rules: dict[str, Any] = {
        "kind": "built",
        "rule": rule,
        "max_pieces": max_pieces,
        "beta": float(beta),
        "gamma": float(gamma),
        "reverse": reverse,
    }
    if student_vocab.fingerprint == teacher_vocab.fingerprint:
        return identity_projection(student_vocab, teacher_vocab, rules=rules, slots=max_pieces)

    size = len(student_vocab)
    exact_target = exact_targets(student_vocab, teacher_vocab)
    role_target, shares_role = role_targets(student_vocab, teacher_vocab)
    single_target = np.where(exact_target >= 0, exact_target, role_target)
    exact = (exact_target >= 0) | shares_role

    rest = np.flatnonzero((exact_target < 0) & (student_vocab.byte_lengths > 0))
    tokens = token_bytes_list(student_vocab, rest)
    if rule == "multi_token":
        pieces, counts = piece_rows(teacher_vocab, tokens, max_pieces)
    else:
        pieces = longest_prefix_rows(teacher_vocab, tokens)
        counts = (pieces >= 0).sum(axis=1).astype(np.int32)
    piece_weights = decay_weights(pieces, beta, gamma)

    singles = np.flatnonzero(single_target >= 0)
    row_of = np.concatenate([singles, np.repeat(rest, pieces.shape[1])])
    target = np.concatenate([single_target[singles], pieces.ravel()])
    weight = np.concatenate([np.ones(len(singles)), piece_weights.ravel()])
    indices, weights = merge_entries(row_of, target, weight, size, max_pieces)

    teacher_rest = teacher_rest_ids(exact_target, teacher_vocab)
    student_pieces, _ = piece_rows(
        student_vocab, token_bytes_list(teacher_vocab, teacher_rest), max_pieces
    )
    if reverse:
        indices, weights = _add_reverse_pass(
            indices,
            weights,
            exact | student_vocab.is_special,
            student_pieces,
            teacher_rest,
            decay_weights(student_pieces, beta, gamma),
        )

    student_masked = student_vocab.is_missing | (student_vocab.is_special & (role_target < 0))
    first_target = single_target.copy()
    first_target[rest] = pieces[:, 0]
    fold = fold_targets(
        indices, weights, first_target, teacher_rest, student_pieces, student_vocab, teacher_vocab
    )
    common_student, common_teacher = common_pairs(
        exact, indices[:, 0], student_vocab, teacher_vocab
    )
    return Projection(
        indices=indices,
        weights=weights,
        exact=exact,
        student_masked=student_masked,
        teacher_masked=teacher_vocab.is_missing | (teacher_vocab.is_special & (fold < 0)),
        teacher_fold=fold,
        common_student=common_student,
        common_teacher=common_teacher,
        rules={**rules, "cut_rows": int((counts > max_pieces).sum())},
        student_tokens=TokenTable.of(student_vocab),
        teacher_tokens=TokenTable.of(teacher_vocab),
    )


def identity_projection(
    vocab: Vocabulary,
    teacher_vocab: Vocabulary | None = None,
    *,
    rules: dict[str, Any] | None = None,
    slots: int = 1,
) -> Projection:
    """Return W = I over a vocabulary: every id is its own exact target, missing ids are masked."""
    ids = np.arange(len(vocab), dtype=np.int32)
    present = ~vocab.is_missing
    indices = np.full((len(vocab), slots), -1, dtype=np.int32)
    indices[present, 0] = ids[present]
    return Projection(
        indices=indices,
        weights=(indices >= 0).astype(np.float32),
        exact=present.copy(),
        student_masked=vocab.is_missing.copy(),
        teacher_masked=vocab.is_missing.copy(),
        teacher_fold=indices[:, 0].copy(),
        common_student=ids[present],
        common_teacher=ids[present],
        rules={**(rules or {"kind": "identity"}), "cut_rows": 0},
        student_tokens=TokenTable.of(vocab),
        teacher_tokens=TokenTable.of(teacher_vocab or vocab),
    )


def _check_settings(max_pieces: int, beta: float, gamma: float, reverse: bool, rule: str) -> None:
    if isinstance(max_pieces, bool) or not isinstance(max_pieces, int) or max_pieces < 1:
        raise UsageError(f"max_pieces is {max_pieces!r}; expected a whole number, 1 or more.")
    if not 0 < beta < float("inf"):
        raise UsageError(f"beta is {beta!r}; expected a number above 0 (the paper's is 0.9).")
    if not 0 <= gamma <= 1:
        raise UsageError(f"gamma is {gamma!r}; expected a number from 0 to 1 (the paper's is 0.1).")
    if rule not in RULES:
        raise UsageError(f"rule is {rule!r}; expected one of {', '.join(RULES)}.")
    if reverse and rule != "multi_token":
        raise UsageError("reverse adds up pieces and needs rule='multi_token'.")


def _add_reverse_pass(
    indices: np.ndarray,
    weights: np.ndarray,
    closed: np.ndarray,
    student_pieces: np.ndarray,
    teacher_rest: np.ndarray,
    piece_weights: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Add the teacher's pass to every row that is not `closed` (exact rows, role tokens)."""
    size, slots = indices.shape
    student_of = student_pieces.ravel()
    added = piece_weights.ravel().copy()
    added[closed[student_of] | (student_of < 0)] = 0.0
    row_of = np.concatenate([np.repeat(np.arange(size), slots), np.maximum(student_of, 0)])
    target = np.concatenate([indices.ravel(), np.repeat(teacher_rest, student_pieces.shape[1])])
    weight = np.concatenate([weights.ravel().astype(np.float64), added])
    return merge_entries(row_of, target, weight, size, slots)
