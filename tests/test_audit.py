from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_vocab import FakeVocabulary, roles
from tiny_models import train_tokenizer
from xtoken.audit import AuditReport, audit, table_8_counts
from xtoken.audit.classes import TITLES, classify, title
from xtoken.audit.coverage import byte_strings
from xtoken.audit.text import DOCUMENT, split_texts
from xtoken.audit.verdict import decide
from xtoken.errors import DataError, ProjectionError
from xtoken.projection import Projection
from xtoken.vocab import Vocabulary

BASE = [*(str(digit).encode() for digit in range(10)), b".", b",", b" ", b"a", b"b"]
ENDS = [roles("bos"), roles("eos"), None]


def class_keys(tokens: list) -> list[str]:
    classes, keys = classify(FakeVocabulary(tokens))
    return [keys[index] for index in classes]


def keeping_numerals(*extra) -> FakeVocabulary:
    numerals = [str(number).encode() for number in range(10, 1000)]
    return FakeVocabulary([*BASE, *numerals, *extra, *ENDS], name="keeps numerals")


def splitting_digits(*extra) -> FakeVocabulary:
    return FakeVocabulary([*BASE, b"ab", *extra, *ENDS], name="splits digits", rows=24)


# --------------------------------------------------------------------------- token classes


@pytest.mark.parametrize(
    ("token", "key"),
    [
        (b"7", "numeral_1"),
        (b"47", "numeral_2"),
        (b"201", "numeral_3"),
        (b"1984", "numeral_4plus"),
        (b" 7", "numeral_spaced"),
        (b" 2024", "numeral_spaced"),
        (b".", "punctuation"),
        (b" (", "punctuation"),
        (b"'", "punctuation"),
        (b" '", "punctuation"),
        (b"  ", "whitespace"),
        (b" ", "whitespace"),
        (b"\n\n\t", "whitespace"),
        ("\u00a0\u3000".encode(), "whitespace"),
        (b" the", "letters_latin"),
        (b"don't", "letters_latin"),
        (b"'s", "letters_latin"),
        ("né".encode(), "letters_latin"),
        ("’s".encode(), "letters_latin"),
        (b"of the", "letters_latin"),
        (b"();", "code"),
        (b"_id", "code"),
        (b".\n", "code"),
        (b"x1", "code"),
        (b"\tint", "code"),
        (b"3.14", "code"),
        ("да".encode(), "letters_cyrillic"),
        (" 大学".encode(), "letters_han"),
        ("漢字かな".encode(), "letters_japanese"),
        ("かな".encode(), "letters_hiragana"),
        ("한국".encode(), "letters_hangul"),
        ("हिन्दी".encode(), "letters_devanagari"),
        ("ि".encode(), "letters_devanagari"),
        ("می‌خواهم".encode(), "letters_arabic"),
        ("Ω".encode(), "letters_greek"),
        ("ℝ".encode(), "letters_mathematical"),
        ("aд".encode(), "letters_several"),
        ("²".encode(), "digit_other"),
        ("٣".encode(), "digit_other"),
        ("½".encode(), "numeral_other"),
        ("۲۰".encode(), "numeral_other"),
        ("，是".encode(), "mixed"),
        ("“Well".encode(), "mixed"),
        ("。".encode(), "symbol"),
        (" €".encode(), "symbol"),
        ("👩‍👧".encode(), "symbol"),
        ("❤️".encode(), "symbol"),
        (b"\x00", "symbol"),
        (b"\xd9", "byte_fragment"),
        (b" \xe0\xb8", "byte_fragment"),
        (roles("eos"), "special"),
        (None, "missing"),
    ],
)
def test_each_token_has_its_class(token, key: str) -> None:
    assert class_keys([b"x", token, b"yz"])[1] == key


def test_byte_fallbacks_are_no_letters() -> None:
    vocab = FakeVocabulary([b"A", b"A", b"7", b"7"], kinds={1: "byte", 3: "byte"})
    classes, keys = classify(vocab)
    assert [keys[index] for index in classes] == [
        "letters_latin",
        "byte_fragment",
        "numeral_1",
        "byte_fragment",
    ]


@given(st.lists(st.one_of(st.none(), st.binary(min_size=1, max_size=6)), max_size=20))
def test_every_id_has_one_class_whatever_its_neighbours(tokens: list) -> None:
    together = class_keys(tokens)
    assert together == [class_keys([token])[0] for token in tokens]
    assert all(key in TITLES or key.startswith("letters_") for key in together)
    assert all(title(key) for key in together)


@given(st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=20))
def test_pure_ascii_is_classified_as_its_text_would_be(texts: list[str]) -> None:
    # ASCII goes through a vectorised path: the Python path must agree where it decides.
    tokens = [text.encode() for text in texts]
    for text, key in zip(texts, class_keys(tokens), strict=True):
        body = text[1:] if text[0] == " " and len(text) > 1 else text
        if body.isascii() and body.isdigit():
            assert key.startswith("numeral_")
        if body.isascii() and body.isalpha():
            assert key == "letters_latin"


# --------------------------------------------------------------------------- verdict


def test_numerals_outside_make_a_split_unsound() -> None:
    report = audit(keeping_numerals(), splitting_digits())
    assert (report.verdict.loss, report.verdict.x_token) == ("path_kl", "p_kl")
    assert (report.verdict.deciding_class, report.verdict.side) == ("numeral_3", "student")
    assert "900 of the student's 900 tokens (such as `100`" in report.verdict.reason
    row = report.class_row("numeral_1")
    assert (row.student_ids, row.student_exact, row.teacher_ids, row.teacher_exact) == (10,) * 4
    row = report.class_row("numeral_2")
    assert (row.student_ids, row.student_exact, row.teacher_ids) == (90, 0, 0)
    assert "pushed down" in row.effects["gold"]
    assert "pieces" in row.effects["p_kl"]
    assert row.critical


def test_the_mirror_image_is_unsound_on_the_teachers_side() -> None:
    report = audit(splitting_digits(), keeping_numerals())
    assert (report.verdict.x_token, report.verdict.side) == ("p_kl", "teacher")
    assert "pushed down" not in report.class_row("numeral_3").effects["gold"]


def test_numerals_inside_allow_h_kl() -> None:
    report = audit(keeping_numerals(b"ab"), keeping_numerals(b"ba", b".."))
    assert (report.verdict.loss, report.verdict.x_token) == ("path_kl", "h_kl")
    assert report.verdict.deciding_class is None
    assert "3-digit numerals" in report.verdict.reason
    assert report.class_row("numeral_3").effects["gold"] == "matched id for id"


def test_one_tokenizer_asks_for_direct_kl() -> None:
    vocab = splitting_digits()
    report = audit(vocab, vocab)
    assert report.same_tokenizer
    assert (report.verdict.loss, report.verdict.x_token) == ("direct", None)
    assert report.overlap.smaller_share == 1.0


def test_a_few_missing_marks_do_not_decide() -> None:
    row = audit(keeping_numerals(b"!"), keeping_numerals(b"ab")).class_row("punctuation")
    assert (row.student_ids, row.student_exact) == (3, 2)  # . , !: two of three, so it decides
    assert row.unmatched_examples == ("!",)
    many = dataclasses.replace(row, student_ids=64, student_exact=60)
    overlap = audit(keeping_numerals(), keeping_numerals(b"ab")).overlap
    assert decide(False, [row], overlap).deciding_class == "punctuation"
    assert decide(False, [many], overlap).x_token == "h_kl"


def test_what_the_text_uses_a_lot_decides_too() -> None:
    words = audit(keeping_numerals(b"ab"), keeping_numerals(b"ba")).class_row("letters_latin")
    overlap = audit(keeping_numerals(), keeping_numerals(b"ab")).overlap
    used = dataclasses.replace(words, student_text_tokens=100, student_text_exact=10)
    verdict = decide(False, [used], overlap)
    assert (verdict.x_token, verdict.deciding_class) == ("p_kl", "letters_latin")
    assert "90 of the student's 100 tokens of this text" in verdict.reason


def test_a_small_overlap_makes_a_split_unsound() -> None:
    words = [bytes([65 + i, 65 + j]) for i in range(8) for j in range(8)]
    lower = [word.lower() for word in words]
    report = audit(FakeVocabulary([*BASE, *words]), FakeVocabulary([*BASE, *lower]))
    assert (report.verdict.x_token, report.verdict.deciding_class) == ("p_kl", None)
    assert "19% of the smaller vocabulary" in report.verdict.reason


# --------------------------------------------------------------------------- the report


def test_counts_add_up_and_json_is_plain() -> None:
    student, teacher = keeping_numerals(b"ab", b"\xd9"), splitting_digits("²".encode())
    report = audit(student, teacher)
    assert sum(row.student_ids for row in report.classes) == len(student)
    assert sum(row.teacher_ids for row in report.classes) == len(teacher)
    for row in report.classes:
        assert 0 <= row.student_exact <= row.student_ids
        assert 0 <= row.teacher_exact <= row.teacher_ids
        assert set(row.effects) == {"path_kl", "p_kl", "h_kl", "gold", "strict", "csd"}
    assert report.coverage == Projection.build(student, teacher).stats()
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert plain == report.to_dict()
    assert set(plain) == {field.name for field in dataclasses.fields(AuditReport)}
    assert plain["version"] == 2
    assert plain["text"] is None


def test_scripts_that_hardly_occur_share_a_row() -> None:
    cyrillic = [chr(0x410 + i // 32) + chr(0x430 + i % 32) for i in range(150)]
    student = splitting_digits(*(word.encode() for word in cyrillic), "カ".encode())
    report = audit(student, splitting_digits("ก".encode(), "Ω".encode()))
    rows = {row.key: row for row in report.classes}
    assert rows["letters_cyrillic"].student_ids == 150
    assert (rows["letters_other"].student_ids, rows["letters_other"].teacher_ids) == (1, 2)
    assert rows["letters_other"].title == "letters: other scripts"
    assert not {"letters_katakana", "letters_thai", "letters_greek"} & set(rows)
    assert report.class_row("letters_latin") is not None


def test_overlap_counts_distinct_byte_strings() -> None:
    student = FakeVocabulary([b"a", b"b", b"c", b"c"], kinds={3: "byte"})
    report = audit(student, FakeVocabulary([b"c", b"a", b"d", b"e", b"f", b"g"]))
    overlap = report.overlap
    assert overlap.shared == 2
    assert (overlap.student_share, overlap.teacher_share) == (2 / 3, 2 / 6)
    assert overlap.smaller_share == 2 / 3
    assert report.student.distinct_bytes == 3


def test_other_digits_are_named() -> None:
    student = splitting_digits("²".encode(), "٣".encode())
    assert audit(student, keeping_numerals("²".encode())).other_digits == {"²": True, "٣": False}


def test_roles_and_marks_are_compared() -> None:
    student = FakeVocabulary([*BASE, roles("eos", "end_of_turn")])
    marks = [b"<think>", *(bytes([c]) for c in b"<think>")]
    teacher = FakeVocabulary([*BASE, *marks[:1], roles("eos"), roles("end_of_turn"), roles("bos")])
    report = audit(student, teacher)
    rows = {row.role: row for row in report.roles}
    assert (rows["eos"].student_text, rows["eos"].teacher_text) == ("<end_of_turn/eos>", "<eos>")
    assert rows["eos"].paired
    assert rows["end_of_turn"].paired
    assert not rows["bos"].paired
    assert [(row.mark, row.student_tokens, row.teacher_tokens) for row in report.marks] == [
        ("<think>", None, 1)
    ]


def codes(report: AuditReport) -> set[str]:
    return {warning.code for warning in report.warnings}


def test_warnings_name_what_one_would_regret() -> None:
    student = FakeVocabulary([b"a", b"x", b"ax"], name="tiny")
    teacher = FakeVocabulary([b"a", b"b", roles("eos")], rows=5)
    report = audit(student, teacher)
    assert {"unreachable_tokens", "no_common_ending", "padded_rows_teacher"} <= codes(report)
    messages = {warning.code: warning.message for warning in report.warnings}
    assert "2 student tokens" in messages["unreachable_tokens"]
    assert "2 rows more" in messages["padded_rows_teacher"]
    assert "no_common_tokens" in codes(audit(FakeVocabulary([b"a"]), FakeVocabulary([b"b"])))
    teacher.chat_template = "{{ messages }}"
    assert "one_chat_template" in codes(audit(student, teacher))


def test_a_quiet_pair_has_no_warnings() -> None:
    vocab = keeping_numerals()
    assert codes(audit(vocab, keeping_numerals(b"ab", b"..", b"bb", b"aa", *[None] * 20))) == {
        "nearly_same"
    }
    assert codes(audit(vocab, vocab)) == set()


def test_a_projection_of_another_pair_is_refused() -> None:
    student, teacher = keeping_numerals(), splitting_digits()
    built = Projection.build(student, teacher)
    assert audit(student, teacher, projection=built) == audit(student, teacher)
    with pytest.raises(ProjectionError, match="was built for the student tokenizer"):
        audit(teacher, student, projection=built)


def test_table_8_compares_what_byte_level_bpe_prints() -> None:
    student = {b"1", b"\xb2", b"12", b".", b" .", b"\xab", b"\xad", b"a", b".."}
    assert table_8_counts(student, {b"1", b"\xb2", b" ."}) == {
        "1-digit": (2, 2),
        "2-digit": (1, 0),
        "3-digit": (0, 0),
        "ASCII punct": (3, 1),
    }


# --------------------------------------------------------------------------- sample texts


@given(st.lists(st.text(max_size=60)), st.integers(1, 400))
def test_documents_are_the_text(texts: list[str], max_bytes: int) -> None:
    if not any(texts):
        with pytest.raises(DataError, match="empty"):
            split_texts(texts, max_bytes)
        return
    documents, size, total = split_texts(texts, 10**9)
    assert "".join(documents) == "".join(texts)
    assert size == total == len("".join(texts).encode())
    sampled, sampled_size, again = split_texts(texts, max_bytes)
    assert again == total
    assert sampled
    assert set(sampled) <= set(documents)
    assert sampled_size <= total


def test_long_texts_are_cut_at_line_ends_and_sampled_evenly() -> None:
    text = "".join(f"{number:06d}\n" for number in range(20_000))
    documents, size, total = split_texts(text, 10**9)
    assert "".join(documents) == text
    assert max(map(len, documents)) <= DOCUMENT
    assert all(document.endswith("\n") for document in documents)
    assert size == total == 140_000
    sampled, size, _ = split_texts(text, 40_000)
    assert 20_000 < size <= 60_000
    positions = [int(document[:6]) for document in sampled]
    assert positions[0] == 0
    assert positions[-1] > 12_000
    assert len(np.unique(np.diff(positions) // 1_000)) <= 3


@pytest.fixture(scope="module")
def trained() -> tuple[Vocabulary, Vocabulary]:
    return (
        Vocabulary.from_tokenizer(train_tokenizer(vocab_size=400, split_digits=False), name="a"),
        Vocabulary.from_tokenizer(train_tokenizer(vocab_size=340, split_digits=True), name="b"),
    )


def test_statistics_on_a_text(trained, tiny_text: list[str]) -> None:
    student, teacher = trained
    report = audit(student, teacher, tiny_text * 20)
    text = report.text
    assert text is not None
    assert text.bytes == text.total_bytes == sum(len(t.encode()) for t in tiny_text) * 20
    assert text.documents == 120
    assert not text.sampled
    assert text.byte_coverage == 1.0
    assert text.student_encodes_exactly
    assert text.teacher_encodes_exactly
    for side in ("student", "teacher"):
        tokens = sum(getattr(row, f"{side}_text_tokens") for row in report.classes)
        exact = sum(getattr(row, f"{side}_text_exact") for row in report.classes)
        assert tokens == getattr(text, f"{side}_tokens")
        share = text.exact_share if side == "student" else text.teacher_exact_share
        assert exact / tokens == pytest.approx(share)
        assert getattr(text, f"{side}_tokens_per_byte") == tokens / text.bytes
    assert sum(text.chunks.values()) <= min(text.student_tokens, text.teacher_tokens)
    numerals = report.class_row("numeral_3")
    # 201, 365, 471, 518 and 100, and what is left of 1984 and 2024: none is exact.
    assert numerals.student_text_tokens > 0
    assert numerals.student_text_exact == 0
    shares = [item.share for item in text.frequent_inexact]
    assert shares == sorted(shares, reverse=True)
    assert any(item.text.isdigit() and len(item.pieces) > 1 for item in text.frequent_inexact)
    json.dumps(report.to_dict(), allow_nan=False)


def test_a_sampled_text_is_said_to_be(trained, tiny_text: list[str]) -> None:
    report = audit(*trained, tiny_text * 50, max_text_bytes=3_000)
    assert report.text.sampled
    assert report.text.bytes < 5_000 < report.text.total_bytes
    assert "sampled" in codes(report)


@pytest.mark.parametrize("texts", ["", [], ["", ""]])
def test_an_empty_text_is_refused(trained, texts) -> None:
    with pytest.raises(DataError, match="sample text is empty"):
        audit(*trained, texts)


def test_padded_heads_are_seen_from_model_directories(tiny_pair: tuple[Path, Path]) -> None:
    student, teacher = (Vocabulary.from_pretrained(path) for path in tiny_pair)
    report = audit(student, teacher)
    assert report.teacher.padded_rows == 5
    assert "padded_rows_teacher" in codes(report)
    assert report.verdict.x_token == "p_kl"
    assert byte_strings(student) >= {b"201"}
