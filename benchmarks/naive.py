"""The losses the plain way, as public code computes them: what the fast paths are held against.

Log-softmax of whole batches, a sparse product with all of W, a dense matrix of chunks times
positions, gathers of columns, and autograd for the way back. Values are those of `xtoken.losses`
with the settings named at each function.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xtoken.losses import Chunks
from xtoken.projection import Projection

# Public code keeps so many teacher columns under P-KL.
KEPT_COLUMNS = 8192
EPSILON = 1e-10


def chunk_matrix(start_C: Tensor, count_C: Tensor, rows: int) -> Tensor:
    """Return A [C, rows] with 1 / count at a chunk's rows: A @ x is the mean over each chunk."""
    row = torch.arange(rows, device=start_C.device)
    inside = (row >= start_C[:, None]) & (row < (start_C + count_C)[:, None])
    return inside.float() / count_C[:, None]


def transposed_projection(projection: Projection, device: str) -> Tensor:
    """Return W^T [U, V] as a sparse matrix."""
    indices = torch.from_numpy(projection.indices.astype("int64"))
    weights = torch.from_numpy(projection.weights)
    row, slot = (weights > 0).nonzero(as_tuple=True)
    place = torch.stack([indices[row, slot], row])
    size = (projection.teacher_size, projection.student_size)
    return torch.sparse_coo_tensor(place, weights[row, slot], size).coalesce().to(device)


class NaivePKL:
    """P-KL with pooling `mean` and support `topk_batch`."""

    def __init__(self, projection: Projection, chunks: Chunks, device: str) -> None:
        self.transposed_UV = transposed_projection(projection, device)
        self.reached = torch.from_numpy(projection.teacher_reached.nonzero()[0]).to(device)
        self.chunks = chunks

    def __call__(self, student_NV: Tensor, teacher_MU: Tensor) -> Tensor:
        """Return the sum over chunks."""
        chunks, student_NV, teacher_MU = self.chunks, student_NV.float(), teacher_MU.float()
        read_MU = teacher_MU[: int((chunks.teacher_start_C + chunks.teacher_count_C).max())]
        best_R = read_MU[:, self.reached].amax(0)
        kept = self.reached[best_R.topk(min(KEPT_COLUMNS, len(best_R))).indices]
        p_NV = student_NV.log_softmax(-1).exp()
        q_NU = torch.sparse.mm(self.transposed_UV, p_NV.t()).t()
        to_student = chunk_matrix(chunks.student_start_C, chunks.student_count_C, len(student_NV))
        to_teacher = chunk_matrix(chunks.teacher_start_C, chunks.teacher_count_C, len(teacher_MU))
        q_CK = to_student @ q_NU[:, kept]
        q_log_CK = (q_CK / (q_CK.sum(-1, keepdim=True) + EPSILON) + EPSILON).log()
        p_log_CK = to_teacher @ teacher_MU[:, kept].log_softmax(-1)
        return (p_log_CK.exp() * (p_log_CK - q_log_CK)).sum()


class NaivePartition:
    """H-KL or GOLD with pooling `mean`: KL or JSD on common pairs, sorted L1 on the rest."""

    def __init__(
        self,
        projection: Projection,
        chunks: Chunks,
        device: str,
        *,
        gold: bool,
        top_k: int | None = None,
    ) -> None:
        pairs = projection.exact_pairs() if gold else projection.extended_pairs()
        self.common, self.rest = [], []
        sizes = (projection.student_size, projection.teacher_size)
        for ids, size in zip(pairs, sizes, strict=True):
            common = torch.from_numpy(ids.astype("int64"))
            left = torch.ones(size, dtype=torch.bool)
            left[common] = False
            self.common.append(common.to(device))
            self.rest.append(left.nonzero().squeeze(1).to(device))
        share = len(pairs[1]) / projection.teacher_size
        self.weights = (share, 1.0 - share) if gold else (1.0, 1.0)
        self.chunks, self.gold, self.top_k = chunks, gold, top_k

    def __call__(self, student_NV: Tensor, teacher_MU: Tensor) -> Tensor:
        """Return the sum over chunks."""
        chunks = self.chunks
        merged = []
        for logits, start_C, count_C in (
            (student_NV, chunks.student_start_C, chunks.student_count_C),
            (teacher_MU, chunks.teacher_start_C, chunks.teacher_count_C),
        ):
            logp = logits.float().log_softmax(-1)
            merged.append(chunk_matrix(start_C, count_C, len(logits)) @ logp)
        s, t = (logp[:, ids] for logp, ids in zip(merged, self.common, strict=True))
        if self.gold:
            m = (0.5 * (s.exp() + t.exp())).log()
            common = 0.5 * (t.exp() * (t - m)).sum() + 0.5 * (s.exp() * (s - m)).sum()
        else:
            common = (t.exp() * (t - s)).sum()
        s, t = (logp[:, ids].exp() for logp, ids in zip(merged, self.rest, strict=True))
        return self.weights[0] * common + self.weights[1] * sorted_l1(s, t, self.top_k)


class NaiveULD:
    """ULD with pooling `first`."""

    def __init__(self, projection: Projection, chunks: Chunks, device: str) -> None:
        self.chunks = chunks

    def __call__(self, student_NV: Tensor, teacher_MU: Tensor) -> Tensor:
        """Return the sum over chunks."""
        s_CV = student_NV[self.chunks.student_start_C].float().softmax(-1)
        t_CU = teacher_MU[self.chunks.teacher_start_C].float().softmax(-1)
        return sorted_l1(s_CV, t_CU, None)


class NaiveDirect:
    """KL on equal vocabularies: the first V columns of both, at the chunks' first positions."""

    def __init__(self, projection: Projection, chunks: Chunks, device: str) -> None:
        self.chunks, self.size = chunks, projection.student_size

    def __call__(self, student_NV: Tensor, teacher_MU: Tensor) -> Tensor:
        """Return the sum over chunks."""
        s = student_NV[self.chunks.student_start_C, : self.size].float().log_softmax(-1)
        t = teacher_MU[self.chunks.teacher_start_C, : self.size].float().log_softmax(-1)
        return torch.nn.functional.kl_div(s, t, reduction="sum", log_target=True)


def sorted_l1(s_CX: Tensor, t_CY: Tensor, top_k: int | None) -> Tensor:
    """Return the L1 distance of the sorted rows, the shorter padded with zeros."""
    if top_k is None:
        s_CX, t_CY = (x.sort(dim=-1, descending=True).values for x in (s_CX, t_CY))
    else:
        s_CX, t_CY = (x.topk(min(top_k, x.shape[1]), dim=-1).values for x in (s_CX, t_CY))
    width = max(s_CX.shape[1], t_CY.shape[1])
    s_CX, t_CY = (torch.nn.functional.pad(x, (0, width - x.shape[1])) for x in (s_CX, t_CY))
    return (s_CX - t_CY).abs().sum()
