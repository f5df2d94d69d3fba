"""TRL's `ULDLoss` (`pip install trl`, 1.16) on the same logits: the public peer of GOLD."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from pair import Case


class Strings:
    """The one method of a tokenizer that `ULDLoss` calls."""

    def __init__(self, vocab: Any) -> None:
        self.ids = vocab.tokenizer.get_vocab()

    def get_vocab(self) -> dict[str, int]:
        """Return the id of each token's string."""
        return self.ids


class TrlHybrid:
    """`ULDLoss` with `uld_use_hybrid_loss` and the merge rule `observed`.

    It is handed rows that predict their own token, from the first chunk on, so that its value is
    the mean over chunks of our `gold` with pooling `chain_rule`, up to what masked ids hold.
    """

    def __init__(self, case: Case) -> None:
        from trl.experimental.gold.gold_trainer import ULDLoss

        config = SimpleNamespace(
            uld_crossentropy_weight=0.0,
            uld_distillation_weight=1.0,
            uld_student_temperature=1.0,
            uld_teacher_temperature=1.0,
            uld_skip_student_eos=False,
            uld_skip_teacher_eos=False,
            use_extended_uld=True,
            uld_token_merge_strategy="observed",
            uld_use_hybrid_loss=True,
            uld_hybrid_matched_weight=None,
            uld_hybrid_unmatched_weight=None,
            beta=0.5,
        )
        vocabs = case.vocabularies()
        names = ("student_vocab", "teacher_vocab")
        self.loss = ULDLoss(config, *(Strings(vocabs[name]) for name in names))
        self.starts = [int(case.chunk_table[0, side]) for side in (0, 2)]
        self.ids, self.offsets = [], []
        for start, ids, ends in zip(
            self.starts,
            (case.student_ids, case.teacher_ids),
            (case.student_ends, case.teacher_ends),
            strict=True,
        ):
            self.ids.append(torch.from_numpy(ids[start + 1 :])[None])
            ends_T = torch.from_numpy(ends)
            self.offsets.append(torch.stack([ends_T[start:-1], ends_T[start + 1 :]], dim=1)[None])

    def __call__(self, student_NV: Tensor, teacher_MU: Tensor) -> Tensor:
        """Return the mean over groups."""
        return self.loss(
            student_NV[None, self.starts[0] : -1],
            teacher_MU[None, self.starts[1] : -1],
            *self.ids,
            *self.ids,
            student_byte_offsets=self.offsets[0],
            teacher_byte_offsets=self.offsets[1],
        )
