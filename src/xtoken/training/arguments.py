"""`TrainingArguments` of a run file, and what a run asks of its folder before it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import TrainingArguments

from xtoken.config import RunConfig
from xtoken.errors import ConfigError, UsageError
from xtoken.training.checkpoints import find_checkpoint, resolve_checkpoint
from xtoken.training.student import recomputes_activations

Resume = bool | str | Path | Literal["auto"]
SAMPLING = ("random", "sequential")
# Metrics of which more is better; of all others less is.
MORE_IS_BETTER = ("agreement", "kept_mass")


def training_arguments(config: RunConfig) -> TrainingArguments:
    """Return the arguments, with defaults that depend on the machine or on each other.

    Raises:
        ConfigError: transformers refuses them.
    """
    given = config.training_arguments()
    strategy = given.get("train_sampling_strategy", "random")
    if strategy not in SAMPLING:
        raise ConfigError(
            f"training.train_sampling_strategy is {strategy}, whose order can't be resumed "
            "exactly; expected random or sequential. data.packing: true fills sequences up instead"
        )
    given.setdefault("dataloader_pin_memory", torch.cuda.is_available())
    if given.get("eval_strategy", "no") != "no":
        given.setdefault("eval_on_start", True)
    metric = given.get("metric_for_best_model")
    if metric is not None and "greater_is_better" not in given:
        # transformers takes everything that doesn't end in "loss" for better when greater.
        given["greater_is_better"] = str(metric).rsplit("/", 1)[0].endswith(MORE_IS_BETTER)
    given["disable_tqdm"] = True
    try:
        return TrainingArguments(**given)
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"training: {' '.join(str(error).split())}") from error


def starting_point(config: RunConfig, resume: Resume) -> Path | None:
    """Return the checkpoint to start from, None for a fresh run.

    Args:
        config: the run.
        resume: False starts afresh, True resumes and "auto" resumes if there is a checkpoint; a
            path names the checkpoint.

    Raises:
        UsageError: a fresh run into a folder that holds checkpoints of another.
        ConfigError: `output_dir` is a file.
        TrainingError: a checkpoint that is missing or not complete.
    """
    folder = Path(config.output_dir)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output_dir {folder} is a file; expected a folder (made if absent)")
    found = find_checkpoint(folder) if folder.is_dir() else None
    if resume == "auto":
        return None if found is None or found.path is None else found.path
    if resume is not False:
        return resolve_checkpoint(resume, folder)
    if found is not None and (found.path is not None or found.skipped):
        newest = found.path or "a damaged checkpoint"
        raise UsageError(
            f"{folder} already holds a run (up to {newest}); go on from there with --resume, "
            "choose another output_dir, or remove the folder"
        )
    return None


def describe_arguments(args: TrainingArguments) -> dict[str, Any]:
    """Return the arguments that shape a step, for the dry run."""
    return {
        "per_device_train_batch_size": args.per_device_train_batch_size,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        "processes": args.world_size,
        "max_steps": args.max_steps,
        "num_train_epochs": args.num_train_epochs,
        "learning_rate": args.learning_rate,
        "bf16": args.bf16,
        "fp16": args.fp16,
        "activation_checkpointing": recomputes_activations(args),
        "optim": str(args.optim.value if hasattr(args.optim, "value") else args.optim),
    }
