"""The real-pair benchmark on tiny random models: every row from end to end, and its resuming."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from benchmarks.real_pair.cases import CASES, Ready, code, sums, training_texts
from benchmarks.real_pair.cells import NAMES, Place
from benchmarks.real_pair.grid import run_case
from benchmarks.real_pair.measure import Measured, few_shot
from benchmarks.real_pair.tables import write_plots, write_tables
from benchmarks.real_pair.teacher import keep_states

from tiny_models import TINY_TEXT, save_tiny_model, train_tokenizer
from xtoken.models import load_causal_lm

ROWS = ["continued", "p_kl", "path_kl_fixed_scale", "gold"]


@pytest.fixture(scope="module")
def ready(tmp_path_factory) -> Ready:
    folder = tmp_path_factory.mktemp("models")
    teacher = save_tiny_model(
        folder / "teacher", train_tokenizer(vocab_size=400, split_digits=True), seed=1
    )
    start = save_tiny_model(
        folder / "start", train_tokenizer(vocab_size=330, split_digits=False), seed=2
    )
    case = replace(CASES["smollm2"], steps=3, batch_size=2, max_length=32, held_out=2)
    held_out = {
        "prose": TINY_TEXT[:2],
        "code": [TINY_TEXT[3]],
        "sums": ["4 + 8 = 12, 13 + 2 = 15."],
    }
    return Ready(case, teacher, start, TINY_TEXT * 4, held_out)


@pytest.fixture(scope="module")
def output(ready, tmp_path_factory):
    return tmp_path_factory.mktemp("results")


def run(ready, output, rows, **settings):
    measured = Measured(**{"problems": 3, **settings})
    return run_case(ready, output, Place("cpu", output / "states"), measured, rows=rows)


def cells(output):
    paths = sorted((output / "cells").glob("*.json"))
    return {path.name: json.loads(path.read_text()) for path in paths}


def test_rows_read_the_same_and_are_measured(ready, output):
    assert run(ready, output, ROWS) == len(ROWS)
    found = cells(output)
    assert len({cell["read"] for cell in found.values()}) == 1
    tokens = {cell["tokens"] for cell in found.values()}
    assert len(tokens) == 1
    assert 3 * 2 * 16 < tokens.pop() <= 3 * 2 * 32
    by_row = {cell["row"]: cell for cell in found.values()}
    # The second distilled row asks the teacher for nothing that the first one has not read.
    assert by_row["p_kl"]["teacher_batches_computed"] == 3
    assert by_row["gold"]["teacher_batches_computed"] == 0
    assert by_row["continued"]["teacher"] == "not asked"
    assert len({cell["figures"]["bpb"]["prose"] for cell in found.values()}) == len(ROWS)
    start = json.loads((output / "reference" / "smollm2.json").read_text())["start"]
    for cell in found.values():
        assert cell["figures"]["bpb"]["prose"] != start["bpb"]["prose"]
        assert cell["figures"]["bytes"] == start["bytes"]
        assert cell["figures"]["agreement"] >= 0
        assert cell["seconds"]["a_step"] > 0
        assert cell["peak_memory_mib"] > 0


def test_a_second_call_runs_nothing_again(ready, output, monkeypatch):
    run(ready, output, ROWS)
    before = {path: path.stat().st_mtime_ns for path in (output / "cells").iterdir()}

    def refuse(*args, **kwargs):
        raise AssertionError("a finished cell was trained again")

    with monkeypatch.context() as patch:
        patch.setattr("benchmarks.real_pair.grid.train_row", refuse)
        assert run(ready, output, ROWS) == 0
    assert run(ready, output, [*ROWS, "uld"]) == 1
    assert {path: path.stat().st_mtime_ns for path in before} == before
    # Cells of other settings are not mixed.
    with pytest.raises(SystemExit, match=r"problems 3 \(asked: 5\)"):
        run(ready, output, ROWS, problems=5)


def test_tables_and_plots(ready, output):
    run(ready, output, ROWS)
    text = write_tables(output)
    assert "| *start* |" in text
    assert all(f"| {row} | 1 |" in text for row in ROWS)
    assert "were not run" in text
    assert "seconds a step of p_kl include computing them" in text
    assert "LAMBADA |" not in text
    summary = json.loads((output / "summary.json").read_text())["smollm2"]
    assert summary["rows"]["gold"]["bpb prose"]["values"]
    assert summary["rows"]["gold"]["machine"]["torch"] == torch.__version__
    assert all(path.stat().st_size > 1000 for path in write_plots(output))


def test_kept_states_give_the_models_own_logits(ready, tmp_path):
    model = load_causal_lm(str(ready.teacher), dtype="float32").eval()
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    with torch.no_grad():
        own = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        kept = keep_states(model, tmp_path)
        for computed in (1, 1):
            again = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            assert torch.equal(again, own)
            assert kept.computed == computed
        # Another mask is another question.
        model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        assert kept.computed == 2


def test_what_is_read_and_asked(ready):
    assert "path_kl_fixed_scale" in NAMES
    assert NAMES[0] == "continued"
    assert training_texts(ready, 0) != training_texts(ready, 1)
    problems = few_shot("2_digits", 20)
    assert len({p.prompt for p in problems}) == 20
    for problem in problems:
        *shown, asked = problem.prompt.split("\n")
        assert all(line.split("=")[0] != asked.split("=")[0] for line in shown)
        assert sum(map(int, asked.rstrip(" =").split("+"))) == problem.answer
    assert all(len(piece) > 300 for piece in code(16))
    assert sums(2)[0].count(" + ") == 24
