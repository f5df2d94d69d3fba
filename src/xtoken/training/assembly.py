"""From a run's parts to a trainer: models loaded, terms made, misfits refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments

from xtoken.config import RunConfig
from xtoken.config.sections import CombineSettings, Teacher
from xtoken.errors import ConfigError, TrainingError, XTokenError
from xtoken.losses import Projector, agreement
from xtoken.models import context_length
from xtoken.teachers import AveragedTeachers, LocalTeacher
from xtoken.training.combine import Combine
from xtoken.training.datasets import RunData
from xtoken.training.objective import Agreement, Objective, TeacherTerm
from xtoken.training.pairs import Pair, Pairs
from xtoken.training.saving import no_bars
from xtoken.training.selection import Selection
from xtoken.training.student import load_student, load_teacher
from xtoken.training.trainer import XTokenTrainer


def make_trainer(
    config: RunConfig,
    pairs: Pairs,
    data: RunData,
    args: TrainingArguments,
    *,
    progress: str = "auto",
    callbacks: Sequence[TrainerCallback] = (),
) -> XTokenTrainer:
    """Load the models and put the trainer together."""
    with no_bars():
        student = load_student(config.student, pairs.student, args)
    _refuse_too_long(config, data, context_length(student))
    terms = []
    for pair in pairs.teachers if taught_by(config) else ():
        with no_bars():
            teacher = _teacher_of(config, pair, args.device)
        terms.append(
            TeacherTerm(
                name=pair.name,
                teacher=teacher,
                loss=pair.loss,
                weight=pair.weight,
                agreement=agreement_of(pair, args.device),
                byte_lengths=torch.from_numpy(pair.vocab.byte_lengths).long(),
            )
        )
    settings = config.combine
    objective = Objective(
        terms,
        byte_lengths=torch.from_numpy(pairs.student.byte_lengths).long(),
        selection=_selection(settings) if terms else None,
    )
    try:
        return XTokenTrainer(
            student,
            args,
            objective=objective,
            combine=Combine(settings.kd, settings.ce, settings.scaling),
            data_collator=data.collator,
            train_dataset=data.train,
            eval_dataset=data.evaluation,
            processing_class=pairs.student.tokenizer,
            callbacks=callbacks,
            progress=progress,
            chunked_head=config.student.chunked_head,
        )
    except Exception as error:
        if not args.push_to_hub or isinstance(error, XTokenError):
            raise
        raise TrainingError(
            f"training.push_to_hub is set, but the hub's repository can't be made or reached: "
            f"{str(error).strip().splitlines()[0]} Log in (`hf auth login`) and check the network, "
            "or push the folder when the run is done"
        ) from error


def _teacher_of(config: RunConfig, pair: Pair, device: Any) -> LocalTeacher | AveragedTeachers:
    names = config.teacher_names()
    teachers = [
        load_teacher(config.teachers[index], pair.vocab, names[index], device)
        for index in pair.members
    ]
    if len(teachers) == 1:
        return teachers[0]
    weights = [config.teachers[index].weight for index in pair.members]
    return AveragedTeachers(teachers, weights, name=pair.name)


def _selection(settings: CombineSettings) -> Selection | None:
    criterion = settings.criterion
    if criterion == "static" or settings.teachers == "average_logits":
        return None
    return Selection(settings.teachers, criterion)


def head_notes(trainer: XTokenTrainer) -> list[str]:
    """Return what there is to say about where logits are formed in blocks and where they aren't."""
    models = [("student", trainer.objective.head, trainer.head_note)]
    for term in trainer.objective.teachers:
        members = getattr(term.teacher, "members", [term.teacher])
        models += [(f"teacher {m.name}", m.head, m.head_note) for m in members]
    notes = [f"Full logits for the {name}: {note}." for name, _, note in models if note]
    if chunked := ", ".join(name for name, head, _ in models if head is not None):
        notes.insert(
            0,
            f"Logits are formed in blocks and dropped (chunked head) where a batch's are large: "
            f"{chunked}.",
        )
    return notes


def taught_by(config: RunConfig) -> list[Teacher]:
    """Return the teachers that are loaded.

    Plain continued training needs none, so `combine.kd=0` makes the baseline of any run.
    """
    return list(config.teachers) if config.combine.kd else []


def agreement_of(pair: Pair, device: Any) -> Agreement:
    """Return the top-1 agreement under the pair's fixed projection."""
    projector = Projector(pair.projection).to(device)
    return lambda student_NV, teacher_MU, chunks: agreement(
        student_NV, teacher_MU, chunks, projector
    )


def _refuse_too_long(config: RunConfig, data: RunData, limit: int | None) -> None:
    """Raise ConfigError if a sequence is longer than the student has positions for."""
    length = config.data.max_length
    if limit is None or length <= limit:
        return
    sets = [data.train] if data.evaluation is None else [data.train, data.evaluation]
    if any(len(row.ids) > limit for dataset in sets for row in dataset):
        raise ConfigError(
            f"data.max_length is {length} and some sequences need it, but the student has "
            f"positions for {limit} tokens; lower data.max_length to {limit}"
        )
