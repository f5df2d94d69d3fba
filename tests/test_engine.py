"""The private encoder shares the model of a tokenizer and leaves the user's object alone."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken

from tiny_tokenizers import FAMILIES, TEXTS
from xtoken._engine import Engine, private_copy


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_private_copy_encodes_alike_and_changes_nothing(family: str) -> None:
    backend = FAMILIES[family]()
    state = backend.to_str()
    copied = private_copy(backend)
    copied.encode_special_tokens = True
    copied.add_special_tokens(["<mine>"])
    copied.normalizer = copied.post_processor = None
    assert backend.to_str() == state

    copied = private_copy(backend)
    backend.no_truncation()
    backend.no_padding()
    for text in TEXTS.values():
        for specials in (False, True):
            ours = copied.encode(text, add_special_tokens=specials)
            theirs = backend.encode(text, add_special_tokens=specials)
            assert (ours.ids, ours.offsets) == (theirs.ids, theirs.offsets)
    found, expected = (b.get_added_tokens_decoder() for b in (copied, backend))
    assert {i: (t.content, t.special) for i, t in found.items()} == {
        i: (t.content, t.special) for i, t in expected.items()
    }


def test_the_engine_keeps_its_settings_to_itself() -> None:
    backend = FAMILIES["byte_level"]()
    backend.add_tokens([AddedToken("<tool>", special=False)])
    before = backend.encode("a <tool> <|endoftext|>").ids
    engine = Engine(backend, ["<tool>"], keep_normalizer=True)
    assert len(engine.encode_ids(["<tool>"], "text")[0]) > 1
    assert backend.encode("a <tool> <|endoftext|>").ids == before
