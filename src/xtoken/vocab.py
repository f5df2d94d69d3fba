"""A tokenizer's vocabulary as bytes: which exact bytes, or which role, every id stands for.

    vocab = Vocabulary.from_pretrained("path/or/hub-name")
    vocab.token_bytes(1917)      # b" world"
    vocab.role(128001)           # "eos"
    vocab.ids_for_bytes(b"201")  # (679,), or () when no token holds exactly these bytes

Needs neither torch nor transformers at import.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from xtoken._bytes import KINDS, Kind, TokenTable, read_tokens
from xtoken._engine import Engine
from xtoken._identity import SAMENESS_PROBES, fingerprint_of
from xtoken._pieces import PieceTokenizer
from xtoken._roles import PRIORITY, Roles, find_roles, roles_from_transformers
from xtoken._tokenizer_files import load_tokenizer, output_rows, read_plain_directory
from xtoken._traits import Traits, find_traits
from xtoken.errors import VocabularyError

__all__ = ["ROLES", "Vocabulary", "load_tokenizer"]

ROLES = PRIORITY


class Vocabulary:
    """The ids of one tokenizer as bytes and roles.

    `len(v)` is the real size (highest id + 1); `v.rows` is the height of the model's output head
    where known, which may be larger (padded rows) but never smaller. Arrays over ids:
    `byte_lengths` int32[len] (0 for role tokens and holes), `flat_bytes` uint8 (all tokens' bytes
    one after the other), `byte_starts` int64[len + 1]; `is_special`, `is_missing` and `is_byte`
    (byte fallback) bool[len].

    `normalizes`: the tokenizer may change the text before cutting it (NFC, lower case), so bytes
    are those of the normalised text. `lossy`: the tokens' bytes need not add up to the text at all
    (WordPiece drops spaces); spans then come from offsets. `notes` says both in sentences.
    """

    def __init__(
        self,
        table: TokenTable,
        traits: Traits,
        roles: Roles,
        backend: Any,
        *,
        name: str,
        rows: int | None,
        chat_template: str | None,
        make_tokenizer: Callable[[], Any],
    ):
        self.name = name
        self.rows = rows
        self.chat_template = chat_template
        self.lossy, self.normalizes = traits.lossy, traits.normalizes
        self.dummy_prefix, self.notes = traits.dummy_prefix, traits.notes
        self.spelling, self.drops_space = table.spelling, traits.drops_space
        self._table, self._traits, self._roles = table, traits, roles
        self._backend, self._make_tokenizer = backend, make_tokenizer
        self.is_special = table.kinds == KINDS.index("special")
        self.is_missing = table.kinds == KINDS.index("missing")
        self.is_byte = table.kinds == KINDS.index("byte")
        size = len(table.token_bytes)
        self.byte_lengths = np.fromiter(map(len, table.token_bytes), np.int32, size)
        self.byte_starts = np.zeros(size + 1, np.int64)
        np.cumsum(self.byte_lengths, out=self.byte_starts[1:])
        self.flat_bytes = np.frombuffer(b"".join(table.token_bytes), np.uint8)

    @classmethod
    def from_pretrained(
        cls,
        name_or_dir_or_gguf: str | os.PathLike[str],
        *,
        rows: int | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> Vocabulary:
        """Read the vocabulary of a directory with a tokenizer.json, a .gguf file or a hub name.

        `rows` defaults to the head's height that a `config.json` beside the tokenizer states.
        Raises `ModelNotFoundError` where there is no such tokenizer, `VocabularyError` where it
        can't be read as bytes.
        """
        name = os.fspath(name_or_dir_or_gguf)
        folder = Path(name).expanduser()
        if rows is None:
            rows = output_rows(folder)
        files = read_plain_directory(folder) if folder.is_dir() else None
        # Partials rather than closures: a vocabulary travels to data workers by pickle.
        load = partial(load_tokenizer, name, revision=revision, trust_remote_code=trust_remote_code)
        if files is None:
            return cls.from_tokenizer(load(), name=name, rows=rows)
        named = files.role_tokens if files.has_config else None
        return cls._build(
            files.backend,
            named,
            name=name,
            rows=rows,
            chat_template=files.chat_template,
            make_tokenizer=load,
        )

    @classmethod
    def from_tokenizer(
        cls, obj: Any, *, name: str | None = None, rows: int | None = None
    ) -> Vocabulary:
        """Read the vocabulary of a fast transformers tokenizer or a `tokenizers.Tokenizer`.

        The object is not changed. Raises `VocabularyError` for a slow (pure Python) tokenizer.
        """
        from tokenizers import Tokenizer

        if isinstance(obj, Tokenizer):
            return cls._build(
                obj,
                None,
                name=name or "tokenizer",
                rows=rows,
                chat_template=None,
                make_tokenizer=partial(_wrap, obj),
            )
        backend = getattr(obj, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise VocabularyError(
                f"Can't read bytes from a {type(obj).__name__}; expected a fast tokenizer (backed "
                "by the `tokenizers` library) or a `tokenizers.Tokenizer`. Load it with "
                "AutoTokenizer, or convert it to a tokenizer.json first."
            )
        template = getattr(obj, "chat_template", None)
        if isinstance(template, dict):
            template = template.get("default")
        return cls._build(
            backend,
            roles_from_transformers(obj),
            name=name or getattr(obj, "name_or_path", None) or type(obj).__name__,
            rows=rows,
            chat_template=template,
            make_tokenizer=partial(_given, obj),
        )

    @classmethod
    def _build(
        cls, backend: Any, named: dict[str, str] | None, *, rows: int | None, **about: Any
    ) -> Vocabulary:
        roles = find_roles(backend, named, about["chat_template"])
        table = read_tokens(backend, roles.by_id.keys())
        if not table.token_bytes:
            raise VocabularyError(f"{about['name']}: the tokenizer has no tokens at all.")
        traits = find_traits(backend, table)
        if rows is None and table.raw_size > len(table.token_bytes):
            rows = table.raw_size  # a GGUF fills the vocabulary up to the head's height
        whole = cls(table, traits, roles, backend, rows=None, **about)
        return whole if rows is None else whole.with_rows(rows)

    def with_rows(self, rows: int) -> Vocabulary:
        """Return the same vocabulary for a model whose output head has `rows` rows.

        Ids beyond the head (Gemma-3's `<image_soft_token>` in its text models) are left out when
        they are control or added tokens; raises `VocabularyError` when ordinary pieces would go.
        """
        table, roles, traits = self._table, self._roles, self._traits
        if rows < len(self):
            lost = [KINDS[kind] for kind in table.kinds[rows:].tolist()]
            if rows < 1 or any(kind in ("piece", "byte") for kind in lost):
                raise VocabularyError(
                    f"{self.name} has {len(self)} ids but the model's output head only {rows} "
                    "rows, so ordinary tokens could never be predicted; the tokenizer belongs to "
                    "another model. Give the model's own tokenizer."
                )
            table = table.cut(rows)
            roles = roles.cut(rows)
            left_out = f"leaves out {len(lost)} ids that the model's {rows} rows do not reach"
            traits = traits.with_note(left_out)
        return Vocabulary(
            table,
            traits,
            roles,
            self._backend,
            name=self.name,
            rows=rows,
            chat_template=self.chat_template,
            make_tokenizer=self._make_tokenizer,
        )

    def __len__(self) -> int:
        return len(self.byte_lengths)

    def __repr__(self) -> str:
        padded = f", rows={self.rows}" if self.rows is not None else ""
        return f"Vocabulary({self.name!r}, {len(self)} ids{padded}, {self.spelling})"

    @cached_property
    def tokenizer(self) -> Any:
        """The transformers tokenizer that this was read from (loaded when first asked for)."""
        return self._make_tokenizer()

    @cached_property
    def engine(self) -> Engine:
        """The private encoder behind `xtoken.encode`."""
        return Engine(self._backend, self._table.hidden, keep_normalizer=self._traits.drops_space)

    @cached_property
    def _pieces(self) -> PieceTokenizer:
        return PieceTokenizer(self.engine, self._table, drops_space=self._traits.drops_space)

    def _check(self, token_id: int) -> int:
        index = int(token_id)
        if not 0 <= index < len(self):
            raise VocabularyError(
                f"{self.name} has no id {token_id}; its ids run from 0 to {len(self) - 1}."
            )
        return index

    def token_bytes(self, token_id: int) -> bytes:
        """Return the exact bytes of an id, b"" for a role token or a hole in the id range."""
        return self._table.token_bytes[self._check(token_id)]

    def token_text(self, token_id: int) -> str:
        """Return the token as the tokenizer itself spells it (`Ġthe`, `▁the`, `<|eot_id|>`)."""
        return self._table.texts[self._check(token_id)]

    def kind(self, token_id: int) -> Kind:
        """Return whether an id is a model piece, a byte fallback, added text, a role or a hole."""
        return KINDS[self._table.kinds[self._check(token_id)]]

    def role(self, token_id: int) -> str | None:
        """Return the first of an id's roles in the order of `ROLES`, None for ordinary tokens."""
        return self._roles.primary(self._check(token_id))

    def roles(self, token_id: int) -> frozenset[str]:
        """Return all roles of an id (GPT-2's `<|endoftext|>` is bos and eos)."""
        return self._roles.by_id.get(self._check(token_id), frozenset())

    def role_id(self, role: str) -> int | None:
        """Return the id that plays a role, None where the tokenizer has none."""
        if role not in ROLES:
            raise VocabularyError(f"Unknown role {role!r}; expected one of {', '.join(ROLES)}.")
        return self._roles.id_of.get(role)

    @cached_property
    def _ids_of(self) -> dict[bytes, tuple[int, ...]]:
        index: dict[bytes, tuple[int, ...]] = {}
        for token_id, piece in enumerate(self._table.token_bytes):
            if piece:
                index[piece] = (*index.get(piece, ()), token_id)
        return index

    def ids_for_bytes(self, piece: bytes, kind: Kind = "piece") -> tuple[int, ...]:
        """Return all ids with exactly these bytes, the preferred one first.

        Preferred: an id of the asked kind, then the id that the tokenizer itself emits for these
        bytes, then the lower id.
        """
        ids = self._ids_of.get(bytes(piece), ())
        if len(ids) < 2:
            return ids
        emitted = self._pieces.emitted(piece)
        return tuple(sorted(ids, key=lambda i: (self.kind(i) != kind, i != emitted, i)))

    def id_for_bytes(self, piece: bytes, kind: Kind | None = None) -> int | None:
        """Return the preferred id with exactly these bytes, None where no token holds them."""
        ids = self.ids_for_bytes(piece, kind or "piece")
        return ids[0] if ids else None

    def tokenize_bytes(self, pieces: Sequence[bytes]) -> list[tuple[int, ...]]:
        """Tokenise byte strings out of context: no dummy prefix, normaliser or special tokens.

        Where a piece is no valid UTF-8, byte-level models merge its bytes as far as their merges
        go, SentencePiece models spell the invalid bytes by their byte tokens. The ids' bytes add
        up to the piece; a piece that the vocabulary can't spell gives (). A lossy vocabulary
        gives what its tokenizer makes of the piece, () if that holds an unknown.
        """
        return self._pieces.tokenize(pieces)

    def tokenize_literal(self, text: str) -> tuple[int, ...]:
        """Spell a control token's own text with ordinary tokens, () where that is impossible."""
        return self._pieces.as_text(text)

    def is_control(self, ids: np.ndarray) -> np.ndarray:
        """Return bool[n]: the ids of role tokens, and any beyond the vocabulary."""
        return np.append(self.is_special, True)[np.minimum(ids, len(self))]

    @property
    def all_bytes(self) -> list[bytes]:
        """Every id's bytes as a list (not to be changed): `token_bytes` for tight loops."""
        return self._table.token_bytes

    def join_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the concatenated bytes of a sequence of ids (role tokens add none)."""
        ids = list(ids)
        if ids:
            self._check(min(ids))
            self._check(max(ids))
        pieces = self._table.token_bytes
        return b"".join([pieces[token_id] for token_id in ids])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over every id's bytes and roles; equal iff all of them are."""
        roles = [(index, self.roles(index)) for index in np.flatnonzero(self.is_special).tolist()]
        return fingerprint_of(self.byte_lengths, self.flat_bytes, self.is_missing, roles)

    def same_as(self, other: Vocabulary) -> bool:
        """Tell whether both are one tokenizer: every id alike, and probe texts encode alike.

        A role token is alike when it is spelt alike: a base model and its chat version may name
        different ids as eos and still share every embedding row.
        """
        arrays = ("byte_lengths", "flat_bytes", "is_special", "is_missing")
        if not all(np.array_equal(getattr(self, a), getattr(other, a)) for a in arrays):
            return False
        special = np.flatnonzero(self.is_special).tolist()
        if any(
            self.token_text(i) != other.token_text(i) and self.roles(i) != other.roles(i)
            for i in special
        ):
            return False
        mine = self.engine.encode_ids(SAMENESS_PROBES, "text")
        return mine == other.engine.encode_ids(SAMENESS_PROBES, "text")


def _given(tokenizer: Any) -> Any:
    return tokenizer


def _wrap(backend: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    roles = find_roles(backend, None, None).id_of
    named = {
        f"{role}_token": backend.id_to_token(index)
        for role, index in roles.items()
        if role in ("bos", "eos", "pad", "unk")
    }
    return PreTrainedTokenizerFast(tokenizer_object=backend, **named)
