"""`train(config)`: everything between a run file and a finished student."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, set_seed

from xtoken.config import RunConfig
from xtoken.errors import TrainingError
from xtoken.training.arguments import Resume, starting_point, training_arguments
from xtoken.training.assembly import head_notes, make_trainer, taught_by
from xtoken.training.callbacks import read_metrics
from xtoken.training.checkpoints import find_checkpoint
from xtoken.training.datasets import RunData, read_data
from xtoken.training.excerpts import alignment_excerpts
from xtoken.training.export import export_student
from xtoken.training.model_card import model_card
from xtoken.training.pairs import (
    Pair,
    Pairs,
    Say,
    keep_learned,
    keep_projections,
    make_pairs,
)
from xtoken.training.records import environment, evaluation_table, write_json
from xtoken.training.saving import full_disk_is_an_error
from xtoken.training.student import require_peft, student_dtype
from xtoken.training.trainer import XTokenTrainer

# Losses that compare matching tokens and put the others into a rest of their own.
SPLITTING = ("h_kl", "gold", "strict", "bpm")


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    `before` and `after` are evaluation figures (`eval_loss`, `eval_bpb`, ...), empty without
    evaluation data; `last` is the last logged training figures.
    """

    output_dir: Path
    steps: int
    seconds: float
    resumed_from: Path | None = None
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    chunks_seen: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        plain = asdict(self)
        plain["output_dir"] = str(self.output_dir)
        plain["resumed_from"] = None if self.resumed_from is None else str(self.resumed_from)
        return plain


def train(
    config: RunConfig,
    *,
    resume: Resume = False,
    progress: str = "auto",
    say: Say | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> TrainResult:
    """Carry out a run and leave its student in `config.output_dir`.

    Args:
        config: the run, as `xtoken.config.load_run` reads it.
        resume: True goes on from the newest complete checkpoint, a path from that one, "auto"
            from one if there is one; False starts afresh, in a folder without checkpoints.
        progress: "auto", "bar", "lines" or "none".
        say: told what the user should know (default: lines on stderr; silent for "none").
        callbacks: further `transformers` callbacks.

    Raises:
        UsageError, ConfigError, ModelNotFoundError: what the run file asks can't be done.
        DataError: unreadable or empty data.
        TrainingError: no supervised chunk, a loss that isn't finite, a full disk, no memory.
        TrainingInterrupted: Ctrl-C; a checkpoint was saved.
    """
    folder = Path(config.output_dir)
    with full_disk_is_an_error(str(folder)):
        return _train(config, folder, resume, progress, say, callbacks)


def _train(
    config: RunConfig,
    folder: Path,
    resume: Resume,
    progress: str,
    say: Say | None,
    callbacks: Sequence[TrainerCallback],
) -> TrainResult:
    checkpoint = starting_point(config, resume)
    if config.student.lora is not None:
        require_peft()
    args = training_arguments(config)
    main = args.process_index == 0
    say = _silent if not main else say or (_silent if progress == "none" else _to_stderr)
    pairs = make_pairs(config, folder, say=say)
    data = read_data(config, pairs, progress=progress if main else "none", say=say)
    if main:
        # Only now: a run file whose data can't be read leaves nothing behind.
        keep_projections(pairs)
    # Adapters are drawn at random before the Trainer sets its seed.
    set_seed(config.seed)
    say(f"Loading {_listed([config.student.model, *(t.model for t in taught_by(config))])}.")
    trainer = make_trainer(config, pairs, data, args, progress=progress, callbacks=callbacks)
    for note in head_notes(trainer):
        say(note)
    if main:
        _write_setup(config, pairs, data, trainer, folder)
        if checkpoint is None:
            _write_audit(pairs, data, folder, say)
    started = time.time()
    if checkpoint is not None:
        for reason in find_checkpoint(folder).skipped:
            say(f"Passed over a checkpoint that can't be used: {reason}.")
        say(f"Resuming from {checkpoint}.")
    _run(trainer, checkpoint)
    return _finish(trainer, config, pairs, folder, checkpoint, started, say)


def _listed(names: Sequence[str]) -> str:
    distinct = list(dict.fromkeys(names))
    return " and ".join([", ".join(distinct[:-1]), distinct[-1]] if distinct[1:] else distinct)


def _silent(text: str) -> None:
    pass


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _write_setup(
    config: RunConfig, pairs: Pairs, data: RunData, trainer: XTokenTrainer, folder: Path
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config.dump_yaml(folder / "run.yaml")
    write_json(
        folder / "environment.json",
        {
            **environment(trainer.args.device, trainer.accelerator.num_processes),
            "student_dtype": student_dtype(config.student),
        },
    )
    write_json(folder / "alignment.json", data.statistics)
    # transformers leaves files with an underscore out of what it pushes to a hub.
    write_json(
        folder / "_excerpts.json",
        [
            {"examples": alignment_excerpts(pairs.student, pair.vocab, data.sample)}
            for pair in pairs.teachers
        ],
    )


def _write_audit(pairs: Pairs, data: RunData, folder: Path, say: Say) -> None:
    from xtoken.audit import audit

    reports = [
        audit(pairs.student, pair.vocab, data.sample, projection=pair.projection)
        for pair in pairs.teachers
    ]
    write_json(folder / "audit.json", [report.to_dict() for report in reports])
    for pair, report in zip(pairs.teachers, reports, strict=True):
        _compare_with_verdict(pair, report, say)


def _compare_with_verdict(pair: Pair, report: Any, say: Say) -> None:
    """Say so if a loss splits the vocabulary where the audit finds that unsound."""
    if report.verdict.x_token == "p_kl" and pair.loss.kind in SPLITTING:
        say(f"The audit advises against {pair.loss.kind} for {pair.name}: {report.verdict.reason}")


def _run(trainer: XTokenTrainer, checkpoint: Path | None) -> None:
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"out of memory at step {trainer.state.global_step + 1} ({str(error).splitlines()[0]}) "
            "Lower training.per_device_train_batch_size (and raise gradient_accumulation_steps: "
            "the update stays the same), lower data.max_length, or set "
            "training.activation_checkpointing: true"
        ) from error


def _finish(
    trainer: XTokenTrainer,
    config: RunConfig,
    pairs: Pairs,
    folder: Path,
    checkpoint: Path | None,
    started: float,
    say: Say,
) -> TrainResult:
    after = _last_evaluation(trainer)
    export_student(trainer, config.student, folder)
    if trainer.accelerator.is_main_process:
        for file in keep_learned(pairs, folder):
            say(f"Wrote the learned projection to {file}.")
    lines = read_metrics(folder)
    result = TrainResult(
        output_dir=folder,
        steps=trainer.state.global_step,
        seconds=time.time() - started,
        resumed_from=checkpoint,
        before=_first_evaluation(lines),
        after=after,
        last=next((line for line in reversed(lines) if line.get("kind") == "train"), {}),
        chunks_seen=sum(trainer.chunks_seen),
    )
    if trainer.accelerator.is_main_process:
        trainer.card = model_card(
            config,
            losses=[pair.loss.kind for pair in pairs.teachers for _ in pair.members],
            before=result.before,
            after=result.after,
            summary=result.to_dict(),
        )
        trainer.create_model_card()
        evaluation_table(folder, result.before, result.after)
        write_json(folder / "summary.json", {**result.to_dict(), "status": "finished"})
    if trainer.args.push_to_hub:
        trainer.push_to_hub()
    say(f"The student is in {folder} after {result.steps} steps.")
    return result


def _last_evaluation(trainer: XTokenTrainer) -> dict[str, float]:
    """Return evaluation figures of the final weights, measured now if they were not already."""
    if trainer.eval_dataset is None:
        return {}
    step = trainer.state.global_step
    for line in reversed(trainer.state.log_history):
        if "eval_loss" in line and line["step"] == step and not _best_is_another(trainer, step):
            return _figures(line)
    return _figures(trainer.evaluate())


def _best_is_another(trainer: XTokenTrainer, step: int) -> bool:
    return trainer.args.load_best_model_at_end and trainer.state.best_global_step != step


def _first_evaluation(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the evaluation before the first step; metrics.jsonl keeps it over a resume."""
    for line in lines:
        if line.get("kind") == "eval" and line.get("step") == 0:
            return _figures(line)
    return {}


def _figures(line: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in line.items()
        if name.startswith("eval_")
        and isinstance(value, int | float)
        and not name.endswith(("_runtime", "_per_second", "_preparation_time"))
    }
