"""Losses by the name that a run file uses."""

from __future__ import annotations

import difflib
import inspect
from typing import TYPE_CHECKING, Any

import numpy as np

from xtoken.errors import LossError
from xtoken.losses.alm import ALM
from xtoken.losses.bpm import BPM
from xtoken.losses.csd import CSD
from xtoken.losses.direct import Direct
from xtoken.losses.gold import GOLD
from xtoken.losses.h_kl import HKL
from xtoken.losses.loss import Loss
from xtoken.losses.p_kl import PKL
from xtoken.losses.path_kl import PathKL
from xtoken.losses.strict import Strict
from xtoken.losses.uld import ULD

if TYPE_CHECKING:
    from xtoken.projection import Projection
    from xtoken.vocab import Vocabulary

LOSSES: dict[str, type[Loss]] = {
    loss.kind: loss for loss in (PKL, HKL, GOLD, ULD, Direct, ALM, Strict, CSD, BPM, PathKL)
}


def loss_settings(kind: str) -> dict[str, Any]:
    """Return a loss's settings and their defaults, as its constructor has them."""
    parameters = inspect.signature(_loss_class(kind).__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def make_loss(
    kind: str,
    *,
    student_vocab: Vocabulary | None = None,
    teacher_vocab: Vocabulary | None = None,
    projection: Projection | None = None,
    **settings: Any,
) -> Loss:
    """Make a loss for a pair of tokenizers.

    Args:
        kind: a key of `LOSSES`.
        student_vocab, teacher_vocab: the two tokenizers. Needed by the losses that look at
            tokens' bytes and by `direct`; elsewhere they are checked against the projection.
        projection: W; needed by every loss but `direct`.
        settings: see `loss_settings(kind)`.

    Raises:
        LossError: an unknown kind or setting, a missing projection, vocabularies that `direct`
            can't use, or what the loss itself refuses.
        ProjectionError: a projection built for other tokenizers.
    """
    loss_class = _loss_class(kind)
    known = loss_settings(kind)
    for name in settings:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise LossError(f"{kind}: unknown setting {name!r}; it takes {', '.join(known)}.{hint}")
    if issubclass(loss_class, Direct):
        return _direct(student_vocab, teacher_vocab, projection, settings)
    if projection is None:
        raise LossError(f"{kind}: needs a projection; build one with Projection.build(...).")
    projection.check_vocabularies(student_vocab, teacher_vocab)
    arguments: list[Any] = [projection]
    if "student_vocab" in inspect.signature(loss_class.__init__).parameters:
        if student_vocab is None or teacher_vocab is None:
            raise LossError(f"{kind}: needs student_vocab and teacher_vocab (their bytes).")
        arguments += [student_vocab, teacher_vocab]
    return loss_class(*arguments, **settings)


def _direct(
    student_vocab: Vocabulary | None,
    teacher_vocab: Vocabulary | None,
    projection: Projection | None,
    settings: dict[str, Any],
) -> Direct:
    if projection is not None:
        projection.check_vocabularies(student_vocab, teacher_vocab)
        _check_one_vocabulary(projection)
    if student_vocab is None and projection is not None:
        return Direct(projection.student_size, projection.student_masked, **settings)
    if student_vocab is None:
        raise LossError("direct: needs student_vocab (or a projection of equal vocabularies).")
    if teacher_vocab is not None and teacher_vocab.fingerprint != student_vocab.fingerprint:
        raise LossError(
            f"direct: needs equal vocabularies; {student_vocab.name} ({len(student_vocab)} ids) "
            f"and {teacher_vocab.name} ({len(teacher_vocab)} ids) differ in their bytes or "
            f"roles. Take path_kl."
        )
    return Direct(len(student_vocab), student_vocab.is_missing, **settings)


def _check_one_vocabulary(projection: Projection) -> None:
    """Refuse a projection between two vocabularies, by fingerprint; from bare arrays by its W."""
    if projection.student_size != projection.teacher_size:
        raise LossError(
            f"direct: needs equal vocabularies; the projection's have "
            f"{projection.student_size} and {projection.teacher_size} ids."
        )
    student, teacher = projection.student_tokens, projection.teacher_tokens
    if student is not None and teacher is not None:
        same = student.fingerprint == teacher.fingerprint
    else:
        real = np.flatnonzero(~np.asarray(projection.student_masked, dtype=bool))
        weights, indices = projection.weights[real], projection.indices[real]
        own = (indices == real[:, None]) & (weights == 1.0)
        same = bool((own.sum(1) == 1).all() and ((weights > 0) == own).all())
    if not same:
        raise LossError(
            "direct: needs equal vocabularies; the projection maps one vocabulary to another. Take "
            "path_kl."
        )


def _loss_class(kind: str) -> type[Loss]:
    if kind not in LOSSES:
        near = difflib.get_close_matches(kind, LOSSES, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise LossError(f"unknown loss {kind!r}; expected one of {', '.join(LOSSES)}.{hint}")
    return LOSSES[kind]
