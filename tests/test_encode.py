"""Encoding of text: ids as transformers gives them, spans that are the text's bytes, masks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models

from tiny_tokenizers import FAMILIES, LOSSLESS, TEXTS, byte_level, sentencepiece
from xtoken.encode import (
    Encoding,
    concat,
    encode_prompt_completion,
    encode_text,
    encode_texts,
)
from xtoken.errors import AlignmentError, DataError, VocabularyError
from xtoken.vocab import Vocabulary

VOCABULARIES = {name: Vocabulary.from_tokenizer(make()) for name, make in FAMILIES.items()}
EXACT = [name for name in LOSSLESS if name != "nfc_byte_level"]

# Characters that families treat differently, so that random texts hit the odd paths often.
ALPHABET = "aeTh 019_\n\t\r.é狐ा्\u0301\u00a0\ufeff\x00👍🏽\u200d\u2028"
any_text = st.one_of(st.text(ALPHABET, max_size=40), st.text(max_size=20))
FRAGMENTS = [
    "<s>",
    "</s>",
    "<think>",
    "<|im_end|>",
    "<unk>",
    " ",
    "the ",
    "x",
    "\u2581",
    "é",
    "e\u0301",
]
mixed_text = st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join)


def content_spans(encoding: Encoding) -> np.ndarray:
    return encoding.spans[encoding.spans[:, 0] < encoding.spans[:, 1]]


def check_exact(vocab: Vocabulary, text: str, encoding: Encoding) -> None:
    """The spans tile the text, and each holds its token's bytes (dummy prefix apart)."""
    content = text.encode()
    assert encoding.content_bytes == len(content)
    spans = content_spans(encoding)
    assert spans[:, 0].tolist() == [0, *spans[:-1, 1].tolist()][: len(spans)]
    assert (spans[-1, 1] if len(spans) else 0) == len(content)
    own = [i for i, s in enumerate(encoding.spans) if s[0] < s[1]]
    for position, index in enumerate(own):
        start, stop = encoding.spans[index]
        piece = vocab.token_bytes(encoding.ids[index])
        if position == 0 and vocab.dummy_prefix:
            piece = piece[len(piece) - (stop - start) :]
        assert piece == content[start:stop]


def check_ordered(text: str, encoding: Encoding) -> None:
    """Spans lie in the text, in order, on character borders unless they are exact."""
    spans = content_spans(encoding)
    assert (spans[:, 1] <= len(text.encode())).all()
    assert (np.diff(spans[:, 0]) >= 0).all()
    assert (np.diff(spans[:, 1]) >= 0).all()


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_bytes_of_the_tokens_are_the_bytes_of_the_text(name, text):
    vocab = VOCABULARIES[name]
    encoding = encode_text(vocab, text, bos=False)
    assert encoding.exact
    check_exact(vocab, text, encoding)
    joined = vocab.join_bytes(encoding.ids)
    assert joined in (text.encode(), b" " + text.encode())


@pytest.mark.parametrize("name", EXACT)
@settings(max_examples=120, deadline=None)
@given(text=any_text.filter(lambda t: "\u2581" not in t))
def test_bytes_of_random_text(name, text):
    vocab = VOCABULARIES[name]
    check_exact(vocab, text, encode_text(vocab, text))


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=120, deadline=None)
@given(text=st.one_of(any_text, mixed_text))
def test_spans_of_any_text_are_in_order(name, text):
    vocab = VOCABULARIES[name]
    encoding = encode_text(vocab, text)
    check_ordered(text, encoding)
    if not vocab.drops_space and text:
        covered = content_spans(encoding)
        assert covered[0, 0] == 0
        assert covered[-1, 1] == len(text.encode())
        assert (covered[1:, 0] <= covered[:-1, 1]).all()  # no byte of the text is left out


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_nfc_spans_are_those_of_the_source(text):
    import unicodedata

    vocab = VOCABULARIES["nfc_byte_level"]
    encoding = encode_text(vocab, text)
    assert vocab.join_bytes(encoding.ids) == unicodedata.normalize("NFC", text).encode()
    assert encoding.exact == (unicodedata.normalize("NFC", text) == text)
    check_ordered(text, encoding)


def test_a_normalised_letter_covers_what_it_was_written_as():
    vocab = VOCABULARIES["nfc_byte_level"]
    encoding = encode_text(vocab, "x e\u0301.")
    pieces = [vocab.token_bytes(i) for i in encoding.ids]
    assert b"".join(pieces) == "x é.".encode()
    letter = [tuple(s) for s, p in zip(encoding.spans, pieces, strict=True) if max(p) > 0x7F]
    assert set(letter) <= {(1, 5), (2, 5)}  # both its bytes: where between them is unknown
    assert tuple(encoding.spans[-1]) == (5, 6)


def test_wordpiece_spans_come_from_offsets():
    vocab = VOCABULARIES["wordpiece"]
    text = "  The Fox, läuft\tover"
    encoding = encode_text(vocab, text)
    assert not encoding.exact
    words = [text.encode()[a:b].decode() for a, b in content_spans(encoding)]
    assert "".join(words) == "TheFox,läuftover"
    assert len(encoding) < 64  # the tokenizer's own padding is off


def test_an_unknown_word_is_content_but_no_target():
    vocab = VOCABULARIES["wordpiece"]
    encoding = encode_text(vocab, "the 猫", bos=False)
    unknown = encoding.ids.tolist().index(vocab.role_id("unk"))
    assert encoding.spans[unknown].tolist() == [4, 7]
    assert not encoding.supervised[unknown]
    assert encoding.supervised.sum() == len(encoding) - 1


@pytest.mark.parametrize("name", [n for n in EXACT if n.startswith(("sentence", "unigram"))])
def test_u2581_is_read_as_a_space_and_spans_stay_right(name):
    vocab = VOCABULARIES[name]
    text = "the \u2581fox\u2581"
    encoding = encode_text(vocab, text, bos=False)
    assert not encoding.exact
    assert vocab.join_bytes(encoding.ids).strip() == b"the  fox"
    spans = content_spans(encoding)
    assert spans[-1].tolist()[1] == len(text.encode())
    fox = [tuple(s) for s in spans if text.encode()[s[0] : s[1]].strip("\u2581 ".encode()) == b"f"]
    assert len(fox) <= 1


@pytest.mark.parametrize("name", EXACT)
def test_a_dummy_prefix_is_no_byte_of_the_text(name):
    vocab = VOCABULARIES[name]
    for text in ("the", "狐", " the", "", "  "):
        encoding = encode_text(vocab, text, bos=False)
        check_exact(vocab, text, encoding)
        bare = [i for i, s in zip(encoding.ids, encoding.spans, strict=True) if s[0] == -1]
        assert [vocab.token_bytes(i) for i in bare] in ([], [b" "])


@pytest.mark.parametrize("name", FAMILIES)
def test_special_strings_in_data_are_text(name):
    vocab = VOCABULARIES[name]
    specials = [vocab.token_text(i) for i in range(len(vocab)) if vocab.is_special[i]]
    for special in specials:
        for text in (special, f"the {special}fox", f"{special}{special} "):
            encoding = encode_text(vocab, text, bos=False)
            roles = set(encoding.ids[vocab.is_special[encoding.ids]].tolist())
            assert roles <= {vocab.role_id("unk")} if vocab.lossy else not roles
            if not vocab.lossy:
                check_exact(vocab, text, encoding)


def test_control_names_without_the_special_flag_are_text_too():
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("<|eot_id|>", normalized=False, special=False)])
    vocab = Vocabulary.from_tokenizer(tokenizer)
    assert vocab.role(tokenizer.token_to_id("<|eot_id|>")) == "end_of_turn"
    encoding = encode_text(vocab, "a<|eot_id|>b")
    assert not vocab.is_special[encoding.ids].any()
    check_exact(vocab, "a<|eot_id|>b", encoding)


def test_ids_beyond_the_models_rows_are_refused():
    tokenizer = byte_level()
    full = Vocabulary.from_tokenizer(tokenizer)
    cut = full.with_rows(len(full) - 1)  # without <think>
    assert not cut.is_special[encode_text(cut, "a<think>").ids].any()
    check_exact(cut, "a<think>b", encode_text(cut, "a<think>b"))


def test_added_text_stays_one_token():
    vocab = VOCABULARIES["byte_level"]
    encoding = encode_text(vocab, "x<think>y")
    assert b"<think>" in [vocab.token_bytes(i) for i in encoding.ids]


# Role tokens around a text


def test_bos_follows_the_tokenizers_habit():
    vocab = VOCABULARIES["sentencepiece_first"]
    assert encode_text(vocab, "the").ids[0] == 1
    assert encode_text(vocab, "the", bos=False).ids[0] != 1
    habitless = VOCABULARIES["unigram"]
    assert encode_text(habitless, "the").ids[0] != 1
    assert encode_text(habitless, "the", bos=True).ids[0] == 1


def test_role_tokens_stand_at_their_byte():
    vocab = VOCABULARIES["sentencepiece_first"]
    encoding = encode_text(vocab, "the fox", eos=True)
    assert encoding.spans[0].tolist() == [0, 0]
    assert encoding.spans[-1].tolist() == [7, 7]
    assert encoding.ids[-1] == 2
    assert encoding.supervised.tolist() == [False] + [True] * (len(encoding) - 1)


@pytest.mark.parametrize("what", ["bos", "eos"])
def test_a_role_that_the_tokenizer_lacks(what):
    vocab = Vocabulary.from_tokenizer(Tokenizer(models.BPE({"a": 0}, [])))
    with pytest.raises(VocabularyError, match=f"no {what} token"):
        encode_text(vocab, "a", **{what: True})


def test_empty_text():
    vocab = VOCABULARIES["byte_level"]
    encoding = encode_text(vocab, "")
    assert (len(encoding), encoding.content_bytes, encoding.exact) == (0, 0, True)
    assert encoding.spans.shape == (0, 2)
    closed = encode_text(vocab, "", eos=True)
    assert closed.spans.tolist() == [[0, 0]]
    assert closed.supervised.tolist() == [True]
    assert encode_texts(vocab, []) == []


# Masks


def test_supervised_is_decided_by_bytes():
    text = "the people of the river"
    for name in EXACT:
        vocab = VOCABULARIES[name]
        encoding = encode_text(vocab, text, bos=False, eos=True, supervised=[(3, 10), (10, 13)])
        for (start, stop), on in zip(encoding.spans, encoding.supervised, strict=True):
            assert on == (3 <= start < stop <= 13)
        assert not encoding.supervised[-1]


def test_eos_is_supervised_when_it_closes_a_supervised_span():
    vocab = VOCABULARIES["byte_level"]
    for ranges, expected in [([(4, 7)], True), ([(0, 3)], False), ([], False), (None, True)]:
        encoding = encode_text(vocab, "the fox", eos=True, supervised=ranges)
        assert encoding.supervised[-1] == expected


@pytest.mark.parametrize("ranges", [[(0, 8)], [(-1, 2)], [(3, 2)]])
def test_ranges_outside_the_text(ranges):
    with pytest.raises(AlignmentError, match="7 bytes"):
        encode_text(VOCABULARIES["byte_level"], "the fox", supervised=ranges)


def test_as_many_range_lists_as_texts():
    with pytest.raises(AlignmentError, match="2 texts"):
        encode_texts(VOCABULARIES["byte_level"], ["a", "b"], supervised=[None])


@given(text=any_text, cuts=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=4))
@settings(max_examples=80, deadline=None)
def test_all_tokenizers_supervise_within_the_same_bytes(text, cuts):
    size = len(text.encode())
    ranges = [(min(a, b), max(a, b)) for a, b in cuts if max(a, b) <= size]
    allowed = np.zeros(size, bool)
    for start, stop in ranges:
        allowed[start:stop] = True
    for vocab in VOCABULARIES.values():
        encoding = encode_text(vocab, text, supervised=ranges)
        for (start, stop), on in zip(encoding.spans, encoding.supervised, strict=True):
            inside = bool(start < stop and allowed[start:stop].all())
            assert on == inside or (inside and vocab.lossy)


# Batches, packing, prompts


@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_is_its_texts(name):
    vocab = VOCABULARIES[name]
    texts = list(TEXTS.values())
    for one, many in zip(
        [encode_text(vocab, text, eos=vocab.role_id("eos") is not None) for text in texts],
        encode_texts(vocab, texts, eos=vocab.role_id("eos") is not None),
        strict=True,
    ):
        assert one.ids.tolist() == many.ids.tolist()
        assert one.spans.tolist() == many.spans.tolist()
        assert one.ids.dtype == one.spans.dtype == np.int64


def test_truncate_keeps_the_stream():
    encoding = encode_text(VOCABULARIES["byte_level"], "the people of the river")
    short = encoding.truncate(2)
    assert len(short) == 2
    assert short.content_bytes == encoding.content_bytes
    assert short.spans.tolist() == encoding.spans[:2].tolist()
    assert encoding.truncate(10**6) is encoding


def test_concat_shifts_content():
    vocab = VOCABULARIES["sentencepiece_first"]
    texts = ["猫 fox", "", "the river"]
    parts = [encode_text(vocab, text, eos=True) for text in texts]
    packed = concat(parts)
    stream = "".join(texts).encode()
    assert packed.content_bytes == len(stream)
    assert packed.exact
    for token, (start, stop) in zip(packed.ids, packed.spans, strict=True):
        if start < stop:
            assert vocab.token_bytes(token).endswith(stream[start:stop])
    outside = sum((part.spans[:, 0] == -1).sum() for part in parts)
    assert (packed.spans[:, 0] == -1).sum() == outside > 0
    assert len(concat([])) == 0


@pytest.mark.parametrize("name", EXACT)
@given(prompt=any_text, completion=any_text)
@settings(max_examples=60, deadline=None)
def test_prompt_and_completion(name, prompt, completion):
    vocab = VOCABULARIES[name]
    eos = vocab.role_id("eos") is not None
    encoding = encode_prompt_completion(vocab, prompt, completion, eos=eos)
    border, size = len(prompt.encode()), len((prompt + completion).encode())
    assert encoding.content_bytes == size
    check_ordered(prompt + completion, encoding)
    covered = np.zeros(size, bool)
    for (start, stop), on in zip(encoding.spans, encoding.supervised, strict=True):
        assert not (start < border < stop)
        if start < stop:
            assert on == (start >= border)
        covered[max(start, 0) : max(stop, 0)] |= on
    assert covered[border:].all()
    if eos:
        assert encoding.supervised[-1]
        assert encoding.spans[-1].tolist() == [size, size]


def test_the_completion_has_no_dummy_prefix():
    for scheme in ("first", "always", "normalizer"):
        vocab = Vocabulary.from_tokenizer(sentencepiece(scheme=scheme))
        encoding = encode_prompt_completion(vocab, "the ", "fox")
        assert vocab.join_bytes(encoding.ids) == b" the fox"


# Bad input


def test_lone_surrogate():
    with pytest.raises(DataError, match=r"U\+D800.*character 3"):
        encode_text(VOCABULARIES["byte_level"], "abc\ud800")


def test_long_text_is_quick():
    import time

    vocab = VOCABULARIES["byte_level"]
    text = "The people of the river, 201 of them, were there.\n" * 4000
    encode_text(vocab, text[:100])
    begun = time.process_time()
    encoding = encode_text(vocab, text)
    rate = len(encoding) / (time.process_time() - begun)
    assert rate > 50_000
