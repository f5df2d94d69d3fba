"""`xtoken audit`, `align` and `project` on tiny tokenizers."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import cli_calls
from cli_calls import ok
from xtoken.cli._app import app
from xtoken.projection import Projection
from xtoken.vocab import Vocabulary


def fails(code, *arguments, **options):
    said = cli_calls.fails(code, *arguments, **options)
    assert said.startswith("error: ")
    return said


@pytest.fixture
def text_file(tmp_path, tiny_text):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(tiny_text * 3), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def saved(tiny_pair, tmp_path_factory):
    path = tmp_path_factory.mktemp("w") / "W.safetensors"
    ok("project", "build", *tiny_pair, "-o", path)
    return path


# ------------------------------------------------------------------ audit


def test_audit_prints_the_verdict_and_counts_the_text(tiny_pair, text_file):
    out = ok("audit", *tiny_pair, "--text", text_file)
    assert out.startswith("Verdict: ")
    assert "3-digit numerals" in out
    assert "On the text: " in out
    assert "\x1b" not in out, "no colours in a pipe"
    assert max(map(len, out.splitlines())) <= 80


def test_audit_json_is_the_report(tiny_pair, text_file):
    from xtoken.audit import audit

    out = json.loads(ok("audit", *tiny_pair, "--text", text_file, "--json"))
    vocabs = [Vocabulary.from_pretrained(folder) for folder in tiny_pair]
    report = audit(*vocabs, [text_file.read_text(encoding="utf-8")])
    assert out == json.loads(json.dumps(report.to_dict()))
    assert (out["verdict"]["loss"], out["verdict"]["x_token"]) == ("path_kl", "p_kl")


def test_audit_of_a_tokenizer_with_itself(tiny_pair):
    assert "direct" in ok("audit", tiny_pair[0], tiny_pair[0])


def test_audit_takes_a_projection_of_the_pair_only(tiny_pair, saved):
    ok("audit", *tiny_pair, "--projection", saved)
    assert "was built for" in fails(1, "audit", *reversed(tiny_pair), "--projection", saved)


@pytest.mark.parametrize("verb", ["audit", "align"])
def test_text_files_that_can_not_be_read(verb, tiny_pair, tmp_path):
    option = "--text" if verb == "audit" else "--file"
    assert "There is no file" in fails(2, verb, *tiny_pair, option, tmp_path / "none")
    assert "is a directory" in fails(2, verb, *tiny_pair, option, tmp_path)
    (tmp_path / "empty").write_text(" \n")
    assert "is empty" in fails(1, verb, *tiny_pair, option, tmp_path / "empty")
    (tmp_path / "latin").write_bytes("un\ncafé\n".encode("cp1252"))
    message = fails(1, verb, *tiny_pair, option, tmp_path / "latin")
    assert "byte 6 (line 2) is 0xe9" in message
    assert "--encoding" in message
    ok(verb, *tiny_pair, option, tmp_path / "latin", "--encoding", "cp1252")
    message = fails(2, verb, *tiny_pair, option, tmp_path / "latin", "--encoding", "x")
    assert "expected an encoding that Python knows" in message


def test_directories_that_hold_no_tokenizer(tiny_pair, tmp_path):
    assert "has no tokenizer" in fails(2, "audit", tiny_pair[0], tmp_path)
    assert "There is no directory" in fails(2, "audit", tiny_pair[0], "./nowhere")
    (tmp_path / "tokenizer.json").write_text("{")
    assert "tokenizer" in fails(2, "audit", tiny_pair[0], tmp_path)


# ------------------------------------------------------------------ align


def test_align_shows_both_cuts(tiny_pair):
    out = ok("align", *tiny_pair, "201 people")
    assert "201" in out
    assert "2╎0╎1" in out
    assert "1:3" in out
    assert "100.0 % of bytes aligned." in " ".join(out.split())


def test_align_reads_standard_input_and_files_alike(tiny_pair, text_file):
    text = text_file.read_text(encoding="utf-8")
    given = ok("align", *tiny_pair, text)
    assert ok("align", *tiny_pair, "-", input=text) == given
    assert ok("align", *tiny_pair, "--file", text_file) == given


def test_align_json_has_every_token_in_its_chunk(tiny_pair):
    out = json.loads(ok("align", *tiny_pair, "12 + 201\n", "--json"))
    assert len(out["student_chunk"]) == len(out["student_ids"])
    assert len(out["teacher_chunk"]) == len(out["teacher_ids"])
    vocabs = [Vocabulary.from_pretrained(folder) for folder in tiny_pair]
    for side, vocab in zip(("student", "teacher"), vocabs, strict=True):
        assert vocab.join_bytes(out[f"{side}_ids"]) == b"12 + 201\n"
        assert sum(len(block[side]) for block in out["blocks"]) == len(out[f"{side}_ids"])
    assert sum(out["chunks"].values()) == max(out["student_chunk"]) + 1
    assert out["byte_coverage"] == 1.0


def test_align_reads_the_beginning_of_a_corpus_and_says_so(tiny_pair, monkeypatch):
    monkeypatch.setattr("xtoken.cli.align.MAX_CHARACTERS", 10)
    pair = [str(folder) for folder in tiny_pair]
    result = CliRunner().invoke(app, ["align", *pair, "201 people and more", "--json"])
    assert "has 19 characters; the first 10 are aligned" in " ".join(result.stderr.split())
    vocab = Vocabulary.from_pretrained(tiny_pair[0])
    assert vocab.join_bytes(json.loads(result.stdout)["student_ids"]) == b"201 people"


def test_align_wants_exactly_one_text(tiny_pair, text_file):
    assert "one of them" in fails(2, "align", *tiny_pair)
    assert "one of them" in fails(2, "align", *tiny_pair, "x", "--file", text_file)
    assert "is empty" in fails(2, "align", *tiny_pair, "")


def test_audit_refuses_a_number_of_tokens_that_nothing_reads(tiny_pair):
    message = fails(2, "audit", *tiny_pair, "--tokens", 100)
    assert "--tokens has no effect without --student-model" in message


# ------------------------------------------------------------------ project


def test_build_saves_what_the_library_builds(tiny_pair, saved):
    vocabs = [Vocabulary.from_pretrained(folder) for folder in tiny_pair]
    loaded = Projection.load(saved, *vocabs)
    np.testing.assert_array_equal(loaded.indices, Projection.build(*vocabs).indices)
    out = ok("project", "show", saved)
    assert f"{loaded.stats()['exact']:,}" in out


def test_build_options_reach_the_rules(tiny_pair, tmp_path):
    out = ok(
        *("project", "build", *tiny_pair, "-o", tmp_path / "a" / "w.safetensors", "--json"),
        *("--max-pieces", 2, "--gamma", 0.5, "--reverse"),
    )
    rules = json.loads(out)["rules"]
    assert (rules["max_pieces"], rules["gamma"], rules["reverse"]) == (2, 0.5, True)
    assert Path(json.loads(out)["file"]).is_file()
    message = fails(2, "project", "build", *tiny_pair, "-o", tmp_path / "b", "--gamma", 7)
    assert "gamma is 7.0; expected a number from 0 to 1" in message
    assert not (tmp_path / "b").exists()


def test_show_finds_a_token_by_text_and_by_id(saved, tiny_pair):
    vocab = Vocabulary.from_pretrained(tiny_pair[0])
    by_text = vocab.id_for_bytes(b"201")
    rows = json.loads(ok("project", "show", saved, "201", "--json"))
    assert [row["student_id"] for row in rows] == [by_text, 201]
    assert [piece["text"] for piece in rows[0]["pieces"]] == ["2", "0", "1"]
    assert "stands for these teacher tokens" in ok("project", "show", saved, "201")
    for token, data in ((r"\n", b"\n"), (r"\xe2", b"\xe2"), (" the", b" the")):
        (row,) = json.loads(ok("project", "show", saved, token, "--json"))
        assert row["hex"] == data.hex()


def test_show_tells_who_maps_to_a_teacher_token(saved):
    (row,) = [
        row
        for row in json.loads(ok("project", "show", saved, "2", "--side", "teacher", "--json"))
        if row["text"] == "2"
    ]
    assert "201" in {source["text"] for source in row["sources"]}
    assert "gets probability from these student tokens" in ok(
        "project", "show", saved, "2", "--side", "teacher"
    )


def test_show_refuses_what_is_not_there(saved, tiny_pair, tmp_path):
    assert "no token with exactly the text 'zq'" in fails(2, "project", "show", saved, "zq")
    assert "its ids run from 0 to" in fails(2, "project", "show", saved, "99999")
    assert "There is no projection file" in fails(2, "project", "show", tmp_path / "none")
    assert "was built for" in fails(1, "project", "show", saved, "--student", tiny_pair[1])
    ok("project", "show", saved, "--student", tiny_pair[0], "--teacher", tiny_pair[1])
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(saved.read_bytes()[:-9])
    assert "truncated" in fails(1, "project", "show", torn)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_import_reads_public_files_and_runs_nothing(saved, tiny_pair, tmp_path):
    import torch

    built = Projection.load(saved)
    public = {"indices": torch.tensor(built.indices), "likelihoods": torch.tensor(built.weights)}
    torch.save(public, tmp_path / "public.pt")
    out = tmp_path / "w.safetensors"
    ok("project", "import", tmp_path / "public.pt", *tiny_pair, "-o", out)
    np.testing.assert_allclose(Projection.load(out).weights.sum(1), built.weights.sum(1), atol=1e-6)
    marker = tmp_path / "code-was-run"
    (tmp_path / "bad.pt").write_bytes(pickle.dumps(Malicious(marker)))
    torch.save(Malicious(marker), tmp_path / "worse.pt")
    for name in ("bad.pt", "worse.pt"):
        message = fails(1, "project", "import", tmp_path / name, *tiny_pair, "-o", tmp_path / "x")
        assert name in message
    assert not marker.exists()
    assert not (tmp_path / "x").exists()


def test_project_show_compares_a_learned_w_with_the_initial_one(tiny_pair, saved, tmp_path):
    made = Projection.load(saved)
    weights = made.weights.copy()
    row = next(i for i in range(len(weights)) if (weights[i] > 0).sum() == 2 and not made.exact[i])
    used = weights[row] > 0
    weights[row, used] = [0.4, 0.6]
    learned = tmp_path / "learned.safetensors"
    replace(made, weights=weights).save(learned)
    changes = json.loads(ok("project", "show", learned, "--initial", saved, "--json"))
    assert changes["changed"] == 1
    assert changes["most_moved"] == pytest.approx(1 / 1.1 - 0.4, abs=1e-3)
    assert changes["examples"][0]["student_id"] == row
    assert changes["examples"][0]["before"] == pytest.approx([1 / 1.1, 0.1 / 1.1], abs=1e-3)
    text = ok("project", "show", learned, "--initial", saved)
    assert "1 of" in text
    assert "0.909 -> 0.400" in text
    (shown,) = [
        entry
        for entry in json.loads(
            ok("project", "show", learned, str(row), "--initial", saved, "--json")
        )
        if entry["student_id"] == row
    ]
    assert shown["pieces"][0]["initial_weight"] == pytest.approx(1 / 1.1, abs=1e-3)
    assert "was 0.9091" in ok("project", "show", learned, str(row), "--initial", saved)
    other = tmp_path / "other.safetensors"
    Projection.build(*(Vocabulary.from_pretrained(str(x)) for x in reversed(tiny_pair))).save(other)
    message = fails(1, "project", "show", learned, "--initial", other)
    assert "only a W and one learned from it" in message
