"""Which curves a report shows: the keys of metrics.jsonl gathered into charts, run by run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xtoken.report.plots import COLOURS, Chart, Curve
from xtoken.report.run_data import RunData

LOSS_NAMES = {
    "p_kl": "P-KL",
    "h_kl": "H-KL",
    "gold": "GOLD",
    "uld": "ULD",
    "alm": "ALM",
    "strict": "strict 1:1",
    "csd": "CSD",
    "bpm": "BPM",
    "path_kl": "Path-KL",
    "direct": "direct KL",
}


@dataclass(frozen=True)
class Spec:
    """One chart: base keys with the name of their line; `eval_` and `/teacher` forms join in."""

    key: str
    title: str
    lines: tuple[tuple[str, str], ...]
    unit: str = ""
    about: str = ""
    log: bool = True


def _spec(key: str, title: str, unit: str = "", about: str = "", name: str = "training") -> Spec:
    return Spec(key, title, ((key, name),), unit, about)


SPECS = (
    _spec("ce", "Cross-entropy", "nats a token", "The student against the text."),
    _spec("kd", "Distillation", "a chunk", "The student against the teacher."),
    _spec("loss", "Total loss", "", "Both parts, weighted and scaled."),
    Spec(
        "bpb",
        "Bits per byte",
        (("bpb", "student"), ("teacher_bpb", "teacher")),
        about="On the supervised text, whatever the vocabulary.",
    ),
    _spec(
        "agreement",
        "Agreement with the teacher",
        "%",
        "Chunks with the same likeliest next token.",
    ),
    _spec("kept_mass", "Teacher mass kept", "%", "Teacher's probability on the loss's support."),
    _spec("depths", "Positions compared beyond the first", "a chunk", "Path-KL, inside chunks."),
    _spec("left_out", "Chunks left out", "%", "Path-KL: realised tokens of different events."),
    _spec("scale", "Scale of the distillation term", "", "Cross-entropy / distillation."),
    Spec(
        "bytes_aligned",
        "Alignment",
        (("bytes_aligned", "bytes aligned"), ("one_to_one", "1:1 chunks")),
        "%",
        "Bytes inside chunks; chunks of one token a side.",
    ),
    _spec("grad_norm", "Gradient norm", "", "Before clipping."),
    Spec("learning_rate", "Learning rate", (("learning_rate", "training"),), log=False),
    _spec("tokens_per_second", "Throughput", "tokens/s", "Student tokens."),
    _spec("chunks", "Supervised chunks", "a step"),
    _spec("time_step", "Time a step", "s"),
    _spec("memory_gib", "Peak memory", "GiB"),
)

# Book-keeping of the trainer, not of the run.
HIDDEN = ("total_flos", "train_", "eval_runtime", "eval_examples", "eval_model_prep")
HIDDEN_KEYS = frozenset({"epoch", "time", "num_input_tokens_seen"})
HIDDEN_ENDINGS = ("_per_second", "_runtime")


def charts(runs: Sequence[RunData]) -> list[Chart]:
    """Return the charts that the runs' metrics fill, main figures first, unknown keys last."""
    used: set[str] = set()
    found = []
    for spec in SPECS:
        curves, keys = _curves(spec, runs)
        used |= keys
        if curves and not _is_idle(spec, runs):
            found.append(
                Chart(spec.key, spec.title, tuple(curves), spec.unit, spec.about, spec.log)
            )
    found += [_other(key, runs) for key in _rest(runs, used)]
    return found


def time_split(run: RunData) -> dict[str, float]:
    """Return the median seconds a step of each phase (`time_teacher`, ...), the first left out."""
    split = {}
    for key, series in run.metrics.items():
        phase = key.removeprefix("time_")
        if phase == key or phase == "step":
            continue
        values = series.finite().values
        if values:
            split[phase] = float(np.median(values[1:] or values))
    order = ("data", "teacher", "student", "loss", "figures", "other")
    return dict(sorted(split.items(), key=lambda i: order.index(i[0]) if i[0] in order else 99))


def _is_idle(spec: Spec, runs: Sequence[RunData]) -> bool:
    """A scale that is 1 throughout says nothing."""
    if spec.key != "scale":
        return False
    values = {v for run in runs if "scale" in run.metrics for v in run.metrics["scale"].values}
    return values <= {1.0}


def _curves(spec: Spec, runs: Sequence[RunData]) -> tuple[list[Curve], set[str]]:
    several_runs = len(runs) > 1
    curves: list[Curve] = []
    used: set[str] = set()
    for number, run in enumerate(runs):
        lines: list[tuple[str, str, bool]] = []  # key, name, evaluated on held-out text
        for key, name in spec.lines:
            for prefix, held_out in (("", False), ("eval_", True)):
                keys = [key_ for key_ in run.metrics if key_.startswith(f"{prefix}{key}/")]
                used |= {prefix + key, *keys}
                if prefix + key in run.metrics:
                    label = "all teachers" if len(keys) > 1 and name == "training" else name
                    lines.append((prefix + key, _named(label, held_out), held_out))
                if len(keys) > 1 or (keys and prefix + key not in run.metrics):
                    lines += [(k, _named(k.partition("/")[2], held_out), held_out) for k in keys]
        if several_runs:
            # One kind of line a run; its colour tells which run.
            lines = [line for line in lines if line[0].removeprefix("eval_") == spec.key]
        for position, (key, name, held_out) in enumerate(lines):
            colour = number if several_runs else position
            if several_runs:
                name = f"{run.name}, held-out" if held_out else run.name
            curves.append(
                Curve(
                    name,
                    run.metrics[key],
                    colour % COLOURS,
                    dash=several_runs and position > 0,
                    points=held_out,
                    group=run.name if several_runs else "",
                )
            )
    return curves, used


def _named(name: str, held_out: bool) -> str:
    if not held_out:
        return name
    return "held-out" if name == "training" else f"{name}, held-out"


def _rest(runs: Sequence[RunData], used: set[str]) -> list[str]:
    keys = dict.fromkeys(key for run in runs for key in run.metrics)
    return [
        key
        for key in keys
        if key not in used | HIDDEN_KEYS
        and not key.startswith((*HIDDEN, "time_"))
        and not key.endswith(HIDDEN_ENDINGS)
    ]


def _other(key: str, runs: Sequence[RunData]) -> Chart:
    curves = tuple(
        Curve(
            run.name if len(runs) > 1 else key,
            run.metrics[key],
            number % COLOURS,
            points=key.startswith("eval_"),
        )
        for number, run in enumerate(runs)
        if key in run.metrics
    )
    return Chart(key, key.replace("_", " ").capitalize(), curves)
