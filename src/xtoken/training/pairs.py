"""From a run file to tokenizers, projections and losses: all that needs no model and no data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from xtoken.config import RunConfig
from xtoken.config.losses import Direct, LossSettings
from xtoken.config.sections import Model
from xtoken.errors import ConfigError, LossError, ProjectionError
from xtoken.losses import Loss, make_loss
from xtoken.projection import Projection
from xtoken.vocab import Vocabulary

Say = Callable[[str], None]


@dataclass(frozen=True)
class Pair:
    """One teacher beside the student.

    `members` are the positions of its teachers in the run file: several where their logits are
    averaged. `projection` is the identity where both have the same tokenizer; `projection_file` is
    where W was read from or belongs (None for the identity, or without a folder);
    `projection_built` says that it was built just now and may not stand there yet.
    """

    name: str
    vocab: Vocabulary
    same_tokenizer: bool
    projection: Projection
    projection_file: Path | None
    projection_built: bool
    loss_settings: LossSettings
    loss: Loss
    weight: float
    members: tuple[int, ...]


@dataclass(frozen=True)
class Pairs:
    """The student's vocabulary and one pair for each teacher."""

    student: Vocabulary
    teachers: tuple[Pair, ...]


def read_vocabulary(model: Model) -> Vocabulary:
    """Read the vocabulary of a model of the run file (its `tokenizer`, if it names one)."""
    own = model.tokenizer is None
    return Vocabulary.from_pretrained(
        model.model if model.tokenizer is None else model.tokenizer,
        # A revision names a state of the model's own repository.
        revision=model.revision if own else None,
        trust_remote_code=model.trust_remote_code,
    )


def make_pairs(config: RunConfig, folder: Path | None, *, say: Say) -> Pairs:
    """Read the tokenizers, build or load each W, and make each teacher's loss.

    Args:
        config: the run.
        folder: where `projection-<i>.safetensors` are kept; an earlier one that was built for
            the same tokenizers by the same rules is used again. None: nothing is read there.
            Nothing is written: see `keep_projections`.
        say: told what the user should know.

    Raises:
        ModelNotFoundError, VocabularyError: a tokenizer that can't be found or read as bytes.
        ProjectionError: the run file's projection is damaged or for other tokenizers.
        ConfigError: a loss that this teacher can't be used with.
    """
    student = read_vocabulary(config.student)
    pairs = []
    for name, members in _groups(config):
        index = members[0]
        vocab = read_vocabulary(config.teachers[index])
        _refuse_other_vocabularies(config, vocab, members)
        same = student.same_as(vocab)
        projection, file, built = _projection(config, index, student, vocab, same, folder, say)
        settings = _loss_settings(config, index, same)
        pairs.append(
            Pair(
                name=name,
                vocab=vocab,
                same_tokenizer=same,
                projection=projection,
                projection_file=file,
                projection_built=built,
                loss_settings=settings,
                loss=_loss(index, name, settings, student, vocab, projection),
                weight=_weight(config, members, vocab),
                members=members,
            )
        )
        if same:
            say(
                f"Teacher {name} has the student's own tokenizer: no projection, "
                f"loss {settings.kind}."  # type: ignore[attr-defined]
            )
    return Pairs(student, tuple(pairs))


def _groups(config: RunConfig) -> list[tuple[str, tuple[int, ...]]]:
    """Return the name and the teachers of each pair: all in one where logits are averaged."""
    names = config.teacher_names()
    if config.combine.teachers == "average_logits":
        return [(" + ".join(names), tuple(range(len(names))))]
    return [(name, (index,)) for index, name in enumerate(names)]


def _weight(config: RunConfig, members: tuple[int, ...], vocab: Vocabulary) -> float:
    weight = sum(config.teachers[index].weight for index in members)
    # An entropy is at most the log of the vocabulary's size.
    return weight / math.log(len(vocab)) if config.combine.log_vocab_normalization else weight


def _refuse_other_vocabularies(
    config: RunConfig, vocab: Vocabulary, members: tuple[int, ...]
) -> None:
    for index in members[1:]:
        if not vocab.same_as(read_vocabulary(config.teachers[index])):
            raise ConfigError(
                f"combine.teachers is average_logits, but teachers.{index} "
                f"({config.teachers[index].model}) has another tokenizer than "
                f"teachers.{members[0]} ({config.teachers[members[0]].model}); use sum or best"
            )


def keep_projections(pairs: Pairs) -> None:
    """Write the projections that `make_pairs` built to their files; others stay as they are."""
    for pair in pairs.teachers:
        if pair.projection_built and pair.projection_file is not None:
            pair.projection_file.parent.mkdir(parents=True, exist_ok=True)
            pair.projection.save(pair.projection_file)


def keep_learned(pairs: Pairs, folder: Path) -> list[Path]:
    """Write each learned W as `projection-<i>-learned.safetensors`; returns the files."""
    files = []
    for index, pair in enumerate(pairs.teachers):
        learned = getattr(pair.loss, "learned", None)
        if learned is not None:
            files.append(folder / f"projection-{index}-learned.safetensors")
            learned.export(pair.projection, pair.loss.projector).save(files[-1])  # type: ignore[operator, union-attr, arg-type]
    return files


def _projection(
    config: RunConfig,
    index: int,
    student: Vocabulary,
    teacher: Vocabulary,
    same: bool,
    folder: Path | None,
    say: Say,
) -> tuple[Projection, Path | None, bool]:
    """Return W, its file, and whether it was built just now (and is in no file yet)."""
    given = config.teachers[index].projection or config.projection.path
    if given is not None:
        return Projection.load(given, student, teacher), Path(given), False
    if same:
        return Projection.identity(student), None, False
    file = None if folder is None else folder / f"projection-{index}.safetensors"
    rules = config.projection.rules()
    if file is not None and file.exists():
        kept = _kept(file, student, teacher, rules)
        if kept is not None:
            return kept, file, False
    projection = Projection.build(student, teacher, **rules)
    say(f"Built the projection {student.name} -> {teacher.name}.")
    return projection, file, True


def _kept(file: Path, student: Vocabulary, teacher: Vocabulary, rules: dict) -> Projection | None:
    """Return a projection of an earlier run if it is the one that would be built now."""
    try:
        projection = Projection.load(file, student, teacher)
    except ProjectionError:
        return None
    same = all(projection.rules.get(name) == value for name, value in rules.items())
    return projection if same else None


def _loss_settings(config: RunConfig, index: int, same: bool) -> LossSettings:
    """Return the teacher's own loss; with the student's tokenizer, the run's becomes `direct`."""
    own = config.teachers[index].loss
    if own is not None or not same or isinstance(config.loss, Direct):
        return config.loss_of(index)
    shared = {
        name: value
        for name, value in config.loss.settings().items()
        if name in ("direction", "temperature", "jsd_beta")
    }
    return Direct(**shared)


def _loss(
    index: int,
    name: str,
    settings: LossSettings,
    student: Vocabulary,
    teacher: Vocabulary,
    projection: Projection,
) -> Loss:
    kind = settings.kind  # type: ignore[attr-defined]
    try:
        return make_loss(
            kind,
            student_vocab=student,
            teacher_vocab=teacher,
            projection=projection,
            **settings.settings(),
        )
    except LossError as error:
        raise ConfigError(
            f"teachers.{index} ({name}) can't be used with loss.kind: {kind}: {error}"
        ) from error
