"""The definition of Path-KL: float64, dictionaries of events, one node at a time.

Written for one direction of paths and used for both: *whole* is the side whose single tokens are
followed, *split* the side that spells them. With whole = student and split = teacher, path(v) is
the teacher's spelling of student token v, and a node is a tuple of teacher tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from xtoken.losses.base import Chunks, Direction
from xtoken.losses.reference import Side, divergence, log_probs

if TYPE_CHECKING:
    from xtoken.projection import Projection
    from xtoken.vocab import Vocabulary

Node = tuple[int, ...]
REST = -1
# A node on which either side keeps less mass than this is skipped.
LEAST_MASS = 1e-6


def spell(vocab: Vocabulary, data: bytes) -> Node:
    """The one id with these bytes; else the tokenizer's own; not UTF-8: greedy, longest first."""
    token = vocab.id_for_bytes(data)
    if token is not None:
        return (token,)
    try:
        data.decode()
        tokens = vocab.tokenize_bytes([data])[0]
        if tokens and not any(vocab.is_special[t] for t in tokens):
            return tuple(tokens)
    except UnicodeDecodeError:
        pass
    found: list[int] = []
    while data:
        for length in range(len(data), 0, -1):
            token = vocab.id_for_bytes(data[:length])
            if token is not None:
                found.append(token)
                data = data[length:]
                break
        else:
            return ()
    return tuple(found)


class Paths:
    """Paths of one vocabulary's tokens in the other's, and events at nodes."""

    def __init__(
        self,
        whole: Vocabulary,
        split: Vocabulary,
        roles: dict[int, int],
        whole_masked: np.ndarray,
    ) -> None:
        self.whole, self.split = whole, split
        self.path: dict[int, Node] = {}
        for v in range(len(whole)):
            if whole.fingerprint == split.fingerprint:  # equal: each id is its own path
                if not whole_masked[v]:
                    self.path[v] = (v,)
            elif v in roles:
                self.path[v] = (roles[v],)
            elif not whole_masked[v] and whole.token_bytes(v):
                data = whole.token_bytes(v)
                token = split.id_for_bytes(data, whole.kind(v))
                path = (token,) if token is not None else spell(split, data)
                if path:
                    self.path[v] = path

    def event(self, a: Node, u: int) -> int:
        """e(a, u): an id of the split side, or REST."""
        if (*a, u) in self.path.values():
            return u
        data = b"".join(self.split.token_bytes(t) for t in (*a, u))
        spelt = spell(self.whole, data) if self.split.token_bytes(u) else ()
        if not spelt:
            return REST
        w = spelt[0]
        start = sum(len(self.split.token_bytes(t)) for t in a)
        path = self.path.get(w, ())
        if len(self.whole.token_bytes(w)) > start and len(path) > len(a) and path[: len(a)] == a:
            return self.event(a, path[len(a)])
        return REST

    def whole_event(self, a: Node, v: int) -> int | None:
        """The event of a whole token at a node; None if its path doesn't begin with a."""
        path = self.path.get(v, None)
        if path is None or path[: len(a)] != a:
            return None
        return REST if path == a else self.event(a, path[len(a)])

    def ends(self, a: Node) -> bool:
        """Some path ends at the node."""
        return a in self.path.values()

    def masses(
        self,
        a: Node,
        whole_p: Tensor,
        split_p: Tensor,
        whole_removed: set[int] = frozenset(),  # type: ignore[assignment]
        split_removed: set[int] = frozenset(),  # type: ignore[assignment]
    ) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Mass of each event at a node on the whole side and on the split side."""
        on_whole: dict[int, Tensor] = {}
        on_split: dict[int, Tensor] = {}
        for v in range(len(whole_p)):
            event = self.whole_event(a, v)
            if event is not None and v not in whole_removed:
                on_whole[event] = on_whole.get(event, 0.0) + whole_p[v]
        for u in range(len(split_p)):
            if split_p[u] > 0 and u not in split_removed:
                event = self.event(a, u)
                on_split[event] = on_split.get(event, 0.0) + split_p[u]
        if not self.ends(a):
            on_whole.pop(REST, None)
            on_split.pop(REST, None)
        return on_whole, on_split


def node_term(
    target: dict[int, Tensor],
    student: dict[int, Tensor],
    temperature: float,
    direction: Direction,
    jsd_beta: float,
) -> Tensor:
    """Divergence between two sets of event masses, each renormalised (and tempered).

    An event of which removals have left no token on the side that KL divides by would make it
    infinite: it is left out on the other side too. (JSD is finite.)
    """
    if direction == "teacher_to_student" or (direction == "jsd" and jsd_beta == 0):
        target = {e: mass for e, mass in target.items() if e in student}
    elif direction == "student_to_teacher" or (direction == "jsd" and jsd_beta == 1):
        student = {e: mass for e, mass in student.items() if e in target}
    zero = torch.zeros((), dtype=torch.float64)
    events = sorted(set(target) | set(student))
    p, q = (torch.stack([x.get(e, zero) for e in events]) if events else zero.reshape(1)
            for x in (target, student))  # fmt: skip
    if p.sum() < LEAST_MASS or q.sum() < LEAST_MASS:
        return zero
    return divergence(tempered(p, temperature), tempered(q, temperature), direction, jsd_beta)


def tempered(mass: Tensor, temperature: float) -> Tensor:
    """Masses to the power 1 / tau, renormalised; 0 stays 0."""
    kept = (mass > 0).nonzero().squeeze(1)
    power = (mass[kept].log() / temperature).softmax(0)
    return torch.zeros_like(mass).index_put((kept,), power)


def follow(path: Node, realised: list[int]) -> Iterator[Node]:
    """Nodes along a chunk: its realised prefixes, of one token or more, that lie on the path."""
    for d in range(1, len(realised) + 1):
        if tuple(realised[:d]) != path[:d]:
            return
        yield tuple(realised[:d])


def removed_after(paths: Paths, before: list[int], whole_before: int, size: int) -> set[int]:
    """Split tokens that would have gone on with the whole token that has just ended.

    `before`: the split side's tokens up to here, latest last. Nothing, unless they end with the
    path of `whole_before`.
    """
    a = paths.path.get(whole_before, ())
    if not a or tuple(before[-len(a) :]) != a:
        return set()
    return {u for u in range(size) if paths.event(a, u) != REST}


def path_kl(
    student_logits_NV: Tensor,
    teacher_logits_MU: Tensor,
    chunks: Chunks,
    projection: Projection,
    student_paths: Paths,
    teacher_paths: Paths,
    *,
    direction: Direction = "teacher_to_student",
    temperature: float = 1.0,
    jsd_beta: float = 0.5,
) -> Tensor:
    """Path-KL: the root, then every realised prefix that lies on the other side's path.

    `student_paths` has whole = student, `teacher_paths` whole = teacher.
    """
    how = temperature, direction, jsd_beta
    V, U = projection.student_size, projection.teacher_size
    total = torch.zeros((), dtype=torch.float64)
    for c in range(len(chunks)):
        s_start, n_s = int(chunks.student_start_C[c]), int(chunks.student_count_C[c])
        t_start, n_t = int(chunks.teacher_start_C[c]), int(chunks.teacher_count_C[c])
        s_ids, t_ids = chunks.student_target_N.tolist(), chunks.teacher_target_M.tolist()
        student = _side(student_logits_NV, s_start, n_s, V, projection.student_masked, s_ids)
        teacher = _side(
            teacher_logits_MU.detach(), t_start, n_t, U, projection.teacher_masked, t_ids
        )
        event = student_paths.whole_event((), student.ids[0])
        if event in (None, REST) or event != student_paths.event((), teacher.ids[0]):
            continue
        s_before, t_before = s_ids[:s_start], t_ids[:t_start]
        teacher_removed = removed_after(student_paths, t_before, _last(s_before), U)
        student_removed = removed_after(teacher_paths, s_before, _last(t_before), V)
        masses = student_paths.masses(
            (), student.logp_nV[0].exp(), teacher.logp_nV[0].exp(), student_removed, teacher_removed
        )
        total = total + temperature**2 * node_term(masses[1], masses[0], *how)
        for a in follow(student_paths.path[student.ids[0]], teacher.ids):
            if len(a) < len(teacher.logp_nV):
                masses = student_paths.masses(
                    a, student.logp_nV[0].exp(), teacher.logp_nV[len(a)].exp()
                )
                total = total + temperature**2 * node_term(masses[1], masses[0], *how)
        for a in follow(teacher_paths.path.get(teacher.ids[0], ()), student.ids):
            if len(a) < len(student.logp_nV):
                masses = teacher_paths.masses(
                    a, teacher.logp_nV[0].exp(), student.logp_nV[len(a)].exp()
                )
                total = total + temperature**2 * node_term(masses[0], masses[1], *how)
    return total


def _last(tokens: list[int]) -> int:
    return tokens[-1] if tokens else REST


def _side(
    logits: Tensor, start: int, count: int, size: int, masked: np.ndarray, ids: list[int]
) -> Side:
    """A chunk's rows and one more: the distribution after its last token (where there is one)."""
    rows = range(start, min(start + count + 1, len(logits)))
    logp = torch.stack([log_probs(logits[r], size, masked, 1.0) for r in rows])
    return Side(logp, ids[start : start + count])
