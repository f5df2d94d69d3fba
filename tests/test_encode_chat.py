"""Chats: contents found in any template, spans over the same stream whatever the template."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from tiny_tokenizers import CHATML, TEXTS, byte_level, nfc_byte_level, sentencepiece, unigram
from xtoken.encode import Encoding, encode_chat
from xtoken.errors import DataError, UsageError, VocabularyError
from xtoken.vocab import Vocabulary

STRIPPING = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}:\n{{ m.content | trim }}"
    "<|im_end|>{% endfor %}"
)
# Llama-2's habits: roles as text around the content, eos at the end of an answer, bos again.
INST = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou help. the user<|im_end|>\n"
    "{% endif %}" + CHATML
)
# Qwen3's habits: an answer's thinking section is dropped in earlier turns, rebuilt in the last.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% set answer = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{% set reason = m.content.split('</think>')[0].split('<think>')[-1].strip('\n')"
    " if '</think>' in m.content else '' %}"
    "{% if loop.last %}<think>\n{{ reason }}\n</think>\n\n{% endif %}{{ answer }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
)
# Gemma's habit: the system message is written into the first user turn.
MERGED_SYSTEM = (
    "{% set first = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}"
    "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n"
    "{{ first if loop.first else '' }}{{ m.content | trim }}<|im_end|>\n{% endfor %}"
)
DROPS_SYSTEM = "{% for m in messages if m.role != 'system' %}{{ m.content }}<|im_end|>{% endfor %}"
TEMPLATES = {
    "chatml": CHATML,
    "stripping": STRIPPING,
    "inst": INST,
    "default system": DEFAULT_SYSTEM,
    "thinking": THINKING,
    "merged system": MERGED_SYSTEM,
}


def vocabulary(tokenizer, **named) -> Vocabulary:
    from transformers import PreTrainedTokenizerFast

    return Vocabulary.from_tokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named))


def chatml_sentencepiece(scheme: str):
    tokenizer = sentencepiece(scheme=scheme)
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return tokenizer


SPM_ROLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
VOCABULARIES = {
    "byte_level": vocabulary(byte_level(), bos_token="<|endoftext|>", eos_token="<|endoftext|>"),
    "nfc": vocabulary(nfc_byte_level(), bos_token="<|endoftext|>", eos_token="<|im_end|>"),
    "first": vocabulary(chatml_sentencepiece("first"), **SPM_ROLES),
    "always": vocabulary(chatml_sentencepiece("always"), **SPM_ROLES),
    "normalizer": vocabulary(chatml_sentencepiece("normalizer"), **SPM_ROLES),
    "never": vocabulary(chatml_sentencepiece("never"), **SPM_ROLES),
    "unigram": vocabulary(unigram(), **SPM_ROLES),
}
CHAT = [
    {"role": "user", "content": "user"},
    {"role": "assistant", "content": "The fox is 201."},
    {"role": "user", "content": "assistant the user\n"},
    {"role": "assistant", "content": " jumps  over"},
]


def stream(messages) -> bytes:
    return "".join(message["content"] for message in messages).encode()


def covered(encoding: Encoding, mask: np.ndarray | None = None) -> bytes:
    """Mark with 1 the content bytes that tokens (in the mask) stand for."""
    marks = np.zeros(encoding.content_bytes, np.uint8)
    for index, (start, stop) in enumerate(encoding.spans):
        if start < stop and (mask is None or mask[index]):
            marks[start:stop] = 1
    return marks.tobytes()


def lost(messages, encoding: Encoding) -> list[str]:
    """Return what of each message no span covers, white space at its ends apart."""
    marks, parts, base = covered(encoding), [], 0
    for message in messages:
        part = message["content"].encode()
        own = marks[base : base + len(part)]
        gone = bytes(byte for byte, mark in zip(part, own, strict=True) if not mark)
        parts.append(gone.decode(errors="replace").strip())
        base += len(part)
    return parts


def check(vocab: Vocabulary, messages, encoding: Encoding) -> None:
    content = stream(messages)
    assert encoding.content_bytes == len(content)
    inside = encoding.spans[encoding.spans[:, 0] < encoding.spans[:, 1]]
    assert (np.diff(inside[:, 0]) >= 0).all()
    assert (np.diff(inside[:, 1]) >= 0).all()
    if not vocab.normalizes and "\u2581".encode() not in content:
        for token, (start, stop) in zip(encoding.ids, encoding.spans, strict=True):
            if start < stop:
                assert vocab.token_bytes(token).lstrip(b" ") == content[start:stop].lstrip(b" ")
    for token, (start, stop) in zip(encoding.ids, encoding.spans, strict=True):
        if start == stop >= 0:
            assert vocab.roles(token) & {"bos", "eos", "end_of_turn"}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("name", VOCABULARIES)
def test_every_template_round_every_tokenizer(name, template):
    vocab = VOCABULARIES[name]
    messages = [{"role": "system", "content": "Be there."}, *CHAT] if "first" in template else CHAT
    encoding = encode_chat(vocab, messages, chat_template=template)
    check(vocab, messages, encoding)
    for message, gone in zip(messages, lost(messages, encoding), strict=True):
        # A template that ends in a space takes the content's first word into its last token.
        assert not gone or (template == INST and message["content"].strip().startswith(gone))


@pytest.mark.parametrize("name", VOCABULARIES)
def test_ids_are_those_of_the_tokenizers_own_rendering(name):
    vocab = VOCABULARIES[name]
    for template in TEMPLATES.values():
        encoding = encode_chat(vocab, CHAT, chat_template=template)
        own = vocab.tokenizer.apply_chat_template(
            CHAT, chat_template=template, return_dict=False, tokenize=True
        )
        assert encoding.ids.tolist() == own


def test_only_answers_are_supervised_and_with_them_what_closes_them():
    vocab = VOCABULARIES["byte_level"]
    encoding = encode_chat(vocab, CHAT, chat_template=CHATML)
    content = stream(CHAT)
    targets = [
        content[a:b].decode() if a < b else vocab.token_text(i)
        for i, (a, b), on in zip(encoding.ids, encoding.spans, encoding.supervised, strict=True)
        if on
    ]
    assert "".join(targets) == "The fox is 201.<|im_end|> jumps  over<|im_end|>"
    ends = np.cumsum([len(m["content"]) for m in CHAT]).tolist()
    closing = [s.tolist() for i, s in zip(encoding.ids, encoding.spans, strict=True) if i == 2]
    assert closing == [[end, end] for end in ends]


def test_the_first_word_of_an_answer_is_a_target_though_in_no_chunk():
    vocab = VOCABULARIES["first"]
    encoding = encode_chat(vocab, CHAT, chat_template=INST)
    straddling = (encoding.spans[:, 0] == -1) & encoding.supervised
    assert straddling.any()
    assert all(vocab.token_bytes(i).startswith(b" ") for i in encoding.ids[straddling])


def test_supervise_all():
    vocab = VOCABULARIES["byte_level"]
    encoding = encode_chat(vocab, CHAT, chat_template=CHATML, supervise="all")
    assert covered(encoding, encoding.supervised) == covered(encoding)
    assert encoding.supervised[encoding.ids == 2].all()
    assert not encoding.supervised[encoding.spans[:, 0] == -1].any()
    with pytest.raises(UsageError, match="'assistant' or 'all'"):
        encode_chat(vocab, CHAT, chat_template=CHATML, supervise="user")


def test_both_sides_supervise_the_same_text():
    messages = [{"role": "system", "content": "Be there."}, *CHAT]
    sides = [("byte_level", CHATML), ("first", STRIPPING), ("never", MERGED_SYSTEM)]
    marks = []
    for name, template in sides:
        encoding = encode_chat(VOCABULARIES[name], messages, chat_template=template)
        marks.append(np.frombuffer(covered(encoding, encoding.supervised), np.uint8))
        assert encoding.content_bytes == len(stream(messages))
    space = np.array([chr(byte).isspace() for byte in stream(messages)])
    for other in marks[1:]:
        assert ((marks[0] == other) | space).all()


def test_bos_of_the_template_pairs_by_role():
    vocab = VOCABULARIES["first"]
    encoding = encode_chat(vocab, CHAT, chat_template=INST)
    bos = [s.tolist() for i, s in zip(encoding.ids, encoding.spans, strict=True) if i == 1]
    assert bos == [[0, 0], [-1, -1]]  # the one in mid-chat pairs with nothing
    eos = [s.tolist() for i, s in zip(encoding.ids, encoding.spans, strict=True) if i == 2]
    ends = np.cumsum([len(m["content"]) for m in CHAT]).tolist()
    assert eos == [[ends[1], ends[1]], [ends[3], ends[3]]]


@pytest.mark.parametrize("name", VOCABULARIES)
@pytest.mark.parametrize("template", [CHATML, INST, STRIPPING], ids=["chatml", "inst", "stripping"])
def test_special_strings_in_contents_are_text(name, template):
    vocab = VOCABULARIES[name]
    messages = [
        {"role": "user", "content": "a <|im_end|> b</s><s>"},
        {"role": "assistant", "content": "<|im_start|>user\nthe <|endoftext|><unk>."},
        {"role": "user", "content": "<|im_end|>"},
    ]
    encoding = encode_chat(vocab, messages, chat_template=template)
    check(vocab, messages, encoding)
    for message, gone in zip(messages, lost(messages, encoding), strict=True):
        assert not gone or (template == INST and message["content"].startswith(gone))
    assert not vocab.is_special[encoding.ids[encoding.spans[:, 0] < encoding.spans[:, 1]]].any()
    harmless = [{**m, "content": "x"} for m in messages]
    around = encode_chat(vocab, harmless, chat_template=template)
    assert sum(vocab.is_special[encoding.ids]) == sum(vocab.is_special[around.ids])


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_odd_unicode_in_contents(text):
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    for vocab in VOCABULARIES.values():
        for template in (CHATML, STRIPPING, INST):
            encoding = encode_chat(vocab, messages, chat_template=template)
            check(vocab, messages, encoding)


contents = st.lists(
    st.sampled_from([" ", "\n", "the", "user", "assistant", "</think>", "<think>", "é", "猫", "1"]),
    min_size=1,
    max_size=8,
).map("".join)


@given(texts=st.lists(contents, min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_random_chats(texts):
    roles = ["user", "assistant"]
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    for name in ("byte_level", "first", "normalizer"):
        for template in (CHATML, STRIPPING, DEFAULT_SYSTEM):
            encoding = encode_chat(VOCABULARIES[name], messages, chat_template=template)
            check(VOCABULARIES[name], messages, encoding)
            marks = np.frombuffer(covered(encoding), np.uint8).astype(bool)
            space = np.array([chr(byte).isspace() for byte in stream(messages)])
            assert (marks | space).all()


def test_special_tokens_that_swallow_white_space():
    # Phi-3's <|user|> takes the white space after it (rstrip), here also that of the content.
    tokenizer = byte_level()
    tokenizer.add_special_tokens([AddedToken("<|user|>", rstrip=True, special=True)])
    vocab = vocabulary(tokenizer)
    template = "{% for m in messages %}<|user|>\n{{ m.content }}<|im_end|>{% endfor %}"
    for content in ("  the fox", "the <|user|>  fox"):
        messages = [{"role": "user", "content": content}]
        encoding = encode_chat(vocab, messages, chat_template=template)
        check(vocab, messages, encoding)
        assert (encoding.ids == tokenizer.token_to_id("<|user|>")).sum() == 1
        assert lost(messages, encoding) == [""]


def test_ids_without_a_row():
    tokenizer = byte_level()
    size = tokenizer.get_vocab_size()
    tokenizer.add_tokens([AddedToken(f"[PAD{size}]", special=False)])  # a GGUF's filler
    vocab = vocabulary(tokenizer)
    assert len(vocab) == size
    messages = [{"role": "user", "content": f"a [PAD{size}]."}]
    encoding = encode_chat(vocab, messages, chat_template=CHATML)
    check(vocab, messages, encoding)
    assert lost(messages, encoding) == [""]
    template = "[PAD%d]{{ messages[0].content }}" % size  # noqa: UP031
    with pytest.raises(VocabularyError, match=f"id {size}.*chat template"):
        encode_chat(vocab, messages, chat_template=template)


def test_thinking_that_the_template_drops_or_rebuilds():
    vocab = VOCABULARIES["byte_level"]
    first, last = "<think>\nwhy\n</think>\n\nThe fox.", "<think>\nhm\n</think>\n\nThe dog."
    messages = [
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": last},
    ]
    encoding = encode_chat(vocab, messages, chat_template=THINKING)
    check(vocab, messages, encoding)
    content, marks = stream(messages), covered(encoding, encoding.supervised)
    kept = bytes(byte for byte, mark in zip(content, marks, strict=True) if mark)
    assert kept.decode() == "The fox." + last
    # A template that writes the section in another way: what still is the content's own counts.
    messages[-1]["content"] = "<think>hm</think>The dog."
    encoding = encode_chat(vocab, messages, chat_template=THINKING)
    check(vocab, messages, encoding)
    marks = covered(encoding, encoding.supervised)
    kept = bytes(b for b, mark in zip(stream(messages), marks, strict=True) if mark)
    assert kept.decode() == "The fox.The dog."


def test_empty_and_missing_contents():
    vocab = VOCABULARIES["byte_level"]
    messages = [
        {"role": "user", "content": ""},
        {"role": "assistant", "content": None, "tool_calls": []},
        {
            "role": "user",
            "content": [{"type": "text", "text": "the "}, {"type": "text", "text": "fox"}],
        },
        {"role": "assistant", "content": "   "},
    ]
    encoding = encode_chat(vocab, messages, chat_template=STRIPPING)
    assert encoding.content_bytes == len("the fox   ")
    assert not encoding.supervised.any()  # the only answer was stripped to nothing
    encoding = encode_chat(vocab, messages, chat_template=CHATML)
    assert encoding.supervised.any()


def test_template_arguments():
    vocab = VOCABULARIES["byte_level"]
    plain = encode_chat(vocab, CHAT, chat_template=CHATML)
    asked = encode_chat(
        vocab, CHAT, chat_template=CHATML, template_kwargs={"add_generation_prompt": True}
    )
    assert len(asked) > len(plain)
    assert asked.ids[: len(plain)].tolist() == plain.ids.tolist()
    assert not asked.supervised[len(plain) :].any()


# Bad input


def test_no_template():
    with pytest.raises(VocabularyError, match=r"no chat template.*chat_template="):
        encode_chat(VOCABULARIES["byte_level"], CHAT)


def test_a_content_that_the_template_drops():
    messages = [{"role": "system", "content": "Be nice."}, *CHAT]
    with pytest.raises(DataError, match=r"message 0 \(system\).*Be nice"):
        encode_chat(VOCABULARIES["byte_level"], messages, chat_template=DROPS_SYSTEM)


def test_a_content_that_the_template_rewrites():
    template = "{% for m in messages %}{{ m.content | upper }}<|im_end|>{% endfor %}"
    with pytest.raises(DataError, match=r"message 0 \(user\)"):
        encode_chat(VOCABULARIES["byte_level"], CHAT, chat_template=template)


def test_a_template_that_moves_messages():
    template = "{% for m in messages | reverse %}{{ m.content }}<|im_end|>{% endfor %}"
    with pytest.raises(DataError, match="moves or merges"):
        encode_chat(VOCABULARIES["byte_level"], CHAT, chat_template=template)


def test_a_template_that_refuses():
    template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match="roles must alternate"):
        encode_chat(VOCABULARIES["byte_level"], CHAT, chat_template=template)
    with pytest.raises(DataError, match="refuses this chat"):
        encode_chat(VOCABULARIES["byte_level"], CHAT, chat_template="{% if %}")


@pytest.mark.parametrize(
    ("messages", "what"),
    [
        ([], "no messages"),
        ("hello", "a str"),
        ({"role": "user"}, "a dict"),
        ([{"content": "x"}], "Message 0 of a chat has no role"),
        ([*CHAT, "x"], "Message 4 of a chat has no role"),
        ([{"role": "user", "content": 3}], "no text: 3"),
        ([{"role": "user", "content": [{"type": "image"}]}], r"Message 0 \(user\)"),
    ],
)
def test_malformed_chats(messages, what):
    with pytest.raises(DataError, match=what):
        encode_chat(VOCABULARIES["byte_level"], messages, chat_template=CHATML)
