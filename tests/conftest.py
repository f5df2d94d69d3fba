"""Fixtures shared by all tests: no network, real tokenizers from the cache, a tiny model pair."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

from tiny_models import TINY_TEXT, save_tiny_model, train_tokenizer

if TYPE_CHECKING:
    from xtoken.vocab import Vocabulary

ASSETS = Path(
    os.environ.get("XTOKEN_ASSETS", Path(__file__).resolve().parent.parent / ".cache" / "assets")
)


@pytest.fixture(scope="session")
def asset_dir() -> Callable[[str], Path]:
    """Return a function: asset name -> directory; skips, with the command to run, if absent."""

    def find(name: str) -> Path:
        path = ASSETS / name
        if not path.exists():
            pytest.skip(f"{name} is not in {ASSETS}; run `make assets` (or `make assets-all`)")
        return path

    return find


@pytest.fixture(scope="session")
def vocabulary(asset_dir: Callable[[str], Path]) -> Callable[[str], Vocabulary]:
    """Return a function: name of a real tokenizer -> its Vocabulary, read once a test run."""

    @cache
    def load(name: str) -> Vocabulary:
        from xtoken.vocab import Vocabulary

        return Vocabulary.from_pretrained(asset_dir(f"vocab/{name}"))

    return load


@pytest.fixture(scope="session")
def tiny_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Directories of a tiny student (numerals whole) and a tiny teacher (digits split, padded)."""
    root = tmp_path_factory.mktemp("tiny")
    student = train_tokenizer(vocab_size=400, split_digits=False)
    teacher = train_tokenizer(vocab_size=340, split_digits=True)
    return (
        save_tiny_model(root / "student", student, seed=1),
        save_tiny_model(root / "teacher", teacher, seed=2, extra_rows=5),
    )


@pytest.fixture(scope="session")
def tiny_text() -> list[str]:
    """Return the sentences that the tiny tokenizers were trained on."""
    return list(TINY_TEXT)
