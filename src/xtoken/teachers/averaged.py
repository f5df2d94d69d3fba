"""Several teachers with one vocabulary as a single one: the weighted mean of their logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from xtoken.errors import UsageError
from xtoken.losses.base import SignalKind
from xtoken.losses.sources import Source, read_rows
from xtoken.teachers.local import LocalTeacher


class AveragedTeachers:
    """logits = sum_m w_m * logits_m / sum_m w_m, for teachers that share a tokenizer.

    A mean of logits is a weighted geometric mean of the distributions, renormalised.

    Args:
        teachers: the members; the first one's vocabulary stands for all.
        weights: w_m, finite and not negative; None: all equal.
        name: what logs call them; None joins the members' names with " + ".

    Raises:
        UsageError: no teachers, weights that don't fit or sum to zero, different tokenizers.
    """

    kind: SignalKind = "dense"

    def __init__(
        self,
        teachers: Sequence[LocalTeacher],
        weights: Sequence[float] | None = None,
        *,
        name: str | None = None,
    ) -> None:
        members = list(teachers)
        if not members:
            raise UsageError("AveragedTeachers got no teachers; expected at least one.")
        given = [1.0] * len(members) if weights is None else [float(w) for w in weights]
        if len(given) != len(members) or not all(0.0 <= w < float("inf") for w in given):
            raise UsageError(
                f"AveragedTeachers got weights {given} for {len(members)} teachers; expected one "
                "finite number >= 0 for each."
            )
        if sum(given) == 0.0:
            raise UsageError(
                "AveragedTeachers got weights that sum to zero, so there is no mean; give one "
                "teacher a weight above 0."
            )
        vocab = members[0].vocab
        for other in members[1:]:
            if not vocab.same_as(other.vocab):
                raise UsageError(
                    f"the logits of teachers {members[0].name} and {other.name} can't be averaged: "
                    "their tokenizers differ. Use the sum of their losses instead."
                )
        # A member without weight isn't asked.
        self.members = [m for m, w in zip(members, given, strict=True) if w]
        self.shares = [w / sum(given) for w in given if w]
        self.vocab = vocab
        self.name = name or " + ".join(member.name for member in members)

    def signal(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return mean logits, float32[B, T, U]; see `LocalTeacher.signal`."""
        size = len(self.vocab)
        mean_BTU: Tensor | None = None
        for member, share in zip(self.members, self.shares, strict=True):
            part_BTU = member.signal(input_ids, attention_mask)[..., :size].float() * share
            mean_BTU = part_BTU if mean_BTU is None else mean_BTU + part_BTU
        assert mean_BTU is not None
        return mean_BTU

    def rows(self, input_ids: Tensor, attention_mask: Tensor) -> Source:
        """Return the rows of `signal`; each member's are formed in blocks where that can be."""
        sources = [member.rows(input_ids, attention_mask) for member in self.members]
        return MeanSource(sources, self.shares, len(self.vocab))


class MeanSource:
    """Rows of several sources, averaged as they are read; no gradient.

    Args:
        sources: dense rows of the same positions.
        shares: factors that add up to one.
        size: columns that all of them have.
    """

    signal: SignalKind = "dense"
    whole = False

    def __init__(self, sources: Sequence[Source], shares: Sequence[float], size: int) -> None:
        self.sources, self.shares, self.size = list(sources), list(shares), size
        self.inputs = [source.inputs[0] for source in self.sources]

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns."""
        return self.sources[0].shape[0], self.size

    def buffers(self, wanted: Sequence[bool]) -> list[Tensor | None]:
        """Nothing here wants a gradient."""
        return [None] * len(self.inputs)

    def open(self, index_R: Tensor, size: int, *, keep: bool) -> Tensor:
        """Return the mean of the sources' rows: float32 or wider."""
        mean_RU: Tensor | None = None
        for source, share in zip(self.sources, self.shares, strict=True):
            rows_RU = read_rows(source, index_R, size)
            part_RU = rows_RU.to(torch.promote_types(rows_RU.dtype, torch.float32)) * share
            mean_RU = part_RU if mean_RU is None else mean_RU + part_RU
        assert mean_RU is not None
        return mean_RU

    def close(self, *_: Any) -> None:
        """Take no gradient."""

    def finish(self) -> None:
        """Do nothing."""
