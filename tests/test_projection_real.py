"""The projection between real tokenizers, against figures found independently of this code."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from xtoken.errors import ProjectionError
from xtoken.projection import Projection

pytestmark = pytest.mark.assets

PAIRS = [
    ("llama-3", "qwen2"),
    ("qwen2", "llama-3"),
    ("gpt-2", "smollm2"),
    ("llama-spm", "gpt-2"),
    ("smollm2", "gemma-3"),
    ("gemma-3", "smollm2"),
    ("gpt-2", "bert-uncased"),
]


@pytest.fixture(scope="module")
def build(vocabulary) -> Callable[[str, str], Projection]:
    @cache
    def make(student: str, teacher: str) -> Projection:
        return Projection.build(vocabulary(student), vocabulary(teacher))

    return make


def row(projection: Projection, token: int) -> dict[bytes, float]:
    return {piece.bytes: piece.weight for piece in projection.explain(token).pieces}


def test_llama_3_and_qwen_share_what_the_literature_counts(build, vocabulary) -> None:
    projection = build("llama-3", "qwen2")
    stats = projection.stats()
    # 109,566 common tokens and 133 more under the relaxed rule; Qwen3 has the same pieces.
    assert stats["exact"] == 109_566
    assert stats["extended_pairs"] - stats["common_pairs"] == 133
    assert stats["empty"] == 0
    llama = vocabulary("llama-3")
    two_oh_one = llama.id_for_bytes(b"201")
    expected = {b"2": 100 / 111, b"0": 10 / 111, b"1": 1 / 111}
    assert row(projection, two_oh_one) == pytest.approx(expected)
    zeros = llama.id_for_bytes(b"00")
    assert row(projection, zeros) == {b"0": 1.0}
    assert not projection.exact[zeros]
    assert row(projection, llama.id_for_bytes(b" the")) == {b" the": 1.0}


def test_a_teacher_that_keeps_numerals_folds_them_to_their_first_digit(build, vocabulary) -> None:
    projection = build("qwen2", "llama-3")
    llama = vocabulary("llama-3")
    for numeral in (b"201", b"47", b"000"):
        folded = projection.explain_teacher(llama.id_for_bytes(numeral))
        assert folded.kind == "folded"
        assert folded.fold.bytes == numeral[:1]
    digit = projection.explain_teacher(llama.id_for_bytes(b"7"))
    assert (digit.kind, digit.sources[0].bytes) == ("reached", b"7")


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
def test_invariants(build, vocabulary, student: str, teacher: str) -> None:
    projection = build(student, teacher)
    ours, theirs = vocabulary(student), vocabulary(teacher)
    assert projection.indices.shape == (len(ours), 4)
    assert len(projection.teacher_masked) == len(theirs)
    sums = projection.weights.sum(axis=1)
    np.testing.assert_allclose(sums[sums > 0], 1.0, rtol=1e-6)
    assert projection.indices.max() < len(theirs)
    assert projection.indices[projection.weights > 0].min() >= 0
    exact = np.flatnonzero(projection.exact & ~ours.is_special)
    for token in exact.tolist():
        assert ours.token_bytes(token) == theirs.token_bytes(int(projection.indices[token, 0]))
    stats = projection.stats()
    assert len(ours) == sum(
        stats[key] for key in ("exact", "role", "multi_token", "empty", "student_masked")
    )
    fold = projection.teacher_fold
    assert projection.teacher_reached[fold[fold >= 0]].all()
    for pairs in (projection.exact_pairs(), projection.extended_pairs()):
        assert len(np.unique(pairs[0])) == len(pairs[0]) == len(np.unique(pairs[1]))
    eos = ours.role_id("eos")
    assert theirs.roles(int(projection.indices[eos, 0])) & ours.roles(eos)


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
def test_pieces_spell_the_student_token(build, vocabulary, student: str, teacher: str) -> None:
    projection = build(student, teacher)
    ours, theirs = vocabulary(student), vocabulary(teacher)
    rows = np.flatnonzero(~projection.exact & (ours.byte_lengths > 0))
    rows = rows[:: max(1, len(rows) // 3_000)].tolist()
    spelt = theirs.tokenize_bytes([ours.token_bytes(token) for token in rows])
    for token, pieces in zip(rows, spelt, strict=True):
        if not theirs.lossy:
            assert theirs.join_bytes(pieces) in (ours.token_bytes(token), b"")
        expected: dict[int, float] = {}
        for place, piece in enumerate(pieces[:4]):
            expected[piece] = expected.get(piece, 0.0) + 0.1**place
        total = sum(expected.values())
        found = dict(
            zip(
                projection.indices[token].tolist(),
                projection.weights[token].tolist(),
                strict=True,
            )
        )
        found.pop(-1, None)
        assert found == pytest.approx({key: value / total for key, value in expected.items()})


def test_gemmas_letters_and_byte_fallbacks_stay_apart(build, vocabulary) -> None:
    projection = build("gemma-3", "smollm2")
    gemma, smollm = vocabulary("gemma-3"), vocabulary("smollm2")
    letter, fallback = gemma.ids_for_bytes(b"A")
    assert gemma.kind(fallback) == "byte"
    target = smollm.id_for_bytes(b"A")
    # Both are that byte, so both are exact; the strict partition takes the letter.
    assert projection.indices[[letter, fallback], 0].tolist() == [target, target]
    assert projection.exact[[letter, fallback]].all()
    student_ids, teacher_ids = projection.exact_pairs()
    assert student_ids[teacher_ids == target].tolist() == [letter]
    back = build("smollm2", "gemma-3")
    assert back.indices[target, 0] == letter
    assert back.teacher_fold[fallback] == letter


def test_one_tokenizer_gives_the_identity(vocabulary) -> None:
    llama = vocabulary("llama-3")
    projection = Projection.build(llama, llama)
    assert projection.exact.all()
    np.testing.assert_array_equal(projection.indices[:, 0], np.arange(len(llama)))


def test_padded_rows_of_a_head_change_nothing(build, vocabulary) -> None:
    llama, qwen = vocabulary("llama-3"), vocabulary("qwen2")
    padded = Projection.build(llama, qwen.with_rows(152_064))
    np.testing.assert_array_equal(padded.indices, build("llama-3", "qwen2").indices)
    assert padded.teacher_size == len(qwen)


def test_reverse_pass_reaches_more_and_leaves_exact_rows(build, vocabulary) -> None:
    plain = build("gpt-2", "smollm2")
    both = Projection.build(vocabulary("gpt-2"), vocabulary("smollm2"), reverse=True)
    np.testing.assert_array_equal(both.indices[plain.exact], plain.indices[plain.exact])
    np.testing.assert_array_equal(both.weights[plain.exact], plain.weights[plain.exact])
    assert both.teacher_reached.sum() > plain.teacher_reached.sum()


def test_saved_files_are_small_and_refuse_another_pair(build, vocabulary, tmp_path: Path) -> None:
    projection = build("llama-3", "qwen2")
    path = tmp_path / "w.safetensors"
    projection.save(path)
    assert path.stat().st_size < 12 * 2**20
    loaded = Projection.load(path, vocabulary("llama-3"), vocabulary("qwen2"))
    np.testing.assert_array_equal(loaded.indices, projection.indices)
    assert loaded.stats() == projection.stats()
    assert loaded.explain(679) == projection.explain(679)
    with pytest.raises(ProjectionError, match=r"smollm2.*first id that differs"):
        Projection.load(path, vocabulary("smollm2"))
