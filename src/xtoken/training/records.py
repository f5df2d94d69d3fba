"""The small files of a run's folder: how it was set up, how it went, what came out."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from xtoken._version import __version__
from xtoken.training.callbacks import plain_number

PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "peft", "datasets", "numpy")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all; numbers that are not finite become null."""
    text = json.dumps(_plain(content), indent=1, ensure_ascii=False, allow_nan=False)
    temporary = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_text(text + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, str):
        value = value.item()
    return plain_number(value)


def environment(device: Any, ranks: int) -> dict[str, Any]:
    """Return versions and hardware, for environment.json."""
    import torch

    found: dict[str, Any] = {"xtoken": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    found["platform"] = platform.platform()
    found["device"] = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else str(device.type)
    )
    found["threads"] = torch.get_num_threads()
    found["processes"] = ranks
    return found


# Evaluation figures by their names in evaluation.json.
EVALUATED = {
    "eval_bpb": "bits_per_byte",
    "eval_agreement": "agreement",
    "eval_kept_mass": "kept_mass",
}


def evaluation_table(
    folder: Path, before: Mapping[str, float], after: Mapping[str, float]
) -> Path | None:
    """Write evaluation.json from the trainer's own evaluations; None without any."""
    from xtoken.evaluation import EvaluationTable, save_evaluation

    if not after:
        return None
    columns = {
        name: {EVALUATED[key]: figures[key] for key in EVALUATED if key in figures}
        for name, figures in (("before", before), ("after", after))
        if figures
    }
    if "eval_teacher_bpb" in after:
        columns["teacher"] = {"bits_per_byte": after["eval_teacher_bpb"]}
    note = "The run's evaluation data, cut as in training."
    return save_evaluation(folder, [EvaluationTable.from_columns("held-out text", columns, note)])
