"""How large everything is: the smallest setting for a test, the quick form, the full one, a GPU."""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmarks.miniature.problems import Mixture


@dataclass(frozen=True)
class Shape:
    """A small Llama: width, layers, heads, and the width of its MLP."""

    hidden: int
    layers: int
    heads: int
    inner: int


@dataclass(frozen=True)
class Lesson:
    """How a model is made: what a step's batch is of, how many steps, at which learning rate."""

    mixture: Mixture
    steps: int
    rate: float = 2e-3


@dataclass(frozen=True)
class Size:
    """Sizes of a run: models, steps, learning rates, and what a step's batch is made of.

    `keep_lesson` is that of a teacher that keeps numerals whole, where it isn't `teacher_lesson`:
    every sum is a token of its own there, and takes longer to learn than digits do.
    """

    name: str
    vocab_size: int
    teacher: Shape
    student: Shape
    teacher_lesson: Lesson
    start_lesson: Lesson
    cell_steps: int
    sweep_steps: int
    learning_rates: tuple[float, ...]
    keep_lesson: Lesson | None = None
    mixture: Mixture = field(default_factory=Mixture)
    held_out_problems: int = 600
    prose_texts: int = 60
    record_every: int = 20
    device: str = "cpu"

    def lesson_of(self, kind: str) -> Lesson:
        """Return the lesson of the teacher with a kind of tokenizer."""
        return (kind == "keep" and self.keep_lesson) or self.teacher_lesson


FEW_SUMS = Mixture(sums=8, words=2, prose=12)
# The teacher reads more word problems and prose than the students do: it has to know all three.
EVENLY = Mixture(sums=8, words=8, prose=8)
MORE_SUMS = Mixture(sums=16, words=8, prose=8)
CELLS = Mixture(sums=12, words=6, prose=6)
FULL = Size(
    name="full",
    vocab_size=2048,
    teacher=Shape(128, 4, 4, 344),
    student=Shape(96, 3, 4, 256),
    teacher_lesson=Lesson(EVENLY, 3000),
    keep_lesson=Lesson(MORE_SUMS, 6000),
    start_lesson=Lesson(FEW_SUMS, 900),
    cell_steps=200,
    sweep_steps=60,
    learning_rates=(1.5e-3, 3e-3),
    mixture=CELLS,
)
# Less of everything, and models of its own: a newcomer's first run has to make them too.
QUICK = Size(
    name="quick",
    vocab_size=2048,
    teacher=FULL.teacher,
    student=FULL.student,
    teacher_lesson=Lesson(Mixture(), 1200),
    start_lesson=Lesson(FEW_SUMS, 600),
    cell_steps=120,
    sweep_steps=0,
    learning_rates=(3e-3,),
    held_out_problems=300,
    prose_texts=30,
)
SMALLEST = Size(
    name="smallest",
    vocab_size=2048,
    teacher=Shape(32, 1, 2, 64),
    student=Shape(32, 1, 2, 64),
    teacher_lesson=Lesson(Mixture(2, 1, 2), 4),
    start_lesson=Lesson(Mixture(1, 1, 2), 2),
    cell_steps=3,
    sweep_steps=0,
    learning_rates=(2e-3,),
    mixture=Mixture(2, 1, 2),
    held_out_problems=20,
    prose_texts=4,
    record_every=1,
)
# Ten times the parameters and the steps; for one GPU.
LARGE = Size(
    name="large",
    vocab_size=4096,
    teacher=Shape(384, 6, 6, 1024),
    student=Shape(256, 6, 4, 688),
    teacher_lesson=Lesson(EVENLY, 8000, 1e-3),
    keep_lesson=Lesson(MORE_SUMS, 16000, 1e-3),
    start_lesson=Lesson(FEW_SUMS, 4000, 1e-3),
    cell_steps=2000,
    sweep_steps=600,
    learning_rates=(3e-4, 1e-3, 3e-3),
    mixture=CELLS,
    held_out_problems=900,
    prose_texts=200,
    record_every=100,
    device="cuda",
)
SIZES = {size.name: size for size in (SMALLEST, QUICK, FULL, LARGE)}
