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
class Size:
    """Sizes of a run: models, steps, learning rates, and what a step's batch is made of."""

    name: str
    vocab_size: int
    teacher: Shape
    student: Shape
    teacher_steps: int
    start_steps: int
    cell_steps: int
    sweep_steps: int
    learning_rates: tuple[float, ...]
    mixture: Mixture = field(default_factory=Mixture)
    teacher_mixture: Mixture = field(default_factory=Mixture)
    start_mixture: Mixture = field(default_factory=Mixture)
    teacher_rate: float = 2e-3
    start_rate: float = 2e-3
    held_out_problems: int = 600
    prose_texts: int = 60
    record_every: int = 20
    device: str = "cpu"


FEW_SUMS = Mixture(sums=8, words=2, prose=12)
# The teacher reads more word problems and prose than the students do: it has to know all three.
EVENLY = Mixture(sums=8, words=8, prose=8)
CELLS = Mixture(sums=12, words=6, prose=6)
FULL = Size(
    name="full",
    vocab_size=2048,
    teacher=Shape(128, 4, 4, 344),
    student=Shape(96, 3, 4, 256),
    teacher_steps=3000,
    start_steps=900,
    cell_steps=200,
    sweep_steps=60,
    learning_rates=(1.5e-3, 3e-3),
    mixture=CELLS,
    teacher_mixture=EVENLY,
    start_mixture=FEW_SUMS,
)
# Less of everything, and models of its own: a newcomer's first run has to make them too.
QUICK = Size(
    name="quick",
    vocab_size=2048,
    teacher=FULL.teacher,
    student=FULL.student,
    teacher_steps=1200,
    start_steps=600,
    cell_steps=120,
    sweep_steps=0,
    learning_rates=(3e-3,),
    start_mixture=FEW_SUMS,
    held_out_problems=300,
    prose_texts=30,
)
SMALLEST = Size(
    name="smallest",
    vocab_size=2048,
    teacher=Shape(32, 1, 2, 64),
    student=Shape(32, 1, 2, 64),
    teacher_steps=4,
    start_steps=2,
    cell_steps=3,
    sweep_steps=0,
    learning_rates=(2e-3,),
    mixture=Mixture(2, 1, 2),
    teacher_mixture=Mixture(2, 1, 2),
    start_mixture=Mixture(1, 1, 2),
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
    teacher_steps=8000,
    start_steps=4000,
    cell_steps=2000,
    sweep_steps=600,
    learning_rates=(3e-4, 1e-3, 3e-3),
    mixture=CELLS,
    teacher_mixture=EVENLY,
    start_mixture=FEW_SUMS,
    teacher_rate=1e-3,
    start_rate=1e-3,
    held_out_problems=900,
    prose_texts=200,
    record_every=100,
    device="cuda",
)
SIZES = {size.name: size for size in (SMALLEST, QUICK, FULL, LARGE)}
