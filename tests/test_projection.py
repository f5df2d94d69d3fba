from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_vocab import FakeVocabulary, roles
from xtoken.errors import ProjectionError, UsageError
from xtoken.projection import Projection

ALPHABET = [bytes([letter]) for letter in b"012ab "]


def row(projection: Projection, token: int) -> dict[int, float]:
    pairs = zip(projection.indices[token].tolist(), projection.weights[token].tolist(), strict=True)
    return {target: weight for target, weight in pairs if target >= 0}


def digits_pair() -> tuple[FakeVocabulary, FakeVocabulary]:
    """A student that keeps numerals whole, a teacher that splits them."""
    student = FakeVocabulary([*ALPHABET, b"20", b"201", b"00", b"aba", b"b a", b"ab2b2b2"])
    teacher = FakeVocabulary([b"b", b"a", b"0", b"1", b"2", b" ", b"ab", b"2b2"])
    return student, teacher


def vocabularies() -> st.SearchStrategy[FakeVocabulary]:
    words = st.lists(
        st.binary(min_size=1, max_size=5).map(lambda b: bytes(ALPHABET[x % 6][0] for x in b)),
        max_size=12,
        unique=True,
    )
    special = st.lists(
        st.sampled_from(
            [roles("bos"), roles("eos"), roles("eos", "end_of_turn"), roles("pad"), None]
        ),
        max_size=4,
        unique=True,
    )
    return st.tuples(words, special, st.randoms(use_true_random=False)).map(_shuffled)


def _shuffled(parts: tuple) -> FakeVocabulary:
    words, special, random = parts
    tokens = [*ALPHABET, *(word for word in words if word not in ALPHABET), *special]
    random.shuffle(tokens)
    return FakeVocabulary(tokens)


# --------------------------------------------------------------------------- definitions


def test_exact_match_is_one_entry_of_weight_one() -> None:
    student, teacher = digits_pair()
    projection = Projection.build(student, teacher)
    for token, data in enumerate(ALPHABET):
        assert projection.exact[token]
        assert row(projection, token) == {teacher.id_for_bytes(data): 1.0}


def test_pieces_decay_and_are_normalised_as_in_the_paper() -> None:
    student, teacher = digits_pair()
    projection = Projection.build(student, teacher)
    zero, one, two = (teacher.id_for_bytes(digit) for digit in (b"0", b"1", b"2"))
    assert row(projection, 6) == pytest.approx({two: 0.9090909, zero: 0.0909091})
    assert row(projection, 7) == pytest.approx(
        {two: 0.9009009, zero: 0.0900901, one: 0.0090090}, rel=1e-5
    )
    assert projection.indices[7].tolist() == [two, zero, one, -1]
    assert not projection.exact[6:].any()


def test_equal_targets_add_up_and_weight_one_is_not_exact() -> None:
    student, teacher = digits_pair()
    projection = Projection.build(student, teacher)
    assert row(projection, 8) == {teacher.id_for_bytes(b"0"): 1.0}  # b"00"
    assert not projection.exact[8]
    assert 8 not in projection.exact_pairs()[0]


def test_at_most_k_pieces_are_looked_at() -> None:
    student, teacher = digits_pair()
    projection = Projection.build(student, teacher, max_pieces=2)
    assert projection.indices.shape == (len(student), 2)
    ab, two_b_two = teacher.id_for_bytes(b"ab"), teacher.id_for_bytes(b"2b2")
    assert row(projection, 11) == pytest.approx({ab: 0.9090909, two_b_two: 0.0909091})
    assert projection.stats()["cut_rows"] == 3  # 201, "b a", ab2b2b2: three pieces each or more


@pytest.mark.parametrize("beta", [0.1, 0.9, 7.0])
def test_beta_cancels_without_a_reverse_pass(beta: float) -> None:
    student, teacher = digits_pair()
    ours = Projection.build(student, teacher, beta=beta)
    np.testing.assert_allclose(ours.weights, Projection.build(student, teacher).weights)


def test_gamma_zero_keeps_the_first_piece_and_gamma_one_weighs_alike() -> None:
    student, teacher = digits_pair()
    first = Projection.build(student, teacher, gamma=0.0)
    assert row(first, 7) == {teacher.id_for_bytes(b"2"): 1.0}
    alike = Projection.build(student, teacher, gamma=1.0)
    assert sorted(row(alike, 7).values()) == pytest.approx([1 / 3] * 3)


def test_longest_prefix_takes_the_whole_row() -> None:
    student, teacher = digits_pair()
    projection = Projection.build(student, teacher, rule="longest_prefix")
    assert row(projection, 9) == {teacher.id_for_bytes(b"ab"): 1.0}  # aba -> ab
    assert row(projection, 7) == {teacher.id_for_bytes(b"2"): 1.0}
    assert not projection.exact[9]


def test_bytes_that_the_teacher_cannot_spell_give_an_empty_row() -> None:
    student = FakeVocabulary([b"a", b"x", b"ax"])
    teacher = FakeVocabulary([b"a", roles("unk")])
    projection = Projection.build(student, teacher)
    assert row(projection, 1) == {}
    assert row(projection, 2) == {}
    stats = projection.stats()
    assert stats["empty"] == 2
    assert projection.explain(1).kind == "empty"
    assert not projection.student_masked.any()


def test_same_bytes_prefer_the_same_kind() -> None:
    student = FakeVocabulary([b"A", b"A", b"B"], kinds={0: "byte", 1: "piece"})
    teacher = FakeVocabulary([b"A", b"B", b"A"], kinds={0: "piece", 2: "byte"})
    projection = Projection.build(student, teacher)
    assert [row(projection, token) for token in range(3)] == [{2: 1.0}, {0: 1.0}, {1: 1.0}]
    assert projection.exact.all()


def test_several_students_of_one_teacher_id_make_one_common_pair() -> None:
    student = FakeVocabulary([b"A", b"A", b"B"], kinds={0: "byte"})
    teacher = FakeVocabulary([b"B", b"A"])
    projection = Projection.build(student, teacher)
    assert projection.exact.all()
    common = dict(zip(*(ids.tolist() for ids in projection.exact_pairs()), strict=True))
    assert common == {1: 1, 2: 0}


# --------------------------------------------------------------------------- roles


def test_roles_pair_with_roles_and_the_rest_is_masked() -> None:
    student = FakeVocabulary([b"a", roles("bos"), roles("eos"), roles("special"), None])
    teacher = FakeVocabulary([roles("special"), roles("eos"), roles("bos"), roles("unk"), b"a"])
    projection = Projection.build(student, teacher)
    assert row(projection, 1) == {2: 1.0}
    assert row(projection, 2) == {1: 1.0}
    assert projection.exact.tolist() == [True, True, True, False, False]
    assert projection.student_masked.tolist() == [False, False, False, True, True]
    assert projection.teacher_masked.tolist() == [True, False, False, True, False]
    assert projection.explain(2).kind == "role"
    assert projection.explain(3).kind == "masked"


def test_a_chat_student_meets_a_teacher_with_two_endings() -> None:
    # The student ends texts and turns with one token; the teacher has one for each. The mass of
    # both of the teacher's tokens must reach the student's one.
    student = FakeVocabulary([b"a", roles("eos", "end_of_turn")])
    teacher = FakeVocabulary([b"a", roles("eos"), roles("end_of_turn")])
    projection = Projection.build(student, teacher)
    assert row(projection, 1) == {2: 1.0}
    assert projection.teacher_fold.tolist() == [0, 2, 2]
    assert not projection.teacher_masked.any()
    mirrored = Projection.build(teacher, student)
    assert row(mirrored, 1) == row(mirrored, 2) == {1: 1.0}
    assert mirrored.exact.all()
    assert mirrored.exact_pairs()[0].tolist() == [0, 2]


def test_one_token_of_many_roles_pairs_by_its_ending() -> None:
    # GPT-2's <|endoftext|> is everything at once; what counts is that it ends a text.
    student = FakeVocabulary([roles("bos", "eos", "unk", "pad"), b"a"])
    teacher = FakeVocabulary([roles("unk", "pad"), roles("bos"), roles("eos"), b"a"])
    assert row(Projection.build(student, teacher), 0) == {2: 1.0}


def test_an_ending_without_partner_falls_back_to_the_other_ending() -> None:
    student = FakeVocabulary([b"a", roles("end_of_turn"), roles("pad")])
    teacher = FakeVocabulary([roles("eos"), b"a"])
    projection = Projection.build(student, teacher)
    assert row(projection, 1) == {0: 1.0}
    assert not projection.exact[1]
    assert projection.student_masked.tolist() == [False, False, True]


# --------------------------------------------------------------------------- common sets, fold


def test_extended_pairs_follow_the_collision_rule() -> None:
    #   0 exact on 0; 1 and 2 want 1 (0.7, 0.8: the heavier wins); 3 and 4 want 2 with equal
    #   weight (the lower id wins); 5 wants 0, which is exact's; 6 is below the threshold.
    indices = [[0, -1], [1, 0], [1, 0], [2, 0], [2, 0], [0, 1], [3, 0]]
    weights = [[1, 0], [0.7, 0.3], [0.8, 0.2], [0.6, 0.4], [0.6, 0.4], [0.9, 0.1], [0.5, 0.5]]
    exact = [True] + [False] * 6
    projection = Projection.from_arrays(indices, weights, exact, teacher_size=4)
    student, teacher = projection.extended_pairs(0.6)
    assert dict(zip(student.tolist(), teacher.tolist(), strict=True)) == {0: 0, 2: 1, 3: 2}
    student, teacher = projection.extended_pairs(0.5)
    assert dict(zip(student.tolist(), teacher.tolist(), strict=True)) == {0: 0, 2: 1, 3: 2, 6: 3}


def test_fold_goes_to_the_first_teacher_piece_of_the_first_student_piece() -> None:
    student = FakeVocabulary([b"a", b"b", b"bb", b"2"])
    teacher = FakeVocabulary([b"a", b"b", b"abb", b"bba", b"2", b"x"])
    projection = Projection.build(student, teacher)
    # abb -> student a b.. -> a; bba -> student bb -> teacher pieces b b -> b; x: the student
    # can't spell it.
    assert projection.teacher_fold.tolist() == [0, 1, 0, 1, 4, -1]
    assert projection.teacher_reached.tolist() == [True, True, False, False, True, False]
    assert projection.explain_teacher(3).kind == "folded"
    assert projection.explain_teacher(5).kind == "unreached"
    assert projection.stats()["teacher_unreached"] == 1


def test_reverse_pass_adds_to_pieces_and_never_touches_exact_rows() -> None:
    student = FakeVocabulary([b"a", b"b", b"bc", b"cb"])
    teacher = FakeVocabulary([b"a", b"b", b"c", b"bca"])
    plain = Projection.build(student, teacher)
    both = Projection.build(student, teacher, reverse=True)
    # Forward: bc -> b .909, c .091. Reverse: bca -> student bc, a: bc gets 0.9 on bca, and `a`,
    # exact, gets nothing.
    assert row(both, 0) == {0: 1.0}
    assert row(both, 2) == pytest.approx(
        {1: 0.9090909 / 1.9, 3: 0.9 / 1.9, 2: 0.0909091 / 1.9}, rel=1e-5
    )
    np.testing.assert_array_equal(both.indices[3], plain.indices[3])
    assert both.teacher_reached[3]
    assert not plain.teacher_reached[3]
    lighter = Projection.build(student, teacher, reverse=True, beta=0.45)
    assert row(lighter, 2)[3] == pytest.approx(0.45 / 1.45)


def test_explain_says_bytes_kind_and_pieces() -> None:
    student, teacher = digits_pair()
    projection = Projection.build(student, teacher)
    explanation = projection.explain(6)
    assert (explanation.bytes, explanation.kind) == (b"20", "multi-token")
    assert [piece.bytes for piece in explanation.pieces] == [b"2", b"0"]
    assert explanation.to_dict()["pieces"][0]["text"] == "2"
    sources = projection.explain_teacher(teacher.id_for_bytes(b"0")).sources
    assert [source.bytes for source in sources] == [b"0", b"00", b"20", b"201"]
    assert [source.weight for source in sources] == sorted(
        (source.weight for source in sources), reverse=True
    )
    with pytest.raises(ProjectionError, match=r"student id 12 does not exist.*12 ids"):
        projection.explain(12)
    with pytest.raises(ProjectionError, match="teacher id -1"):
        projection.explain_teacher(-1)


# --------------------------------------------------------------------------- properties


@settings(max_examples=60, deadline=None)
@given(
    vocabularies(), vocabularies(), st.integers(1, 5), st.booleans(), st.sampled_from([0, 0.1, 1])
)
def test_invariants(student, teacher, max_pieces: int, reverse: bool, gamma: float) -> None:
    projection = Projection.build(
        student, teacher, max_pieces=max_pieces, gamma=gamma, reverse=reverse
    )
    sums = projection.weights.sum(axis=1)
    np.testing.assert_allclose(sums[sums > 0], 1.0, rtol=1e-6)
    assert projection.indices.shape == (len(student), max_pieces)
    assert ((projection.indices >= 0) == (projection.weights > 0)).all()
    assert projection.indices.max() < len(teacher)
    for targets in projection.indices.tolist():
        kept = [target for target in targets if target >= 0]
        assert len(set(kept)) == len(kept)
    for token in np.flatnonzero(projection.exact):
        assert sums[token] == 1.0
        target = int(projection.indices[token, 0])
        assert student.token_bytes(token) == teacher.token_bytes(target)
    # Both vocabularies can spell everything: no row of bytes is empty, every id with bytes folds.
    assert not projection.empty_rows.any()
    fold = projection.teacher_fold
    assert (fold[teacher.byte_lengths > 0] >= 0).all()
    assert projection.teacher_reached[fold[fold >= 0]].all()
    assert ((fold < 0) == projection.teacher_masked).all()
    np.testing.assert_array_equal(fold[fold[fold >= 0]], fold[fold >= 0])
    for pairs in (projection.exact_pairs(), projection.extended_pairs()):
        assert len(set(pairs[0].tolist())) == len(pairs[0]) == len(set(pairs[1].tolist()))
        assert (np.diff(pairs[0]) > 0).all()
    assert set(projection.exact_pairs()[0]) <= set(projection.extended_pairs()[0])
    stats = projection.stats()
    assert len(student) == sum(
        stats[key] for key in ("exact", "role", "multi_token", "empty", "student_masked")
    )
    assert len(teacher) == sum(
        stats["teacher_" + key] for key in ("reached", "folded", "unreached", "masked")
    )


@settings(max_examples=40, deadline=None)
@given(vocabularies(), vocabularies(), st.integers(1, 4))
def test_building_agrees_with_the_definition_in_plain_python(student, teacher, max_pieces) -> None:
    projection = Projection.build(student, teacher, max_pieces=max_pieces)
    for token in range(len(student)):
        data = student.token_bytes(token)
        if not data:
            continue
        expected: dict[int, float] = {}
        if teacher.id_for_bytes(data) is not None:
            expected[teacher.id_for_bytes(data)] = 1.0
        else:
            for i, piece in enumerate(teacher.tokenize_bytes([data])[0][:max_pieces]):
                expected[piece] = expected.get(piece, 0.0) + 0.9 * 0.1**i
        total = sum(expected.values())
        assert row(projection, token) == pytest.approx(
            {target: weight / total for target, weight in expected.items()}, rel=1e-6
        )


@settings(max_examples=40, deadline=None)
@given(vocabularies(), vocabularies(), st.randoms(use_true_random=False))
def test_relabelling_ids_relabels_the_projection(student, teacher, random) -> None:
    order = list(range(len(teacher)))
    random.shuffle(order)
    relabelled = FakeVocabulary([teacher._tokens[old] for old in order])
    if relabelled.fingerprint == teacher.fingerprint:
        return
    new_id = {old: new for new, old in enumerate(order)}
    before = Projection.build(student, teacher)
    after = Projection.build(student, relabelled)
    if student.fingerprint in (teacher.fingerprint, relabelled.fingerprint):
        return
    for token in range(len(student)):
        if student.byte_lengths[token]:
            expected = {new_id[target]: weight for target, weight in row(before, token).items()}
            assert row(after, token) == pytest.approx(expected)


@settings(max_examples=30, deadline=None)
@given(vocabularies(), st.integers(1, 4))
def test_one_vocabulary_gives_the_identity(vocab, max_pieces: int) -> None:
    for projection in (
        Projection.build(vocab, vocab, max_pieces=max_pieces),
        Projection.identity(vocab),
    ):
        ids = np.arange(len(vocab))
        present = ~vocab.is_missing
        np.testing.assert_array_equal(projection.indices[present, 0], ids[present])
        np.testing.assert_array_equal(projection.weights.sum(axis=1), present.astype(np.float32))
        np.testing.assert_array_equal(projection.exact, present)
        np.testing.assert_array_equal(projection.teacher_fold, np.where(present, ids, -1))
        np.testing.assert_array_equal(projection.exact_pairs()[0], ids[present])
        np.testing.assert_array_equal(projection.student_masked, vocab.is_missing)


# --------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"max_pieces": 0}, "max_pieces is 0; expected a whole number, 1 or more"),
        ({"max_pieces": 2.5}, "max_pieces is 2.5"),
        ({"beta": 0.0}, "beta is 0.0; expected a number above 0"),
        ({"gamma": -0.1}, "gamma is -0.1; expected a number from 0 to 1"),
        ({"gamma": float("nan")}, "gamma is nan"),
        ({"rule": "nearest"}, "rule is 'nearest'; expected one of multi_token, longest_prefix"),
        ({"rule": "longest_prefix", "reverse": True}, "reverse"),
    ],
)
def test_settings_out_of_range_are_refused(settings_: dict, message: str) -> None:
    student, teacher = digits_pair()
    with pytest.raises(UsageError, match=message):
        Projection.build(student, teacher, **settings_)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"indices": [[0], [7]]}, "indices holds ids from 0 to 7; expected -1 to 2"),
        ({"weights": [[1.0], [np.nan]]}, "finite"),
        ({"weights": [[1.0, 0.0], [1.0, 0.0]]}, r"must both be \[V, K\]"),
        ({"indices": [[0], [-1]]}, "0 in empty slots"),
        ({"exact": [True]}, "exact has 1 entries; expected 2"),
    ],
)
def test_arrays_that_are_no_projection_are_refused(changes: dict, message: str) -> None:
    arrays = {"indices": [[0], [2]], "weights": [[1.0], [1.0]], "exact": [True, False], **changes}
    with pytest.raises(ProjectionError, match=message):
        Projection.from_arrays(
            **arrays,
            teacher_size=3,
            teacher_fold=np.zeros(3, np.int32),
            common_student=np.zeros(0, np.int32),
            common_teacher=np.zeros(0, np.int32),
        )


def test_importing_needs_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, xtoken.audit, xtoken.projection, xtoken.projection.store\n"
        "print([name for name in ('torch', 'transformers', 'pydantic') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
