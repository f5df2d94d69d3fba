from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from xtoken import Vocabulary, align
from xtoken.encode import encode_text
from xtoken.errors import AlignmentError
from xtoken.report import AlignmentView, Block, blocks, render_alignment, visible
from xtoken.report.alignment import summary

TEXT = "In 1984 there were 201 people.\n\tdef läuft 狐狸 مرحبا بالعالم 👩‍👩‍👧 e\u0301 \u200b_"


@pytest.fixture(scope="module")
def vocabs(tiny_pair) -> tuple[Vocabulary, Vocabulary]:
    return tuple(Vocabulary.from_pretrained(folder) for folder in tiny_pair)


def aligned(vocabs, text: str):
    ids = [encode_text(vocab, text).ids for vocab in vocabs]
    return (*vocabs, *ids, align(*vocabs, *ids))


def printed(renderable, width: int = 80, *, colour: bool = False) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=colour, color_system=None)
    if colour:
        console = Console(file=out, width=width, force_terminal=True, color_system="truecolor")
    console.print(renderable)
    return out.getvalue()


def test_columns_stand_under_each_other(vocabs) -> None:
    text = printed(render_alignment(*aligned(vocabs, "there were 201 people")))
    student, teacher, kinds = text.splitlines()[:3]
    assert student.startswith("student │th│ere│")
    assert "│201  │" in student
    assert "│2╎0╎1│" in teacher
    edges = [i for i, char in enumerate(student) if char == "│"]
    assert all(teacher[i] == "│" for i in edges)
    assert "1:3" in kinds
    assert "tokens; " in text
    assert "100.0 % of bytes aligned" in " ".join(text.split())


@pytest.mark.parametrize("width", [20, 40, 80, 133])
def test_no_line_is_wider_than_the_terminal(vocabs, width: int) -> None:
    view = render_alignment(*aligned(vocabs, TEXT * 3 + "=" * 100))
    for line in printed(view, width).splitlines():
        assert cell_len(line) <= width


def test_no_colour_in_a_pipe_and_colours_in_a_terminal(vocabs) -> None:
    view = render_alignment(*aligned(vocabs, TEXT))
    assert "\x1b" not in printed(view)
    coloured = printed(view, colour=True)
    assert "\x1b" in coloured
    assert "one to many" in coloured


def test_every_token_is_in_one_block(vocabs) -> None:
    arguments = aligned(vocabs, TEXT)
    items = blocks(*arguments)
    for side, ids in (("student", arguments[2]), ("teacher", arguments[3])):
        vocab = arguments[0] if side == "student" else arguments[1]
        tokens = [token for block in items for token in getattr(block, side)]
        assert tokens == [visible(vocab.token_bytes(int(i))) for i in ids]


def test_tokens_outside_of_chunks_and_roles(vocabs) -> None:
    student, teacher = vocabs
    ids = [
        [student.role_id("bos"), *encode_text(student, "the people").ids, student.role_id("eos")],
        [*encode_text(teacher, "the people").ids, teacher.role_id("eos")],
    ]
    alignment = align(student, teacher, *ids)
    items = blocks(student, teacher, *ids, alignment)
    assert items[0] == Block(-1, ("<s>",), ())
    assert items[0].label == "–"
    assert items[-1] == Block(0, ("</s>",), ("</s>",), True)
    assert [Block.from_dict(item.to_dict()) for item in items] == items


def test_long_texts_say_what_is_left_out(vocabs) -> None:
    view = render_alignment(*aligned(vocabs, "the people " * 50), max_blocks=7)
    assert len(view.blocks) == 7
    assert "more columns" in printed(view)


def test_wrong_ids_are_refused(vocabs) -> None:
    student, teacher, student_ids, teacher_ids, alignment = aligned(vocabs, "the people")
    with pytest.raises(AlignmentError, match="student ids were given"):
        blocks(student, teacher, student_ids[1:], teacher_ids, alignment)


def test_terminal_without_unicode_gets_ascii(vocabs) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Console(file=out, width=60).print(render_alignment(*aligned(vocabs, TEXT)))
    out.seek(0)
    assert "student |In" in out.read()


def test_empty_text(vocabs) -> None:
    arguments = aligned(vocabs, "")
    assert summary(arguments[-1]).startswith("0 student and 0 teacher tokens; 0 chunks;")
    assert printed(render_alignment(*arguments))


def test_visible_bytes() -> None:
    assert visible(b" the") == "·the"
    assert visible(b"\r\n\t") == "␍⏎⇥"
    assert visible(b" " * 12) == "·×12"
    assert visible(b"\n" * 8) == "⏎" * 8
    assert visible("狐".encode()[:2]) == "<E7><8B>"
    assert visible("👩‍👩".encode()) == "👩<200D>👩"
    assert visible("👍🏽".encode()) == "👍<1F3FD>"
    assert visible("\u0301a".encode()) == "◌\u0301a"
    assert visible("\x1b[31m\u202e".encode()) == "<1B>[31m<202E>"
    assert visible(b"") == ""


@given(st.binary(max_size=40))
def test_visible_is_one_safe_line(data: bytes) -> None:
    text = visible(data)
    assert all(char.isprintable() for char in text)
    # No cell of it depends on what stands before.
    assert not text or cell_len("x" + text) == 1 + cell_len(text)


@given(
    st.lists(
        st.builds(
            Block,
            st.integers(-1, 3),
            st.lists(st.text(min_size=1, max_size=30), max_size=4).map(tuple),
            st.lists(st.text(min_size=1, max_size=30), max_size=4).map(tuple),
        ),
        max_size=12,
    ),
    st.integers(12, 90),
)
def test_any_blocks_fit(items: list[Block], width: int) -> None:
    shown = [
        Block(
            b.kind,
            tuple(visible(t.encode("utf-8", "replace")) for t in b.student),
            tuple(visible(t.encode("utf-8", "replace")) for t in b.teacher),
        )
        for b in items
    ]
    lines = printed(AlignmentView(shown), width).splitlines()
    assert all(cell_len(line) <= width for line in lines)
