"""A hand-made distillation problem: random students and teachers, random aligned chunks."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from xtoken.losses.base import Chunks, LossResult
from xtoken.training.combine import Combine
from xtoken.training.objective import Objective, TeacherTerm
from xtoken.training.trainer import XTokenTrainer

STUDENT_SIZE = 41
TEACHER_SIZE = 37


def tiny_llama(size: int, seed: int, dropout: float = 0.0) -> LlamaForCausalLM:
    """Return a random two-layer Llama with `size` vocabulary rows."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        attention_dropout=dropout,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    return LlamaForCausalLM(config)


def make_examples(count: int, *, seed: int = 0, teachers: int = 1) -> list[dict[str, Any]]:
    """Return examples of uneven lengths; each has its student tokens and, a teacher, chunks.

    Chunks are (student position, count, teacher position, count) of tokens; a few examples have
    none, and the first token of each example is not supervised.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    examples = []
    for number in range(count):
        length = draw(3, 14)
        student = torch.randint(3, STUDENT_SIZE, (length,), generator=generator)
        parts = []
        for _ in range(teachers):
            chunks, position, other = [], 1, 1
            while number % 5 != 4:
                size, width = draw(1, 3), draw(1, 3)
                if position + size > length:
                    break
                chunks.append((position, size, other, width))
                position, other = position + size, other + width
            ids = torch.randint(3, TEACHER_SIZE, (other + 1,), generator=generator)
            parts.append({"ids": ids, "chunks": chunks})
        examples.append({"ids": student, "teachers": parts})
    return examples


def _pad(rows: list[Tensor], value: int, side: str) -> tuple[Tensor, Tensor, Tensor]:
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), value)
    mask = torch.zeros((len(rows), width), dtype=torch.int64)
    offsets = []
    for index, row in enumerate(rows):
        start = width - len(row) if side == "left" else 0
        ids[index, start : start + len(row)] = row
        mask[index, start : start + len(row)] = 1
        offsets.append(start)
    return ids, mask, torch.tensor(offsets)


@dataclass
class Collator:
    """Pads examples into a batch of the data package's form."""

    side: str = "right"

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the batch."""
        ids, mask, offsets = _pad([example["ids"] for example in examples], 2, self.side)
        labels = torch.where(mask.bool(), ids, -100)
        labels[torch.arange(len(examples)), offsets] = -100
        parts = []
        for index in range(len(examples[0]["teachers"])):
            rows = [example["teachers"][index] for example in examples]
            other, other_mask, other_offsets = _pad([row["ids"] for row in rows], 2, self.side)
            chunks = [
                (
                    b * ids.shape[1] + int(offsets[b]) + position - 1,
                    size,
                    b * other.shape[1] + int(other_offsets[b]) + start - 1,
                    width,
                    0,
                )
                for b, row in enumerate(rows)
                for position, size, start, width in row["chunks"]
            ]
            parts.append(
                {
                    "input_ids": other,
                    "attention_mask": other_mask,
                    "chunks": torch.tensor(chunks, dtype=torch.int64).reshape(-1, 5),
                }
            )
        return {"input_ids": ids, "attention_mask": mask, "labels": labels, "teachers": parts}


def chunks_of(batch: dict[str, Any], index: int) -> Chunks:
    """Return the batch's chunks for one teacher."""
    part = batch["teachers"][index]
    table = part["chunks"]

    def targets(ids: Tensor) -> Tensor:
        shifted = torch.full_like(ids, -1)
        shifted[:, :-1] = ids[:, 1:]
        return shifted.reshape(-1)

    return Chunks(
        table[:, 0],
        table[:, 1],
        table[:, 2],
        table[:, 3],
        targets(batch["input_ids"]),
        targets(part["input_ids"]),
    )


class ToyTeacher:
    """A random frozen model behind the teacher's interface."""

    def __init__(self, seed: int) -> None:
        self.model = tiny_llama(TEACHER_SIZE, seed).eval()

    @torch.no_grad()
    def signal(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return logits."""
        positions = (attention_mask.cumsum(-1) - 1).clamp_min(0)
        return self.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=positions
        ).logits


@dataclass
class ToyLoss:
    """KL on the first columns of both, at each chunk's first row."""

    columns: int = 20
    factor: float = 1.0
    seen: list[int] = field(default_factory=list)

    def __call__(self, student_NV: Tensor, teacher_MU: Tensor, chunks: Chunks) -> LossResult:
        """Return the sum over chunks."""
        student = student_NV[chunks.student_start_C, : self.columns].float().log_softmax(-1)
        teacher = teacher_MU[chunks.teacher_start_C, : self.columns].float().log_softmax(-1)
        total = (teacher.exp() * (teacher - student)).sum() * self.factor
        self.seen.append(len(chunks))
        count = torch.tensor(float(len(chunks)))
        return LossResult(total, count, {"kept_mass": (count * 0.5, count)})


class ShiftedLoss(nn.Module):
    """The toy loss with a weight of its own: an offset of the student's logits."""

    learning_rate = 0.3

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(STUDENT_SIZE))

    def forward(self, student_NV: Tensor, teacher_MU: Tensor, chunks: Chunks) -> LossResult:
        """Return the sum over chunks."""
        return ToyLoss()(student_NV + self.shift, teacher_MU, chunks)


def make_objective(teachers: int = 1, weights: tuple[float, ...] = (1.0,)) -> Objective:
    """Return an objective with toy teachers and losses."""
    terms = [
        TeacherTerm(
            name=f"t{index}",
            teacher=ToyTeacher(seed=10 + index),
            loss=ToyLoss(factor=1.0 + index),
            weight=weights[index],
            byte_lengths=torch.ones(TEACHER_SIZE, dtype=torch.int64),
        )
        for index in range(teachers)
    ]
    return Objective(
        terms, byte_lengths=torch.ones(STUDENT_SIZE, dtype=torch.int64), chunks_of=chunks_of
    )


def make_trainer(
    folder: Path,
    *,
    examples: list[dict[str, Any]],
    combine: Combine | None = None,
    objective: Objective | None = None,
    model: nn.Module | None = None,
    dropout: float = 0.0,
    side: str = "right",
    **settings: Any,
) -> XTokenTrainer:
    """Return a trainer of a fresh tiny student (the same weights each time) on `examples`."""
    defaults = {
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "learning_rate": 0.05,
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "seed": 7,
        "dataloader_pin_memory": False,
        "train_sampling_strategy": "sequential",
        "lr_scheduler_type": "constant",
    }
    evaluation = settings.pop("eval_dataset", None)
    callbacks = settings.pop("callbacks", ())
    progress = settings.pop("progress", "none")
    return XTokenTrainer(
        model or tiny_llama(STUDENT_SIZE, seed=1, dropout=dropout),
        TrainingArguments(output_dir=str(folder), **{**defaults, **settings}),
        objective=objective or make_objective(),
        combine=combine,
        train_dataset=examples,
        eval_dataset=evaluation,
        data_collator=Collator(side),
        callbacks=callbacks,
        progress=progress,
    )


def weights_of(trainer: XTokenTrainer) -> dict[str, Tensor]:
    """Return the student's weights, copied."""
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}
