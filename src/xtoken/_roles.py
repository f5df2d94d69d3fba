"""Which ids play a role instead of standing for bytes.

`special` against `added`: an added token is a role when the tokenizer flags it special, when the
tokenizer uses it as bos, eos, pad or unk, when it bears a known end-of-turn name, or when it is
called `<s>`, `</s>`, `<unk>` or `<pad>` and sits among the first four ids, where SentencePiece
keeps its control pieces (Phi-3 does not flag its `</s>`; Gemma's `<s>` at id 200 is the HTML tag).
Every other added token is text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# First match in the chat template, else first in this list, is the id that plays `end_of_turn`.
END_OF_TURN_NAMES = (
    "<|im_end|>",  # ChatML: Qwen, SmolLM, Phi-4
    "<|eot_id|>",  # Llama 3
    "<|eot|>",  # Llama 4
    "<end_of_turn>",  # Gemma 1-3
    "<turn|>",  # Gemma 4
    "<|end|>",  # Phi-3, gpt-oss (between turns)
    "<|return|>",  # gpt-oss (last turn)
    "<|end_of_turn|>",
    "<|endofturn|>",
    "<|END_OF_TURN_TOKEN|>",  # Command R
    "<|end_of_role|>",
    "<end_of_utterance>",  # SmolVLM
    "<|assistant_end|>",
    "<|im_end_token|>",
    "[EOT]",
)
CONTROL_PIECES = ("<s>", "</s>", "<unk>", "<pad>")
# For a bare tokenizer.json, which names no roles.
GUESSES: Mapping[str, tuple[str, ...]] = {
    "bos": ("<|begin_of_text|>", "<bos>", "<s>", "<|startoftext|>", "<｜begin▁of▁sentence｜>"),
    "eos": ("<|end_of_text|>", "<eos>", "</s>", "<|endoftext|>", "<｜end▁of▁sentence｜>"),
    "pad": ("<pad>", "[PAD]", "<|pad|>"),
    "unk": ("<unk>", "[UNK]"),
    "cls": ("[CLS]",),
    "sep": ("[SEP]",),
}
PRIORITY = ("bos", "eos", "end_of_turn", "pad", "unk", "special")


@dataclass(frozen=True)
class Roles:
    """Roles of ids, and the one id that plays each role."""

    by_id: dict[int, frozenset[str]]
    id_of: dict[str, int]

    def primary(self, index: int) -> str | None:
        """Return the first of an id's roles in the order of `ROLES`."""
        roles = self.by_id.get(index, frozenset())
        return next((role for role in PRIORITY if role in roles), None)

    def cut(self, size: int) -> Roles:
        """Return the roles of the ids below `size`."""
        return Roles(
            {index: roles for index, roles in self.by_id.items() if index < size},
            {role: index for role, index in self.id_of.items() if index < size},
        )


def roles_from_transformers(tokenizer: Any) -> dict[str, str]:
    """Return role -> token text as a transformers tokenizer names them."""
    named = {
        role: getattr(tokenizer, f"{role}_token", None)
        for role in ("bos", "eos", "pad", "unk", "cls", "sep")
    }
    return {role: str(text) for role, text in named.items() if text is not None}


def find_roles(backend: Any, named: Mapping[str, str] | None, chat_template: str | None) -> Roles:
    """Find every role; `named` maps roles to token texts, None where nobody named any."""
    added = {token.content: i for i, token in backend.get_added_tokens_decoder().items()}
    if named is None:
        named = {
            role: next(text for text in texts if text in added)
            for role, texts in GUESSES.items()
            if any(text in added for text in texts)
        }
    named = dict(named)
    if "unk" not in named and isinstance(getattr(backend.model, "unk_token", None), str):
        named["unk"] = backend.model.unk_token
    # Encoder models call their outer tokens cls and sep; they stand where bos and eos stand.
    for alias, role in (("cls", "bos"), ("sep", "eos")):
        if alias in named:
            named.setdefault(role, named[alias])

    id_of: dict[str, int] = {}
    for role, text in named.items():
        index = backend.token_to_id(text)
        if index is not None and role in PRIORITY:
            id_of[role] = index
    turns = [name for name in END_OF_TURN_NAMES if name in added]
    turns.sort(key=lambda name: name not in (chat_template or ""))
    if turns:
        id_of["end_of_turn"] = added[turns[0]]
    elif chat_template and "eos" in id_of:
        id_of["end_of_turn"] = id_of["eos"]

    by_id: dict[int, set[str]] = {}
    for role, index in id_of.items():
        by_id.setdefault(index, set()).add(role)
    for name in turns:
        by_id.setdefault(added[name], set()).add("end_of_turn")
    for index, token in backend.get_added_tokens_decoder().items():
        if token.special or (index < 4 and token.content in CONTROL_PIECES):
            by_id.setdefault(index, {"special"})
    return Roles({index: frozenset(roles) for index, roles in by_id.items()}, id_of)
