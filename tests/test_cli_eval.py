"""`xtoken eval` on tiny models."""

import json
import math
import shutil

import pytest
from typer.testing import CliRunner

from xtoken.cli._app import app
from xtoken.evaluation import bits_per_byte, compare
from xtoken.models import load_causal_lm
from xtoken.projection import Projection
from xtoken.vocab import Vocabulary

run = CliRunner().invoke


def ok(*arguments, **options):
    result = run(app, [str(a) for a in arguments], **options)
    assert result.exit_code == 0, result.output
    return result.stdout


def fails(code, *arguments):
    result = run(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    assert not result.stdout
    assert "Traceback" not in result.stderr
    return result.stderr


@pytest.fixture(scope="module")
def texts(tmp_path_factory, tiny_text):
    folder = tmp_path_factory.mktemp("texts")
    (folder / "text.txt").write_text("\n".join(tiny_text), encoding="utf-8")
    rows = "".join(json.dumps({"text": text}) + "\n" for text in tiny_text)
    (folder / "rows.jsonl").write_text(rows, encoding="utf-8")
    (folder / "chats.jsonl").write_text(
        json.dumps({"messages": [{"role": "user", "content": text} for text in tiny_text]})
    )
    return folder


@pytest.fixture(scope="module")
def loaded(tiny_pair):
    return [(load_causal_lm(folder), Vocabulary.from_pretrained(folder)) for folder in tiny_pair]


def test_bits_per_byte_are_the_librarys(tiny_pair, loaded, texts):
    out = json.loads(ok("eval", tiny_pair[0], "--text", texts / "text.txt", "--json"))
    text = (texts / "text.txt").read_text(encoding="utf-8")
    expected = bits_per_byte(*loaded[0], text).bpb
    assert math.isclose(out["bits_per_byte"]["student"]["bits_per_byte"], expected, rel_tol=1e-5)
    assert out["bytes"] == len(text.encode())
    shown = ok("eval", tiny_pair[0], "--text", texts / "text.txt")
    assert f"{expected:.3f}" in shown
    assert "bits per byte" in shown


def test_rows_are_documents_and_windows_change_little(tiny_pair, loaded, texts, tiny_text):
    out = json.loads(ok("eval", tiny_pair[0], "--text", texts / "rows.jsonl", "--json"))
    measured = out["bits_per_byte"]["student"]
    assert measured["documents"] == len(tiny_text)
    assert math.isclose(
        measured["bits_per_byte"], bits_per_byte(*loaded[0], tiny_text).bpb, rel_tol=1e-5
    )
    chats = json.loads(ok("eval", tiny_pair[0], "--text", texts / "chats.jsonl", "--json"))
    assert chats["bits_per_byte"] == out["bits_per_byte"]
    short = ("--max-length", 8, "--stride", 3, "--batch-size", 2)
    out = json.loads(ok("eval", tiny_pair[0], "--text", texts / "rows.jsonl", "--json", *short))
    assert out["bits_per_byte"]["student"]["tokens"] == measured["tokens"]


def test_comparison_with_a_teacher(tiny_pair, loaded, texts, tmp_path):
    path = tmp_path / "W.safetensors"
    vocabs = [vocab for _, vocab in loaded]
    Projection.build(*vocabs).save(path)
    command = ("eval", tiny_pair[0], "--text", texts / "text.txt", "--teacher", tiny_pair[1])
    out = json.loads(ok(*command, "--projection", path, "--by-class", "--json"))
    text = (texts / "text.txt").read_text(encoding="utf-8")
    expected = compare(*loaded[0], *loaded[1], text)
    assert math.isclose(out["comparison"]["kl_per_chunk"], expected.kl_per_chunk, rel_tol=1e-4)
    assert out["comparison"]["chunks"] == expected.chunks
    assert "numeral_3" in out["bits_per_byte"]["teacher"]["by_class"]
    shown = ok(*command)
    assert "agreement with the teacher" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_a_model_agrees_with_itself(tiny_pair, texts):
    command = ("eval", tiny_pair[0], "--text", texts / "text.txt", "--teacher", tiny_pair[0])
    out = json.loads(ok(*command, "--json"))["comparison"]
    assert out["agreement"] == 1.0
    assert abs(out["kl_per_chunk"]) < 1e-5


def test_bad_input(tiny_pair, texts, tmp_path):
    student, text = tiny_pair[0], texts / "text.txt"
    assert "Missing option '--text'" in fails(2, "eval", student)
    assert "There is no directory" in fails(2, "eval", "./nowhere", "--text", text)
    assert "There is no file" in fails(2, "eval", student, "--text", texts / "none")
    assert "no effect without --teacher" in fails(
        2, "eval", student, "--text", text, "--projection", "w"
    )
    assert "can't use" in fails(2, "eval", student, "--text", text, "--device", "abacus")
    assert "stride" in fails(1, "eval", student, "--text", text, "--stride", 9999)
    assert "output head" in fails(1, "eval", tiny_pair[1], "--tokenizer", student, "--text", text)
    (tmp_path / "broken.jsonl").write_text('{"text": "a"}\n{"text": \n')
    assert "line 2: broken JSON" in fails(1, "eval", student, "--text", tmp_path / "broken.jsonl")
    torn = tmp_path / "torn"
    shutil.copytree(student, torn)
    weights = torn / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    assert "truncated or damaged" in fails(1, "eval", torn, "--text", text)
    (tmp_path / "one.txt").write_text("a")
    assert "No token could be scored" in fails(1, "eval", student, "--text", tmp_path / "one.txt")
