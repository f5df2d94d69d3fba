"""The `training:` block: fields of `transformers.TrainingArguments`, checked without torch.

Importing `TrainingArguments` takes seconds, so names, types and choices are read off its source
text. What only the class itself can judge (a device that lacks bf16) is left to it.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from xtoken.config.problems import Problem, describe_value, join_or

# X-Token's exemplar settings, but for the length of the warm-up, which is a share of the run.
DEFAULTS: dict[str, Any] = {
    "num_train_epochs": 1,
    "learning_rate": 5e-5,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.03,
    "weight_decay": 1e-3,
    "adam_beta2": 0.95,
    "max_grad_norm": 1.0,
    "logging_steps": 10,
    "logging_first_step": True,
    "save_total_limit": 2,
    "report_to": "none",
}

_OWN = "xtoken decides this itself; remove it"
MANAGED: dict[str, str] = {
    "output_dir": "is set at the top level of the run file: output_dir: ...",
    "seed": "is set at the top level of the run file: seed: ...",
    "resume_from_checkpoint": "is chosen on the command line: xtoken train RUN.yaml --resume",
    "do_train": _OWN,
    "do_eval": _OWN,
    "do_predict": _OWN,
    "local_rank": "is set by the launcher (torchrun, accelerate); remove it",
    "remove_unused_columns": "is always false here (batches hold more than the student's "
    "inputs); remove it",
    "label_names": _OWN,
    "logging_nan_inf_filter": "is always false here (a loss that isn't finite stops the run); "
    "remove it",
    "average_tokens_across_devices": "is always true here (losses are divided by global counts); "
    "remove it",
    "label_smoothing_factor": "has no effect here (the cross-entropy is xtoken's own); remove it",
    "disable_tqdm": "has no effect here (the progress bar is xtoken's own); remove it",
    "prediction_loss_only": _OWN,
    "include_for_metrics": _OWN,
    "batch_eval_metrics": _OWN,
    "eval_do_concat_batches": _OWN,
    "eval_use_gather_object": _OWN,
    "eval_accumulation_steps": _OWN,
}
_PLAIN: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
    "str": ((str,), "text"),
    "dict": ((dict,), "a mapping"),
    "list": ((list,), "a list"),
    "None": ((type(None),), "null"),
}


@dataclass(frozen=True)
class TrainingField:
    """One field: the plain types it takes, and the texts where it is one of a choice.

    `kinds` is empty where the annotation says more than plain types can: then all is accepted.
    """

    name: str
    kinds: frozenset[str]
    choices: tuple[str, ...]


@cache
def training_fields() -> dict[str, TrainingField]:
    """Return the fields of the installed `transformers.TrainingArguments`."""
    spec = importlib.util.find_spec("transformers")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent
    bodies: dict[str, list[ast.stmt]] = {}
    for module in ("trainer_utils.py", "training_args.py"):
        tree = ast.parse((folder / module).read_text(encoding="utf-8"))
        bodies |= {node.name: node.body for node in tree.body if isinstance(node, ast.ClassDef)}
    fields = {}
    for statement in bodies["TrainingArguments"]:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            name = statement.target.id
            fields[name] = _field(name, statement.annotation, bodies)
    return fields


def _field(name: str, annotation: ast.expr, bodies: dict[str, list[ast.stmt]]) -> TrainingField:
    kinds, choices = set(), []
    for part in ast.unparse(annotation).split(" | "):
        kind = part.split("[", 1)[0]
        if kind in bodies:
            choices += [
                str(item.value.value)
                for item in bodies[kind]
                if isinstance(item, ast.Assign) and isinstance(item.value, ast.Constant)
            ]
        elif kind in _PLAIN:
            kinds.add(kind)
        else:
            return TrainingField(name, frozenset(), ())
    return TrainingField(name, frozenset(kinds), tuple(choices))


def training_problems(training: Any) -> list[Problem]:
    """Return what is wrong with a `training:` block: names, types, choices, managed fields."""
    if not isinstance(training, dict):
        return []
    found = []
    for name, value in training.items():
        message = _problem(str(name), value)
        if message is not None:
            found.append(Problem(f"training.{name}", message))
    return found


def _problem(name: str, value: Any) -> str | None:
    fields = training_fields()
    if name in MANAGED:
        return MANAGED[name]
    if name not in fields:
        near = difflib.get_close_matches(name, fields.keys() - MANAGED.keys(), n=1)
        hint = f"did you mean training.{near[0]}?" if near else "see its documentation"
        return f"is no field of transformers.TrainingArguments; {hint}"
    field = fields[name]
    if not field.kinds:
        return None
    if field.choices and isinstance(value, str):
        return _choice_problem(field, value)
    if any(_fits(value, kind) for kind in field.kinds):
        return None
    expected = join_or([_PLAIN[kind][1] for kind in _PLAIN if kind in field.kinds])
    return f"is {describe_value(value)}; expected {expected}"


def _choice_problem(field: TrainingField, value: str) -> str | None:
    # `debug` and a few others take several names separated by spaces.
    if value == "" or value in field.choices or all(v in field.choices for v in value.split()):
        return None
    near = difflib.get_close_matches(value, field.choices, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"is {describe_value(value)}; expected {join_or(field.choices)}{hint}"


def _fits(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "bool"
    return isinstance(value, _PLAIN[kind][0])


def with_defaults(training: dict[str, Any], *, evaluates: bool) -> dict[str, Any]:
    """Return a block with xtoken's defaults filled in.

    With evaluation data, evaluation is switched on, as often as checkpoints are saved.
    """
    arguments = {**DEFAULTS, **training}
    if evaluates and "eval_strategy" not in training:
        arguments["eval_strategy"] = training.get("save_strategy", "steps")
        if arguments["eval_strategy"] not in ("steps", "epoch"):
            arguments["eval_strategy"] = "epoch"
        if arguments["eval_strategy"] == "steps" and "eval_steps" not in training:
            arguments["eval_steps"] = training.get("save_steps", 500)
    return arguments
