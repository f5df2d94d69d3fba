"""Proposition 1 on a tiny pair: what is reported is autograd's gradient of GOLD's common part."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from xtoken.align import align
from xtoken.audit import audit, measure_suppression
from xtoken.audit.suppression import sample_documents
from xtoken.encode import encode_text
from xtoken.errors import DataError, EvaluationError, UsageError
from xtoken.losses import GOLD, Chunks
from xtoken.models import load_causal_lm
from xtoken.projection import Projection
from xtoken.vocab import Vocabulary


@pytest.fixture(scope="module")
def pair(tiny_pair):
    vocabs = [Vocabulary.from_pretrained(folder) for folder in tiny_pair]
    models = [load_causal_lm(folder, dtype="float32") for folder in tiny_pair]
    return vocabs, models, Projection.build(*vocabs)


@pytest.fixture(scope="module")
def text(tiny_text) -> str:
    return "\n".join(tiny_text)


def gold_gradient(pair, text: str, *, teacher: bool):
    """Autograd's gradient of GOLD's common part on the uncommon logits: [C, X], and its ids."""
    (student_vocab, teacher_vocab), (student, other), projection = pair
    ours, theirs = encode_text(student_vocab, text), encode_text(teacher_vocab, text)
    found = align(
        student_vocab,
        teacher_vocab,
        ours.ids,
        theirs.ids,
        student_spans=ours.spans,
        teacher_spans=theirs.spans,
    )
    chosen = (found.student_start > 0) & (found.teacher_start > 0) & ~found.is_role
    rows_S = torch.from_numpy(found.student_start[chosen].astype(np.int64) - 1)
    rows_T = torch.from_numpy(found.teacher_start[chosen].astype(np.int64) - 1)
    with torch.no_grad():
        student_CV = student(torch.from_numpy(ours.ids)[None]).logits[0, rows_S].double()
        teacher_CU = other(torch.from_numpy(theirs.ids)[None]).logits[0, rows_T].double()
    common_student, common_teacher = projection.exact_pairs()
    if not teacher:  # all of the teacher's mass on common tokens: M_C = 1
        inside = torch.zeros(teacher_CU.shape[1], dtype=torch.bool)
        inside[torch.from_numpy(np.asarray(common_teacher, dtype=np.int64))] = True
        teacher_CU[:, ~inside] = -1e30
    student_CV.requires_grad_()
    loss = GOLD(
        projection,
        direction="teacher_to_student",
        weights="fixed",
        lambda_kl=1.0,
        lambda_uld=0.0,
    )
    index = torch.arange(len(rows_S))
    one, none = torch.ones_like(index), torch.full_like(index, -1)
    loss(student_CV, teacher_CU, Chunks(index, one, index, one, none, none)).total.backward()
    uncommon = ~np.asarray(projection.student_masked, dtype=bool)
    uncommon[common_student] = False
    ids = np.flatnonzero(uncommon)
    return student_CV.grad[:, torch.from_numpy(ids)].numpy(), ids


@pytest.mark.parametrize("with_teacher", [False, True])
def test_what_is_reported_is_the_gradient_of_golds_common_part(pair, text, with_teacher) -> None:
    vocabs, models, projection = pair
    found = measure_suppression(
        models[0],
        *vocabs,
        text,
        teacher=models[1] if with_teacher else None,
        projection=projection,
    )
    gradient, ids = gold_gradient(pair, text, teacher=with_teacher)
    assert (gradient > 0).all()
    assert found.chunks == len(gradient)
    assert found.gradient == pytest.approx(gradient.sum(1).mean(), rel=1e-5)
    assert found.gradient_norm == pytest.approx(np.linalg.norm(gradient, axis=1).mean(), rel=1e-5)
    from xtoken.audit.classes import classify

    classes, keys = classify(vocabs[0])
    for row in found.classes:
        members = classes[ids] == keys.index(row.key)
        assert row.tokens == members.sum()
        assert row.gradient == pytest.approx(gradient[:, members].sum(1).mean(), rel=1e-5)
    assert found.teacher_measured is with_teacher
    if with_teacher:
        assert 0 < found.common_mass < 1
        assert found.gradient < found.mass
    else:
        assert found.common_mass == 1
        assert found.gradient == pytest.approx(found.mass)


def test_classes_add_up_and_numerals_of_the_text_are_seen(pair, text) -> None:
    vocabs, models, _ = pair
    found = measure_suppression(models[0], *vocabs, text)
    rows = {row.key: row for row in found.classes}
    assert sum(row.mass for row in found.classes) == pytest.approx(found.mass)
    assert 0 < found.mass < 1
    assert [row.gradient for row in found.classes] == sorted(
        (row.gradient for row in found.classes), reverse=True
    )
    numerals = rows["numeral_3"]
    assert numerals.text_tokens > 0
    assert 0 < numerals.text_probability < 1
    assert all(len(example) == 3 and example.isdigit() for example in numerals.examples)
    assert "numeral_1" not in rows
    assert found.bytes <= found.total_bytes == len(text.encode())
    report = replace(audit(*vocabs, text), suppression=found)
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert plain == report.to_dict()
    assert plain["suppression"]["classes"][0]["gradient"] == found.classes[0].gradient


def test_the_same_tokenizer_suppresses_nothing(pair, text) -> None:
    vocabs, models, _ = pair
    found = measure_suppression(models[0], vocabs[0], vocabs[0], text)
    assert (found.mass, found.gradient, found.classes) == (0, 0, ())


def test_long_texts_are_sampled(pair, text) -> None:
    vocabs, models, _ = pair
    long = (text + "\n") * 40
    steps = []
    found = measure_suppression(models[0], *vocabs, long, max_tokens=500, progress=steps.append)
    assert found.bytes < found.total_bytes == len(long.encode())
    assert sum(steps) == len(sample_documents(long, 500)[0])
    # Tiny models read 256 tokens: windows are cut there, not refused.
    assert 0 < found.student_tokens <= 256 * sum(steps)


def test_texts_without_a_place_to_measure(pair) -> None:
    vocabs, models, _ = pair
    with pytest.raises(DataError, match="empty"):
        measure_suppression(models[0], *vocabs, "")
    with pytest.raises(EvaluationError, match="no place to measure"):
        measure_suppression(models[0], *vocabs, "a")
    with pytest.raises(UsageError, match="at least 1"):
        measure_suppression(models[0], *vocabs, "a b", max_tokens=0)


def test_a_model_that_gives_nan_is_an_error(pair, text) -> None:
    vocabs, models, _ = pair

    class Broken:
        config = models[0].config
        device = models[0].device

        def __call__(self, **inputs):
            out = models[0](**inputs)
            out.logits = out.logits * float("nan")
            return out

    with pytest.raises(EvaluationError, match="not finite"):
        measure_suppression(Broken(), *vocabs, text)
