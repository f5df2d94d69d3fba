"""The finished student in a run's folder: loads in plain transformers, adapters merged."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtoken.models import load_causal_lm
from xtoken.training.saving import ADAPTER_FOLDER, full_disk_is_an_error, no_bars

if TYPE_CHECKING:
    from xtoken.config.sections import Student
    from xtoken.training.trainer import XTokenTrainer


def export_student(trainer: XTokenTrainer, student: Student, folder: Path) -> None:
    """Write the trained student and its tokenizer to `folder`, all files or none.

    With adapters, they go to `folder/adapter`, and `folder` itself holds the base model with the
    adapters merged in, so that `AutoModelForCausalLM.from_pretrained(folder)` needs no peft. The
    base is read again for that: a quantised one is merged in full precision.

    Raises:
        TrainingError: the disk is full; checkpoints and an earlier export are untouched.
    """
    accelerator = trainer.accelerator
    main = accelerator.is_main_process
    with full_disk_is_an_error(str(folder)), _staged_files(folder, main) as staging, no_bars():
        accelerator.wait_for_everyone()
        adapters = student.lora is not None
        target = staging / ADAPTER_FOLDER if adapters else staging
        trainer.save_model(str(target), _internal_call=True)
        accelerator.wait_for_everyone()
        if main and adapters:
            _merge(student, target, staging)
            trainer.processing_class.save_pretrained(str(staging))
    accelerator.wait_for_everyone()


def _merge(student: Student, adapter: Path, target: Path) -> None:
    from peft import PeftModel

    base: Any = load_causal_lm(
        student.model,
        dtype=student.dtype,
        revision=student.revision,
        trust_remote_code=student.trust_remote_code,
    )
    merged = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()
    merged.save_pretrained(str(target))


@contextlib.contextmanager
def _staged_files(folder: Path, main: bool) -> Iterator[Path]:
    """Give a hidden folder inside `folder`; move its files up when the block succeeds."""
    staging = folder / ".model.incomplete"
    if main:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
    try:
        yield staging
        if main:
            _drop_earlier_weights(folder)
            for path in sorted(staging.iterdir()):
                target = folder / path.name
                if target.is_dir():
                    shutil.rmtree(target)
                os.replace(path, target)
    finally:
        if main:
            shutil.rmtree(staging, ignore_errors=True)


def _drop_earlier_weights(folder: Path) -> None:
    """Remove what would be loaded instead of, or beside, the model about to move in."""
    stale = ["adapter_config.json", "adapter_model.safetensors", "model.safetensors.index.json"]
    for path in [*(folder / name for name in stale), *folder.glob("model*.safetensors")]:
        path.unlink(missing_ok=True)
