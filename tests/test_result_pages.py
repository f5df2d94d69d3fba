"""The tables that the documentation shows are made from the results in this repository."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks.miniature.tables import tables as miniature_tables
from benchmarks.pages import with_tables
from benchmarks.real_pair.tables import tables as real_pair_tables
from benchmarks.tables import costs

from xtoken.losses.registry import LOSSES

ROOT = Path(__file__).resolve().parent.parent


def test_tables_are_put_between_their_marks():
    page = (
        "# A\n\n<!-- table: x -->\nold\n<!-- end -->\n\ntext\n\n<!-- table: y -->\n<!-- end -->\n"
    )
    found = with_tables(page, {"x": "| a |\n|---|", "y": r"\1"})
    assert found == page.replace("old", "| a |\n|---|").replace(
        "y -->\n<!-- end", "y -->\n\\1\n<!-- end"
    )
    with pytest.raises(ValueError, match="0 places for the table 'z'"):
        with_tables(page, {"z": ""})


@pytest.mark.parametrize(
    ("page", "tables", "results"),
    [
        ("miniature.md", miniature_tables, "miniature"),
        ("real-pair.md", real_pair_tables, "real_pair"),
    ],
)
def test_tables_in_the_documentation_are_those_of_the_results(page, tables, results):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    found = tables(ROOT / "benchmarks" / "results" / results)
    assert found
    assert with_tables(text, found) == text


def test_the_costs_of_all_losses_are_those_measured():
    text = (ROOT / "docs" / "losses.md").read_text(encoding="utf-8")
    result = json.loads((ROOT / "benchmarks" / "results" / "losses.json").read_text())
    names = [*LOSSES, "p_kl_topk_rest"]
    assert with_tables(text, {"costs": costs(result, names, 512)}) == text
