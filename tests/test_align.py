"""Alignment against a plain reference, on random cuts of random text and on real tokenizers."""

from __future__ import annotations

import dataclasses
import itertools
import random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fake_vocab import FakeVocabulary, roles
from xtoken.align import BLOCK_TOKENS, Alignment, ChunkKind, align, align_batch
from xtoken.encode import concat, encode_chat, encode_text, encode_texts
from xtoken.errors import AlignmentError
from xtoken.vocab import Vocabulary

BOS, EOS, TURN, PAD, UNK, OTHER = range(6)
ROLE_TOKENS = [roles("bos"), roles("eos"), roles("end_of_turn"), roles("pad"), roles("unk"), None]
REAL = ["llama-3", "qwen2", "gpt-2", "llama-spm", "phi-3", "starcoder", "deepseek-llm", "falcon"]
TEXTS = [
    "In 1984 there were 201 people; x_1 = 47 + 471.\n\n\tdef f(x):\r\n        return x**2\n",
    "  runs   of spaces \t\t and\n\n\nnewlines ",
    "狐狸跳过懒狗。مرحبا بالعالم नमस्ते दुनिया. Привет, Élan naïve café",
    "👩‍👩‍👧‍👦 🏳️‍🌈 a\u200db \u00a0 ﬁ Å \u2581 ____ </s> <|endoftext|> [UNK] <0x41>",
    "cafe\u0301 in NFD, then Å as A\u030a, and back to plain words again",
    "",
    "a",
]


def vocabulary(*parts: bytes, **settings) -> FakeVocabulary:
    """Six role tokens (a hole for OTHER), then these tokens."""
    vocab = FakeVocabulary([*ROLE_TOKENS, *parts])
    for name, value in settings.items():
        setattr(vocab, name, value)
    return vocab


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted({place % (len(data) + 1) for place in places} - {0, len(data)}), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges) if b > a]


def encoded(pieces: list[bytes], seed: int) -> tuple[FakeVocabulary, np.ndarray]:
    """A vocabulary with these tokens under random ids, and the ids of the pieces."""
    known = [*sorted(set(pieces)), b"never used"]
    random.Random(seed).shuffle(known)
    vocab = vocabulary(*known)
    return vocab, np.array([6 + known.index(piece) for piece in pieces], np.int64)


def reference(student: list[bytes], teacher: list[bytes]) -> list[tuple[int, int, int, int]]:
    """Chunks as (student start, stop, teacher start, stop): the common cumulative offsets."""
    student_ends = {0: 0}
    teacher_ends = {0: 0}
    for ends, pieces in ((student_ends, student), (teacher_ends, teacher)):
        for index in range(len(pieces)):
            ends[len(b"".join(pieces[: index + 1]))] = index + 1
    common = sorted(student_ends.keys() & teacher_ends.keys())
    return [
        (student_ends[a], student_ends[b], teacher_ends[a], teacher_ends[b])
        for a, b in itertools.pairwise(common)
    ]


def ranges(alignment: Alignment) -> list[tuple[int, int, int, int]]:
    return list(
        zip(
            alignment.student_start.tolist(),
            alignment.student_stop.tolist(),
            alignment.teacher_start.tolist(),
            alignment.teacher_stop.tolist(),
            strict=True,
        )
    )


def chunk_bytes(vocab, ids, start, stop) -> bytes:
    return b"".join(vocab.token_bytes(int(token)) for token in ids[start:stop])


def check(alignment: Alignment, student, teacher, student_ids, teacher_ids) -> None:
    """What holds for every alignment."""
    assert alignment.student_chunk.shape == (len(student_ids),)
    assert alignment.teacher_chunk.shape == (len(teacher_ids),)
    for name in ("student_chunk", "teacher_chunk", "student_start", "teacher_stop"):
        assert getattr(alignment, name).dtype == np.int32
    assert alignment.byte_start.dtype == alignment.byte_stop.dtype == np.int64
    assert alignment.kind.dtype == np.int8
    assert alignment.is_role.dtype == np.bool_
    for chunk, start, stop in (
        (alignment.student_chunk, alignment.student_start, alignment.student_stop),
        (alignment.teacher_chunk, alignment.teacher_start, alignment.teacher_stop),
    ):
        assert (stop > start).all()
        assert (start[1:] >= stop[:-1]).all()
        expected = np.full(chunk.shape, -1)
        for index, (a, b) in enumerate(zip(start, stop, strict=True)):
            expected[a:b] = index
        np.testing.assert_array_equal(chunk, expected)
    for index, (a, b, c, d) in enumerate(ranges(alignment)):
        size = alignment.byte_stop[index] - alignment.byte_start[index]
        assert alignment.kind[index] == 2 * (b - a > 1) + (d - c > 1)
        assert alignment.is_role[index] == (size == 0)
    assert sum(alignment.counts().values()) == len(alignment)
    assert 0.0 <= alignment.byte_coverage <= 1.0


def check_bytes(alignment: Alignment, student, teacher, student_ids, teacher_ids) -> None:
    """Each chunk has the same bytes on both sides, as many as it says.

    A dummy prefix, which may stand in the first chunk of text, is no byte of the text.
    """
    sizes = (alignment.byte_stop - alignment.byte_start).tolist()
    for index, (a, b, c, d) in enumerate(ranges(alignment)):
        one = chunk_bytes(student, student_ids, a, b)
        other = chunk_bytes(teacher, teacher_ids, c, d)
        if alignment.byte_start[index] == 0 and (student.dummy_prefix or teacher.dummy_prefix):
            one, other = (data[len(data) - sizes[index] :] for data in (one, other))
        assert one == other
        assert len(one) == sizes[index]


def same(one: Alignment, other: Alignment) -> None:
    for field in dataclasses.fields(Alignment):
        np.testing.assert_array_equal(
            getattr(one, field.name), getattr(other, field.name), err_msg=field.name
        )


TEXT = st.one_of(
    st.binary(max_size=60),
    st.text("ab 0\n", max_size=80).map(str.encode),
    st.text(max_size=40).map(str.encode),
)
CUTS = st.lists(st.integers(0, 10_000), max_size=60)


@settings(max_examples=300, deadline=None)
@given(TEXT, CUTS, CUTS, st.integers(0, 9))
@example(b"", [], [], 0)
@example(b"a", [], [], 0)
@example(b"abcdefghijklmnopqrstuvwxyz", [], [3, 9], 1)
def test_chunks_are_the_common_offsets(data, student_cuts, teacher_cuts, seed) -> None:
    student_pieces, teacher_pieces = cut(data, student_cuts), cut(data, teacher_cuts)
    student, student_ids = encoded(student_pieces, seed)
    teacher, teacher_ids = encoded(teacher_pieces, seed + 1)
    alignment = align(student, teacher, student_ids, teacher_ids)
    assert ranges(alignment) == reference(student_pieces, teacher_pieces)
    assert alignment.byte_coverage == 1.0
    assert alignment.student_bytes == alignment.teacher_bytes == len(data)
    check(alignment, student, teacher, student_ids, teacher_ids)
    check_bytes(alignment, student, teacher, student_ids, teacher_ids)


@settings(max_examples=150, deadline=None)
@given(TEXT, CUTS, CUTS, st.integers(0, 99), st.integers(0, 99))
def test_truncated_tails_are_left_out(data, student_cuts, teacher_cuts, keep, keep_too) -> None:
    student_pieces = cut(data, student_cuts)[:keep]
    teacher_pieces = cut(data, teacher_cuts)[:keep_too]
    student, student_ids = encoded(student_pieces, 3)
    teacher, teacher_ids = encoded(teacher_pieces, 4)
    alignment = align(student, teacher, student_ids, teacher_ids)
    assert ranges(alignment) == reference(student_pieces, teacher_pieces)
    check(alignment, student, teacher, student_ids, teacher_ids)
    check_bytes(alignment, student, teacher, student_ids, teacher_ids)


SPECIALS = st.lists(st.tuples(st.integers(0, 60), st.sampled_from([BOS, EOS, TURN, PAD, UNK])))


def with_specials(ids: np.ndarray, specials: list[tuple[int, int]]) -> np.ndarray:
    tokens = ids.tolist()
    for place, token in specials:
        tokens.insert(place % (len(tokens) + 1), token)
    return np.array(tokens, np.int64)


PAIR = st.tuples(TEXT, TEXT, CUTS, CUTS, SPECIALS, SPECIALS, st.booleans())


@settings(max_examples=200, deadline=None)
@given(st.lists(PAIR, max_size=6))
def test_a_batch_is_its_pairs(pairs) -> None:
    """Also with texts that differ, special tokens anywhere, empty sides."""
    built = []
    for data, other, student_cuts, teacher_cuts, student_specials, teacher_specials, equal in pairs:
        built.append(
            (
                cut(data, student_cuts),
                cut(data if equal else data[:7] + other, teacher_cuts),
                student_specials,
                teacher_specials,
            )
        )
    student, _ = encoded([piece for s, _, _, _ in built for piece in s], 1)
    teacher, _ = encoded([piece for _, t, _, _ in built for piece in t], 2)
    student_ids = [
        with_specials(np.array([student.id_for_bytes(p) for p in s], np.int64), specials)
        for s, _, specials, _ in built
    ]
    teacher_ids = [
        with_specials(np.array([teacher.id_for_bytes(p) for p in t], np.int64), specials)
        for _, t, _, specials in built
    ]
    batch = align_batch(student, teacher, student_ids, teacher_ids)
    assert len(batch) == len(pairs)
    for alignment, s, t in zip(batch, student_ids, teacher_ids, strict=True):
        same(alignment, align(student, teacher, s, t))
        check(alignment, student, teacher, s, t)
        check_bytes(alignment, student, teacher, s, t)


@settings(max_examples=150, deadline=None)
@given(TEXT, CUTS, CUTS, SPECIALS, SPECIALS)
def test_sides_may_be_swapped(data, student_cuts, teacher_cuts, specials, more) -> None:
    student, student_ids = encoded(cut(data, student_cuts), 1)
    teacher, teacher_ids = encoded(cut(data, teacher_cuts), 2)
    student_ids, teacher_ids = (
        with_specials(student_ids, specials),
        with_specials(teacher_ids, more),
    )
    one = align(student, teacher, student_ids, teacher_ids)
    other = align(teacher, student, teacher_ids, student_ids)
    mirrored = [(a, b, c, d) for c, d, a, b in ranges(other)]
    text = [r for r, is_role in zip(ranges(one), one.is_role, strict=True) if not is_role]
    assert text == [r for r, is_role in zip(mirrored, other.is_role, strict=True) if not is_role]


@settings(max_examples=150, deadline=None)
@given(TEXT, CUTS, CUTS)
def test_exact_spans_give_what_ids_give(data, student_cuts, teacher_cuts) -> None:
    student_pieces, teacher_pieces = cut(data, student_cuts), cut(data, teacher_cuts)
    student, student_ids = encoded(student_pieces, 1)
    teacher, teacher_ids = encoded(teacher_pieces, 2)

    def spans(pieces):
        stops = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
        return np.stack([stops - [len(piece) for piece in pieces], stops], axis=1)

    with_spans = align(
        student,
        teacher,
        student_ids,
        teacher_ids,
        student_spans=spans(student_pieces),
        teacher_spans=spans(teacher_pieces),
    )
    same(with_spans, align(student, teacher, student_ids, teacher_ids))


def test_every_kind_of_chunk() -> None:
    student = vocabulary(b"ab", b"cde", b"f", b"g", b"hi", b"jk")
    teacher = vocabulary(b"ab", b"c", b"de", b"fg", b"h", b"ij", b"k")
    alignment = align(student, teacher, range(6, 12), range(6, 13))
    assert ranges(alignment) == [(0, 1, 0, 1), (1, 2, 1, 3), (2, 4, 3, 4), (4, 6, 4, 7)]
    assert [ChunkKind(kind).name for kind in alignment.kind] == [
        "ONE_TO_ONE",
        "ONE_TO_MANY",
        "MANY_TO_ONE",
        "MANY_TO_MANY",
    ]
    assert alignment.counts() == {
        "one_to_one": 1,
        "one_to_many": 1,
        "many_to_one": 1,
        "many_to_many": 1,
    }
    assert alignment.student_chunk.tolist() == [0, 1, 2, 2, 3, 3]
    assert alignment.teacher_chunk.tolist() == [0, 1, 1, 2, 3, 3, 3]
    assert alignment.byte_stop.tolist() == [2, 5, 7, 11]


# ---- Special tokens ------------------------------------------------------------------------


LETTERS = vocabulary(b"a", b"b", b"ab")
A, B, AB = 6, 7, 8


@pytest.mark.parametrize(
    ("student_ids", "teacher_ids", "expected"),
    [
        # a bos on one side only costs nothing
        ([BOS, A, B], [A, B], [(1, 2, 0, 1), (2, 3, 1, 2)]),
        ([BOS, A], [BOS, A], [(0, 1, 0, 1), (1, 2, 1, 2)]),
        # eos with eos, end_of_turn with end_of_turn
        ([A, EOS], [A, EOS], [(0, 1, 0, 1), (1, 2, 1, 2)]),
        ([A, TURN, EOS], [A, TURN, EOS], [(0, 1, 0, 1), (1, 2, 1, 2), (2, 3, 2, 3)]),
        # the only closing token on each side
        ([A, TURN], [A, EOS], [(0, 1, 0, 1), (1, 2, 1, 2)]),
        # not the only one: eos waits for eos
        ([A, TURN, EOS], [A, EOS], [(0, 1, 0, 1), (2, 3, 1, 2)]),
        ([A, EOS], [A, B], [(0, 1, 0, 1)]),
        ([A, PAD, PAD], [A, PAD], [(0, 1, 0, 1)]),
        # special tokens inside a chunk tear it
        ([A, EOS, B], [AB], []),
        ([A, EOS, B], [A, B], [(0, 1, 0, 1), (2, 3, 1, 2)]),
        # two documents
        (
            [A, EOS, BOS, B, EOS],
            [A, EOS, B, EOS],
            [(0, 1, 0, 1), (1, 2, 1, 2), (3, 4, 2, 3), (4, 5, 3, 4)],
        ),
        # the teacher's text goes on, so that its eos stands elsewhere
        ([A, EOS], [AB, EOS], []),
        ([A, EOS], [A, B, EOS], [(0, 1, 0, 1)]),
        ([EOS], [EOS], [(0, 1, 0, 1)]),
        ([], [EOS], []),
        ([], [], []),
        ([A], [], []),
        # bytes of unknown length: nothing is certain behind them
        ([A, UNK, A], [A, B, A], [(0, 1, 0, 1)]),
        ([A, UNK, A, A], [A, A, A], [(0, 1, 0, 1)]),
        ([A, OTHER, B], [A, B, B], [(0, 1, 0, 1)]),
    ],
)
def test_special_tokens(student_ids, teacher_ids, expected) -> None:
    alignment = align(LETTERS, LETTERS, student_ids, teacher_ids)
    assert ranges(alignment) == expected
    check(alignment, LETTERS, LETTERS, student_ids, teacher_ids)
    spans = [[(0, 0) if i < 6 else None for i in ids] for ids in (student_ids, teacher_ids)]
    for ids, span in zip((student_ids, teacher_ids), spans, strict=True):
        reached = 0
        for index, token in enumerate(ids):
            size = len(LETTERS.token_bytes(token))
            outside = token in (PAD, UNK, OTHER)
            span[index] = (-1, -1) if outside else (reached, reached + size)
            reached += 1 if token in (UNK, OTHER) else size
    if OTHER not in student_ids and UNK not in student_ids:
        with_spans = align(
            LETTERS,
            LETTERS,
            student_ids,
            teacher_ids,
            student_spans=spans[0],
            teacher_spans=spans[1],
        )
        assert ranges(with_spans) == expected


def test_one_token_may_play_two_roles() -> None:
    """GPT-2's <|endoftext|> is bos and eos: at a border it stands for the eos."""
    student = FakeVocabulary([roles("bos", "eos", "unk"), b"a", b"b"])
    alignment = align(student, LETTERS, [1, 0, 2, 0], [A, EOS, BOS, B, EOS])
    assert ranges(alignment) == [(0, 1, 0, 1), (1, 2, 1, 2), (2, 3, 3, 4), (3, 4, 4, 5)]


# ---- Streams that differ -------------------------------------------------------------------


def spell(vocab: FakeVocabulary, text: str) -> list[int]:
    return [vocab.id_for_bytes(bytes([byte])) for byte in text.encode()]


BYTES = vocabulary(*[bytes([value]) for value in range(256)])


def aligned_text(alignment: Alignment, data: bytes) -> bytes:
    kept = zip(alignment.byte_start, alignment.byte_stop, strict=True)
    return b"".join(data[a:b] for a, b in kept)


def test_letters_that_differ_in_case_are_left_out_alone() -> None:
    one, other = "The Quick brown Fox", "the quick brown fox"
    alignment = align(BYTES, BYTES, spell(BYTES, one), spell(BYTES, other))
    assert aligned_text(alignment, one.encode()) == b"he uick brown ox"
    check_bytes(alignment, BYTES, BYTES, spell(BYTES, one), spell(BYTES, other))


def test_without_spans_chunks_stop_where_the_text_was_changed() -> None:
    one, other = "café au lait, s'il vous plaît", "cafe\u0301 au lait, s'il vous plai\u0302t"
    alignment = align(BYTES, BYTES, spell(BYTES, one), spell(BYTES, other))
    assert aligned_text(alignment, one.encode()) == b"caf"


def test_chunks_go_on_where_the_place_is_certain() -> None:
    one, other = "from Ä to a long unique passage", "from Ö to a long unique passage"
    alignment = align(BYTES, BYTES, spell(BYTES, one), spell(BYTES, other))
    data = one.encode()
    assert aligned_text(alignment, data) == data.replace("Ä".encode(), b"\xc3"[:1])
    assert not alignment.is_role.any()


def test_chunks_do_not_go_on_in_a_passage_that_stands_twice() -> None:
    one = "Ä" + "-" * 40
    other = "A\u0308" + "-" * 40
    alignment = align(BYTES, BYTES, spell(BYTES, one), spell(BYTES, other))
    assert len(alignment) == 0


def test_chunks_do_not_go_on_before_a_passage_that_comes_again() -> None:
    passage = "a long passage, twice. "
    one, other = f"1{passage}1{passage}1", f"2{passage}2{passage}2"
    alignment = align(BYTES, BYTES, spell(BYTES, one), spell(BYTES, other))
    assert len(alignment) == 0


def test_roles_do_not_pair_where_the_place_is_unknown() -> None:
    one = [*spell(BYTES, "cafe\u0301"), EOS]
    other = [*spell(BYTES, "cafexx"), EOS]
    assert not align(BYTES, BYTES, one, other).is_role.any()


def test_spans_carry_on_where_the_text_was_changed() -> None:
    """The teacher composes e + accent: source bytes 3..6 are its single token é."""
    student, teacher = (
        vocabulary(b"caf", b"e", b"\xcc\x81", b" x"),
        vocabulary(b"caf", b"\xc3\xa9", b" x"),
    )
    alignment = align(
        student,
        teacher,
        [6, 7, 8, 9, EOS],
        [6, 7, 8, EOS],
        student_spans=[(0, 3), (3, 4), (4, 6), (6, 8), (8, 8)],
        teacher_spans=[(0, 3), (3, 6), (6, 8), (8, 8)],
    )
    assert ranges(alignment) == [(0, 1, 0, 1), (1, 3, 1, 2), (3, 4, 2, 3), (4, 5, 3, 4)]
    assert alignment.byte_coverage == 1.0


def test_tokens_with_one_span_stay_together() -> None:
    vocab = vocabulary(*[bytes([value]) for value in range(97, 105)])
    alignment = align(
        vocab,
        vocab,
        [6, 7, 8, 9],
        [6, 7, 8, 9],
        student_spans=[(0, 1), (1, 3), (1, 3), (3, 4)],
        teacher_spans=[(0, 1), (1, 2), (2, 3), (3, 4)],
    )
    assert ranges(alignment) == [(0, 1, 0, 1), (1, 3, 1, 3), (3, 4, 3, 4)]
    overlapping = align(
        vocab,
        vocab,
        [6, 7, 8],
        [6, 7, 8, 9],
        student_spans=[(0, 2), (1, 3), (3, 4)],
        teacher_spans=[(0, 1), (1, 2), (2, 3), (3, 4)],
    )
    assert ranges(overlapping) == [(0, 2, 0, 3), (2, 3, 3, 4)]


def test_bytes_that_one_side_lacks_are_in_no_chunk() -> None:
    """One chat template strips a message's white space, the other keeps it."""
    vocab = vocabulary(b" ", b"hi", b" hi", b"\n")
    spans = {"student_spans": [(0, 1), (1, 3), (3, 4)], "teacher_spans": [(1, 3)]}
    assert ranges(align(vocab, vocab, [6, 7, 9], [7], **spans)) == [(1, 2, 0, 1)]
    spans = {"student_spans": [(0, 3)], "teacher_spans": [(1, 3)]}
    assert ranges(align(vocab, vocab, [8], [7], **spans)) == []
    spans = {"student_spans": [(0, 4)], "teacher_spans": [(0, 1), (3, 4)]}
    assert ranges(align(vocab, vocab, [8], [6, 9], **spans)) == []


def test_a_lossy_tokenizers_words_take_the_spaces_before_them() -> None:
    vocab = vocabulary(b"hi", b" hi", b"you", b" you")
    lossy = vocabulary(b"hi", b"you", lossy=True)
    alignment = align(
        vocab,
        lossy,
        [6, 9],
        [6, 7],
        student_spans=[(0, 2), (2, 6)],
        teacher_spans=[(0, 2), (3, 6)],
    )
    assert ranges(alignment) == [(0, 1, 0, 1), (1, 2, 1, 2)]


def test_template_tokens_between_two_halves_tear_a_chunk() -> None:
    vocab = vocabulary(b"a", b"b", b"ab", b"template")
    alignment = align(
        vocab,
        vocab,
        [6, 9, 7],
        [8],
        student_spans=[(0, 1), (-1, -1), (1, 2)],
        teacher_spans=[(0, 2)],
    )
    assert len(alignment) == 0


def test_a_role_token_that_covers_text_is_in_no_chunk() -> None:
    vocab = vocabulary(b"a", b"b")
    alignment = align(
        vocab,
        vocab,
        [6, EOS, 7],
        [6, 7, 7],
        student_spans=[(0, 1), (1, 2), (2, 3)],
        teacher_spans=[(0, 1), (1, 2), (2, 3)],
    )
    assert ranges(alignment) == [(0, 1, 0, 1), (2, 3, 2, 3)]


# ---- Dummy prefix --------------------------------------------------------------------------


SPACED = vocabulary(b" ", b" a", b"a", b" b", b"  ", dummy_prefix=True)
PLAIN = vocabulary(b" ", b" a", b"a", b" b", b"  ")


@pytest.mark.parametrize(
    ("student_ids", "teacher_ids", "expected"),
    [
        ([BOS, 7, 9], [8, 9], [(1, 2, 0, 1), (2, 3, 1, 2)]),  # "a b"
        ([6, 8], [8], [(1, 2, 0, 1)]),  # a bare prefix is no token of the text
        ([10, 8], [7], [(0, 2, 0, 1)]),  # " a" written "▁▁" "a"
        ([7], [7], [(0, 1, 0, 1)]),  # " a" without a prefix of its own
    ],
)
def test_dummy_prefix_is_no_byte_of_the_text(student_ids, teacher_ids, expected) -> None:
    assert ranges(align(SPACED, PLAIN, student_ids, teacher_ids)) == expected
    mirrored = [(c, d, a, b) for a, b, c, d in expected]
    assert ranges(align(PLAIN, SPACED, teacher_ids, student_ids)) == mirrored


# ---- Supervision ---------------------------------------------------------------------------


def test_dummy_prefixes_on_both_sides() -> None:
    for ids, stops in (([7, 9], [1, 3]), ([BOS, 10, 8], [0, 1, 2]), ([6, 8], [1])):
        alignment = align(SPACED, SPACED, ids, ids)
        assert alignment.byte_stop.tolist() == stops
        assert alignment.byte_coverage == 1.0


def test_a_chunk_is_supervised_when_all_of_it_is() -> None:
    vocab = vocabulary(b"a", b"b", b"ab")
    alignment = align(vocab, vocab, [6, 8, 6, 7], [6, 6, 7, 8])
    assert ranges(alignment) == [(0, 1, 0, 1), (1, 2, 1, 3), (2, 4, 3, 4)]
    everything = np.ones(4, bool)
    assert alignment.supervised(everything, everything).tolist() == [False, True, True]
    part = np.array([True, True, True, False])
    assert alignment.supervised(part, everything).tolist() == [False, True, False]
    assert alignment.supervised(everything, part).tolist() == [False, True, False]
    assert not alignment.supervised(np.zeros(4, bool), everything).any()
    with_bos = align(vocab, vocab, [BOS, 6], [6])
    assert with_bos.supervised(np.ones(2, bool), np.ones(1, bool)).tolist() == [False]
    with pytest.raises(AlignmentError, match="student_mask has shape"):
        alignment.supervised(np.ones(3, bool), everything)


# ---- Errors --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "spans", "message"),
    [
        (([6, 99], [6]), {}, "student token 1 of pair 0 is id 99"),
        (([6], [6, -1]), {}, "teacher token 1 of pair 0 is id -1"),
        (([[6]], [6]), {}, "student_ids of pair 0 must be one sequence"),
        (([0.5], [6]), {}, "must be one sequence of integer ids"),
        (([6], [6]), {"student_spans": [(0, 1)]}, "student_spans were given without teacher"),
        (([6], [6]), {"teacher_spans": [(0, 1)]}, "teacher_spans were given without student"),
        (
            ([6], [6]),
            {"student_spans": [(0, 1), (1, 2)], "teacher_spans": [(0, 1)]},
            r"student_spans of pair 0 has shape \(2, 2\)",
        ),
        (
            ([6, 6], [6]),
            {"student_spans": [(1, 2), (0, 1)], "teacher_spans": [(0, 1)]},
            "student token 1 of pair 0 has the span",
        ),
        (
            ([6], [6]),
            {"student_spans": [(0, 1)], "teacher_spans": [(2, 1)]},
            "teacher token 0 of pair 0 has the span",
        ),
        (
            ([6], [6]),
            {"student_spans": [(-1, 1)], "teacher_spans": [(0, 1)]},
            "student token 0 of pair 0 has the span",
        ),
    ],
)
def test_errors_say_what_and_where(arguments, spans, message) -> None:
    with pytest.raises(AlignmentError, match=message):
        align(LETTERS, LETTERS, *arguments, **spans)


def test_batch_errors() -> None:
    with pytest.raises(AlignmentError, match="2 student sequences for 1 teacher"):
        align_batch(LETTERS, LETTERS, [[6], [6]], [[6]])
    with pytest.raises(AlignmentError, match="holds 1 sequences for 2 of ids"):
        align_batch(
            LETTERS,
            LETTERS,
            [[6], [6]],
            [[6], [6]],
            student_spans=[[(0, 1)]],
            teacher_spans=[[(0, 1)], [(0, 1)]],
        )
    with pytest.raises(AlignmentError, match="student token 0 of pair 1 is id 99"):
        align_batch(LETTERS, LETTERS, [[6], [99]], [[6], [6]])
    assert align_batch(LETTERS, LETTERS, [], []) == []
    assert align_batch(LETTERS, LETTERS, [], [], student_spans=[], teacher_spans=[]) == []


def test_input_is_left_alone() -> None:
    ids = np.array([BOS, 7, 9], np.int64)
    before = ids.copy()
    align(SPACED, PLAIN, ids, np.array([8, 9]))
    np.testing.assert_array_equal(ids, before)
    assert SPACED.byte_lengths[7] == 2


def test_many_blocks_are_as_one() -> None:
    generator = random.Random(0)
    pairs = []
    for _ in range(40):
        data = bytes(generator.choices(b"abcdefg ", k=generator.choice([0, 1, 700, 1500])))
        cuts = [generator.randrange(2000) for _ in range(1400)]
        pairs.append((cut(data, cuts[:700]), cut(data, cuts[700:])))
    assert sum(len(student) for student, _ in pairs) > BLOCK_TOKENS
    student, _ = encoded([piece for s, _ in pairs for piece in s], 1)
    teacher, _ = encoded([piece for _, t in pairs for piece in t], 2)
    student_index = {student.token_bytes(i): i for i in range(6, len(student))}
    teacher_index = {teacher.token_bytes(i): i for i in range(6, len(teacher))}
    batch = align_batch(
        student,
        teacher,
        [[student_index[piece] for piece in s] for s, _ in pairs],
        [[teacher_index[piece] for piece in t] for _, t in pairs],
    )
    for alignment, (s, t) in zip(batch, pairs, strict=True):
        assert ranges(alignment) == reference(s, t)


# ---- Real tokenizers -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(asset_dir):
    cache: dict[str, Vocabulary] = {}

    def load(name: str) -> Vocabulary:
        if name not in cache:
            cache[name] = Vocabulary.from_pretrained(asset_dir(f"vocab/{name}"))
        return cache[name]

    return load


@pytest.mark.parametrize("student_name", REAL)
def test_real_tokenizers(real, student_name) -> None:
    """Spans align everything; ids alone align the same wherever both sides keep the bytes."""
    student = real(student_name)
    index = REAL.index(student_name)
    for teacher_name in (REAL[(index + 1) % len(REAL)], REAL[(index + 3) % len(REAL)]):
        teacher = real(teacher_name)
        student_side = encode_texts(student, TEXTS)
        teacher_side = encode_texts(teacher, TEXTS)
        with_spans = align_batch(
            student,
            teacher,
            [e.ids for e in student_side],
            [e.ids for e in teacher_side],
            student_spans=[e.spans for e in student_side],
            teacher_spans=[e.spans for e in teacher_side],
        )
        for alignment, s, t, text in zip(
            with_spans, student_side, teacher_side, TEXTS, strict=True
        ):
            size = len(text.encode())
            check(alignment, student, teacher, s.ids, t.ids)
            assert alignment.aligned_bytes == size, (student_name, teacher_name, text)
            by_ids = align(student, teacher, s.ids, t.ids)
            check_bytes(by_ids, student, teacher, s.ids, t.ids)
            if s.exact and t.exact:
                same(by_ids, alignment)
            else:
                assert by_ids.aligned_bytes < size


def test_packed_documents_of_real_tokenizers(real) -> None:
    student, teacher = real("llama-spm"), real("qwen2")
    s = concat([encode_text(student, text, eos=True) for text in TEXTS])
    t = concat([encode_text(teacher, text, eos=True) for text in TEXTS])
    alignment = align(student, teacher, s.ids, t.ids, student_spans=s.spans, teacher_spans=t.spans)
    check(alignment, student, teacher, s.ids, t.ids)
    assert alignment.is_role.sum() == len(TEXTS)
    assert alignment.byte_coverage == 1.0


def test_one_chat_under_two_templates(real) -> None:
    student, teacher = real("qwen2"), real("phi-3")
    messages = [
        {"role": "user", "content": "What is 47 + 471?"},
        {"role": "assistant", "content": "It is 518."},
    ]
    s, t = encode_chat(student, messages), encode_chat(teacher, messages)
    alignment = align(student, teacher, s.ids, t.ids, student_spans=s.spans, teacher_spans=t.spans)
    check(alignment, student, teacher, s.ids, t.ids)
    assert alignment.byte_coverage == 1.0
    chosen = alignment.supervised(s.supervised, t.supervised)
    total = (alignment.byte_stop - alignment.byte_start)[chosen].sum()
    assert total == len("It is 518.")
    assert alignment.is_role[chosen].sum() == 1


def test_a_lossy_tokenizer_keeps_its_words(real) -> None:
    student, teacher = real("gpt-2"), real("bert-uncased")
    text = "The Quick brown fox, naïve as ever, said: 1984!"
    s, t = encode_text(student, text), encode_text(teacher, text)
    alignment = align(student, teacher, s.ids, t.ids, student_spans=s.spans, teacher_spans=t.spans)
    check(alignment, student, teacher, s.ids, t.ids)
    assert alignment.byte_coverage > 0.95
