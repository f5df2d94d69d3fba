"""Rows as batches of tensors, and the chunks of a batch as a loss takes them.

Logit row r = b * S + s holds the distribution of the token at position s + 1 of sequence b, so a
chunk whose first token stands at position p begins at row b * S + p - 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from xtoken.align import ChunkKind
from xtoken.data.rows import (
    STUDENT_COUNT,
    STUDENT_START,
    TEACHER_COUNT,
    TEACHER_START,
    Row,
    TeacherRow,
    kinds_of,
)
from xtoken.errors import DataError
from xtoken.losses.base import Chunks

if TYPE_CHECKING:
    from xtoken.vocab import Vocabulary

IGNORED = -100
PaddingSide = Literal["right", "left"]


class PairCollator:
    """Pads rows to a batch.

    A batch has `input_ids`, `attention_mask`, `labels` int64[B, S] (labels -100 where a token is
    no target, the first of a sequence and padding included); `teachers`, one dict each with
    `input_ids`, `attention_mask` int64[B, T] and `chunks` int64[C, 5]: student row, student
    count, teacher row, teacher count, kind of every supervised chunk, ordered by sequence and
    position, rows being logit rows; and `stats`, float64 scalars for logging only:
    `student_bytes`, `student_tokens`, and under `teachers` a dict each with `text_bytes`,
    `aligned_bytes` and the number of supervised chunks of each kind (`one_to_one`, ...).

    Args:
        student_pad_id: fills the student's sequences up; masked, so any id will do.
        teacher_pad_ids: the same for each teacher.
        padding_side: where the filling goes.
        multiple_of: lengths are rounded up to a multiple of this.
    """

    def __init__(
        self,
        student_pad_id: int = 0,
        teacher_pad_ids: Sequence[int] = (),
        *,
        padding_side: PaddingSide = "right",
        multiple_of: int = 1,
    ) -> None:
        self.student_pad_id = student_pad_id
        self.teacher_pad_ids = tuple(teacher_pad_ids)
        self.padding_side = padding_side
        self.multiple_of = multiple_of

    @classmethod
    def of(
        cls, student: Vocabulary, teachers: Sequence[Vocabulary], **settings: Any
    ) -> PairCollator:
        """Return a collator with each vocabulary's own pad id (else its eos, else 0)."""
        return cls(_pad_id(student), [_pad_id(teacher) for teacher in teachers], **settings)

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Return the batch of these rows."""
        if not rows:
            raise DataError("A batch of no rows was asked for; expected at least one")
        length, offsets = self._lay_out([len(row.ids) for row in rows])
        input_ids, mask = self._pad([row.ids for row in rows], length, offsets, self.student_pad_id)
        labels = np.full_like(input_ids, IGNORED)
        for index, (row, offset) in enumerate(zip(rows, offsets, strict=True)):
            own = labels[index, offset : offset + len(row.ids)]
            own[row.supervised] = row.ids[row.supervised]
        teachers, teacher_stats = [], []
        for teacher in range(len(rows[0].teachers)):
            sides = [row.teachers[teacher] for row in rows]
            pad_id = self.teacher_pad_ids[teacher] if teacher < len(self.teacher_pad_ids) else 0
            batch, stats = self._teacher(sides, length, offsets, pad_id)
            teachers.append(batch)
            teacher_stats.append(stats)
        return {
            "input_ids": torch.from_numpy(input_ids),
            "attention_mask": torch.from_numpy(mask),
            "labels": torch.from_numpy(labels),
            "teachers": teachers,
            "stats": {
                "student_bytes": _scalar(sum(row.text_bytes for row in rows)),
                "student_tokens": _scalar(sum(len(row.ids) for row in rows)),
                "teachers": teacher_stats,
            },
        }

    def _teacher(
        self, sides: Sequence[TeacherRow], length: int, offsets: Sequence[int], pad_id: int
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        teacher_length, teacher_offsets = self._lay_out([len(side.ids) for side in sides])
        ids, mask = self._pad([side.ids for side in sides], teacher_length, teacher_offsets, pad_id)
        sizes = [len(side.chunks) for side in sides]
        table = np.concatenate([side.chunks for side in sides]).astype(np.int64)
        kinds = kinds_of(table)
        # Position p of sequence b, behind `offset` of padding, is predicted by this row.
        student_origin = np.arange(len(sides)) * length + np.array(offsets) - 1
        teacher_origin = np.arange(len(sides)) * teacher_length + np.array(teacher_offsets) - 1
        chunks = np.stack(
            [
                table[:, STUDENT_START] + np.repeat(student_origin, sizes),
                table[:, STUDENT_COUNT],
                table[:, TEACHER_START] + np.repeat(teacher_origin, sizes),
                table[:, TEACHER_COUNT],
                kinds,
            ],
            axis=1,
        )
        counts = np.bincount(kinds, minlength=len(ChunkKind))
        stats = {kind.name.lower(): _scalar(counts[kind]) for kind in ChunkKind}
        stats["text_bytes"] = _scalar(sum(side.text_bytes for side in sides))
        stats["aligned_bytes"] = _scalar(sum(side.aligned_bytes for side in sides))
        batch = {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask),
            "chunks": torch.from_numpy(chunks),
        }
        return batch, stats

    def _lay_out(self, sizes: Sequence[int]) -> tuple[int, list[int]]:
        """Return the padded length and where each sequence begins in it."""
        length = -(-max(sizes) // self.multiple_of) * self.multiple_of
        if self.padding_side == "right":
            return length, [0] * len(sizes)
        return length, [length - size for size in sizes]

    def _pad(
        self, sequences: Sequence[np.ndarray], length: int, offsets: Sequence[int], pad_id: int
    ) -> tuple[np.ndarray, np.ndarray]:
        ids = np.full((len(sequences), length), pad_id, np.int64)
        mask = np.zeros_like(ids)
        for index, (sequence, offset) in enumerate(zip(sequences, offsets, strict=True)):
            ids[index, offset : offset + len(sequence)] = sequence
            mask[index, offset : offset + len(sequence)] = 1
        return ids, mask


def _pad_id(vocab: Vocabulary) -> int:
    for role in ("pad", "eos"):
        index = vocab.role_id(role)
        if index is not None:
            return index
    return 0


def _scalar(value: float) -> Tensor:
    return torch.tensor(float(value), dtype=torch.float64)


def chunks_from_batch(batch: Mapping[str, Any], teacher: int) -> Chunks:
    """Return the supervised chunks of a batch for one teacher, on the batch's device.

    The target of row b * S + s is the token at s + 1 of sequence b, -1 where there is none.
    """
    part = batch["teachers"][teacher]
    table = part["chunks"]
    return Chunks(
        table[:, 0],
        table[:, 1],
        table[:, 2],
        table[:, 3],
        _targets(batch["input_ids"], batch["attention_mask"]),
        _targets(part["input_ids"], part["attention_mask"]),
    )


def _targets(input_ids_BS: Tensor, attention_mask_BS: Tensor) -> Tensor:
    targets_BS = torch.full_like(input_ids_BS, -1)
    both_BS = attention_mask_BS[:, 1:].bool() & attention_mask_BS[:, :-1].bool()
    targets_BS[:, :-1] = torch.where(both_BS, input_ids_BS[:, 1:], -1)
    return targets_BS.reshape(-1)
