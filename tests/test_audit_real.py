"""The audit of real pairs of tokenizers, against published figures."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import cache

import pytest

from xtoken.audit import AuditReport, audit, table_8_counts
from xtoken.audit.coverage import byte_strings
from xtoken.vocab import Vocabulary

pytestmark = pytest.mark.assets

TEXT = (
    "In 1984 the town had 201 houses, 47 farms and 3 mills; by 2024 it had 12,345 people.\n"
    "def add(a, b):\n    return a + b  # 3 + 4 = 7\n"
    "狐狸跳过懒狗。 مرحبا بالعالم नमस्ते दुनिया 👩‍👩‍👧‍👦 naïve café\r\n"
) * 40


@pytest.fixture(scope="module")
def report(vocabulary) -> Callable[[str, str], AuditReport]:
    @cache
    def make(student: str, teacher: str) -> AuditReport:
        return audit(vocabulary(student), vocabulary(teacher))

    return make


def matched(report: AuditReport, key: str) -> tuple[int, int]:
    row = report.class_row(key)
    return row.student_exact, row.student_ids


def test_llama_3_against_qwen(report) -> None:
    found = report("llama-3", "qwen2")
    assert matched(found, "numeral_1") == (10, 10)
    assert matched(found, "numeral_2") == (0, 100)
    assert matched(found, "numeral_3") == (0, 1000)
    assert matched(found, "punctuation") == (64, 64)
    assert found.verdict.x_token == "p_kl"
    assert (found.verdict.deciding_class, found.verdict.side) == ("numeral_3", "student")
    assert "`201`" in found.verdict.reason
    assert {digit for digit, exact in found.other_digits.items() if exact} >= set("²³¹")
    assert found.other_digits["٣"] is False
    assert found.coverage["exact"] == 109_566


def test_llama_3_against_a_tokenizer_that_keeps_numerals(report) -> None:
    found = report("llama-3", "o200k")
    assert matched(found, "numeral_1") == (10, 10)
    assert matched(found, "numeral_2") == (100, 100)
    assert matched(found, "numeral_3") == (1000, 1000)
    assert matched(found, "punctuation") == (64, 64)
    assert found.verdict.x_token == "h_kl"


def test_table_8_of_the_paper(vocabulary) -> None:
    # Its 13 single digits are the ten of ASCII and the lone bytes B2, B3, B9, which byte-level
    # BPE prints as superscript digits; its 88 marks are the 64 of ASCII, with and without a space,
    # and 24 lone bytes that print as Latin-1 marks.
    llama = byte_strings(vocabulary("llama-3"))
    assert table_8_counts(llama, byte_strings(vocabulary("qwen2"))) == {
        "1-digit": (13, 13),
        "2-digit": (100, 0),
        "3-digit": (1000, 0),
        "ASCII punct": (88, 88),
    }
    assert table_8_counts(llama, byte_strings(vocabulary("o200k"))) == {
        "1-digit": (13, 13),
        "2-digit": (100, 100),
        "3-digit": (1000, 1000),
        "ASCII punct": (88, 88),
    }


@pytest.mark.parametrize(
    ("student", "teacher", "share"),
    [  # NeMo-RL's guide, on token strings: 0.848, 0.798, 0.674, 0.646, 0.632
        ("qwen2", "llama-3", 0.848),
        ("llama-3", "o200k", 0.798),
        ("llama-3", "gemma-3", 0.674),
        ("qwen2", "o200k", 0.646),
        ("qwen2", "gemma-3", 0.632),
    ],
)
def test_published_overlaps(vocabulary, student: str, teacher: str, share: float) -> None:
    from xtoken.audit.coverage import measure_overlap

    overlap = measure_overlap(byte_strings(vocabulary(student)), byte_strings(vocabulary(teacher)))
    assert overlap.smaller_share == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize(
    ("student", "teacher", "loss", "deciding", "side"),
    [
        ("qwen2", "llama-3", "p_kl", "numeral_3", "teacher"),
        ("gpt-2", "smollm2", "p_kl", "numeral_3", "student"),
        ("smollm2", "gemma-3", "h_kl", None, None),
        ("llama-spm", "phi-3", "h_kl", None, None),
        ("gpt-2", "bert-uncased", "p_kl", "numeral_3", "student"),
        ("smollm2", "smollm2", None, None, None),
    ],
)
def test_verdicts(report, student: str, teacher: str, loss: str, deciding, side) -> None:
    found = report(student, teacher)
    verdict = found.verdict
    assert verdict.loss == ("path_kl" if loss else "direct")
    assert (verdict.x_token, verdict.deciding_class, verdict.side) == (loss, deciding, side)
    json.dumps(found.to_dict(), allow_nan=False)


def test_warnings_of_real_pairs(report) -> None:
    codes = {warning.code for warning in report("gpt-2", "bert-uncased").warnings}
    assert {"lossy_teacher", "unreachable_tokens"} <= codes
    codes = {warning.code for warning in report("llama-3", "qwen2").warnings}
    assert {"normalizes_teacher", "padded_rows_teacher"} <= codes
    assert "nearly_same" in {w.code for w in report("llama-spm", "phi-3").warnings}


def test_statistics_on_a_text_in_many_scripts(vocabulary) -> None:
    found = audit(vocabulary("llama-3"), vocabulary("qwen2"), TEXT)
    text = found.text
    assert text.bytes == len(TEXT.encode())
    assert text.byte_coverage == 1.0
    assert text.teacher_tokens > text.student_tokens
    assert text.one_to_one_share > 0.7
    numerals = {item.text for item in text.frequent_inexact if item.class_key == "numeral_3"}
    assert {"198", "201", "202", "345"} <= numerals
    assert found.class_row("numeral_3").student_text_exact == 0
    assert found.class_row("numeral_1").student_text_tokens > 0
    assert found.verdict.x_token == "p_kl"


def test_two_large_vocabularies_take_seconds(asset_dir) -> None:
    folders = asset_dir("vocab/llama-3"), asset_dir("vocab/qwen2")
    start = time.process_time()
    audit(*(Vocabulary.from_pretrained(folder) for folder in folders))
    # Five seconds on an idle core; twice that here, since tests share theirs.
    assert time.process_time() - start < 10
