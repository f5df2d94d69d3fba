"""The controlled-pair benchmark: its smallest setting from end to end, and what it rests on."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from benchmarks.miniature.cells import ROWS, Bench, loss_of, texts_for
from benchmarks.miniature.columns import Prose, build_column
from benchmarks.miniature.grid import run_grid, write_json
from benchmarks.miniature.metrics import leading_number
from benchmarks.miniature.models import batches_of, documents, rows_of
from benchmarks.miniature.plots import write_plots
from benchmarks.miniature.problems import operand_pairs
from benchmarks.miniature.sizes import SMALLEST
from benchmarks.miniature.tables import paired, tables, write_tables
from benchmarks.miniature.tokenizers import vocabulary
from benchmarks.miniature.variants import VARIANTS

from xtoken.data import PairCollator
from xtoken.training import Objective, TeacherTerm
from xtoken.training.metrics import Sums

WORDS = ["the", "river", "ran", "under", "an", "old", "bridge", "while", "children", "sang"]


def prose(seed: int, count: int) -> list[str]:
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(WORDS), (count, 60), generator=generator).tolist()
    return [" ".join(WORDS[i] for i in own) + "." for own in picks]


TEXT = Prose(prose(0, 40), prose(1, 10), prose(2, 10))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tmp_path_factory.mktemp("results"), tmp_path_factory.mktemp("cache")


def run(output, cache, rows, rate=None):
    size = dataclasses.replace(SMALLEST, prose_texts=2)
    run_grid(
        size, output, cache,
        rows=rows, columns=["teacher_splits"], seeds=[0, 1], rate=rate, prose=TEXT,
    )  # fmt: skip


def test_end_to_end_resumable_and_repeatable(folders, tmp_path):
    output, cache = folders
    run(output, cache, ["continued", "gold", "path_kl"])
    cells = sorted((output / "cells").glob("*.json"))
    assert len(cells) == 6
    machine = json.loads((output / "surroundings.json").read_text())
    assert machine[0]["torch"] == torch.__version__
    write_json(output / "surroundings.json", [{"torch": "another"}])
    before = {path: path.stat().st_mtime_ns for path in cells}
    run(output, cache, ["continued", "gold", "path_kl", "sequence_kd"])
    assert {path: path.stat().st_mtime_ns for path in cells} == before
    assert len(list((output / "cells").glob("*.json"))) == 8
    assert json.loads((output / "surroundings.json").read_text())[1:] == machine
    with pytest.raises(SystemExit, match=r"learning_rate 0\.002 \(asked: 0\.5\)"):
        run(output, cache, ["gold"], rate=0.5)

    # The same seeds give the same numbers: all but the seconds.
    run(tmp_path, cache, ["path_kl"])
    for seed in (0, 1):
        name = f"cells/teacher_splits--path_kl--{seed}.json"
        first, second = (json.loads((d / name).read_text()) for d in (output, tmp_path))
        assert first.pop("seconds")
        assert second.pop("seconds")
        assert first == second

    table = write_tables(output)
    assert "| continued | 2 |" in table
    assert "sequence_kd" in table
    assert all(path.stat().st_size > 1000 for path in write_plots(output))


def test_numerals_are_cut_as_said(tmp_path):
    split = vocabulary("split", tmp_path, TEXT.train, SMALLEST.vocab_size)
    for kind in ("keep", "keep2"):
        keep = vocabulary(kind, tmp_path, TEXT.train, SMALLEST.vocab_size)
        for number in range(1000):
            text = str(number).encode()
            assert len(keep.tokenize_bytes([text])[0]) == 1
            assert len(split.tokenize_bytes([text])[0]) == len(text)
        assert keep.tokenize_bytes([b"river ran"])
        assert not keep.same_as(split)


def test_held_out_problems_share_no_operands_with_training():
    unordered = {
        part: {tuple(sorted(pair)) for pair in operand_pairs(part)}
        for part in ("train", "validation", "held_out")
    }
    assert not unordered["train"] & unordered["held_out"]
    assert not unordered["train"] & unordered["validation"]
    assert not unordered["validation"] & unordered["held_out"]
    assert sum(map(len, unordered.values())) == 5050
    assert {len(str(sum(pair))) for pair in unordered["held_out"]} == {1, 2, 3}


@pytest.mark.parametrize(
    ("text", "number"), [("85\n", 85), ("85", None), ("", None), ("x85\n", None), ("0 a", 0)]
)
def test_an_answer_counts_once_it_has_ended(text, number):
    assert leading_number(text) == number


def test_paired_differences_use_shared_seeds():
    cells = [{s: {"figures": {"x": v + s}} for s in range(3)} for v in (1.0, 0.5)]
    cells[0][7] = {"figures": {"x": 100.0}}
    assert paired(cells[0], cells[1], ("x",)) == pytest.approx((0.5, 0.5, 0.5))
    assert paired({9: {}}, cells[1], ("x",)) is None


def test_variants_of_path_kl_leave_out_what_they_say(folders):
    """Root alone: no node; without ends: no more of them; without boundary: other roots."""
    column = build_column("teacher_splits", SMALLEST, folders[1], TEXT)
    bench = Bench.of(column, TEXT, SMALLEST)
    names = ["path_kl_fixed_scale", *(f"path_kl_{variant}" for variant in VARIANTS)]
    rows = rows_of(texts_for(bench, ROWS[names[0]], 3, 0), column.student, [column.teacher])
    collate = PairCollator.of(column.student, [column.teacher])
    batch = next(iter(batches_of(rows, documents(SMALLEST.mixture), collate, "cpu")))
    total, depths = {}, {}
    for name in names:
        term = TeacherTerm("teacher", bench.teacher, loss_of(ROWS[name], column))
        with torch.no_grad():
            parts = Objective([term])(column.start, batch)
        total[name], depths[name] = (
            float(parts.kd[0].total),
            Sums.means([parts.sums.pairs()])["depths"],
        )
    whole = names[0]
    assert depths["path_kl_root_alone"] == 0 < depths["path_kl_without_ends"] <= depths[whole]
    assert depths["path_kl_without_boundary"] == depths[whole]
    assert total["path_kl_root_alone"] < total[whole]
    assert len(set(total.values())) == len(names)


def test_rows_set_against_each_other_over_all_their_seeds(tmp_path):
    def cell(row, seed, sums):
        figures = {"sums": {"all": sums}, "word_problems": 0.0, "bpb_prose": 2.0}
        figures |= {"bpb_numerals": 2.0, "bpb_overall": 2.0, "agreement": 0.5}
        figures["numerals"] = {"mass": 1.0}
        data = {"column": "both_keep", "row": row, "seed": seed, "figures": figures}
        write_json(tmp_path / "cells" / f"{row}{seed}.json", data)

    for seed, sums in enumerate([0.1, 0.2, 0.3, 0.9]):
        cell("path_kl", seed, sums)
    for seed, sums in enumerate([0.2, 0.3, 0.4, 0.2, 0.7]):
        cell("h_kl", seed, sums)
    found = tables(tmp_path)
    assert "| path_kl | h_kl | 4 | +0.100 [" in found["both_keep pairs"]
    assert "| path_kl | 3 | 0.200 ± 0.100" in found["both_keep problems"]  # seeds of the grid
