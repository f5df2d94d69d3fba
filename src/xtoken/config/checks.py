"""Combinations of settings that can't work, each with what to do instead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from xtoken.config.base import Section
from xtoken.config.losses import LossConfig
from xtoken.config.problems import Problem
from xtoken.config.sections import (
    CombineSettings,
    Data,
    Model,
    ProjectionSettings,
    Student,
    Teacher,
)
from xtoken.config.training_keys import training_problems

# Losses for which the weights of W matter; others read which ids match, or which count at all.
WEIGHTS_READ_BY = {"p_kl", "h_kl"}


def combination_problems(valid: Mapping[str, Any]) -> list[Problem]:
    """Return what is wrong with the sections of a run that are right one by one.

    `valid` maps names of top-level keys to their parsed values; checks that need a section which
    isn't there are left out.
    """
    found: list[Problem] = []
    for name, value in valid.items():
        found += _ignored(value, name)
    for check in (
        _models,
        _teachers,
        _combine,
        _mixing,
        _weights,
        _data,
        _projection,
        _rules,
        _training,
        _eval,
    ):
        names = check.__code__.co_varnames[: check.__code__.co_argcount]
        if all(name in valid for name in names):
            found += check(*(valid[name] for name in names))
    return found


def _ignored(value: Any, path: str) -> Iterator[Problem]:
    """Refuse settings that are given although others make them void; null counts as not given."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _ignored(item, f"{path}.{index}")
    elif isinstance(value, Section):
        for name, why in value.ignored().items():
            if name in value.model_fields_set and getattr(value, name) is not None:
                yield Problem(f"{path}.{name}", why)
        for name in type(value).model_fields:
            yield from _ignored(getattr(value, name), f"{path}.{name}")


def _models(student: Student, teachers: list[Teacher]) -> Iterator[Problem]:
    sides: list[tuple[str, Model]] = [("student", student)]
    sides += [(f"teachers.{index}", teacher) for index, teacher in enumerate(teachers)]
    for path, model in sides:
        if model.quantization is not None and model.model.endswith(".gguf"):
            yield Problem(
                f"{path}.quantization",
                "can't be set for a GGUF file, which is quantised already and loaded dequantised; "
                "remove it",
            )
    if student.quantization is not None and student.lora is None:
        yield Problem(
            "student.quantization",
            "needs adapters, because quantised weights can't be trained; add student.lora, or "
            "remove it",
        )
    if student.dtype == "float16" and student.lora is None:
        yield Problem(
            "student.dtype",
            "is float16, in which weights can't be trained (their gradients underflow); use "
            "bfloat16, or float32 with training.fp16: true",
        )


def _teachers(teachers: list[Teacher]) -> Iterator[Problem]:
    for index, teacher in enumerate(teachers):
        for earlier in range(index):
            other = teachers[earlier]
            if teacher.name is not None and teacher.name == other.name:
                yield Problem(
                    f"teachers.{index}.name",
                    f"is the name of teachers.{earlier} too; give each its own",
                )
            same = ("model", "revision", "tokenizer", "quantization", "dtype", "loss")
            if all(getattr(teacher, key) == getattr(other, key) for key in same):
                yield Problem(
                    f"teachers.{index}.model",
                    f"is the same teacher with the same loss as teachers.{earlier}; give it once, "
                    "with the sum of the weights",
                )


def _combine(combine: CombineSettings) -> Iterator[Problem]:
    if combine.kd == 0 and combine.ce == 0:
        yield Problem("combine.kd", "and combine.ce are both 0, so there is nothing to train")
    elif combine.ce == 0 and combine.scaling != "fixed":
        yield Problem(
            "combine.scaling",
            f"is {combine.scaling}, which scales the distillation term to a cross-entropy that "
            "counts for nothing with combine.ce: 0; set combine.scaling: fixed",
        )


def _mixing(combine: CombineSettings, teachers: list[Teacher]) -> Iterator[Problem]:
    several = len(teachers) > 1
    if not several:
        for name, idle in (("teachers", "sum"), ("teacher_weights", "static")):
            if (getattr(combine, name) or idle) != idle:
                yield Problem(
                    f"combine.{name}",
                    f"is {getattr(combine, name)}, which is a choice between teachers, but there "
                    "is one; remove it, or add a teacher",
                )
        return
    if combine.teachers == "best" and combine.criterion == "static":
        yield Problem(
            "combine.teacher_weights",
            "is static, by which no teacher is the best for a sample; use ce, entropy or max_prob",
        )
    if combine.teachers != "average_logits":
        return
    if combine.criterion != "static":
        yield Problem(
            "combine.teacher_weights",
            f"is {combine.criterion}, but averaged logits have the teachers' own weights; remove "
            "it, or use combine.teachers: sum",
        )
    for index, teacher in enumerate(teachers):
        for name in ("loss", "projection"):
            if index and getattr(teacher, name) is not None:
                yield Problem(
                    f"teachers.{index}.{name}",
                    "has no effect: averaged logits have one loss and one projection, the first "
                    "teacher's (or the run's)",
                )


def _weights(combine: CombineSettings, teachers: list[Teacher]) -> Iterator[Problem]:
    if combine.kd > 0 and not any(teacher.weight for teacher in teachers):
        yield Problem(
            "teachers.0.weight",
            "is 0, as is every other teacher's, so nobody teaches; give one a weight above 0, or "
            "set combine.kd: 0 to train on the cross-entropy alone",
        )


def _data(data: Data) -> Iterator[Problem]:
    if data.eval is not None and data.eval_split is not None:
        yield Problem(
            "data.eval_split",
            "takes evaluation examples from the training data, but data.eval names some already; "
            "keep one of the two",
        )


def _projection(projection: ProjectionSettings) -> Iterator[Problem]:
    if projection.reverse and projection.rule == "longest_prefix":
        yield Problem(
            "projection.reverse",
            "adds up pieces, which rule: longest_prefix doesn't have; use rule: multi_token",
        )


def _rules(
    projection: ProjectionSettings, loss: LossConfig, teachers: list[Teacher]
) -> Iterator[Problem]:
    kinds = {(teacher.loss or loss).kind for teacher in teachers}
    if kinds & WEIGHTS_READ_BY or projection.path is not None:
        return
    for name, value in projection.rules().items():
        # A saved run names every rule, so that only another value counts as given.
        if value != ProjectionSettings.model_fields[name].default:
            yield Problem(
                f"projection.{name}",
                f"has no effect with loss.kind: {', '.join(sorted(kinds))}, which doesn't read "
                "W's weights; remove it, or set loss.kind: p_kl",
            )


def _training(training: dict[str, Any]) -> Iterator[Problem]:
    yield from training_problems(training)
    if training.get("bf16") is True and training.get("fp16") is True:
        yield Problem("training.fp16", "and training.bf16 are both true; keep one of the two")


def _eval(training: dict[str, Any], data: Data) -> Iterator[Problem]:
    if data.eval is not None or data.eval_split is not None:
        return
    for key, idle in (
        ("eval_strategy", "no"),
        ("eval_on_start", False),
        ("load_best_model_at_end", False),
    ):
        if training.get(key, idle) != idle:
            yield Problem(
                f"training.{key}",
                "needs evaluation data; set data.eval, or data.eval_split (0.02 keeps 2 %)",
            )
