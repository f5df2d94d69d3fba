"""Read the `.pt` projections of public X-Token code, without running anything in them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xtoken.errors import ProjectionError
from xtoken.projection.matrix import Projection
from xtoken.projection.rules import exact_targets, merge_entries, piece_rows, role_targets
from xtoken.projection.rules import token_bytes_list as bytes_of
from xtoken.projection.support import common_pairs, fold_targets, teacher_rest_ids
from xtoken.projection.tokens import TokenTable

if TYPE_CHECKING:
    from xtoken.vocab import Vocabulary

# A file names no fingerprints. Of the student ids with an exact partner, at least this share must
# have it as their heaviest target, or the file belongs to other tokenizers.
MIN_EXACT_AGREEMENT = 0.5
PAIR_TEXT = re.compile(r"\s*\(?\s*(\d+)\s*[,_:\s]\s*(\d+)\s*\)?\s*")


def import_pt(
    path: str | Path,
    student_vocab: Vocabulary,
    teacher_vocab: Vocabulary,
    *,
    normalize: bool = False,
) -> Projection:
    """Read a `.pt` projection as it is; exactness is found from the tokenizers' bytes.

    Two forms: dense top-k, `{"indices": int[V, k], "likelihoods": float[V, k]}` with -1 (or
    weight 0) for empty slots; and a dict of id pairs, `{(student, teacher): weight}`, also with
    text keys (`"12_7"`) or nested `{student: {teacher: weight}}`.

    Weights are kept as they are in the file, the "scale trick" included: public code sets the
    last column to 0.2 and divides by the row's sum, so that about a sixth of each row that is not
    exact goes to whatever id stands there; `rules["scale_trick"]` says whether the file did. A
    row is exact iff its one target has the same bytes or shares a role. Rows and targets past
    the tokenizers' real sizes (padded rows of a model's head) are dropped and counted in `rules`.

    Args:
        normalize: divide each row by its sum.

    Raises:
        ProjectionError: no such file, damaged, asks for code, neither form, shapes that don't fit
            the vocabularies, or plainly built for other tokenizers.
    """
    source = Path(path)
    content = _load_weights_only(source)
    if isinstance(content, Mapping) and "indices" in content and "likelihoods" in content:
        student_of, teacher_of, weight, rows_in_file = _dense_entries(source, content)
        form, scale_trick = "dense", content.get("enable_scale_trick")
    elif isinstance(content, Mapping):
        student_of, teacher_of, weight = _pair_entries(source, content)
        rows_in_file = int(student_of.max(initial=-1)) + 1
        form, scale_trick = "pairs", None
    else:
        raise ProjectionError(f"{source} holds a {type(content).__name__}; {EXPECTED}")
    if form == "dense" and rows_in_file < len(student_vocab):
        raise ProjectionError(
            f"{source} has {rows_in_file:,} rows, but the student {student_vocab.name!r} has "
            f"{len(student_vocab):,} ids. Give the tokenizers that it was built for."
        )
    _check_range(source, "student", student_of, weight, student_vocab)
    _check_range(source, "teacher", teacher_of, weight, teacher_vocab)
    dropped = int((teacher_of[weight > 0] >= len(teacher_vocab)).sum())
    inside = (student_of < len(student_vocab)) & (teacher_of < len(teacher_vocab)) & (weight > 0)
    student_of, teacher_of, weight = student_of[inside], teacher_of[inside], weight[inside]

    size = len(student_vocab)
    sums = np.bincount(student_of, weights=weight, minlength=size)
    slots = max(1, int(np.bincount(student_of, minlength=size).max(initial=1)))
    indices, weights = merge_entries(student_of, teacher_of, weight, size, slots)
    if not normalize:
        weights = (weights * sums[:, None]).astype(np.float32)

    exact_target = exact_targets(student_vocab, teacher_vocab)
    role_target, shares_role = role_targets(student_vocab, teacher_vocab)
    partner = np.where(exact_target >= 0, exact_target, np.where(shares_role, role_target, -1))
    _check_agreement(source, indices, exact_target, student_vocab, teacher_vocab)
    entries = (weights > 0).sum(axis=1)
    exact = (partner >= 0) & (entries == 1) & (indices[:, 0] == partner)

    rest = teacher_rest_ids(exact_target, teacher_vocab)
    pieces, _ = piece_rows(student_vocab, bytes_of(teacher_vocab, rest), 1)
    fold = fold_targets(indices, weights, indices[:, 0], rest, pieces, student_vocab, teacher_vocab)
    common_student, common_teacher = common_pairs(
        exact, indices[:, 0], student_vocab, teacher_vocab
    )
    return Projection(
        indices=indices,
        weights=weights,
        exact=exact,
        student_masked=student_vocab.is_missing | (student_vocab.is_special & (entries == 0)),
        teacher_masked=teacher_vocab.is_missing | (teacher_vocab.is_special & (fold < 0)),
        teacher_fold=fold,
        common_student=common_student,
        common_teacher=common_teacher,
        rules={
            "kind": "imported",
            "form": form,
            "file": source.name,
            "scale_trick": None if scale_trick is None else bool(scale_trick),
            "normalized": normalize,
            "rows_in_file": rows_in_file,
            "dropped_padded_targets": dropped,
            "cut_rows": 0,
        },
        student_tokens=TokenTable.of(student_vocab),
        teacher_tokens=TokenTable.of(teacher_vocab),
    )


EXPECTED = (
    'expected a dict with "indices" and "likelihoods" of one shape [V, k], or a dict of '
    "(student id, teacher id) -> weight."
)


def _load_weights_only(source: Path) -> Any:
    import pickle

    import torch

    if not source.is_file():
        raise ProjectionError(f"There is no file {source}.")
    try:
        return torch.load(str(source), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"(?:GLOBAL|global|class)\s+([\w.]+)", str(error))
        what = f" ({asked.group(1)})" if asked else ""
        raise ProjectionError(
            f"{source} asks for Python code to be run on loading{what}, which xtoken never does, "
            "or is damaged. Save it again as plain tensors or a plain dict of numbers, or build a "
            "new projection."
        ) from error
    except Exception as error:  # torch raises many kinds for damaged files
        raise ProjectionError(
            f"{source} can't be read as a PyTorch file: it is truncated or damaged "
            f"({type(error).__name__}). Get it again, or build a new projection."
        ) from error


def _dense_entries(
    source: Path, content: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    try:
        indices = np.asarray(content["indices"])
        weights = np.asarray(content["likelihoods"].float()).astype(np.float64)
    except (AttributeError, TypeError, ValueError) as error:
        raise ProjectionError(f"{source} holds no tensors under its keys; {EXPECTED}") from error
    if indices.ndim != 2 or indices.shape != weights.shape or indices.dtype.kind not in "iu":
        raise ProjectionError(
            f"{source} has indices {indices.shape} of {indices.dtype} and likelihoods "
            f"{weights.shape}; {EXPECTED}"
        )
    rows = np.repeat(np.arange(len(indices)), indices.shape[1])
    targets, weight = indices.ravel().astype(np.int64), weights.ravel()
    _check_weights(source, weight[targets >= 0])
    filled = targets >= 0
    return rows[filled], targets[filled], weight[filled], len(indices)


def _pair_entries(
    source: Path, content: Mapping[Any, Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    entries = list(_flatten(source, content.items()))
    if not entries:
        raise ProjectionError(f"{source} holds an empty dict; {EXPECTED}")
    student_of, teacher_of, weight = zip(*entries, strict=True)
    result = np.array(weight, dtype=np.float64)
    _check_weights(source, result)
    return np.array(student_of, np.int64), np.array(teacher_of, np.int64), result


def _flatten(source: Path, items: Iterable[tuple[Any, Any]]) -> Iterable[tuple[int, int, float]]:
    for key, value in items:
        if isinstance(value, Mapping):
            for teacher, weight in value.items():
                yield _number(source, key), _number(source, teacher), _weight(source, weight)
            continue
        if isinstance(key, str):
            match = PAIR_TEXT.fullmatch(key)
            pair: Any = match.groups() if match else key
        else:
            pair = key
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ProjectionError(f"{source} has the key {key!r}; {EXPECTED}")
        yield _number(source, pair[0]), _number(source, pair[1]), _weight(source, value)


def _number(source: Path, value: Any) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError) as error:
        raise ProjectionError(f"{source} has {value!r} where an id belongs; {EXPECTED}") from error
    if number < 0:
        raise ProjectionError(f"{source} has the id {number}; ids start at 0.")
    return number


def _weight(source: Path, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ProjectionError(
            f"{source} has {value!r} where a weight belongs; {EXPECTED}"
        ) from error


def _check_weights(source: Path, weight: np.ndarray) -> None:
    if not np.isfinite(weight).all() or (weight < 0).any():
        raise ProjectionError(
            f"{source} has weights that are negative or not finite; it is damaged or no projection."
        )


def _check_range(
    source: Path, side: str, ids: np.ndarray, weight: np.ndarray, vocab: Vocabulary
) -> None:
    """Ids may run into a model head's padding (counted as dropped), never past a known head."""
    highest = int(ids[weight > 0].max(initial=-1))
    limit = vocab.rows if vocab.rows is not None else len(vocab) + MAX_PADDING
    if highest >= limit:
        raise ProjectionError(
            f"{source} uses {side} id {highest:,}, but the {side} {vocab.name!r} has "
            f"{len(vocab):,} ids{'' if vocab.rows is None else f' and {vocab.rows:,} rows'}. "
            "Give the tokenizers that it was built for."
        )


# The most rows that a known model adds to its tokenizer's ids, rounded up (Gemma 3: 64, Qwen3:
# 267, Phi-4-mini: 35, Qwen2.5-72B: 399, T5-style heads: 128).
MAX_PADDING = 1024


def _check_agreement(
    source: Path,
    indices: np.ndarray,
    exact_target: np.ndarray,
    student: Vocabulary,
    teacher: Vocabulary,
) -> None:
    rows = np.flatnonzero((exact_target >= 0) & (indices[:, 0] >= 0))
    if not len(rows):
        return
    agreement = float((indices[rows, 0] == exact_target[rows]).mean())
    if agreement < MIN_EXACT_AGREEMENT:
        raise ProjectionError(
            f"{source} maps only {agreement:.0%} of the {len(rows):,} tokens that "
            f"{student.name!r} and {teacher.name!r} share to their partner: it was built for "
            "other tokenizers, or the student and the teacher are exchanged."
        )
