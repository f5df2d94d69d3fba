"""How a checkpoint of a running Trainer reaches the disk: all of it, or nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import rotate_checkpoints
from transformers.utils import logging

from xtoken.errors import TrainingError
from xtoken.training.checkpoints import TRAINER_STATE, RunState, disk_full, staged

ADAPTER_FOLDER = "adapter"

if TYPE_CHECKING:
    from xtoken.training.trainer import XTokenTrainer


def save_checkpoint(trainer: XTokenTrainer, trial: Any) -> Path:
    """Write `checkpoint-<step>` beside its place, rename it, then delete surplus older ones.

    Weights, optimizer, schedule, scaler and random states are written by the Trainer's own
    methods; the Trainer's own order (write in place, delete, then fail) is what this avoids.

    Raises:
        TrainingError: the disk is full; the earlier checkpoints are as they were.
    """
    accelerator, args, state = trainer.accelerator, trainer.args, trainer.state
    main = accelerator.is_main_process or (args.save_on_each_node and args.local_process_index == 0)
    root = Path(trainer._get_output_dir(trial))
    final = root / f"checkpoint-{state.global_step}"
    trainer.store_flos()
    with staged(final, main=main) as staging, no_bars():
        accelerator.wait_for_everyone()
        trainer.save_model(str(staging), _internal_call=True)
        if not args.save_only_model:
            trainer._save_optimizer_and_scheduler(str(staging))
            trainer._save_scaler(str(staging))
            trainer._save_rng_state(str(staging))
        accelerator.wait_for_everyone()
        if main:
            trainer.loss_weights.save(staging)
            _note_best(trainer, root, final)
            _save_state(trainer, staging)
    accelerator.wait_for_everyone()
    if args.push_to_hub:
        trainer._push_from_checkpoint(str(final))
    if main:
        rotate_checkpoints(
            output_dir=str(root),
            save_total_limit=args.save_total_limit,
            best_model_checkpoint=state.best_model_checkpoint,
            use_mtime=False,
        )
    return final


def _note_best(trainer: XTokenTrainer, root: Path, final: Path) -> None:
    """Point the state at the best step's checkpoint, counting the one about to be renamed."""
    best = trainer.state.best_global_step
    if not best:
        return
    folder = root / f"checkpoint-{best}"
    if folder == final or folder.exists():
        trainer.state.best_model_checkpoint = str(folder)


def _save_state(trainer: XTokenTrainer, staging: Path) -> None:
    stored: dict[str, Any] = {}
    for item in [*trainer.callback_handler.callbacks, trainer.control]:
        if isinstance(item, ExportableState):
            stored.setdefault(type(item).__name__, []).append(item.state())
    trainer.state.stateful_callbacks = {
        name: states if len(states) > 1 else states[0] for name, states in stored.items()
    }
    trainer.state.save_to_json(str(staging / TRAINER_STATE))
    RunState(trainer.step_loss.lagged.value, list(trainer.chunks_seen)).save(staging)


@contextlib.contextmanager
def no_bars() -> Iterator[None]:
    """Keep transformers' bars for loading and writing weights out of our own display."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextlib.contextmanager
def full_disk_is_an_error(target: str) -> Iterator[None]:
    """Turn "no space left" while writing `target` into a TrainingError."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        full = disk_full(error)
        if full is None:
            raise
        raise TrainingError(
            f"could not save {target}: {full}; free some space and resume the run"
        ) from error
