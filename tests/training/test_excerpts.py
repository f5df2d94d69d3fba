"""Excerpts of the aligned training text that a run leaves for its report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from xtoken import Vocabulary
from xtoken.align import ChunkKind, align
from xtoken.aligned_blocks import Block
from xtoken.config import RunConfig
from xtoken.encode import encode_text
from xtoken.report.html import write_html
from xtoken.training import excerpts, train
from xtoken.training.excerpts import alignment_excerpts

PLAIN = "The quick brown fox jumps over the lazy dog. " * 20


@pytest.fixture(scope="module")
def vocabs(tiny_pair: tuple[Path, Path]) -> tuple[Vocabulary, ...]:
    return tuple(Vocabulary.from_pretrained(folder) for folder in tiny_pair)


def drawn(found: list[dict[str, Any]]) -> list[list[Block]]:
    return [[Block.from_dict(block) for block in item["blocks"]] for item in found]


def kinds_of(vocabs: tuple[Vocabulary, ...], text: str) -> set[int]:
    ours, theirs = (encode_text(vocab, text, eos=False).ids for vocab in vocabs)
    return {ChunkKind(int(kind)) for kind in align(*vocabs, ours, theirs).kind}


@pytest.mark.parametrize("turned", [False, True])
def test_every_kind_that_the_text_has_is_shown(vocabs, tiny_text: list[str], turned: bool) -> None:
    pair = vocabs[::-1] if turned else vocabs
    # What tells the two apart stands far from the beginning.
    texts = [PLAIN, *tiny_text]
    wanted = set().union(*(kinds_of(pair, text) for text in texts))
    assert len(wanted) >= 2, "the text is one on which this shows"
    found = drawn(alignment_excerpts(*pair, texts))
    assert {block.kind for window in found for block in window} >= wanted
    assert 1 <= len(found) <= excerpts.EXCERPTS
    assert all(len(window) <= excerpts.MOST_CHUNKS for window in found)
    assert len({block.kind for block in found[0]}) > 1


def test_the_next_excerpt_shows_what_the_others_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [Block(0, (f"·{n}",), (f"·{n}",)) for n in range(10)]
    texts = {
        "plain": words,
        "numerals": [*words, Block(1, ("·21",), ("·2", "1"))],
        "more numerals": [*words, Block(1, ("·37",), ("·3", "7"))],
        "the rest": [Block(2, ("·a", "b"), ("·ab",)), Block(3, ("·a", "b"), ("·", "ab")), *words],
        "lost": [*words, Block(-1, ("·c",), ())],
    }
    monkeypatch.setattr(excerpts, "_blocks", lambda student, teacher, text: texts[text])
    found = drawn(alignment_excerpts(None, None, list(texts)))  # type: ignore[arg-type]
    assert found == [texts["the rest"], texts["numerals"], texts["lost"]]


def test_excerpts_are_bounded_whatever_the_text(vocabs) -> None:
    long = ["7" * 5000, "\x00" * 5000, "🦊" * 3000, "a" * 200_000]
    for window in drawn(alignment_excerpts(*vocabs, long)):
        assert len(window) <= excerpts.MOST_CHUNKS
        tokens = sum(len(b.student) + len(b.teacher) for b in window)
        assert tokens <= excerpts.MOST_TOKENS
    assert alignment_excerpts(*vocabs, []) == []
    assert alignment_excerpts(*vocabs, ["", ""]) == []


def test_one_excerpt_is_enough_where_all_is_one_to_one(vocabs) -> None:
    (found,) = drawn(alignment_excerpts(vocabs[0], vocabs[0], [PLAIN, PLAIN]))
    assert {block.kind for block in found} == {ChunkKind.ONE_TO_ONE}
    text = "".join(token for block in found for token in block.student).replace("·", " ")
    assert PLAIN.startswith(text)


def test_a_run_writes_them_and_its_page_shows_them(
    tiny_pair: tuple[Path, Path], tiny_text: list[str], tmp_path: Path
) -> None:
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in tiny_text))
    config = RunConfig.parse(
        {
            "student": {"model": str(tiny_pair[0])},
            "teachers": [{"model": str(tiny_pair[1])}],
            "data": {"train": str(data), "max_length": 48},
            "training": {"use_cpu": True, "max_steps": 1},
            "output_dir": str(tmp_path / "run"),
        }
    )
    train(config, progress="none")
    (entry,) = json.loads((tmp_path / "run" / "_excerpts.json").read_text())
    chosen = drawn(entry["examples"])
    assert chosen
    page = write_html(tmp_path / "run", tmp_path / "page.html").read_text(encoding="utf-8")
    section = page[page.index('<section id="alignment"') :]
    section = section[: section.index("</section>")]
    assert section.count('<ul class="tokens">') == len(chosen)
    numeral = next(b for w in chosen for b in w if b.kind == ChunkKind.ONE_TO_MANY)
    assert "".join(f"<bdi>{token}</bdi>" for token in numeral.teacher) in section
