"""The cells of a case, one after another: what is finished is kept, what is missing is run."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import transformers
from benchmarks.measuring import machine
from benchmarks.miniature.grid import is_done, write_json
from benchmarks.real_pair.cases import Ready
from benchmarks.real_pair.cells import NAMES, Place, student_of, train_row
from benchmarks.real_pair.measure import Measured, measure
from benchmarks.real_pair.teacher import keep_states

from xtoken import Vocabulary, __version__
from xtoken.models import load_causal_lm


def run_case(
    ready: Ready,
    folder: Path,
    place: Place,
    measured: Measured,
    *,
    rows: Sequence[str] = tuple(NAMES),
    seeds: Sequence[int] = (0,),
) -> int:
    """Run every cell that has no file yet, after teacher and start; returns how many were run.

    Raises:
        SystemExit: a file there was made with other settings than these.
    """
    settings = _settings(ready, measured, place)
    measured = replace(measured, texts=ready.held_out)
    reference = folder / "reference" / f"{ready.case.name}.json"
    missing = [
        (seed, row, path)
        for seed in seeds
        for row in rows
        if not is_done(
            path := folder / "cells" / f"{ready.case.name}--{row}--{seed}.json",
            settings,
            "settings",
        )
    ]
    if not missing and is_done(reference, settings, "settings"):
        return 0
    vocabs = Vocabulary.from_pretrained(ready.start), Vocabulary.from_pretrained(ready.teacher)
    if not is_done(reference, settings, "settings"):
        _write_reference(ready, reference, settings, vocabs, measured, place)
    for seed, row, path in missing:
        trainer, training = train_row(ready, row, seed, place)
        model = student_of(trainer)
        del trainer
        gc.collect()
        began = time.monotonic()
        figures = measure(model, vocabs, _teacher(ready, place), measured)
        training["seconds"]["measuring"] = round(time.monotonic() - began, 1)
        cell = {"case": ready.case.name, "row": row, "seed": seed, "settings": settings}
        write_json(path, cell | training | {"figures": figures, "machine": surroundings(place)})
        print(_line(cell, training, figures), flush=True)
    return len(missing)


def surroundings(place: Place) -> dict[str, Any]:
    """Return hardware and versions."""
    found = machine(place.device)
    return found | {"transformers": transformers.__version__, "xtoken": __version__}


def _settings(ready: Ready, measured: Measured, place: Place) -> dict[str, Any]:
    """Return what must be the same in every cell of a table."""
    case = ready.case
    kept = ("steps", "batch_size", "max_length", "learning_rate", "warm_up_steps", "held_out")
    return {
        **{key: value for key, value in asdict(case).items() if key in kept},
        "problems": measured.problems,
        "task_rows": measured.task_rows if measured.task_data else 0,
        "teacher_dtype": place.dtype,
    }


def _teacher(ready: Ready, place: Place) -> Any:
    """Load the teacher for measuring; what it has read before is not computed again.

    Loaded anew after each training, so that the training's peak memory is its own.
    """
    model = load_causal_lm(str(ready.teacher), dtype="float32").to(place.device)
    # In float32; the training's own states may be in another precision.
    keep_states(model, place.states.with_name(f"{place.states.name}-held-out"))
    return model.eval()


def _write_reference(
    ready: Ready,
    path: Path,
    settings: dict[str, Any],
    vocabs: tuple[Vocabulary, Vocabulary],
    measured: Measured,
    place: Place,
) -> None:
    teacher = _teacher(ready, place)
    start = load_causal_lm(str(ready.start), dtype="float32").to(place.device)
    found = {
        "start": measure(start, vocabs, teacher, measured),
        "teacher": measure(teacher, vocabs, teacher, measured),
    }
    write_json(path, {"settings": settings, "machine": surroundings(place), **found})


def _line(cell: dict[str, Any], training: dict[str, Any], figures: dict[str, Any]) -> str:
    bits = ", ".join(f"{name} {value:.3f}" for name, value in figures["bpb"].items())
    seconds = training["seconds"]
    return (
        f"{cell['case']} {cell['row']} seed {cell['seed']}: bits per byte {bits}; "
        f"{seconds['a_step']} s a step, {training['peak_memory_mib']} MiB, "
        f"{seconds['preparing']:.0f} + {seconds['training']:.0f} + {seconds['measuring']:.0f} s"
    )
