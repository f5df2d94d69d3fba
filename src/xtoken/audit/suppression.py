"""How much a strict partition would push down: Proposition 1 of X-Token on one's own pair.

GOLD's common part is KL over the exactly matching tokens C with a full-vocabulary student
softmax. At a chunk's start its gradient on an uncommon student logit j is

    d/dz_j sum_{c in C} p_T[c] (log p_T[c] - log p_S[c]) = p_S[j] * M_C(T) >= 0,

M_C(T) being the teacher's mass on C: the token is pushed down whatever the text says. Without a
teacher model M_C(T) is taken as 1, its upper bound. Imports torch only when called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from xtoken.audit.classes import classify, title
from xtoken.audit.coverage import EXAMPLES
from xtoken.audit.model import Suppression, SuppressionRow
from xtoken.audit.text import split_texts
from xtoken.errors import EvaluationError, UsageError
from xtoken.projection import Projection
from xtoken.projection.tokens import printable

if TYPE_CHECKING:
    from torch import Tensor

    from xtoken.align import Alignment
    from xtoken.evaluation.scoring import Reader
    from xtoken.vocab import Vocabulary

MAX_TOKENS = 8_000
# Characters of a document: some hundred tokens of prose, so that few are cut at `max_length`.
DOCUMENT = 1_500
# Rows of logits that are widened to float32 at a time.
BLOCK_ROWS = 64


@dataclass(frozen=True)
class _Document:
    """What both sides read; the rows of the logits at each chunk's start, the token that comes."""

    student_ids: np.ndarray
    teacher_ids: np.ndarray
    student_rows: np.ndarray
    teacher_rows: np.ndarray
    next_ids: np.ndarray
    bytes: int


def measure_suppression(
    student: Any,
    student_vocab: Vocabulary,
    teacher_vocab: Vocabulary,
    texts: str | Iterable[str],
    *,
    teacher: Any = None,
    projection: Projection | None = None,
    max_tokens: int = MAX_TOKENS,
    max_length: int = 1024,
    progress: Callable[[int], None] | None = None,
) -> Suppression:
    """Run the student on a text and measure what a strict partition would suppress, by class.

    Args:
        student: a causal language model (called as transformers' are).
        student_vocab, teacher_vocab: the two tokenizers.
        texts: text like that of the training.
        teacher: the teacher's model, to measure M_C(T); None takes 1, an upper bound.
        projection: W of this pair, if it exists already.
        max_tokens: about how many student tokens are run; longer text is sampled evenly.
        max_length: tokens of a window on either side, at most the models' own limits.
        progress: called with the number of documents done since the last call (of
            `document_count`).

    Raises:
        DataError: there is no text.
        EvaluationError: no chunk to measure, a head smaller than the vocabulary, values that are
            not finite.
        ProjectionError: `projection` was built for other tokenizers.
        UsageError: max_tokens below 1.

    Source: X-Token (arXiv 2605.21699), Proposition 1.
    """
    from xtoken.evaluation import scoring

    if max_tokens < 1:
        raise UsageError(f"max_tokens is {max_tokens}; expected at least 1.")
    if projection is None:
        projection = Projection.build(student_vocab, teacher_vocab)
    else:
        projection.check_vocabularies(student_vocab, teacher_vocab)
    documents, _, total_bytes = sample_documents(texts, max_tokens)
    limits = [scoring.context_limit(m, max_length) for m in (student, teacher) if m is not None]
    sums = _Sums(student_vocab, projection)
    models = [student] if teacher is None else [student, teacher]
    read = tokens = 0
    with scoring.evaluating(*models):
        reader = scoring.Reader(student, student_vocab)
        other = None if teacher is None else scoring.Reader(teacher, teacher_vocab)
        for text in documents:
            document = _prepare(student_vocab, teacher_vocab, text, limits)
            if progress is not None:
                progress(1)
            if not len(document.next_ids):
                continue
            read += document.bytes
            tokens += len(document.student_ids)
            student_RV = _rows(reader, document.student_ids, document.student_rows)
            teacher_RU = None
            if other is not None:
                teacher_RU = _rows(other, document.teacher_ids, document.teacher_rows)
                teacher_RU = teacher_RU.to(student_RV.device)
            sums.add(student_RV, teacher_RU, document.next_ids)
    return sums.result(tokens=tokens, read=read, total=total_bytes, measured=teacher is not None)


def sample_documents(
    texts: str | Iterable[str], max_tokens: int = MAX_TOKENS
) -> tuple[list[str], int, int]:
    """Return the documents that a measurement reads, their bytes and the bytes of all texts."""
    return split_texts(texts, 4 * max_tokens, document=DOCUMENT)


def _prepare(student: Vocabulary, teacher: Vocabulary, text: str, limits: list[int]) -> _Document:
    from xtoken.align import align
    from xtoken.encode import encode_text

    ours = encode_text(student, text).truncate(limits[0])
    theirs = encode_text(teacher, text).truncate(limits[-1])
    found: Alignment = align(
        student,
        teacher,
        ours.ids,
        theirs.ids,
        student_spans=ours.spans,
        teacher_spans=theirs.spans,
    )
    # Only chunks with a token before them on both sides have logits that predict them.
    chosen = (found.student_start > 0) & (found.teacher_start > 0) & ~found.is_role
    starts = found.student_start[chosen]
    return _Document(
        student_ids=ours.ids,
        teacher_ids=theirs.ids,
        student_rows=starts.astype(np.int64) - 1,
        teacher_rows=found.teacher_start[chosen].astype(np.int64) - 1,
        next_ids=ours.ids[starts],
        bytes=int((found.byte_stop - found.byte_start).sum()),
    )


def _rows(reader: Reader, ids: np.ndarray, rows: np.ndarray) -> Tensor:
    from xtoken.evaluation.scoring import row_index
    from xtoken.losses.sources import read_rows

    source, length = reader.read([ids])
    return read_rows(source, row_index(source, [rows], length), len(reader.vocab))


class _Sums:
    """Sums over chunk starts, by class and by uncommon token."""

    def __init__(self, vocab: Vocabulary, projection: Projection) -> None:
        import torch

        common_student, common_teacher = projection.exact_pairs()
        masked = np.asarray(projection.student_masked, dtype=bool)
        uncommon = ~masked
        uncommon[common_student] = False
        self.vocab = vocab
        self.ids = np.flatnonzero(uncommon)
        classes, self.keys = classify(vocab)
        self.class_of = classes.astype(np.int64)
        self.uncommon = uncommon
        self.student_masked_V = torch.from_numpy(masked)
        self.teacher_masked_U = torch.from_numpy(np.asarray(projection.teacher_masked, dtype=bool))
        self.ids_X = torch.from_numpy(self.ids)
        self.common_U = torch.from_numpy(np.asarray(common_teacher, dtype=np.int64))
        self.chunks = 0
        self.common_mass = self.norm = 0.0
        self.mass_X = np.zeros(len(self.ids))
        self.gradient_X = np.zeros(len(self.ids))
        self.next_count = np.zeros(len(self.keys), dtype=np.int64)
        self.next_probability = np.zeros(len(self.keys))

    def add(self, student_RV: Tensor, teacher_RU: Tensor | None, next_ids: np.ndarray) -> None:
        """Add the rows of one document."""
        import torch

        for begin in range(0, len(next_ids), BLOCK_ROWS):
            block = slice(begin, begin + BLOCK_ROWS)
            p_RV = _softmax(student_RV[block], self.student_masked_V)
            p_RX = p_RV.index_select(1, self.ids_X.to(p_RV.device))
            mass_R = p_RV.new_ones(len(p_RV))
            if teacher_RU is not None:
                q_RU = _softmax(teacher_RU[block], self.teacher_masked_U)
                mass_R = q_RU.index_select(1, self.common_U.to(q_RU.device)).sum(1)
            if not bool(torch.isfinite(p_RX).all() & torch.isfinite(mass_R).all()):
                raise EvaluationError(
                    "A model gives probabilities that are not finite; its weights may be damaged, "
                    "or its dtype too narrow (try float32)."
                )
            self.chunks += len(p_RX)
            self.common_mass += float(mass_R.double().sum())
            self.norm += float((p_RX.norm(dim=1) * mass_R).double().sum())
            self.mass_X += p_RX.double().sum(0).cpu().numpy()
            self.gradient_X += (p_RX.double() * mass_R.double()[:, None]).sum(0).cpu().numpy()
            comes = next_ids[block]
            held = p_RV.double()[range(len(comes)), comes.tolist()].cpu().numpy()
            chosen = self.uncommon[comes]
            group = self.class_of[comes[chosen]]
            self.next_count += np.bincount(group, minlength=len(self.keys))
            self.next_probability += np.bincount(group, held[chosen], minlength=len(self.keys))

    def result(self, *, tokens: int, read: int, total: int, measured: bool) -> Suppression:
        """Divide by the number of chunk starts and order the classes by their gradient."""
        if not self.chunks:
            raise EvaluationError(
                "There is no place to measure in the text: it is too short, or the two tokenizers "
                "have no border in common there. Give longer text."
            )
        rows = []
        group_X = self.class_of[self.ids]
        for index in np.unique(group_X).tolist():
            members = np.flatnonzero(group_X == index)
            most = members[np.argsort(-self.gradient_X[members], kind="stable")][:EXAMPLES]
            came = int(self.next_count[index])
            rows.append(
                SuppressionRow(
                    key=self.keys[index],
                    title=title(self.keys[index]),
                    tokens=len(members),
                    mass=float(self.mass_X[members].sum()) / self.chunks,
                    gradient=float(self.gradient_X[members].sum()) / self.chunks,
                    text_tokens=came,
                    text_probability=float(self.next_probability[index]) / came if came else None,
                    examples=tuple(
                        printable(self.vocab.token_bytes(int(token))) for token in self.ids[most]
                    ),
                )
            )
        rows.sort(key=lambda row: (-row.gradient, row.key))
        return Suppression(
            chunks=self.chunks,
            student_tokens=tokens,
            bytes=read,
            total_bytes=total,
            teacher_measured=measured,
            common_mass=self.common_mass / self.chunks,
            mass=float(self.mass_X.sum()) / self.chunks,
            gradient=float(self.gradient_X.sum()) / self.chunks,
            gradient_norm=self.norm / self.chunks,
            classes=tuple(rows),
        )


def _softmax(logits_RV: Tensor, masked_V: Tensor) -> Tensor:
    import torch

    logits_RV = logits_RV.to(torch.promote_types(logits_RV.dtype, torch.float32))
    masked_V = masked_V.to(logits_RV.device)
    return logits_RV.masked_fill(masked_V, float("-inf")).softmax(-1)
