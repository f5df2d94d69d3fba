"""From records to rows: windows, masks, packing, several teachers, storage."""

from __future__ import annotations

import pickle
import random
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_models import TINY_TEXT, train_tokenizer
from xtoken.align import align
from xtoken.data import PairedDataset, Pairing, PairingSettings, Record, build_dataset
from xtoken.data.rows import make_row, pack
from xtoken.data.windows import segments, windows
from xtoken.encode import encode_text
from xtoken.errors import DataError, UsageError
from xtoken.vocab import Vocabulary

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
BRACKETS = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'assistant' %} {{ m.content | trim }}</s>"
    "{% else %}[Q]{{ m.content }}[/Q]{% endif %}{% endfor %}"
)
CHAT = (
    {"role": "user", "content": "12 + 30?"},
    {"role": "assistant", "content": "It is 42."},
    {"role": "user", "content": "And 47 + 471?"},
    {"role": "assistant", "content": "518, of course."},
)


@pytest.fixture(scope="module")
def student() -> Vocabulary:
    tokenizer = train_tokenizer(vocab_size=400, split_digits=False)
    tokenizer.chat_template = CHATML
    return Vocabulary.from_tokenizer(tokenizer, name="student")


@pytest.fixture(scope="module")
def teacher() -> Vocabulary:
    tokenizer = train_tokenizer(vocab_size=340, split_digits=True)
    tokenizer.chat_template = BRACKETS
    return Vocabulary.from_tokenizer(tokenizer, name="teacher")


def documents(*texts: str) -> list[Record]:
    return [Record("text", f"line {index}", text=text) for index, text in enumerate(texts)]


def pairs(student, teachers, records, **lengths):
    return list(Pairing(student, teachers, PairingSettings(**lengths)).pair(records))


def spelt(vocab: Vocabulary, ids) -> bytes:
    return b"".join(vocab.token_bytes(int(token)) for token in ids)


def chunk_texts(row, student, teacher, index=0) -> list[tuple[bytes, bytes]]:
    side = row.teachers[index]
    return [
        (spelt(student, row.ids[a : a + n]), spelt(teacher, side.ids[b : b + m]))
        for a, n, b, m in side.chunks.tolist()
    ]


# ---- Windows -------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.text("ab \n\té狐👩", max_size=120), st.integers(1, 20), st.integers(1, 40))
def test_windows_and_segments_add_up_to_the_text(text, budget, longest) -> None:
    assert "".join(segments(text, longest)) == text
    assert all(0 < len(part) <= longest for part in segments(text, longest))
    size = len(text.encode())
    spans = np.stack([np.arange(size), np.arange(1, size + 1)], axis=1).reshape(-1, 2)
    parts = windows(text, spans, budget)
    assert "".join(parts) == text
    for part in parts:
        assert len(part.encode()) <= budget or len(part) == 1


def test_windows_end_at_lines_or_words() -> None:
    text = "one two three\nfour five\r\nsix\n\nseven eight"
    size = len(text)
    spans = np.stack([np.arange(size), np.arange(1, size + 1)], axis=1)
    # A slack of one token in sixteen is at least one token: too short here to look far back.
    assert windows(text, spans, 14)[0] == "one two three\n"
    assert windows(text, spans, 7)[0] == "one two"
    assert "".join(windows(text, spans, 3)) == text
    longer = "word " * 40 + "\n" + "word " * 40
    size = len(longer)
    spans = np.stack([np.arange(size), np.arange(1, size + 1)], axis=1)
    first, second = windows(longer, spans, 208)[:2]
    assert first == "word " * 40 + "\n"
    assert second.startswith("word")
    assert windows("word " * 60, spans[:300], 160)[1].startswith(" word")


def test_tokens_of_unknown_boundary_are_not_torn() -> None:
    """Six tokens share the span of the second letter; the cut goes round them where it can."""
    spans = np.array([(0, 1), *[(1, 4)] * 3, (4, 5), (5, 6)])
    assert windows("a狐bc", spans, 4) == ["a狐", "bc"]
    assert windows("a狐bc", spans, 2) == ["a", "狐", "bc"]
    assert windows("狐", np.array([(0, 3)] * 5), 2) == ["狐"]


@pytest.mark.parametrize("max_length", [2, 3, 7, 16, 61])
def test_long_documents_become_windows(student, teacher, max_length) -> None:
    generator = random.Random(max_length)
    texts = [" ".join(generator.choices(TINY_TEXT, k=k)) for k in (1, 3, 0, 8)]
    found = pairs(student, [teacher], documents(*texts), max_length=max_length)
    for index, text in enumerate(texts):
        own = [example for example in found if example.where == f"line {index}"]
        assert all(1 <= len(example.student) <= max_length for example in own)
        joined = b"".join(spelt(student, example.student.ids) for example in own)
        other = b"".join(spelt(teacher, example.teachers[0].encoding.ids) for example in own)
        assert other == text.encode()
        if max_length > 4:
            assert joined == text.encode()
        # eos at the document's end only
        for example in own:
            ids = example.student.ids.tolist()
            last = example is own[-1]
            assert ids.count(student.role_id("eos")) == last
            assert example.closed == last
            if last:
                assert ids[-1] == student.role_id("eos")
                assert example.student.supervised[-1]
    if max_length >= 16:
        lengths = [len(example.student) for example in found if not example.closed]
        assert np.mean(lengths) > 0.75 * max_length


def test_a_long_text_is_cut_before_it_is_tokenised(student, teacher, monkeypatch) -> None:
    monkeypatch.setattr("xtoken.data.windows.LONGEST_SEGMENT", 100)
    monkeypatch.setattr("xtoken.data.windows.segments.__defaults__", (100,))
    text = " ".join(TINY_TEXT)
    found = pairs(student, [teacher], documents(text), max_length=64)
    assert b"".join(spelt(student, e.student.ids) for e in found) == text.encode()
    assert sum(example.closed for example in found) == 1


# ---- Masks ---------------------------------------------------------------------------------


def test_only_the_completion_is_supervised(student, teacher) -> None:
    record = Record("prompt_completion", "line 1", prompt="47 + 471 =", completion=" 518")
    (example,) = pairs(student, [teacher], [record])
    row = make_row([example])
    assert spelt(student, row.ids[row.supervised]) == b" 518"
    assert row.ids[row.supervised][-1] == student.role_id("eos")
    texts = chunk_texts(row, student, teacher)
    assert b"".join(s for s, _ in texts) == b" 518"
    assert all(s == t for s, t in texts)
    assert texts[-1] == (b"", b"")  # eos with eos


def test_assistant_turns_are_the_same_text_under_both_templates(student, teacher) -> None:
    (example,) = pairs(student, [teacher], [Record("messages", "line 1", messages=CHAT)])
    row = make_row([example])
    answers = b"It is 42.518, of course."
    assert spelt(student, row.ids[row.supervised]) == answers
    texts = chunk_texts(row, student, teacher)
    assert b"".join(s for s, _ in texts) == answers
    assert all(s == t for s, t in texts)
    assert [s for s, _ in texts].count(b"") == 2  # both ends of turns
    (example,) = pairs(
        student, [teacher], [Record("messages", "line 1", messages=CHAT)], supervise="all"
    )
    everything = "".join(message["content"] for message in CHAT).encode()
    row = make_row([example])
    assert spelt(student, row.ids[row.supervised]) == everything


def test_of_a_prompt_in_messages_nothing_is_supervised(student, teacher) -> None:
    record = Record("messages", "line 1", messages=CHAT, completion_messages=1)
    (example,) = pairs(student, [teacher], [record])
    row = make_row([example])
    assert spelt(student, row.ids[row.supervised]) == b"518, of course."
    assert row.supervised.sum() == len(encode_text(student, "518, of course.")) + 1
    assert b"".join(s for s, _ in chunk_texts(row, student, teacher)) == b"518, of course."
    record = Record("messages", "line 1", messages=CHAT, completion_messages=2)
    (example,) = pairs(student, [teacher], [record], supervise="all")
    targets = example.student.ids[example.student.supervised].tolist()
    assert spelt(student, targets) == b"And 47 + 471?518, of course."
    # The end of the prompt's last turn stands where the completion begins.
    assert targets.count(student.role_id("eos")) == 2


def test_the_first_token_is_no_target(student, teacher) -> None:
    (example,) = pairs(student, [teacher], documents("people of the river"))
    row = make_row([example])
    assert not row.supervised[0]
    assert row.supervised[1:].all()
    chunks = row.teachers[0].chunks
    assert (chunks[:, [0, 2]] >= 1).all()
    assert (chunks[:, [1, 3]] >= 1).all()


# ---- Truncation ----------------------------------------------------------------------------


def test_completions_are_truncated_not_cut_up(student, teacher) -> None:
    record = Record("prompt_completion", "x", prompt="12 + 30 =", completion=" 42" * 30)
    found = pairs(student, [teacher], [record], max_length=20)
    assert len(found) == 1
    assert len(found[0].student) == 20
    assert not found[0].closed
    row = make_row(found)
    assert row.ids[-1] != student.role_id("eos")
    # What the teacher would read behind the student's last token is not kept.
    last = row.teachers[0].chunks[-1]
    assert len(row.teachers[0].ids) == last[2] + last[3]
    assert len(row.teachers[0].ids) < len(found[0].teachers[0].encoding)


def test_teacher_max_length_drops_the_tail(student, teacher) -> None:
    text = "there were 201 people and 37 dogs by the river bank"
    whole = make_row(pairs(student, [teacher], documents(text)))
    (example,) = pairs(student, [teacher], documents(text), teacher_max_length=12)
    cut = make_row([example])
    assert not example.closed
    np.testing.assert_array_equal(cut.ids, whole.ids)
    np.testing.assert_array_equal(cut.supervised, whole.supervised)
    chunks = whole.teachers[0].chunks
    expected = chunks[chunks[:, 2] + chunks[:, 3] <= 12]
    assert 0 < len(expected) < len(chunks)
    np.testing.assert_array_equal(cut.teachers[0].chunks, expected)
    assert cut.teachers[0].aligned_bytes < whole.teachers[0].aligned_bytes == len(text)


def test_lengths_below_two_are_refused() -> None:
    with pytest.raises(UsageError, match="max_length is 1"):
        PairingSettings(max_length=1)
    with pytest.raises(UsageError, match="teacher_max_length is 0"):
        PairingSettings(teacher_max_length=0)


# ---- Same tokenizer, several teachers ------------------------------------------------------


def test_a_teacher_with_the_same_tokenizer_needs_no_alignment(student, teacher) -> None:
    twin = Vocabulary.from_tokenizer(student.tokenizer, name="twin")
    records = [
        *documents(*TINY_TEXT),
        Record("messages", "chat", messages=CHAT),
        Record("prompt_completion", "pair", prompt="47", completion="1"),
    ]
    for example in pairs(student, [twin, teacher], records):
        assert example.teachers[0].alignment is None
        assert example.teachers[1].alignment is not None
        row = make_row([example])
        positions = np.flatnonzero(row.supervised)
        np.testing.assert_array_equal(row.teachers[0].chunks[:, 0], positions)
        np.testing.assert_array_equal(row.teachers[0].chunks[:, 2], positions)
        assert (row.teachers[0].chunks[:, [1, 3]] == 1).all()
        np.testing.assert_array_equal(row.teachers[0].ids, row.ids[: len(row.teachers[0].ids)])
        assert row.teachers[0].aligned_bytes == row.text_bytes


def test_the_same_tokenizer_under_another_template_is_aligned(student) -> None:
    other = train_tokenizer(vocab_size=400, split_digits=False)
    other.chat_template = BRACKETS
    other = Vocabulary.from_tokenizer(other, name="other")
    assert student.same_as(other)
    (example,) = pairs(student, [other], [Record("messages", "chat", messages=CHAT)])
    assert example.teachers[0].alignment is not None
    row = make_row([example])
    assert len(row.teachers[0].chunks) > 5
    assert all(s == t for s, t in chunk_texts(row, student, other))


def test_each_teacher_is_as_if_alone(student, teacher) -> None:
    third = Vocabulary.from_tokenizer(train_tokenizer(vocab_size=300, split_digits=True))
    both = build_dataset(documents(*TINY_TEXT), student, [teacher, third], max_length=32)
    for index, vocab in enumerate((teacher, third)):
        alone = build_dataset(documents(*TINY_TEXT), student, [vocab], max_length=32)
        assert len(alone) == len(both)
        for one, other in zip(alone, both, strict=True):
            np.testing.assert_array_equal(one.ids, other.ids)
            for name in ("ids", "chunks"):
                np.testing.assert_array_equal(
                    getattr(one.teachers[0], name), getattr(other.teachers[index], name)
                )


def test_no_teachers_at_all(student) -> None:
    dataset = build_dataset(documents(*TINY_TEXT), student, [])
    assert len(dataset) == len(TINY_TEXT)
    assert dataset[0].teachers == ()


# ---- Packing -------------------------------------------------------------------------------


def test_packed_chunks_stay_in_their_documents(student, teacher) -> None:
    texts = [TINY_TEXT[i % 6] for i in range(20)]
    examples = pairs(student, [teacher], documents(*texts), max_length=100)
    groups = list(pack(examples, max_length=100, packing=True))
    assert [example for group in groups for example in group] == examples
    assert max(len(group) for group in groups) > 2
    for group in groups:
        row = make_row(group)
        assert len(row.ids) <= 100
        side = row.teachers[0]
        start = teacher_start = 0
        for position, example in enumerate(group):
            stop = start + len(example.student)
            teacher_stop = teacher_start + len(example.teachers[0].encoding)
            assert row.ids[stop - 1] == student.role_id("eos")
            own = side.chunks[(side.chunks[:, 0] >= start) & (side.chunks[:, 0] < stop)]
            alone = make_row([example]).teachers[0].chunks
            expected = own - [start, 0, teacher_start, 0]
            # Behind another document a first token has a predecessor.
            np.testing.assert_array_equal(expected[len(expected) - len(alone) :], alone)
            assert len(expected) == len(alone) + (position > 0)
            assert (own[:, 0] + own[:, 1] <= stop).all()
            assert (own[:, 2] + own[:, 3] <= teacher_stop).all()
            start, teacher_start = stop, teacher_stop
        assert all(s == t for s, t in chunk_texts(row, student, teacher))
        assert side.aligned_bytes == row.text_bytes


def test_packing_stops_at_what_is_not_closed(student, teacher) -> None:
    texts = ["12 + 30", " ".join(TINY_TEXT), "47", "58"]
    examples = pairs(student, [teacher], documents(*texts), max_length=64)
    groups = list(pack(examples, max_length=64, packing=True))
    for group in groups:
        assert all(example.closed for example in group[:-1])
    assert groups[-1][-1].where == "line 3"
    assert [len(group) for group in pack(examples, max_length=64)] == [1] * len(examples)
    cut = pairs(student, [teacher], documents(*TINY_TEXT), max_length=64, teacher_max_length=5)
    assert [len(group) for group in pack(cut, max_length=500, packing=True)] == [1] * len(cut)
    narrow = list(pack(examples, max_length=64, teacher_max_length=5, packing=True))
    assert all(
        len(group) == 1 or sum(len(e.teachers[0].encoding) for e in group) <= 5 for group in narrow
    )


# ---- The data set --------------------------------------------------------------------------


def same_rows(one: PairedDataset, other: PairedDataset) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.ids, b.ids)
        np.testing.assert_array_equal(a.supervised, b.supervised)
        assert a.text_bytes == b.text_bytes
        for s, t in zip(a.teachers, b.teachers, strict=True):
            np.testing.assert_array_equal(s.ids, t.ids)
            np.testing.assert_array_equal(s.chunks, t.chunks)
            assert (s.text_bytes, s.aligned_bytes) == (t.text_bytes, t.aligned_bytes)


MIXED = [
    *documents(*TINY_TEXT, "", "a", " ".join(TINY_TEXT)),
    Record("messages", "chat", messages=CHAT),
    Record("prompt_completion", "pair", prompt="47 + 471 =", completion=" 518"),
    *documents("the end"),
]


@pytest.mark.parametrize("packing", [False, True])
def test_the_store_gives_the_rows_back(student, teacher, packing) -> None:
    examples = pairs(student, [teacher], MIXED, max_length=48)
    groups = list(pack(examples, max_length=48, packing=packing))
    rows = [make_row(group) for group in groups]
    rows = [row for row in rows if row.supervised.any()]
    dataset = build_dataset(MIXED, student, [teacher], max_length=48, packing=packing)
    same_rows(dataset, PairedDataset(rows))
    for row, kept in zip(rows, dataset, strict=True):
        np.testing.assert_array_equal(row.teachers[0].chunks, kept.teachers[0].chunks)
    assert sum(row.text_bytes for row in rows) == dataset.statistics().text_bytes
    same_rows(pickle.loads(pickle.dumps(dataset)), dataset)
    same_rows(build_dataset(MIXED, student, [teacher], max_length=48, packing=packing), dataset)


def test_batches_of_records_change_nothing(student, teacher, monkeypatch) -> None:
    whole = build_dataset(MIXED, student, [teacher], max_length=48)
    monkeypatch.setattr("xtoken.data.pairing.BATCH_CHARACTERS", 1)
    same_rows(build_dataset(MIXED, student, [teacher], max_length=48), whole)


def test_select_split_and_statistics(student, teacher) -> None:
    dataset = build_dataset(MIXED, student, [teacher], max_length=48)
    picked = dataset.select([3, 0])
    np.testing.assert_array_equal(picked[1].ids, dataset[0].ids)
    assert len(picked.select([0])) == 1
    rest, drawn = dataset.split(0.25, seed=3)
    assert len(rest) + len(drawn) == len(dataset)
    assert len(drawn) == round(0.25 * len(dataset))
    same_rows(dataset.split(0.25, seed=3)[1], drawn)
    assert len(dataset.split(0.0001, seed=0)[1]) == 1
    for part in (dataset, picked, rest, drawn):
        totals = part.statistics()
        rows = list(part)
        assert totals.rows == len(rows)
        assert totals.tokens == sum(len(row.ids) for row in rows)
        assert totals.supervised_tokens == sum(int(row.supervised.sum()) for row in rows)
        side = totals.teachers[0]
        chunks = np.concatenate([row.teachers[0].chunks for row in rows])
        assert side.chunks == len(chunks)
        assert side.one_to_many == ((chunks[:, 1] == 1) & (chunks[:, 3] > 1)).sum()
        assert side.tokens == sum(len(row.teachers[0].ids) for row in rows)
        assert side.aligned_bytes == sum(row.teachers[0].aligned_bytes for row in rows)


def test_chunks_are_those_of_align(student, teacher) -> None:
    text = TINY_TEXT[1]
    row = build_dataset(documents(text), student, [teacher])[0]
    s, t = encode_text(student, text, eos=True), encode_text(teacher, text, eos=True)
    alignment = align(student, teacher, s.ids, t.ids)
    chosen = alignment.supervised(s.supervised, t.supervised)
    np.testing.assert_array_equal(row.teachers[0].chunks[:, 0], alignment.student_start[chosen])
    np.testing.assert_array_equal(
        row.teachers[0].chunks[:, 2] + row.teachers[0].chunks[:, 3],
        alignment.teacher_stop[chosen],
    )


def test_progress_and_max_examples(student, teacher, tmp_path) -> None:
    from xtoken.data import read_records

    told: list[tuple[float | None, int]] = []
    dataset = build_dataset(
        documents(*TINY_TEXT),
        student,
        [teacher],
        max_examples=4,
        progress=lambda share, rows: told.append((share, rows)),
    )
    assert len(dataset) == 4
    assert told == [(None, 1), (None, 2), (None, 3), (None, 4)]
    path = tmp_path / "a.txt"
    path.write_text("\n".join(TINY_TEXT))
    told.clear()
    build_dataset(
        read_records(path),
        student,
        [teacher],
        progress=lambda share, rows: told.append((share, rows)),
    )
    assert told[-1][1] == 1
    assert told[-1][0] is not None


def test_the_preview_has_something_to_show(student, teacher) -> None:
    dataset = build_dataset(MIXED, student, [teacher])
    assert dataset.preview is not None
    assert dataset.preview.where == "line 0"
    assert dataset.preview.teachers[0].alignment is not None


# ---- Nothing to learn ----------------------------------------------------------------------


def unsupervised(**message: str) -> list[Record]:
    return [Record("messages", "line 1", messages=({"role": "user", **message},))]


@pytest.mark.parametrize(
    ("records", "settings", "message"),
    [
        ([], {}, "there are no records"),
        (documents("", ""), {}, "all 2 records are empty"),
        (unsupervised(content="Hello"), {}, "none of the 1 chats has .* role assistant"),
        (
            [Record("messages", "line 1", messages=CHAT[:2])],
            {"max_length": 3},
            "no assistant's message is left after cutting to max_length",
        ),
        (
            [Record("prompt_completion", "line 1", prompt="the river " * 9, completion="x")],
            {"max_length": 5},
            "no completion is left after cutting",
        ),
        (
            [Record("prompt_completion", "line 1", prompt="the river " * 9, completion="x")],
            {"teacher_max_length": 5},
            r"teacher teacher in 1 sequences: .*teacher_max_length is 5",
        ),
    ],
)
def test_no_support_is_an_error_with_its_reason(
    student, teacher, records, settings, message
) -> None:
    with pytest.raises(DataError, match=message):
        build_dataset(records, student, [teacher], **settings)


def test_a_chat_that_a_template_refuses_is_named(student, teacher) -> None:
    record = Record("messages", "chats.jsonl, line 7", messages=({"role": "user", "content": 3},))
    with pytest.raises(DataError, match=r"^chats\.jsonl, line 7: "):
        build_dataset([record], student, [teacher])


def test_pairing_needs_no_torch() -> None:
    import subprocess

    code = "import sys, xtoken.data; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_tokenizer_without_eos_pairs_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody asked for an eos, so its absence is no error."""
    from xtoken.data.pairing import _encode_pieces, _Piece
    from xtoken.vocab import Vocabulary

    vocab = Vocabulary.from_tokenizer(train_tokenizer(vocab_size=340, split_digits=True))
    monkeypatch.delitem(vocab._roles.id_of, "eos")
    assert vocab.role_id("eos") is None
    (encoding,) = _encode_pieces(vocab, [_Piece("12 + 30 = 42", "row 1", True)])
    assert vocab.join_bytes(encoding.ids) == b"12 + 30 = 42"
