"""What a loss refuses, with the argument's name, what was given and what was expected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from xtoken.errors import LossError
from xtoken.losses.base import Chunks
from xtoken.losses.pooling import MASKED

CHUNK_FIELDS = ("student_start_C", "student_count_C", "teacher_start_C", "teacher_count_C")


def check_choice(loss: str, name: str, value: Any, allowed: Sequence[str]) -> None:
    """Refuse a value that is not one of the allowed names."""
    if value not in allowed:
        raise LossError(f"{loss}: {name} is {value!r}; expected one of {', '.join(allowed)}.")


def check_temperature(loss: str, temperature: float, name: str = "temperature") -> None:
    """Refuse a temperature that is not a positive finite number."""
    if not 0 < temperature < float("inf"):
        raise LossError(
            f"{loss}: {name} is {temperature}; expected a positive number "
            f"(1 leaves the logits as they are)."
        )


def check_top_k(loss: str, name: str, top_k: int, size: int, what: str) -> None:
    """Refuse a k below 1 or above the vocabulary it picks from."""
    if top_k < 1 or top_k > size:
        raise LossError(f"{loss}: {name} is {top_k}; expected 1 to {size} ({what}).")


def check_weight(loss: str, name: str, value: float) -> None:
    """Refuse a negative or infinite weight of a part of a loss."""
    if not 0 <= value < float("inf"):
        raise LossError(f"{loss}: {name} is {value}; expected a number of at least 0.")


def check_beta(loss: str, jsd_beta: float) -> None:
    """Refuse a JSD mixture weight outside [0, 1]."""
    if not 0 <= jsd_beta <= 1:
        raise LossError(
            f"{loss}: jsd_beta is {jsd_beta}; expected 0 (teacher to student) to 1 "
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


def check_chunks(loss: str, chunks: Chunks, student_rows: int, teacher_rows: int | None) -> None:
    """Refuse chunks whose tensors don't fit each other or reach outside the logits' rows.

    `teacher_rows` is None for a loss that has no teacher.
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


def check_rows(loss: str, name: str, logits_RV: Tensor, masked_X: Tensor) -> Tensor:
    """Make rows ready for a softmax, in place: masked ids and -inf become `MASKED`.

    Returns the largest of each row: [R]. Refuses rows that hold NaN or +inf, or nothing finite
    outside the masked ids.
    """
    if logits_RV.shape[0] == 0:
        return logits_RV.new_zeros(0)
    logits_RV.index_fill_(1, masked_X, MASKED)
    max_R = logits_RV.amax(-1)
    # Reductions pass NaN on, and NaN fails every comparison. One transfer for all of it.
    low, high, worst = torch.stack([logits_RV.amin(), max_R.amax(), max_R.amin()]).tolist()
    if low == -float("inf"):
        logits_RV.clamp_(min=MASKED)
    if worst > MASKED and high < float("inf"):
        return max_R
    bad_R = ~(torch.isfinite(max_R) & (max_R > MASKED))
    row = int(bad_R.nonzero()[0, 0])
    value = float(max_R[row])
    given = "NaN" if value != value else ("+inf" if value > 0 else "all -inf")
    raise LossError(
        f"{loss}: {name} holds {int(bad_R.sum())} rows (of a block of {len(max_R)}) that are no "
        f"distribution; row {row} of the block is {given}. Finite logits were expected: look at "
        f"the model's inputs and precision."
    )


def check_stored(loss: str, signal: str, logp_RK: Tensor) -> None:
    """Refuse stored log-probabilities that are NaN or above 0, or rows that hold none."""
    if logp_RK.shape[0] == 0:
        return
    max_R = logp_RK.amax(-1)
    # Half precision rounds, so that a sure token may seem a little surer.
    bad_R = ~((max_R > -torch.inf) & (max_R < 0.01))
    if bool(bad_R.any()):
        row = int(bad_R.nonzero()[0, 0])
        raise LossError(
            f"{loss}: the teacher's {signal} signal holds {int(bad_R.sum())} rows (of a block of "
            f"{len(max_R)}) that are no log-probabilities; the largest of row {row} of the block "
            f"is {float(max_R[row])}. Numbers of at most 0 were expected."
        )
