"""Path-KL with one of its parts taken out, to see what that part is worth."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from xtoken.losses import Chunks, PathKL
from xtoken.losses.paths import NONE, Node, NodeEvents, Paths


class RootAlone(PathKL):
    """Path-KL at a chunk's first position alone: nothing about what a token goes on with."""

    def annotate(self, chunks: Chunks) -> tuple[Chunks, dict[str, tuple[Tensor, Tensor]]]:
        """Note every chunk as one that is read at its root alone."""
        noted, metrics = super().annotate(chunks)
        assert noted.note_CX is not None
        note_CX = noted.note_CX.clone()
        note_CX[:, :2], note_CX[:, 2:4] = 1, 0
        return replace(noted, note_CX=note_CX), metrics


class WithoutBoundary(PathKL):
    """Path-KL whose roots keep what a token that has just ended has ruled out."""

    def annotate(self, chunks: Chunks) -> tuple[Chunks, dict[str, tuple[Tensor, Tensor]]]:
        """Note that nothing has ended before any chunk."""
        noted, metrics = super().annotate(chunks)
        assert noted.note_CX is not None
        note_CX = noted.note_CX.clone()
        note_CX[:, 4:] = NONE
        return replace(noted, note_CX=note_CX), metrics


class WithoutEnds(PathKL):
    """Path-KL without "ends here": nodes tell apart how a token goes on, not whether it does."""

    def __init__(self, *args: object, **settings: object) -> None:
        super().__init__(*args, **settings)  # type: ignore[arg-type]
        for paths in (self.student_paths, self.teacher_paths):
            _drop_ends(paths)


def _drop_ends(paths: Paths) -> None:
    """Make a side's nodes leave out REST, once each."""
    found, known = paths.node, dict[Node, NodeEvents]()

    def node(a: Node) -> NodeEvents:
        if a not in known:
            known[a] = replace(found(a), ends=False)
        return known[a]

    paths.node = node  # type: ignore[method-assign]


VARIANTS: dict[str, type[PathKL]] = {
    "root_alone": RootAlone,
    "without_boundary": WithoutBoundary,
    "without_ends": WithoutEnds,
}
