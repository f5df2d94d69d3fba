"""What Path-KL writes down about each chunk, from realised ids alone, before a batch is cut up."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from xtoken.losses.base import Chunks
from xtoken.losses.parts import Which
from xtoken.losses.paths import NONE, Node, NodeEvents, Paths
from xtoken.losses.pooling import Rows


@dataclass(frozen=True)
class Notes:
    """One block's notes as lists, one entry a chunk.

    Attributes:
        depth: for each side as the whole one, how many split tokens lie on its token's path.
        before: for each side, its token that ended just before the chunk, if the other side's
            last tokens are its path and other paths go on from there; else -1.
    """

    depth: dict[str, list[int]]
    before: dict[str, list[int]]

    @classmethod
    def of(cls, note_CX: Tensor | None) -> Notes:
        """Read the columns that `write_notes` wrote."""
        assert note_CX is not None
        columns = note_CX.t().tolist()
        return cls(
            {"student": columns[2], "teacher": columns[3]},
            {"student": columns[4], "teacher": columns[5]},
        )

    def nodes(
        self, side: Which, paths: Paths, whole: Rows
    ) -> tuple[list[NodeEvents], list[int], list[int]]:
        """Return the nodes to visit below the root, the chunk and the depth of each."""
        nodes, chunks, depths = [], [], []
        deep = [c for c, depth in enumerate(self.depth[side]) if depth]
        tokens = whole.target_R[deep].tolist() if deep else []  # one row a chunk
        for c, token in zip(deep, tokens, strict=True):
            for a in paths.active_nodes(paths.path[token], self.depth[side][c]):
                node = paths.node(a)
                if node.slots > 1:  # nothing to tell apart otherwise
                    nodes.append(node)
                    chunks.append(c)
                    depths.append(len(a))
        return nodes, chunks, depths


def chunks_read(student_paths: Paths, chunks: Chunks) -> np.ndarray:
    """Return which chunks Path-KL reads: those whose first tokens belong to one root event."""
    student_first = chunks.student_target_N[chunks.student_start_C].cpu().numpy()
    teacher_first = chunks.teacher_target_M[chunks.teacher_start_C].cpu().numpy()
    event = student_paths.root_whole[student_first]
    return np.flatnonzero((event == student_paths.root_split[teacher_first]) & (event != NONE))


def write_notes(student_paths: Paths, teacher_paths: Paths, chunks: Chunks) -> Chunks:
    """Return the chunks that Path-KL reads, noted: int64[C, 6].

    Columns: rows read on the student's and on the teacher's side; `Notes.depth` and
    `Notes.before` of student and teacher. See `chunks_read` for the chunks that are left out.
    """
    student_ids = chunks.student_target_N.cpu().numpy()
    teacher_ids = chunks.teacher_target_M.cpu().numpy()
    student_start = chunks.student_start_C.cpu().numpy()
    teacher_start = chunks.teacher_start_C.cpu().numpy()
    if len(chunks) == 0:
        empty = chunks.student_start_C.new_zeros(0, 6)
        return replace(chunks, note_CX=empty)
    chosen = chunks_read(student_paths, chunks)
    note = np.zeros((len(chosen), 6), dtype=np.int64)
    note[:, 4:] = NONE
    sides = (
        (student_paths, student_ids, student_start, teacher_ids, teacher_start,
         chunks.teacher_count_C.cpu().numpy(), 0),
        (teacher_paths, teacher_ids, teacher_start, student_ids, student_start,
         chunks.student_count_C.cpu().numpy(), 1),
    )  # fmt: skip
    for paths, whole_ids, whole_start, split_ids, split_start, split_count, number in sides:
        whole_first = whole_ids[whole_start[chosen]]
        before = np.where(
            whole_start[chosen] > 0, whole_ids[np.maximum(whole_start[chosen] - 1, 0)], NONE
        )
        # No id was realised there, or none that this side knows.
        before = np.where((before < 0) | (before >= len(paths.path)), NONE, before)
        for i in np.flatnonzero(paths.goes_on[whole_first]).tolist():
            start = int(split_start[chosen[i]])
            # The row after the last token is the last one that may be missing.
            most = min(int(split_count[chosen[i]]), len(split_ids) - 1 - start)
            depth = _common(paths.path[whole_first[i]], split_ids[start : start + most])
            nodes = paths.active_nodes(paths.path[whole_first[i]], depth)
            if nodes:
                note[i, 2 + number] = len(nodes[-1])
        ended = np.flatnonzero((before >= 0) & paths.ends_active[np.maximum(before, 0)])
        for i in ended.tolist():
            path, stop = paths.path[before[i]], int(split_start[chosen[i]])
            last = split_ids[max(0, stop - len(path)) : stop]
            if len(last) == len(path) and _common(path, last) == len(path):
                note[i, 4 + number] = before[i]
    note[:, 0], note[:, 1] = 1 + note[:, 3], 1 + note[:, 2]
    device = chunks.student_start_C.device
    kept = chunks.select(torch.from_numpy(chosen).to(device))
    return replace(kept, note_CX=torch.from_numpy(note).to(device))


def _common(path: Node, realised: np.ndarray) -> int:
    """Return how many tokens two sequences have in common from the start."""
    count = 0
    for mine, theirs in zip(path, realised.tolist(), strict=False):
        if mine != theirs:
            break
        count += 1
    return count
