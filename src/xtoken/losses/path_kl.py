"""Path-KL: every position of a chunk as a conditional on what the other tokenizer says whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from xtoken.errors import LossError
from xtoken.losses.base import Chunks, Direction, LossResult
from xtoken.losses.events import divergence_terms
from xtoken.losses.loss import Loss
from xtoken.losses.parts import RowsRead
from xtoken.losses.path_notes import Notes, chunks_read, write_notes
from xtoken.losses.path_root import Root
from xtoken.losses.path_terms import LEAST_MASS, Terms
from xtoken.losses.paths import Paths, Speller
from xtoken.losses.pooling import Rows
from xtoken.projection import Projection

if TYPE_CHECKING:
    from xtoken.vocab import Vocabulary


class PathKL(Loss):
    """Path-KL, a sum over chunks of KL at the root and at each node that both sides pass.

    path(v) is how the teacher spells student token v. At the chunk's first position both
    distributions are added up by *events*: a teacher token that begins some path, with the
    student tokens whose paths go on with it. Then, for each realised teacher prefix a that lies
    on the path of the student's realised token: the teacher's next-token distribution after a
    against the student's distribution at the chunk's start restricted to paths that begin with
    a, both by events; tokens that end at a are REST ("ends here or goes on"). Then the mirror
    image along the student's tokens. With equal vocabularies this is the direct KL; for numerals
    that one side spells by digits the expected sum is the exact KL over whole numerals.

    After a token has ended that longer ones go on from, the other side's first tokens that would
    have gone on are left out of the next root. Nodes where either side keeps less than 1e-6 of
    its mass are skipped; chunks whose realised tokens belong to different root events are left
    out and reported.

    Args:
        projection: the masked ids of both sides.
        student_vocab, teacher_vocab: how each spells the other's tokens.
        direction: as for every loss.
        temperature: tau; acts on the log-masses of events, which are renormalised (not on
            logits); the loss is multiplied by tau^2.
        jsd_beta: mixture weight under `jsd` (0.5).

    Metrics: `kept_mass`, the teacher's mass at the root before folding; `left_out`, chunks left
    out of all; `depths`, nodes beyond the root a chunk.

    The row after a chunk's last token (the same sequence's, always there in a model's logits) is
    read too. Notes on chunks are made on the CPU, nodes when first visited.

    Raises:
        LossError: no student token shares an event with a teacher token.
        ProjectionError: a projection built for other tokenizers.
    """

    kind: ClassVar[str] = "path_kl"
    tempers_events: ClassVar[bool] = True
    signal_hint: ClassVar[str] = (
        " A TopK signal is for p_kl with support topk_rest; realised log-probabilities are for alm."
    )

    def __init__(
        self,
        projection: Projection,
        student_vocab: Vocabulary,
        teacher_vocab: Vocabulary,
        *,
        direction: Direction = "teacher_to_student",
        temperature: float = 1.0,
        jsd_beta: float | None = None,
    ) -> None:
        super().__init__(
            projection.student_masked,
            projection.teacher_masked,
            temperature=temperature,
            direction=direction,
            jsd_beta=jsd_beta,
        )
        projection.check_vocabularies(student_vocab, teacher_vocab)
        ours, theirs = Speller(student_vocab), Speller(teacher_vocab)
        self.student_paths = Paths(
            student_vocab, teacher_vocab, projection.student_masked, (ours, theirs)
        )
        self.teacher_paths = Paths(
            teacher_vocab, student_vocab, projection.teacher_masked, (theirs, ours)
        )
        ours.forget()
        theirs.forget()
        self.root = Root(
            projection,
            self.student_paths,
            self.teacher_paths,
            self.direction,
            self.jsd_beta,
            self.temperature,
        )
        if self.root.projector.columns == 0:
            raise LossError(
                "path_kl: no student token begins with a token that the teacher has, so there is "
                "nothing to compare; look at `xtoken audit` for this pair."
            )

    @property
    def rows(self) -> RowsRead:
        """The first row, and as many more as there are nodes to visit."""
        return "path"

    def annotate(self, chunks: Chunks) -> tuple[Chunks, dict[str, tuple[Tensor, Tensor]]]:
        """See `Loss.annotate`: how deep each chunk goes, and what has just ended before it."""
        noted = write_notes(self.student_paths, self.teacher_paths, chunks)
        total = torch.tensor(float(len(chunks)), device=chunks.student_start_C.device)
        return noted, {"left_out": (total - len(noted), total)}

    def count(self, chunks: Chunks) -> int:
        """See `Loss.count`."""
        return len(chunks_read(self.student_paths, chunks))

    def block(self, student: Rows, teacher: Rows, state: Any = None) -> LossResult:
        """See `Loss.block`."""
        notes = Notes.of(student.note_CX)
        along_S = Terms.of(notes, "student", self.student_paths, student, teacher)
        along_T = Terms.of(notes, "teacher", self.teacher_paths, teacher, student)
        teacher_picked = teacher.logits_RV[along_T.picks]
        total_C, kept_C, sum_S, sum_T, picked = self.root(student, teacher, notes, along_S.picks)
        depths_C = torch.zeros_like(kept_C)
        if along_S.count:
            with torch.no_grad():
                target = along_S.split_log_mass(teacher.later_DV)
            mass = along_S.whole_log_mass(picked, sum_S)
            total_C, depths_C = self._add(along_S, target, mass, total_C, depths_C)
        if along_T.count:
            with torch.no_grad():
                target = along_T.whole_log_mass(teacher_picked, sum_T)
            mass = along_T.split_log_mass(student.later_DV)
            total_C, depths_C = self._add(along_T, target, mass, total_C, depths_C)
        return self.result(total_C, kept_mass=kept_C, depths=depths_C)

    def _add(
        self,
        terms: Terms,
        target: tuple[Tensor, Tensor],
        student: tuple[Tensor, Tensor],
        total_C: Tensor,
        depths_C: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Add the divergence at each node to its chunk, and count the node."""
        term_E = divergence_terms(
            terms.tempered(target[0], self.temperature),
            terms.tempered(student[0], self.temperature),
            self.direction,
            self.jsd_beta,
        )
        term_X = term_E.new_zeros(terms.count).index_add(0, terms.slot_term_E, term_E)
        skipped_X = (target[1] < LEAST_MASS) | (student[1] < LEAST_MASS)
        return (
            total_C.index_add(0, terms.chunk_X, term_X.masked_fill(skipped_X, 0.0)),
            depths_C.index_add(0, terms.chunk_X, (~skipped_X).to(depths_C.dtype)),
        )
