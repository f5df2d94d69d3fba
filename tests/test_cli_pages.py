"""`--html` of `xtoken audit` and `xtoken align` writes one page that needs no network."""

from __future__ import annotations

from pathlib import Path

import pytest

from xtoken.cli import main


@pytest.mark.parametrize(
    ("verb", "more", "shown"),
    [("audit", [], "2-digit numerals"), ("align", ["47 + 471 = 518"], "471")],
)
def test_verbs_write_a_page(
    tiny_pair: tuple[Path, Path], tmp_path: Path, capsys, verb: str, more: list[str], shown: str
) -> None:
    page = tmp_path / "page.html"
    with pytest.raises(SystemExit) as ended:
        main([verb, *map(str, tiny_pair), *more, "--html", str(page)])
    assert ended.value.code in (0, None)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert shown in text
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "https://" not in text
    assert str(page) in capsys.readouterr().err


def test_a_page_that_cannot_be_written_is_an_error(tiny_pair, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "page.html"
    folder.mkdir()
    with pytest.raises(SystemExit) as ended:
        main(["audit", *map(str, tiny_pair), "--html", str(folder)])
    assert ended.value.code in (1, 2)
    assert "page.html" in capsys.readouterr().err
