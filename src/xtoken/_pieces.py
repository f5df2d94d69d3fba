"""Tokenising byte strings that were cut out of a text: one vocabulary's tokens read by another."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import groupby

from xtoken._bytes import KINDS, LETTER, SPACE_MARK, TokenTable
from xtoken._engine import Engine


class PieceTokenizer:
    """Isolated tokenisation, checked against the bytes it must add up to."""

    def __init__(self, engine: Engine, table: TokenTable, *, drops_space: bool):
        self._engine = engine
        self._table = table
        self._drops_space = drops_space
        self._special = frozenset((table.kinds == KINDS.index("special")).nonzero()[0].tolist())

    def tokenize(self, pieces: Sequence[bytes]) -> list[tuple[int, ...]]:
        """See `Vocabulary.tokenize_bytes`."""
        texts = [_decode(piece) for piece in pieces]
        encoded = iter(
            self._engine.encode_ids([text for text in texts if text is not None], "isolated")
        )
        found: list[tuple[int, ...]] = []
        for piece, text in zip(pieces, texts, strict=True):
            ids = tuple(next(encoded)) if text is not None else None
            if ids is None or not self._spells(ids, piece):
                ids = self._spell(piece)
            found.append(ids)
        return found

    def emitted(self, piece: bytes) -> int | None:
        """Return the one id that the tokenizer emits for these bytes, None if it emits several."""
        (ids,) = self.tokenize([piece])
        return ids[0] if len(ids) == 1 else None

    def as_text(self, text: str) -> tuple[int, ...]:
        """Spell a control token's own text with ordinary tokens, cutting it where that works."""
        for cut in range(1, len(text)):
            head, tail = self.tokenize([text[:cut].encode(), text[cut:].encode()])
            if head and tail:
                return head + tail
        return self._spell(text.encode())

    def _spells(self, ids: tuple[int, ...], piece: bytes) -> bool:
        size = len(self._table.token_bytes)
        if any(index >= size or index in self._special for index in ids):
            return False
        if self._drops_space:
            return True
        return b"".join([self._table.token_bytes[index] for index in ids]) == piece

    def _spell(self, piece: bytes) -> tuple[int, ...]:
        """Spell what the tokenizer's own pipeline can't: invalid UTF-8, U+2581, control strings."""
        if self._table.spelling == "byte_level":
            ids = tuple(self._engine.run_model("".join(LETTER[byte] for byte in piece)))
            if self._spells(ids, piece):
                return ids
            return self._by_bytes(piece)
        if self._table.spelling == "sentencepiece":
            return self._by_runs(piece)
        return ()

    def _by_runs(self, piece: bytes) -> tuple[int, ...]:
        text = piece.decode("utf-8", errors="surrogateescape")
        ids: list[int] = []
        for readable, run in groupby(text, lambda c: c != SPACE_MARK and not _escaped(c)):
            part = "".join(run).encode("utf-8", errors="surrogateescape")
            got: tuple[int, ...] = ()
            if readable and part != piece:
                (got,) = self.tokenize([part])
            got = got or self._by_bytes(part)
            if not got:
                return ()
            ids += got
        return tuple(ids)

    def _by_bytes(self, piece: bytes) -> tuple[int, ...]:
        try:
            return tuple(self._byte_ids[byte] for byte in piece)
        except KeyError:
            return ()

    @cached_property
    def _byte_ids(self) -> dict[int, int]:
        kinds = self._table.kinds
        wanted = "byte" if self._table.spelling == "sentencepiece" else "piece"
        return {
            piece[0]: index
            for index, piece in enumerate(self._table.token_bytes)
            if len(piece) == 1 and KINDS[kinds[index]] == wanted
        }


def _decode(piece: bytes) -> str | None:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return None


def _escaped(character: str) -> bool:
    return "\udc80" <= character <= "\udcff"
