"""Reading records: formats, columns, and what is said when something is wrong."""

from __future__ import annotations

import gzip
import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from xtoken.data import Columns, SourceSpec, read_records
from xtoken.errors import DataError

CHAT = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]


def jsonl(*rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write(path, content: str | bytes):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(source, **settings) -> list:
    return list(read_records(source, **settings))


# ---- What is read --------------------------------------------------------------------------


def test_formats_are_found_by_their_columns(tmp_path) -> None:
    text = read(write(tmp_path / "a.jsonl", jsonl({"text": "one\u2028line"}, {"text": ""})))
    assert [(r.kind, r.text) for r in text] == [("text", "one\u2028line"), ("text", "")]
    assert text[1].where.endswith("a.jsonl, line 2")
    (pair,) = read(write(tmp_path / "b.jsonl", jsonl({"prompt": "Q", "completion": "A", "id": 1})))
    assert (pair.kind, pair.prompt, pair.completion) == ("prompt_completion", "Q", "A")
    (chat,) = read(write(tmp_path / "c.jsonl", jsonl({"messages": CHAT, "text": "not this"})))
    assert (chat.kind, list(chat.messages), chat.completion_messages) == ("messages", CHAT, None)


def test_a_prompt_may_be_given_as_messages(tmp_path) -> None:
    row = {"prompt": CHAT[:1], "completion": CHAT[1:]}
    (record,) = read(write(tmp_path / "a.jsonl", jsonl(row)))
    assert (record.kind, list(record.messages)) == ("messages", CHAT)
    assert record.completion_messages == 1


def test_format_and_columns_may_be_named(tmp_path) -> None:
    path = write(tmp_path / "a.jsonl", jsonl({"text": "x", "body": "y", "messages": CHAT}))
    assert read(path, format="text")[0].text == "x"
    assert read(path, format="text", columns=Columns(text="body"))[0].text == "y"
    columns = Columns(prompt="text", completion="body")
    assert read(path, format="prompt_completion", columns=columns)[0].completion == "y"


def test_plain_text_is_one_document(tmp_path) -> None:
    content = "\ufeffFirst.\r\n\r\nSecond — naïve.\n"
    for name in ("a.txt", "b.md", "noname"):
        (record,) = read(write(tmp_path / name, content))
        assert record.text == content.removeprefix("\ufeff")
    latin = write(tmp_path / "latin.txt", "naïve".encode("cp1252"))
    assert read(latin, encoding="cp1252")[0].text == "naïve"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "cp1252"])
def test_encodings_of_json_lines(tmp_path, encoding) -> None:
    path = write(tmp_path / "a.jsonl", jsonl({"text": "é"}, {"text": "ü"}).encode(encoding))
    assert [record.text for record in read(path, encoding=encoding)] == ["é", "ü"]
    if encoding == "utf-8-sig":
        assert [record.text for record in read(path)] == ["é", "ü"]


def test_json_arrays_gzip_and_blank_lines(tmp_path) -> None:
    array = write(tmp_path / "a.json", "\n [" + json.dumps({"text": "x"}) + "]")
    assert read(array)[0].where.endswith("a.json, row 1")
    lines = write(tmp_path / "b.json", "\n" + jsonl({"text": "x"}) + "\n \n" + '{"text": "y"}')
    assert [(r.text, r.where[-6:]) for r in read(lines)] == [("x", "line 2"), ("y", "line 5")]
    packed = write(tmp_path / "c.jsonl.gz", gzip.compress(jsonl({"text": "z"}).encode()))
    assert read(packed)[0].text == "z"


def test_parquet(tmp_path) -> None:
    path = tmp_path / "a.parquet"
    rows = [{"messages": [*CHAT, {"role": "user", "content": None, "name": "x"}]}] * 3
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    records = read(path)
    assert len(records) == 3
    # Keys that other messages have come back as nulls, and go; a content stays.
    assert list(records[0].messages[:2]) == CHAT
    assert records[0].messages[2] == {"role": "user", "content": None, "name": "x"}
    assert records[2].where.endswith("a.parquet, row 3")


def test_folders_patterns_and_lists(tmp_path, monkeypatch) -> None:
    write(tmp_path / "b.jsonl", jsonl({"text": "b"}))
    write(tmp_path / "a.txt", "a")
    write(tmp_path / "notes.csv", "not data")
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub" / "c.jsonl", jsonl({"text": "c"}))
    assert [record.text for record in read(tmp_path)] == ["a", "b", "c"]
    assert [record.text for record in read(str(tmp_path / "*.jsonl"))] == ["b"]
    monkeypatch.chdir(tmp_path)
    assert [record.text for record in read(["sub/*.jsonl", "a.txt"])] == ["c", "a"]
    records = read_records([SourceSpec("a.txt"), "b.jsonl"])
    fractions = [records.fraction for _ in records]
    assert fractions == sorted(fractions)
    assert records.fraction == 1.0
    assert len(list(records)) == 2  # may be read again


def test_saved_datasets(tmp_path) -> None:
    table = datasets.Dataset.from_list([{"text": "x"}, {"text": "y"}])
    table.save_to_disk(tmp_path / "one")
    assert [record.text for record in read(tmp_path / "one")] == ["x", "y"]
    datasets.DatasetDict({"test": table}).save_to_disk(tmp_path / "many")
    (first, _) = read(SourceSpec(str(tmp_path / "many"), split="test"))
    assert first.where.endswith("many, row 1")
    with pytest.raises(DataError, match="has no split 'train'; it has test"):
        read(tmp_path / "many")


# ---- What is wrong -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "settings", "message"),
    [
        ("a.jsonl", "", {}, "a.jsonl is empty; expected one JSON object a line"),
        ("a.jsonl", "\n \n", {}, "a.jsonl is empty"),
        ("a.json", "[]", {}, "a.json is empty; expected a list"),
        ("a.txt", " \n", {}, "a.txt is empty; expected text"),
        ("a.parquet", "", {}, "a.parquet is empty"),
        ("a.parquet", "PAR1 no", {}, "a.parquet is no Parquet file"),
        ("a.jsonl.gz", "no", {}, "is no complete gzip file"),
        ("a.csv", "text\nx", {}, "a.csv can't be read as data; expected a file ending in .jsonl"),
        (
            "a.jsonl",
            '{"text": "x"}\n{"text": x}\n',
            {},
            "a.jsonl, line 2: broken JSON at column 10: Expecting value",
        ),
        ("a.jsonl", '{"text": "x"', {}, "a.jsonl, line 1: broken JSON at column 13"),
        ("a.json", '[{"text": "x"},\n]', {}, "a.json, line 2: broken JSON"),
        ("a.jsonl", "3\n", {}, "line 1: the row is a number; expected an object"),
        (
            "a.jsonl",
            jsonl({"content": "x", "id": 1}),
            {},
            "line 1 has the columns 'content', 'id'; expected 'text' .*data.text_column",
        ),
        (
            "a.jsonl",
            jsonl({"text": "x"}, {"txt": "y"}),
            {},
            "line 2: there is no column 'text'; the row has 'txt'",
        ),
        (
            "a.jsonl",
            jsonl({"prompt": "x"}),
            {"format": "prompt_completion"},
            "line 1: there is no column 'completion'",
        ),
        ("a.jsonl", jsonl({"text": None}), {}, "line 1: column 'text' is null; expected text"),
        ("a.jsonl", jsonl({"text": [1]}), {}, "column 'text' is a list; expected text"),
        ("a.jsonl", '{"text": "\\ud83d x"}\n', {}, "lone surrogate .U.D83D. at character 0"),
        ("a.jsonl", jsonl({"messages": "hi"}), {}, "column 'messages' is text; expected a list"),
        ("a.jsonl", jsonl({"messages": []}), {}, "column 'messages' is an empty list"),
        (
            "a.jsonl",
            jsonl({"messages": [{"from": "user", "value": "x"}]}),
            {},
            "message 0 of column 'messages' has no role",
        ),
        (
            "a.jsonl",
            jsonl({"prompt": CHAT[:1], "completion": "4"}),
            {},
            "column 'completion' is text; expected a list of messages",
        ),
        ("a.txt", "x", {"format": "messages"}, "is plain text, but data.format is messages"),
    ],
)
def test_broken_files(tmp_path, name, content, settings, message) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(DataError, match=message):
        read(path, **settings)


def test_bytes_that_are_no_utf8_are_named(tmp_path) -> None:
    good = jsonl({"text": "ä"}).encode()
    path = write(tmp_path / "a.jsonl", good + '{"text": "naïve"}\n'.encode("cp1252"))
    offset = len(good) + len(b'{"text": "na')
    with pytest.raises(DataError, match=rf"line 2: byte 0xef at offset {offset} .*cp1252"):
        read(path)
    plain = write(tmp_path / "a.txt", b"abc\x93quoted\x94")
    with pytest.raises(DataError, match=r"a.txt: byte 0x93 at offset 3 is not valid utf-8"):
        read(plain)
    with pytest.raises(DataError, match="offset 1 is not valid shift_jis"):
        read(write(tmp_path / "b.txt", b"a\xff"), encoding="shift_jis")


def test_sources_that_are_not_there(tmp_path) -> None:
    with pytest.raises(DataError, match=r"There is no file nothing\.jsonl"):
        read_records("nothing.jsonl")
    with pytest.raises(DataError, match=r"There is no file \./nothing"):
        read_records("./nothing")
    with pytest.raises(DataError, match="No file matches"):
        read_records(str(tmp_path / "*.jsonl"))
    with pytest.raises(DataError, match="holds no data files"):
        read_records(tmp_path)
    with pytest.raises(DataError, match="No source of data"):
        read_records([])


def test_names_that_datasets_does_not_know() -> None:
    with pytest.raises(DataError, match="nobody/nothing, split train, is neither a file"):
        read_records("nobody/nothing")


def test_data_that_is_nowhere_is_a_mistake_in_the_run_file(tmp_path) -> None:
    from xtoken.errors import DataNotFoundError

    with pytest.raises(DataNotFoundError, match="There is no file") as raised:
        list(read_records(str(tmp_path / "no" / "such.jsonl")))
    assert raised.value.exit_code == 2
