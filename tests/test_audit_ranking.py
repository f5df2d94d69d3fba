"""Several teachers for one student: the order, the JSON, the terminal and the page."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest

from cli_calls import fails, ok
from fake_vocab import FakeVocabulary, roles
from xtoken.audit import RankedTeacher, Ranking, audit, rank_teachers
from xtoken.errors import UsageError
from xtoken.report.audit_ranking import ranking_html, render_ranking

BASE = [*(str(digit).encode() for digit in range(10)), b".", b",", b" ", b"a", b"b"]
NUMERALS = [str(number).encode() for number in range(10, 1000)]


def vocabulary(name: str, *extra: bytes, base=BASE) -> FakeVocabulary:
    return FakeVocabulary([*base, *extra, roles("bos"), roles("eos")], name=name)


STUDENT = vocabulary("student", *NUMERALS, b"ab", b"ba")
TEACHERS = {
    "itself": STUDENT,
    "keeps": vocabulary("keeps", *NUMERALS, b"bb"),
    "words": vocabulary("words", b"ab", b"ba", b"aa"),
    "splits": vocabulary("splits", b"bb"),
    "short": vocabulary("short", *NUMERALS, base=[b for b in BASE if b != b"a"]),
}


def names(ranking: Ranking) -> list[str]:
    return [teacher.teacher for teacher in ranking.teachers]


def test_teachers_are_ranked_by_sameness_reach_critical_classes_and_exact_tokens() -> None:
    reports = [audit(STUDENT, teacher) for teacher in TEACHERS.values()]
    ranking = rank_teachers(list(reversed(reports)))
    # `words` and `splits` reach all and lose the numerals; `words` has more exact tokens.
    # `short` has the numerals, but can't write 0.3 % of the tokens, which is no whole percent.
    assert names(ranking) == ["student", "keeps", "short", "words", "splits"]
    assert [teacher.rank for teacher in ranking.teachers] == [1, 2, 3, 4, 5]
    assert [report.teacher.name for report in ranking.audits] == names(ranking)
    first, second, _, fourth, _ = ranking.teachers
    assert first.same_tokenizer
    assert (first.reach, first.exact_share) == (1, 1)
    assert (second.critical_inside, second.critical_classes) == (4, 4)
    assert (fourth.critical_inside, fourth.critical_outside) == (
        2,
        ("2-digit numerals (ASCII)", "3-digit numerals (ASCII)"),
    )
    assert "can't be taught" in ranking.order
    assert not ranking.weighted_by_text


def test_what_cannot_be_reached_comes_last() -> None:
    far = vocabulary("far", *NUMERALS, base=[b".", b",", b" ", *NUMERALS[:1]])
    near = vocabulary("near", b"aa")
    ranking = rank_teachers([audit(vocabulary("s", b"aaa", b"bab"), t) for t in (far, near)])
    assert names(ranking) == ["near", "far"]
    assert ranking.teachers[1].reach < 0.3


def test_only_audits_of_one_student_are_ranked() -> None:
    with pytest.raises(UsageError, match="at least one"):
        rank_teachers([])
    reports = [audit(STUDENT, TEACHERS["keeps"]), audit(TEACHERS["keeps"], STUDENT)]
    with pytest.raises(UsageError, match="2 students"):
        rank_teachers(reports)


def test_json_is_documented_by_the_fields() -> None:
    ranking = rank_teachers([audit(STUDENT, TEACHERS[name]) for name in ("splits", "keeps")])
    plain = json.loads(json.dumps(ranking.to_dict(), allow_nan=False))
    assert plain == ranking.to_dict()
    assert set(plain) == {field.name for field in fields(Ranking)}
    assert plain["version"] == 2
    for teacher, audited in zip(plain["teachers"], plain["audits"], strict=True):
        assert set(teacher) == {field.name for field in fields(RankedTeacher)}
        assert audited["teacher"]["name"] == teacher["teacher"]
    assert plain["teachers"][0]["one_to_one_share"] is None


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_terminal_keeps_to_its_width(width: int) -> None:
    import io

    from rich.console import Console

    ranking = rank_teachers([audit(STUDENT, TEACHERS[name]) for name in ("splits", "keeps")])
    out = io.StringIO()
    Console(file=out, width=width).print(render_ranking(ranking.to_dict()))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert text.index("1. keeps") < text.index("2. splits")
    assert "\x1b" not in text


def test_names_are_escaped_on_the_page() -> None:
    teacher = audit(STUDENT, TEACHERS["keeps"])
    evil = replace(teacher, teacher=replace(teacher.teacher, name="<script>x"))
    shown = ranking_html(rank_teachers([evil, teacher]))
    assert "<script" not in shown
    assert "&lt;script&gt;" in shown


# ------------------------------------------------------------------ the command line


@pytest.fixture
def text_file(tmp_path, tiny_text):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(tiny_text * 3), encoding="utf-8")
    return path


def test_several_teachers_on_the_command_line(tiny_pair, text_file, tmp_path) -> None:
    student, teacher = tiny_pair
    page = tmp_path / "page.html"
    given = ("audit", student, teacher, student, "--text", text_file)
    out = ok(*given, "--html", page)
    assert out.startswith("2 teachers for student")
    assert out.index("1. student") < out.index("2. teacher")
    plain = json.loads(ok(*given, "--json"))
    assert plain["weighted_by_text"]
    assert [t["loss"] for t in plain["teachers"]] == ["direct", "path_kl"]
    assert plain["teachers"][1]["teacher_tokens_per_byte"] > 0
    assert plain["teachers"][1]["reach"] == 1
    shown = page.read_text(encoding="utf-8")
    assert 'id="ranking"' in shown
    assert shown.count('id="pair-') >= 2


def test_the_suppression_check_on_the_command_line(tiny_pair, text_file, tmp_path) -> None:
    student, teacher = tiny_pair
    page = tmp_path / "page.html"
    given = ("audit", *tiny_pair, "--text", text_file, "--student-model", student)
    out = " ".join(ok(*given, "--html", page).split())
    assert "What a strict partition would suppress" in out
    assert "taken as 1" in out
    assert "What a strict partition would suppress" in page.read_text(encoding="utf-8")
    plain = json.loads(ok(*given, "--teacher-model", teacher, "--tokens", 50, "--json"))
    found = plain["suppression"]
    assert found["teacher_measured"]
    assert 0 < found["gradient"] < found["mass"] < 1
    ranked = json.loads(ok(*given[:3], student, *given[3:], "--json"))
    assert ranked["teachers"][0]["suppressed_gradient"] == 0


def test_options_that_do_not_fit_are_refused(tiny_pair, text_file) -> None:
    student, teacher = tiny_pair
    assert "add --text" in fails(2, "audit", *tiny_pair, "--student-model", student)
    given = ("audit", *tiny_pair, "--text", text_file)
    assert "without --student-model" in fails(2, *given, "--teacher-model", teacher)
    assert "2 teachers" in fails(2, "audit", *tiny_pair, teacher, "--projection", "w")
    message = fails(2, *given, "--student-model", "./nowhere")
    assert "nowhere" in message
    # A model that is not the student's: fewer rows than the tokenizer has ids.
    message = fails(1, "audit", student, teacher, "--text", text_file, "--student-model", teacher)
    assert "the model's own tokenizer" in message


def test_long_text_and_a_narrow_terminal(tiny_pair, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    path = tmp_path / "long.txt"
    path.write_text("The river had 201 people in 1984.\n" * 150_000, encoding="utf-8")
    student = tiny_pair[0]
    out = ok(*("audit", *tiny_pair, "--text", path, "--student-model", student, "--tokens", "300"))
    assert max(map(len, out.splitlines())) <= 40
    flat = " ".join(out.split())
    assert "(sampled from 5,100,000)" in flat
    assert "of the text's 5,100,000 bytes" in flat


@pytest.mark.parametrize("text", ["مرحبا بالعالم، هذه جملة. " * 50, "狐狸跳过懒狗。" * 80])
def test_a_text_in_one_script_only(tiny_pair, tmp_path, text: str) -> None:
    path = tmp_path / "script.txt"
    path.write_text(text, encoding="utf-8")
    plain = json.loads(ok("audit", *tiny_pair, tiny_pair[0], "--text", path, "--json"))
    assert all(audited["text"]["byte_coverage"] == 1 for audited in plain["audits"])


def test_each_loss_says_what_it_does_with_the_deciding_class(tiny_pair) -> None:
    out = ok("audit", *tiny_pair)
    shown = out[out.index("What each loss does with") :]
    for loss in ("P-KL: ", "H-KL: ", "GOLD: ", "pushed down"):
        assert loss in " ".join(shown.split())
