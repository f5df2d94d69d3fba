"""How one vocabulary spells the other's tokens, and what both can say at a node on the way.

*Whole* is the side whose single tokens are followed, *split* the side that spells them: path(v)
is a tuple of split tokens, a *node* the beginning of one. An *event* at a node is a set of split
tokens (and of whole tokens whose paths go on with them); all else is REST.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from xtoken.projection.rules import all_token_bytes, exact_targets, role_targets

if TYPE_CHECKING:
    from xtoken.vocab import Vocabulary

Node = tuple[int, ...]
NONE = -1


@dataclass(frozen=True)
class NodeEvents:
    """The events at a node: which tokens of either side belong to which.

    Attributes:
        whole: int64, whole tokens whose path begins with the node, with `whole_event` (a number
            from 0; `events` stands for REST).
        split: int64, split tokens that belong to an event, with `split_event`; all others are
            REST.
        events: how many.
        ends: some path ends here, so that REST counts on both sides; else it is left out.
    """

    whole: np.ndarray
    whole_event: np.ndarray
    split: np.ndarray
    split_event: np.ndarray
    events: int
    ends: bool

    @property
    def slots(self) -> int:
        """The events, and REST behind them where it counts."""
        return self.events + self.ends

    @cached_property
    def counted(self) -> tuple[np.ndarray, np.ndarray]:
        """The whole tokens that count and their events: those of REST only where it does."""
        counts = self.ends | (self.whole_event < self.events)
        return self.whole[counts], self.whole_event[counts]


class Speller:
    """A vocabulary's own spelling of byte strings.

    The one id with these bytes; else what the tokenizer makes of them; where they are no valid
    UTF-8, the longest token first. () where a byte can't be spelt. What was asked once is
    remembered until `forget`.
    """

    def __init__(self, vocab: Vocabulary) -> None:
        self._vocab = vocab
        self._special = frozenset(np.flatnonzero(vocab.is_special).tolist())
        self._longest = int(vocab.byte_lengths.max(initial=0))
        self._known: dict[bytes, Node] = {}

    def spell(self, texts: Sequence[bytes]) -> list[Node]:
        """Return the ids of each text."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        rest = []
        for text in new:
            token = self._vocab.id_for_bytes(text)
            if token is not None:
                self._known[text] = (token,)
            elif _is_utf8(text):
                rest.append(text)
        for text, ids in zip(rest, self._vocab.tokenize_bytes(rest), strict=True):
            if ids and self._special.isdisjoint(ids):
                self._known[text] = tuple(ids)
        for text in new:
            if text not in self._known:
                self._known[text] = self._greedy(text)
        return [self._known[text] for text in texts]

    def forget(self) -> None:
        """Free the memory of what was asked."""
        self._known.clear()

    def _greedy(self, text: bytes) -> Node:
        ids: list[int] = []
        while text:
            for length in range(min(len(text), self._longest), 0, -1):
                token = self._vocab.id_for_bytes(text[:length])
                if token is not None:
                    ids.append(token)
                    text = text[length:]
                    break
            else:
                return ()
        return tuple(ids)


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


class Paths:
    """Paths of all whole tokens, and the events at any node (found when first asked for, kept).

    Args:
        whole, split: the two vocabularies.
        whole_masked: bool, whole ids that take part in no distribution.
        spellers: theirs. The mirror image asks for much the same spellings, so one pair serves
            both; None makes a pair.

    Attributes:
        path: for each whole id its tuple of split ids, () where it has none.
        root_whole, root_split: int64, the split id that names each token's event at the root,
            -1 for REST (which is left out there).
        goes_on: bool, for each whole id: some path goes on beyond a beginning of its own.
        ends_active: bool, for each whole id: some path goes on beyond its whole own.
    """

    def __init__(
        self,
        whole: Vocabulary,
        split: Vocabulary,
        whole_masked: np.ndarray,
        spellers: tuple[Speller, Speller] | None = None,
    ) -> None:
        self._whole_speller, split_speller = spellers or (Speller(whole), Speller(split))
        self._whole_bytes = all_token_bytes(whole)
        self._split_bytes = all_token_bytes(split)
        self.path = self._paths(whole, split, whole_masked, split_speller)
        self._ids_of: dict[Node, list[int]] = {}
        self._under: dict[Node, list[int]] = {}
        for v, path in enumerate(self.path):
            if path:
                self._ids_of.setdefault(path, []).append(v)
            for d in range(1, len(path)):
                self._under.setdefault(path[:d], []).append(v)
        self.goes_on = np.array([self._is_active(path) for path in self.path], dtype=bool)
        self.ends_active = np.array([path in self._under for path in self.path], dtype=bool)
        self._nodes: dict[Node, NodeEvents] = {}
        self.root_split = self._root_events()
        first = np.array([path[0] if path else NONE for path in self.path], dtype=np.int64)
        self.root_whole = np.where(first >= 0, self.root_split[np.maximum(first, 0)], NONE)

    def _is_active(self, path: Node) -> bool:
        return any(path[:d] in self._under for d in range(1, len(path) + 1))

    def _paths(
        self, whole: Vocabulary, split: Vocabulary, whole_masked: np.ndarray, speller: Speller
    ) -> list[Node]:
        if whole.fingerprint == split.fingerprint:
            return [() if masked else (v,) for v, masked in enumerate(whole_masked)]
        exact = exact_targets(whole, split)
        roles, _ = role_targets(whole, split)
        single = np.where(exact >= 0, exact, roles).tolist()
        paths: list[Node] = [(u,) if u >= 0 else () for u in single]
        rest = [v for v, u in enumerate(single) if u < 0 and self._whole_bytes[v]]
        spelt = speller.spell([self._whole_bytes[v] for v in rest])
        for v, path in zip(rest, spelt, strict=True):
            paths[v] = path
        return [() if masked else path for path, masked in zip(paths, whole_masked, strict=True)]

    def active_nodes(self, path: Node, depth: int) -> list[Node]:
        """Return the beginnings of a path, up to a depth, beyond which some path goes on."""
        return [path[:d] for d in range(1, depth + 1) if path[:d] in self._under]

    def node(self, a: Node) -> NodeEvents:
        """Return the events at an active node."""
        if a not in self._nodes:
            self._nodes[a] = self._find(a)
            self._whole_speller.forget()  # up to 100,000 texts, few of which another node asks
        return self._nodes[a]

    # ------------------------------------------------------------------ finding events

    @cached_property
    def _split_sorted(self) -> tuple[list[bytes], list[int]]:
        order = sorted((data, u) for u, data in enumerate(self._split_bytes) if data)
        return [data for data, _ in order], [u for _, u in order]

    def _find(self, a: Node) -> NodeEvents:
        under, ends = self._under[a], self._ids_of.get(a, [])
        start = sum(len(self._split_bytes[t]) for t in a)
        # A split token that begins with no remainder of a whole token's bytes can only be REST.
        remainders = sorted({self._whole_bytes[v][start:] for v in under})
        texts, ids = self._split_sorted
        candidates = {path[len(a)] for path in (self.path[v] for v in under)}
        least: bytes | None = None
        for remainder in remainders:
            if least is None or not remainder.startswith(least):
                least = remainder
                place = bisect_left(texts, least)
                while place < len(texts) and texts[place].startswith(least):
                    candidates.add(ids[place])
                    place += 1
        label = self._resolve(a, sorted(candidates))
        names = sorted({c for c in label.values() if c != NONE})
        number = {c: i for i, c in enumerate(names)} | {NONE: len(names)}
        split = [u for u, c in label.items() if c != NONE]
        whole_event = [number[label[self.path[v][len(a)]]] for v in under]
        return NodeEvents(
            whole=np.array([*under, *ends], dtype=np.int64),
            whole_event=np.array([*whole_event, *[len(names)] * len(ends)], dtype=np.int64),
            split=np.array(split, dtype=np.int64),
            split_event=np.array([number[label[u]] for u in split], dtype=np.int64),
            events=len(names),
            ends=bool(ends),
        )

    def _resolve(self, a: Node, candidates: Sequence[int]) -> dict[int, int]:
        """Return the split id that names each candidate's event, NONE for REST."""
        label = {u: u if (*a, u) in self._ids_of else NONE for u in candidates}
        rest = [u for u, c in label.items() if c == NONE and self._split_bytes[u]]
        text = b"".join(self._split_bytes[t] for t in a)
        spelt = self._whole_speller.spell([text + self._split_bytes[u] for u in rest])
        go_on: dict[int, int] = {}
        for u, tokens in zip(rest, spelt, strict=True):
            path = self.path[tokens[0]] if tokens else ()
            longer = bool(tokens) and len(self._whole_bytes[tokens[0]]) > len(text)
            if longer and len(path) > len(a) and path[: len(a)] == a:
                go_on[u] = path[len(a)]
        # The next token is shorter each time, so shorter ones are settled first.
        for u in sorted(go_on, key=lambda u: len(self._split_bytes[u])):
            c = go_on[u]
            label[u] = label[c] if c in label else self._resolve(a, [c])[c]
        return label

    def _root_events(self) -> np.ndarray:
        label = self._resolve((), [u for u, data in enumerate(self._split_bytes)
                                   if data or (u,) in self._ids_of])  # fmt: skip
        found = np.full(len(self._split_bytes), NONE, dtype=np.int64)
        found[list(label)] = list(label.values())
        return found
