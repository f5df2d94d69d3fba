"""One cell: a row (a loss and its scaling) and a seed, trained by the library's own trainer."""

from __future__ import annotations

import hashlib
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from benchmarks.measuring import peak_mib, reset_peak
from benchmarks.miniature.cells import ROWS as MINIATURE
from benchmarks.miniature.cells import Row
from benchmarks.real_pair.cases import Ready, training_texts
from benchmarks.real_pair.teacher import keep_states
from transformers import TrainerCallback, set_seed

from xtoken.config import RunConfig
from xtoken.demo.assets import write_text
from xtoken.demo.run import run_config
from xtoken.training.arguments import training_arguments
from xtoken.training.assembly import make_trainer
from xtoken.training.datasets import read_data
from xtoken.training.pairs import make_pairs
from xtoken.training.trainer import XTokenTrainer

# In the order in which they are run.
NAMES = [
    "continued",
    "p_kl_fixed_scale",
    "path_kl_fixed_scale",
    "h_kl_fixed_scale",
    "p_kl",
    "path_kl",
    "h_kl",
    "gold_fixed_scale",
    "alm_fixed_scale",
    "strict_fixed_scale",
    "csd_fixed_scale",
    "bpm_fixed_scale",
    "gold",
    "alm",
    "strict",
    "csd",
    "bpm",
    "uld",
]
ROWS: dict[str, Row] = {name: MINIATURE[name] for name in NAMES}
# Figures of the objective that a cell keeps, and at how many steps of a training.
FIGURES = ("ce", "kd", "scale", "agreement", "kept_mass", "grad_norm")
POINTS = 8


@dataclass(frozen=True)
class Place:
    """Where a cell runs: device, the folder for the teacher's states, the teacher's precision."""

    device: str
    states: Path
    dtype: str = "float32"


class Read:
    """A collator that counts the student's tokens and remembers what was read, in order.

    A loader may be a batch ahead of the training, so each batch has an entry of its own.
    """

    def __init__(self, collator: Any) -> None:
        self.collator = collator
        self.batches: list[tuple[int, bytes]] = []

    def __call__(self, examples: Any) -> dict[str, Any]:
        """Return the batch as it is."""
        batch: dict[str, Any] = self.collator(examples)
        ids = batch["input_ids"].numpy().tobytes()
        self.batches.append((int(batch["attention_mask"].sum()), ids))
        return batch

    def tokens(self, steps: int) -> int:
        """Return how many tokens the first steps read."""
        return sum(count for count, _ in self.batches[:steps])

    def digest(self, steps: int) -> str:
        """Return a name for what the first steps read: equal for rows that read the same."""
        return hashlib.sha256(b"".join(ids for _, ids in self.batches[:steps])).hexdigest()[:16]


class Seconds(TrainerCallback):
    """Seconds of the steps after the first, which makes everything ready: wall, and of all threads.

    What else the machine does adds to the first, hardly to the second.

    Where figures are logged, they are measured too: those steps count only if all are logged.
    """

    def __init__(self, logged: int) -> None:
        self.logged = logged
        self.plain: list[tuple[float, float]] = []
        self.began = (0.0, 0.0)

    @staticmethod
    def now() -> tuple[float, float]:
        """Return both clocks."""
        return time.monotonic(), time.process_time()

    def median(self, clock: int) -> float | None:
        """Return a step's median seconds by one of the clocks, None where no step counted."""
        if not self.plain:
            return None
        return round(statistics.median(both[clock] for both in self.plain), 3)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the time."""
        self.began = self.now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep a step's seconds."""
        step = state.global_step
        if step > 1 and (self.logged == 1 or step % self.logged):
            wall, cpu = self.now()
            self.plain.append((wall - self.began[0], cpu - self.began[1]))


def config_of(ready: Ready, row: Row, seed: int, folder: Path, place: Place) -> RunConfig:
    """Return a row's run file: the demonstration's, with another loss and packed rows."""
    case = replace(
        ready.case,
        loss={"kind": row.kind, **row.settings} if row.kind else {"kind": "p_kl"},
        combine={"scaling": row.scaling, "ce": row.ce} if row.kind else {"kd": 0.0},
    )
    train = write_text(folder / "train.jsonl", training_texts(ready, seed))
    data = run_config(case, folder / "run", ready.start, ready.teacher, train, seed).to_dict()
    data["data"] |= {"packing": True}
    data["teachers"][0] |= {"dtype": place.dtype}
    data["training"] |= {
        "use_cpu": place.device == "cpu",
        "logging_steps": _logged(case.steps),
        "logging_first_step": True,
        "dataloader_num_workers": 0,
    }
    return RunConfig.parse(data)


def _logged(steps: int) -> int:
    return max(steps // POINTS, 1)


def train_row(
    ready: Ready, name: str, seed: int, place: Place
) -> tuple[XTokenTrainer, dict[str, Any]]:
    """Train a row as `xtoken.training.train` does, but keep the teacher's states for other rows.

    Returns the trainer with the trained student, and what is known of the training.
    """
    folder = Path(tempfile.mkdtemp(prefix="real-pair-"))
    try:
        return _train(ready, ROWS[name], seed, place, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _train(
    ready: Ready, row: Row, seed: int, place: Place, folder: Path
) -> tuple[XTokenTrainer, dict[str, Any]]:
    config = config_of(ready, row, seed, folder, place)
    began = time.monotonic()
    args = training_arguments(config)
    pairs = make_pairs(config, None, say=lambda text: None)
    data = read_data(config, pairs, progress="none", say=lambda text: None)
    read = Read(data.collator)
    data = replace(data, collator=read)  # type: ignore[arg-type]
    set_seed(config.seed)
    seconds = Seconds(_logged(ready.case.steps))
    trainer = make_trainer(config, pairs, data, args, progress="none", callbacks=[seconds])
    kept = []
    for term in trainer.objective.teachers:
        _ = term.teacher.head  # tries itself out, on a pass that is not worth keeping
        kept.append(keep_states(term.teacher.model, place.states))
    reset_peak(place.device)
    started = time.monotonic()
    trainer.train()
    ended = time.monotonic()
    for term, states in zip(trainer.objective.teachers, kept, strict=True):
        term.teacher.model.base_model.forward = states.own
    steps = trainer.state.global_step
    return trainer, {
        "steps": steps,
        "tokens": read.tokens(steps),
        "read": read.digest(steps),
        "teacher": "not asked" if not kept else "hidden states shared by all rows, full logits",
        "teacher_batches_computed": sum(states.computed for states in kept),
        "history": [
            {"step": line["step"], **{key: line[key] for key in FIGURES if key in line}}
            for line in trainer.state.log_history
            if "loss" in line
        ],
        "seconds": {
            "preparing": round(started - began, 1),
            "training": round(ended - started, 1),
            "a_step": seconds.median(0),
            "a_step_cpu": seconds.median(1),
        },
        "peak_memory_mib": round(peak_mib(place.device)),
    }


def student_of(trainer: XTokenTrainer) -> Any:
    """Return the trained student; the trainer's optimizer and teachers go."""
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    trainer.optimizer = trainer.lr_scheduler = None
    trainer.objective.teachers = []
    return model.requires_grad_(False).eval()


def device_name(asked: str) -> str:
    """Return the device that `auto` stands for."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if asked == "auto" else asked
