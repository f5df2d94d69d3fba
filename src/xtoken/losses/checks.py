"""What a loss refuses, with the argument's name, what was given and what was expected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from xtoken.errors import LossError
from xtoken.losses.base import Chunks
from xtoken.losses.columns import floor_of
from xtoken.losses.pooling import MASKED

# Nats below its row's largest logit from where on a logit excludes an id: no model learns such.
EXCLUDED = 1e4
CHUNK_FIELDS = ("student_start_C", "student_count_C", "teacher_start_C", "teacher_count_C")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def check_choice(loss: str, name: str, value: Any, allowed: Sequence[str]) -> None:
    """Refuse a value that is not one of the allowed names."""
    if value not in allowed:
        raise LossError(f"{loss}: {name} is {value!r}; expected one of {', '.join(allowed)}.")


def check_temperature(loss: str, temperature: float, name: str = "temperature") -> None:
    """Refuse a temperature that is not a positive finite number."""
    if not _is_number(temperature) or not 0 < temperature < float("inf"):
        raise LossError(
            f"{loss}: {name} is {temperature!r}; expected a positive number "
            f"(1 leaves the logits as they are)."
        )


def check_top_k(loss: str, name: str, top_k: int, size: int, what: str) -> None:
    """Refuse a k below 1 or above the vocabulary it picks from."""
    if not isinstance(top_k, Integral) or isinstance(top_k, bool) or not 1 <= top_k <= size:
        raise LossError(f"{loss}: {name} is {top_k!r}; expected 1 to {size} ({what}).")


def check_weight(loss: str, name: str, value: float) -> None:
    """Refuse a weight that is not a finite number of at least 0."""
    if not _is_number(value) or not 0 <= value < float("inf"):
        raise LossError(f"{loss}: {name} is {value!r}; expected a finite number of at least 0.")


def check_beta(loss: str, jsd_beta: float) -> None:
    """Refuse a JSD mixture weight outside [0, 1]."""
    if not _is_number(jsd_beta) or not 0 <= jsd_beta <= 1:
        raise LossError(
            f"{loss}: jsd_beta is {jsd_beta!r}; expected 0 (teacher to student) to 1 "
            f"(student to teacher)."
        )


def check_logits(loss: str, name: str, shape: Sequence[int], size: int) -> None:
    """Refuse logits that are not [rows, at least `size` columns]."""
    if len(shape) != 2:
        raise LossError(
            f"{loss}: {name} has shape {tuple(shape)}; expected two dimensions [rows, columns] "
            f"(flatten batch and positions: logits.reshape(-1, logits.shape[-1]))."
        )
    if shape[1] < size:
        raise LossError(
            f"{loss}: {name} has shape {tuple(shape)}, that is {shape[1]} columns; the vocabulary "
            f"has {size} ids, so at least [{shape[0]}, {size}] was expected. Are student and "
            f"teacher swapped, or was the projection built for other tokenizers?"
        )


def check_chunks(
    loss: str,
    chunks: Chunks,
    student_rows: int,
    teacher_rows: int | None,
    sizes: tuple[int, int] | None = None,
) -> None:
    """Refuse chunks whose tensors don't fit each other or reach outside the logits' rows.

    Args:
        loss: the loss's name.
        chunks: what it was given.
        student_rows, teacher_rows: N and M; M is None for a loss that has no teacher.
        sizes: V and U, for a loss that reads the tokens' realised ids: these are looked at too.
    """
    C = len(chunks)
    for field in CHUNK_FIELDS:
        tensor = getattr(chunks, field)
        if tensor.shape != (C,):
            raise LossError(
                f"{loss}: chunks.{field} has shape {tuple(tensor.shape)}; expected ({C},) like "
                f"chunks.student_start_C."
            )
        if tensor.dtype != torch.int64:
            raise LossError(f"{loss}: chunks.{field} is {tensor.dtype}; expected torch.int64.")
    sides = [("student", "student_target_N", student_rows)]
    if teacher_rows is not None:
        sides.append(("teacher", "teacher_target_M", teacher_rows))
    for side, field, rows in sides:
        shape = tuple(getattr(chunks, field).shape)
        if shape != (rows,):
            raise LossError(
                f"{loss}: chunks.{field} has shape {shape}, but {side}_logits has {rows} rows; "
                f"expected ({rows},)."
            )
    if C == 0:
        return
    for side, _, rows in sides:
        start_C = getattr(chunks, f"{side}_start_C")
        count_C = getattr(chunks, f"{side}_count_C")
        # One transfer for the three bounds.
        bounds = torch.stack([start_C.min(), count_C.min(), (start_C + count_C).max()])
        first, shortest, stop = bounds.tolist()
        if first < 0 or shortest < 1 or stop > rows:
            raise LossError(
                f"{loss}: chunks reach {side} rows {first} to {stop - 1} with counts from "
                f"{shortest}; expected rows 0 to {rows - 1} and counts of at least 1."
            )
    for (side, field, _), size in zip(sides, sizes or (), strict=False):
        _check_targets(loss, chunks, side, field, size)


def _check_targets(loss: str, chunks: Chunks, side: str, field: str, size: int) -> None:
    """Refuse a chunk in which a row predicts no id of the vocabulary."""
    target_N = getattr(chunks, field)
    bad_N = (target_N < 0) | (target_N >= size)
    before_N1 = torch.nn.functional.pad(bad_N.cumsum(0), (1, 0))
    start_C = getattr(chunks, f"{side}_start_C")
    stop_C = start_C + getattr(chunks, f"{side}_count_C")
    bad_C = before_N1[stop_C] > before_N1[start_C]
    if bool(bad_C.any()):
        c = int(bad_C.nonzero()[0, 0])
        ids = target_N[int(start_C[c]) : int(stop_C[c])].tolist()
        raise LossError(
            f"{loss}: chunks.{field} holds ids that the {side}'s vocabulary doesn't have inside "
            f"{int(bad_C.sum())} chunks; those of chunk {c} are {ids}. Ids of 0 to {size - 1} were "
            f"expected: row r holds the id of the token at r + 1."
        )


def check_rows(
    loss: str,
    name: str,
    logits_RV: Tensor,
    masked_X: Tensor,
    *,
    temperature: float = 1.0,
    floors: bool = True,
    index_R: Tensor | None = None,
) -> Tensor:
    """Make rows ready for a softmax, in place: masked ids become `MASKED`.

    A logit that excludes an id (-inf, -1e9, the smallest number of a precision: `EXCLUDED` below
    its row's largest) becomes one whose probability at this temperature is `floor_of` the
    precision: a divergence that divides by it is large then, neither infinite nor so large that it
    drowns everything else.

    Args:
        loss, name: for messages.
        logits_RV: float32 or float64.
        masked_X: ids that take part in no distribution.
        temperature: what the logits will be divided by.
        floors: whether to look for such logits.
        index_R: which rows of the logits these are, if they can be named to the user.

    Returns:
        The largest of each row: [R].

    Raises:
        LossError: rows that hold NaN or +inf, or nothing finite outside the masked ids.
    """
    if logits_RV.shape[0] == 0:
        return logits_RV.new_zeros(0)
    least = logits_RV.amin()  # masked ids included: what they hold is no reason to look closer
    logits_RV.index_fill_(1, masked_X, MASKED)
    max_R = logits_RV.amax(-1)
    # Reductions pass NaN on, and NaN fails every comparison. One transfer for all of it.
    low, high, worst = torch.stack([least, max_R.amax(), max_R.amin()]).tolist()
    if worst > MASKED and high < float("inf"):
        if floors and not low > high - EXCLUDED:
            floor = math.log(floor_of(logits_RV.dtype))
            least_R1 = temperature * ((logits_RV / temperature).logsumexp(-1, keepdim=True) + floor)
            excluded_RV = logits_RV < (max_R - EXCLUDED).unsqueeze(1)
            torch.where(excluded_RV, least_R1, logits_RV, out=logits_RV)
            logits_RV.index_fill_(1, masked_X, MASKED)
        return max_R
    bad_R = ~(torch.isfinite(max_R) & (max_R > MASKED))
    row = int(bad_R.nonzero()[0, 0])
    value = float(max_R[row])
    given = "NaN" if value != value else ("+inf" if value > 0 else "all -inf")
    which = f"row {row} of the block" if index_R is None else f"row {int(index_R[row])}"
    raise LossError(
        f"{loss}: {name} holds {int(bad_R.sum())} rows (of a block of {len(max_R)}) that are no "
        f"distribution; {which} is {given}. Finite logits were expected: look at the model's "
        f"inputs and precision."
    )


def check_stored(loss: str, signal: str, logp_RK: Tensor) -> None:
    """Refuse stored log-probabilities that are NaN or add up to more than 1, or rows of none."""
    if logp_RK.shape[0] == 0:
        return
    sum_R = logp_RK.logsumexp(-1)
    if bool((sum_R == -torch.inf).any()):
        row = int((sum_R == -torch.inf).nonzero()[0, 0])
        raise LossError(
            f"{loss}: the teacher's {signal} signal holds nothing in row {row} of a block of "
            f"{len(sum_R)}, which a chunk reads; at least one log-probability was expected."
        )
    # Half precision rounds, so that a sure token may seem a little surer.
    bad_R = ~(sum_R < 0.01)
    if bool(bad_R.any()):
        row = int(bad_R.nonzero()[0, 0])
        raise LossError(
            f"{loss}: the teacher's {signal} signal holds {int(bad_R.sum())} rows (of a block of "
            f"{len(sum_R)}) that are no log-probabilities: row {row} of the block holds a "
            f"probability of {float(sum_R[row].exp()):.6g} in all, the largest log-probability "
            f"being {float(logp_RK[row].max()):.6g}. At most 1 was expected: log-probabilities "
            f"under the teacher's whole vocabulary, not logits."
        )
