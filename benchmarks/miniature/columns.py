"""The columns of the grid: who cuts numerals how; and the models that a column needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.miniature.models import pretrained
from benchmarks.miniature.sizes import Size
from benchmarks.miniature.tokenizers import vocabulary
from transformers import LlamaForCausalLM

from xtoken import Projection, Vocabulary
from xtoken.demo.assets import passages

# (teacher's tokenizer, student's tokenizer)
COLUMNS = {
    "teacher_splits": ("split", "keep"),
    "student_splits": ("keep", "split"),
    "both_keep": ("keep", "keep2"),
}
TOKENIZER_TEXTS = 1500
HELD_OUT_TEXTS = 400


@dataclass(frozen=True)
class Prose:
    """Distinct Wikipedia passages: for training, for choosing learning rates, held out."""

    train: list[str]
    validation: list[str]
    held_out: list[str]


def read_prose() -> Prose:
    """Return BoolQ's passages (CC BY-SA 3.0) in a fixed order."""
    texts = passages("smollm2")
    cut = len(texts) - HELD_OUT_TEXTS
    return Prose(texts[: cut - HELD_OUT_TEXTS], texts[cut - HELD_OUT_TEXTS : cut], texts[cut:])


@dataclass(frozen=True)
class Column:
    """A pair of tokenizers, the teacher, and the start that every student is a copy of."""

    name: str
    student: Vocabulary
    teacher: Vocabulary
    teacher_model: LlamaForCausalLM
    start: LlamaForCausalLM

    def projection(self, gamma: float = 0.1) -> Projection:
        """Return W from the student's tokens to the teacher's."""
        return Projection.build(self.student, self.teacher, gamma=gamma)


def build_column(name: str, size: Size, cache: Path, prose: Prose) -> Column:
    """Return a column; tokenizers and models are made on the first call, then read from disk."""
    folder = cache / size.name
    folder.mkdir(parents=True, exist_ok=True)
    teacher_kind, student_kind = COLUMNS[name]
    vocabs = {
        kind: vocabulary(kind, folder, prose.train[:TOKENIZER_TEXTS], size.vocab_size)
        for kind in (teacher_kind, student_kind)
    }
    teacher = pretrained(
        folder / f"teacher-{teacher_kind}",
        size.teacher,
        vocabs[teacher_kind],
        size.lesson_of(teacher_kind),
        prose.train,
        seed=1000,
        anneal=True,
        device=size.device,
    )
    start = pretrained(
        folder / f"start-{student_kind}",
        size.student,
        vocabs[student_kind],
        size.start_lesson,
        prose.train,
        seed=2000,
        anneal=False,
        device=size.device,
    )
    return Column(name, vocabs[student_kind], vocabs[teacher_kind], teacher, start)
