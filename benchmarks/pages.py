"""Tables of results in the documentation's pages: put there by the script that makes them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from xtoken.evaluation.files import write_whole


def with_tables(page: str, tables: Mapping[str, str]) -> str:
    """Return a page in which what stands between a table's two marks is that table.

    Raises:
        ValueError: the page has no place for one of them.
    """
    for name, table in tables.items():
        begin, end = f"<!-- table: {name} -->", "<!-- end -->"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        whole = f"{begin}\n{table}\n{end}"
        page, count = pattern.subn(lambda _, whole=whole: whole, page)
        if count != 1:
            raise ValueError(f"the page has {count} places for the table {name!r}; expected one.")
    return page


def update(path: Path, tables: Mapping[str, str]) -> None:
    """Put tables into a page's file."""
    write_whole(path, with_tables(path.read_text(encoding="utf-8"), tables))
