"""What watches a run: metrics.jsonl, the progress report, and an orderly stop."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from xtoken.errors import ConfigError, XTokenError

if TYPE_CHECKING:
    from xtoken.training.trainer import XTokenTrainer

METRICS_FILE = "metrics.jsonl"
# Columns of a terminal below which a bar has no room beside the figures, and those from which
# its title has.
NARROW, ROOMY = 72, 100


class TrainingInterrupted(XTokenError):  # noqa: N818 - an end, not a mistake
    """Training was stopped by Ctrl-C or SIGTERM after a checkpoint had been saved."""

    exit_code = 130

    def __init__(self, step: int, output_dir: str) -> None:
        self.step = step
        self.output_dir = output_dir
        super().__init__(
            f"stopped after step {step}; everything is saved in {output_dir}/checkpoint-{step}. "
            "Run the same command with --resume to go on from there"
        )


class MetricsFile(TrainerCallback):
    """Appends each log to metrics.jsonl in the run's folder.

    A line holds `step`, `epoch`, `time` (Unix seconds), `kind` ("train", "eval" or "summary")
    and the figures. A resumed run first drops the lines after its step (and a fresh run all), so
    the file always tells one consistent story.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drop the lines that the run about to start will write again."""
        if state.is_world_process_zero:
            keep_until(Path(args.output_dir) / METRICS_FILE, state.global_step)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Append one line."""
        if not state.is_world_process_zero or not logs:
            return
        kind = "train" if "learning_rate" in logs and "loss" in logs else "summary"
        if any(name.startswith("eval_") for name in logs):
            kind = "eval"
        line = {"step": state.global_step, "time": time.time(), "kind": kind}
        line.update({name: plain_number(value) for name, value in logs.items()})
        path = Path(args.output_dir) / METRICS_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def plain_number(value: Any) -> Any:
    """Return a JSON value; what is not finite becomes null, which every reader understands."""
    if isinstance(value, torch.Tensor):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def keep_until(path: Path, step: int) -> None:
    """Keep the whole lines of a metrics file up to `step`; step 0 starts a new file."""
    if not path.exists():
        return
    if step == 0:
        path.unlink()
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # the line that a killed run didn't finish
        if entry.get("step", 0) <= step and entry.get("kind") != "summary":
            kept.append(line)
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    os.replace(temporary, path)


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl (an unfinished last line is left out)."""
    path = Path(folder) / METRICS_FILE
    lines = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                lines.append(json.loads(line))
    return lines


SHOWN = {"loss": "loss", "ce": "ce", "kd": "kd", "tokens_per_second": "tok/s"}


def short(name: str, value: float) -> str:
    """Format one figure for a line: `loss 2.345`, `tok/s 1,234`."""
    return f"{name} {value:,.0f}" if name == "tok/s" else f"{name} {value:.4g}"


class ProgressReport(TrainerCallback):
    """Shows loss, ce, kd and tokens/s: a live bar on a terminal, plain lines in a pipe."""

    def __init__(self, style: str = "auto") -> None:
        if style not in ("auto", "bar", "lines", "none"):
            raise ConfigError(f"progress is {style!r}; expected auto, bar, lines or none")
        self.style = style
        self.bar: Any = None
        self.task: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar."""
        if not state.is_world_process_zero or self.style == "none":
            self.style = "none"
            return
        from rich.console import Console

        console = Console(stderr=True)
        if self.style == "auto":
            self.style = "bar" if console.is_terminal else "lines"
        if self.style == "bar":
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                ProgressColumn,
                TextColumn,
                TimeRemainingColumn,
            )

            columns: tuple[ProgressColumn, ...] = (
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}"),
            )
            if console.width < NARROW:
                # The step first: what doesn't fit is cut off at the end.
                columns = (
                    TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[figures]}"),
                )
            elif console.width < ROOMY:
                columns = columns[1:]
            self.bar = Progress(*columns, console=console)
            self.task = self.bar.add_task(
                "training", total=state.max_steps, completed=state.global_step, figures=""
            )
            self.bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Advance the bar."""
        if self.bar is not None:
            self.bar.update(self.task, completed=state.global_step)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Show the newest figures."""
        if self.style == "none" or not logs:
            return
        if "learning_rate" in logs and "loss" in logs:
            figures = "  ".join(short(SHOWN[key], logs[key]) for key in SHOWN if key in logs)
            if self.bar is not None:
                self.bar.update(self.task, figures=figures)
            elif self.style == "lines":
                self._line(f"step {state.global_step}/{state.max_steps}  {figures}")
            return
        names = ("loss", "ce", "kd", "bpb", "agreement")
        found = [(name, logs[f"eval_{name}"]) for name in names if f"eval_{name}" in logs]
        if found:
            figures = "  ".join(short(name, value) for name, value in found)
            self._line(f"step {state.global_step}  evaluation  {figures}")

    def _line(self, text: str) -> None:
        if self.bar is not None:
            self.bar.console.print(text, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar."""
        self.close()

    def close(self) -> None:
        """Close the bar, also after an error, so that the terminal is left in order."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


class Finisher(TrainerCallback):
    """Ends a run in order: the last step is logged, Ctrl-C saves, dead terms are refused."""

    def __init__(self) -> None:
        self.interrupted = False
        self.trainer: XTokenTrainer | None = None

    @contextlib.contextmanager
    def watching(self, trainer: XTokenTrainer) -> Iterator[None]:
        """Catch Ctrl-C and SIGTERM inside the block: end after the step; a second time, at once."""
        self.trainer, self.interrupted = trainer, False
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {}
        if threading.current_thread() is threading.main_thread():
            before = {number: signal.signal(number, self._ask) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            for callback in trainer.callback_handler.callbacks:
                if isinstance(callback, ProgressReport):
                    callback.close()

    def _ask(self, number: int, frame: Any) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        print(
            "\nStopping after this step and saving a checkpoint (once more to stop at once).",
            file=sys.stderr,
            flush=True,
        )

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count steps from where the run starts or resumes."""
        if self.trainer is not None:
            self.trainer.figures.restart(state.global_step)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Average what no wrapped module averages."""
        if self.trainer is not None:
            self.trainer.loss_weights.average(self.trainer.ranks)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Zero what no model zeroes."""
        if self.trainer is not None:
            self.trainer.loss_weights.zero_grad()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop if asked to (on any rank); log the last step whatever the interval."""
        if self.trainer is None:
            return
        if self.trainer.accelerator.num_processes > 1:
            asked = self.trainer.ranks.sum(torch.tensor(float(self.interrupted)))
            self.interrupted = bool(asked > 0)
        if self.interrupted:
            control.should_save = True
            control.should_training_stop = True
            control.should_evaluate = False
        if state.global_step >= state.max_steps or self.interrupted:
            control.should_log = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuse to go on if a teacher never had anything to say in a whole epoch."""
        whole = state.epoch is not None and state.epoch >= 1
        done = state.global_step >= state.max_steps
        if self.trainer is not None and not self.interrupted and (whole or done):
            self.trainer.refuse_without_support()
