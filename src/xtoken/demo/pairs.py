"""The demo's two pairs: where student and teacher come from, and how much of everything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xtoken.demo import assets, student

Say = Callable[[str], None]


@dataclass(frozen=True)
class DemoPair:
    """Sizes of a demonstration, in passages of Wikipedia text and training steps.

    `warm_up_steps`: plain cross-entropy training of a fresh student before the comparison begins
    (0 for a pretrained one). `steps` x `batch_size` passages are what both the distilled student
    and the one trained by cross-entropy alone see.
    """

    name: str
    about: str
    warm_up_steps: int
    steps: int
    batch_size: int
    max_length: int
    held_out: int
    learning_rate: float
    loss: dict[str, Any]
    combine: dict[str, Any] = field(default_factory=dict)

    @property
    def passages(self) -> int:
        """Passages of the training text that both students see."""
        return self.steps * self.batch_size

    def teacher(self, folder: Path, say: Say) -> Path:
        """Return the teacher's directory, converted from GGUF on the first call."""
        if self.name == "gemma":
            source = assets.assemble_gemma(folder / "gemma-3-270m.gguf")
            return converted(source, folder / "Gemma-3-270M", say)
        return converted(assets.smollm2_gguf(self.name), folder / "SmolLM2-135M-Instruct", say)

    def student(self, folder: Path, texts: list[str], seed: int, say: Say) -> Path:
        """Return the directory of the student that training starts from."""
        if self.name == "gemma":
            source = assets.smollm2_gguf(self.name)
            return converted(source, folder / "SmolLM2-135M-Instruct", say)
        return student.save_student(folder / "student", texts, seed=seed)


PAIRS = {
    "smollm2": DemoPair(
        name="smollm2",
        about="SmolLM2-135M-Instruct teaches a small Llama whose tokenizer keeps numerals whole",
        warm_up_steps=900,
        steps=60,
        batch_size=4,
        max_length=256,
        held_out=40,
        learning_rate=1e-3,
        loss={"kind": "path_kl"},
    ),
    "gemma": DemoPair(
        name="gemma",
        about="Gemma-3-270M (SentencePiece) teaches SmolLM2-135M-Instruct (byte-level BPE)",
        warm_up_steps=0,
        steps=24,
        batch_size=4,
        max_length=192,
        held_out=24,
        learning_rate=3e-5,
        loss={"kind": "path_kl"},
    ),
}


def converted(gguf: Path, target: Path, say: Say) -> Path:
    """Convert a GGUF file once to a plain model directory, so that later loads take a second."""
    if (target / "config.json").exists():
        return target
    from xtoken.models import load_causal_lm
    from xtoken.vocab import load_tokenizer

    say(f"Converting {gguf.name} to safetensors (once)")
    partial = target.with_name(target.name + ".partial")
    model = load_causal_lm(str(gguf), dtype="float32")
    # Rounded once to bf16: half the disk, and no less exact than the 4-bit file it comes from.
    model.bfloat16().save_pretrained(partial)
    load_tokenizer(str(gguf)).save_pretrained(partial)
    partial.replace(target)
    return target
