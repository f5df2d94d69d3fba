"""Vocabulary on tokenizers trained here: bytes, kinds, roles, lookup, fingerprints, errors."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models

from tiny_tokenizers import CHATML, FAMILIES, LOSSLESS, byte_level, sentencepiece, wordpiece
from xtoken.errors import ModelNotFoundError, UsageError, VocabularyError
from xtoken.vocab import ROLES, Vocabulary, load_tokenizer

VOCABULARIES = {name: Vocabulary.from_tokenizer(make()) for name, make in FAMILIES.items()}


def wrapped(tokenizer: Tokenizer, **named):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)


@pytest.fixture(params=FAMILIES)
def vocab(request) -> Vocabulary:
    return VOCABULARIES[request.param]


def test_arrays_agree_with_token_bytes(vocab):
    pieces = [vocab.token_bytes(index) for index in range(len(vocab))]
    assert vocab.byte_lengths.dtype == np.int32
    assert vocab.byte_lengths.tolist() == [len(piece) for piece in pieces]
    assert vocab.flat_bytes.tobytes() == b"".join(pieces)
    assert vocab.byte_starts.tolist() == [0, *np.cumsum(vocab.byte_lengths).tolist()]
    assert all(piece == b"" for i, piece in enumerate(pieces) if vocab.is_special[i])
    assert all(piece for i, piece in enumerate(pieces) if vocab.kind(i) in ("piece", "byte"))


def test_every_id_is_exactly_one_kind(vocab):
    for index in range(len(vocab)):
        assert (vocab.kind(index) == "special") == vocab.is_special[index]
        assert (vocab.kind(index) == "missing") == vocab.is_missing[index]
        assert (vocab.role(index) is not None) == vocab.is_special[index]
        assert vocab.role(index) is None or vocab.role(index) in vocab.roles(index) <= set(ROLES)


def test_byte_level_alphabet_is_the_one_of_the_library():
    vocab = VOCABULARIES["byte_level"]
    assert {vocab.token_bytes(i) for i in range(3, 259)} == {bytes([byte]) for byte in range(256)}
    space = vocab.id_for_bytes(b" ")
    assert vocab.token_text(space) == "Ġ"
    assert vocab.token_text(vocab.id_for_bytes(b"\n")) == "Ċ"
    assert vocab.id_for_bytes(b"_") != vocab.id_for_bytes(b" ") != vocab.id_for_bytes(b"\t")


def test_sentencepiece_bytes():
    vocab = VOCABULARIES["sentencepiece_first"]
    assert vocab.token_bytes(vocab.tokenizer.convert_tokens_to_ids("▁the")) == b" the"
    fallback = vocab.tokenizer.convert_tokens_to_ids("<0xE2>")
    assert vocab.token_bytes(fallback) == b"\xe2"
    assert vocab.kind(fallback) == "byte"


def test_added_text_against_roles():
    vocab = VOCABULARIES["byte_level"]
    think = vocab.ids_for_bytes(b"<think>")
    assert len(think) == 1
    assert vocab.kind(think[0]) == "added"
    assert vocab.role(think[0]) is None
    assert vocab.role_id("eos") == 0
    assert vocab.role_id("end_of_turn") == 2
    assert vocab.role(1) == "special"
    assert vocab.ids_for_bytes(b"<|im_end|>") == ()


def test_added_pieces_that_spell_spaces():
    # Gemma's tokenizer.json adds its runs of spaces as "▁▁", which no text holds literally.
    described = json.loads(sentencepiece(scheme="never").to_str())
    described["model"]["vocab"]["▁▁"] = size = len(described["model"]["vocab"])
    described["model"]["merges"].append(["▁", "▁"])
    tokenizer = Tokenizer.from_str(json.dumps(described))
    tokenizer.add_tokens([AddedToken("▁▁", normalized=False, special=False)])
    vocab = Vocabulary.from_tokenizer(tokenizer)
    assert vocab.token_bytes(size) == b"  "
    assert vocab.tokenize_bytes([b"  "]) == [(size,)]


def test_one_id_may_play_several_roles():
    tokenizer = wrapped(
        byte_level(), bos_token="<|endoftext|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    vocab = Vocabulary.from_tokenizer(tokenizer)
    assert vocab.roles(2) == {"eos", "end_of_turn", "pad"}
    assert vocab.role(2) == "eos"
    assert vocab.role_id("pad") == vocab.role_id("end_of_turn") == 2
    assert vocab.role_id("unk") is None


def test_end_of_turn_prefers_the_name_that_the_template_writes():
    tokenizer = byte_level()
    tokenizer.add_special_tokens(["<|end|>"])
    assert Vocabulary.from_tokenizer(tokenizer).role_id("end_of_turn") == 2
    hf = wrapped(tokenizer, eos_token="<|endoftext|>")
    hf.chat_template = "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}"
    vocab = Vocabulary.from_tokenizer(hf)
    assert vocab.role_id("end_of_turn") == tokenizer.token_to_id("<|end|>")
    assert "end_of_turn" in vocab.roles(2)


def test_eos_closes_turns_where_a_template_knows_no_other_token():
    hf = wrapped(sentencepiece(), bos_token="<s>", eos_token="</s>")
    hf.chat_template = "{% for m in messages %}[INST]{{ m.content }}</s>{% endfor %}"
    assert Vocabulary.from_tokenizer(hf).roles(2) == {"eos", "end_of_turn"}


def test_control_pieces_that_are_not_flagged_special():
    # Phi-3 does not flag </s>; a token of that name further up is text (an HTML tag in Gemma).
    tokenizer = Tokenizer(models.BPE({"a": 0, "</s>": 1, "b": 2, "c": 3, "<s>": 4}, []))
    tokenizer.add_tokens([AddedToken("</s>", special=False), AddedToken("<s>", special=False)])
    vocab = Vocabulary.from_tokenizer(wrapped(tokenizer))
    assert vocab.role(1) == "special"
    assert vocab.token_bytes(4) == b"<s>"


def test_same_kind_first_then_the_emitted_id():
    vocab = VOCABULARIES["sentencepiece_first"]
    piece, fallback = (vocab.tokenizer.convert_tokens_to_ids(t) for t in ("e", "<0x65>"))
    assert vocab.ids_for_bytes(b"e") == (piece, fallback)
    assert vocab.id_for_bytes(b"e", "byte") == fallback
    # "\n" is added text in Gemma: no piece has its bytes, and the byte token is never emitted.
    tokenizer = sentencepiece()
    tokenizer.add_tokens([AddedToken("\n", normalized=False, special=False)])
    vocab = Vocabulary.from_tokenizer(tokenizer)
    assert [vocab.kind(i) for i in vocab.ids_for_bytes(b"\n")] == ["added", "byte"]
    assert vocab.ids_for_bytes(b"no such token") == ()
    assert vocab.id_for_bytes(b"no such token") is None


@pytest.mark.parametrize("name", LOSSLESS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_pieces_add_up_to_their_bytes(name, data):
    vocab = VOCABULARIES[name]
    alphabet = "ab 1\n_é狐\u2581\u0301<s>/|👍"
    piece = data.draw(st.one_of(st.binary(max_size=12), st.text(alphabet).map(str.encode)))
    (ids,) = vocab.tokenize_bytes([piece])
    assert vocab.join_bytes(ids) == piece
    assert not vocab.is_special[list(ids)].any()


@pytest.mark.parametrize("name", LOSSLESS)
def test_every_token_is_read_back_as_itself_or_its_equal(name):
    vocab = VOCABULARIES[name]
    own = [i for i in range(len(vocab)) if vocab.byte_lengths[i]]
    read = vocab.tokenize_bytes([vocab.token_bytes(index) for index in own])
    for index, ids in zip(own, read, strict=True):
        assert vocab.join_bytes(ids) == vocab.token_bytes(index)


def test_pieces_are_isolated():
    vocab = VOCABULARIES["sentencepiece_always"]
    (the,) = vocab.tokenize_bytes([b"the"])
    assert vocab.token_bytes(the[0])[:1] == b"t"  # no dummy prefix
    (decomposed,) = VOCABULARIES["nfc_byte_level"].tokenize_bytes(["e\u0301".encode()])
    assert VOCABULARIES["nfc_byte_level"].join_bytes(decomposed) == b"e\xcc\x81"  # no NFC
    assert vocab.tokenize_bytes([]) == []
    assert vocab.tokenize_bytes([b""]) == [()]


def test_wordpiece_says_that_it_is_lossy():
    vocab = VOCABULARIES["wordpiece"]
    assert vocab.lossy
    assert vocab.normalizes
    notes = " ".join(vocab.notes)
    assert "lower-cases" in notes
    assert "white space" in notes
    assert vocab.tokenize_bytes([b" THE"]) == vocab.tokenize_bytes([b"the"])
    assert vocab.tokenize_bytes(["猫".encode()]) == [()]
    assert (vocab.role_id("bos"), vocab.role_id("eos")) == (1, 2)


def test_exactness_flags():
    flags = {
        name: (v.lossy, v.normalizes, v.dummy_prefix, v.spelling)
        for name, v in VOCABULARIES.items()
    }
    assert flags == {
        "byte_level": (False, False, False, "byte_level"),
        "nfc_byte_level": (False, True, False, "byte_level"),
        "sentencepiece_first": (False, False, True, "sentencepiece"),
        "sentencepiece_always": (False, False, True, "sentencepiece"),
        "sentencepiece_normalizer": (False, False, True, "sentencepiece"),
        "sentencepiece_never": (False, False, False, "sentencepiece"),
        "unigram": (False, False, True, "sentencepiece"),
        "wordpiece": (True, True, False, "wordpiece"),
    }
    assert any("NFC" in note for note in VOCABULARIES["nfc_byte_level"].notes)


def test_missing_bytes_are_told():
    tokenizer = Tokenizer.from_str(byte_level().to_str())
    described = json.loads(tokenizer.to_str())
    dropped = {"\u0104", "\u010c"}  # bytes 0x04 and 0x0C
    described["model"]["vocab"] = {
        t: i for t, i in described["model"]["vocab"].items() if t not in dropped
    }
    vocab = Vocabulary.from_tokenizer(Tokenizer.from_str(json.dumps(described)))
    assert not vocab.lossy
    assert any("0x04, 0x0C" in note for note in vocab.notes)
    assert vocab.is_missing.sum() == 2
    assert vocab.tokenize_bytes([b"\x04"]) == [()]


def test_fillers_of_a_gguf_are_padding_rows():
    tokenizer = byte_level()
    size = tokenizer.get_vocab_size()
    fillers = [f"[PAD{size + i}]" for i in range(4)]
    real = AddedToken("<tool>", special=False)
    tokenizer.add_tokens([AddedToken(fillers[0], special=False), AddedToken("[PAD7]")])
    tokenizer.add_tokens([AddedToken(f"[PAD{size + 2}]", special=False), real])
    tokenizer.add_tokens([AddedToken(f"[PAD{size + i}]", special=False) for i in (4, 5)])
    vocab = Vocabulary.from_tokenizer(tokenizer)
    assert (len(vocab), vocab.rows) == (size + 4, size + 6)
    assert [vocab.kind(size + i) for i in range(4)] == ["missing", "added", "missing", "added"]
    assert vocab.token_bytes(size + 1) == b"[PAD7]"  # not its own number: text
    (ids,) = vocab.engine.encode_ids([f"[PAD{size + 5}]"], "text")
    assert vocab.join_bytes(ids) == f"[PAD{size + 5}]".encode()


def test_rows():
    vocab = VOCABULARIES["byte_level"]
    assert vocab.rows is None
    padded = vocab.with_rows(512)
    assert (padded.rows, len(padded), padded.fingerprint) == (512, len(vocab), vocab.fingerprint)
    cut = vocab.with_rows(len(vocab) - 1)  # <think> is the last id
    assert len(cut) == cut.rows == len(vocab) - 1
    assert any("leaves out 1 id" in note for note in cut.notes)
    assert cut.ids_for_bytes(b"<think>") == ()
    (ids,) = cut.engine.encode_ids(["a<think>b"], "text")
    assert cut.join_bytes(ids) == b"a<think>b"
    with pytest.raises(VocabularyError, match="300"):
        vocab.with_rows(300)


def test_fingerprint_is_about_content_not_objects():
    one, other = (Vocabulary.from_tokenizer(byte_level(), name=n) for n in ("one", "other"))
    assert one.fingerprint == other.fingerprint
    assert one.same_as(other)
    assert len(one.fingerprint) == 64
    assert one.fingerprint != VOCABULARIES["sentencepiece_first"].fingerprint
    assert not one.same_as(VOCABULARIES["sentencepiece_first"])


def test_fingerprint_sees_one_changed_id():
    described = json.loads(byte_level().to_str())
    vocab = described["model"]["vocab"]
    first, second = (t for t, i in vocab.items() if i in (100, 101))
    vocab[first], vocab[second] = vocab[second], vocab[first]
    changed = Vocabulary.from_tokenizer(Tokenizer.from_str(json.dumps(described)))
    assert changed.fingerprint != VOCABULARIES["byte_level"].fingerprint
    assert not changed.same_as(VOCABULARIES["byte_level"])


def test_same_as_looks_at_roles_by_their_spelling_and_at_behaviour():
    base = Vocabulary.from_tokenizer(wrapped(byte_level(), eos_token="<|endoftext|>"))
    chat = Vocabulary.from_tokenizer(wrapped(byte_level(), eos_token="<|im_end|>"))
    assert base.fingerprint != chat.fingerprint
    assert base.same_as(chat)
    assert not VOCABULARIES["byte_level"].same_as(VOCABULARIES["nfc_byte_level"])


def test_the_users_tokenizer_is_left_alone():
    tokenizer = wordpiece()
    before = tokenizer.to_str()
    vocab = Vocabulary.from_tokenizer(tokenizer)
    vocab.engine.encode_ids(["the [SEP] fox"], "text")
    vocab.tokenize_bytes([b"the"])
    assert tokenizer.to_str() == before
    assert tokenizer.encode_special_tokens is False


def test_pickles():
    vocab = VOCABULARIES["byte_level"]
    vocab.tokenize_bytes([b"the"])
    other = pickle.loads(pickle.dumps(vocab))
    assert other.fingerprint == vocab.fingerprint
    assert other.tokenize_bytes([b"the fox"]) == vocab.tokenize_bytes([b"the fox"])


@pytest.mark.parametrize("index", [-1, 10**6])
def test_ids_outside(index):
    vocab = VOCABULARIES["byte_level"]
    for method in (vocab.token_bytes, vocab.role, vocab.roles, vocab.kind, vocab.token_text):
        with pytest.raises(VocabularyError, match=f"no id {index}"):
            method(index)


def test_unknown_role():
    with pytest.raises(VocabularyError, match="end_of_turn"):
        VOCABULARIES["byte_level"].role_id("eot")


def test_slow_tokenizers_are_refused():
    with pytest.raises(VocabularyError, match="fast tokenizer"):
        Vocabulary.from_tokenizer(object())


def test_empty_tokenizer():
    with pytest.raises(VocabularyError, match="no tokens"):
        Vocabulary.from_tokenizer(Tokenizer(models.BPE()))


# Directories


def test_bare_tokenizer_json(tmp_path):
    tokenizer = sentencepiece()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    vocab = Vocabulary.from_pretrained(tmp_path)
    assert (vocab.role_id("bos"), vocab.role_id("eos"), vocab.role_id("unk")) == (1, 2, 0)
    assert vocab.fingerprint == VOCABULARIES["sentencepiece_first"].fingerprint
    assert vocab.tokenizer.convert_tokens_to_ids("</s>") == 2
    assert len(vocab) == len(load_tokenizer(tmp_path))


def test_tokenizer_config_names_the_roles(tmp_path):
    byte_level().save(str(tmp_path / "tokenizer.json"))
    config = {
        "bos_token": {"content": "<|endoftext|>", "__type": "AddedToken"},
        "eos_token": "<|im_end|>",
        "chat_template": [
            {"name": "other", "template": "x"},
            {"name": "default", "template": CHATML},
        ],
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    vocab = Vocabulary.from_pretrained(str(tmp_path))
    assert (vocab.role_id("bos"), vocab.role_id("eos")) == (0, 2)
    assert vocab.chat_template == CHATML


def test_a_saved_transformers_directory_reads_as_the_object(tmp_path):
    hf = wrapped(byte_level(), eos_token="<|im_end|>", pad_token="<|extra_pad|>")
    hf.chat_template = CHATML
    hf.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 400}))
    read, given_ = Vocabulary.from_pretrained(tmp_path), Vocabulary.from_tokenizer(hf)
    assert read.fingerprint == given_.fingerprint
    assert read.rows == 400
    assert read.chat_template == CHATML
    assert read.role_id("pad") == hf.pad_token_id


def test_rows_of_a_multimodal_config(tmp_path):
    byte_level().save(str(tmp_path / "tokenizer.json"))
    config = {"model_type": "gemma3", "text_config": {"vocab_size": 512}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert Vocabulary.from_pretrained(tmp_path, rows=640).rows == 640
    assert Vocabulary.from_pretrained(tmp_path).rows == 512


@pytest.mark.parametrize(
    "name", ["./nowhere", "/no/such/dir", "a/b/c", "models/x.gguf", "~/no-such-dir-here"]
)
def test_missing_paths_fail_at_once(name):
    with pytest.raises(ModelNotFoundError, match="There is no directory") as info:
        Vocabulary.from_pretrained(name)
    assert isinstance(info.value, UsageError)
    assert info.value.exit_code == 2


def test_a_name_below_an_existing_folder_is_a_path(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFoundError, match="There is no directory 'models/x'"):
        load_tokenizer("models/x")


def test_hub_name_without_network():
    with pytest.raises(ModelNotFoundError, match="neither a local directory"):
        load_tokenizer("nobody-by-this-name/no-such-model")


def test_directory_without_tokenizer(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"has no tokenizer.*save_pretrained"):
        Vocabulary.from_pretrained(tmp_path)
    (tmp_path / "a.gguf").write_bytes(b"")
    (tmp_path / "b.gguf").write_bytes(b"")
    with pytest.raises(ModelNotFoundError, match=r"2 \.gguf files"):
        Vocabulary.from_pretrained(tmp_path)


def test_broken_files(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{broken")
    with pytest.raises(ModelNotFoundError, match=r"tokenizer\.json"):
        Vocabulary.from_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[1,")
    with pytest.raises(ModelNotFoundError, match=r"tokenizer_config\.json is not readable JSON"):
        Vocabulary.from_pretrained(tmp_path)
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"not a gguf")
    with pytest.raises(ModelNotFoundError, match=r"model\.gguf"):
        Vocabulary.from_pretrained(gguf)
    with pytest.raises(ModelNotFoundError, match="is a file"):
        Vocabulary.from_pretrained(tmp_path / "tokenizer_config.json")


def test_import_is_light():
    code = (
        "import sys, xtoken.vocab, xtoken.encode;"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
