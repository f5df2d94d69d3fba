"""CSD: events that both tokenizers can spell, and REST, in chunks of every kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from xtoken.losses.base import Direction, LossResult
from xtoken.losses.checks import check_weight
from xtoken.losses.completions import Completions
from xtoken.losses.events import divergence_terms, final_events
from xtoken.losses.parts import RowsRead
from xtoken.losses.pooling import Rows
from xtoken.losses.strict import SharedIdsLoss
from xtoken.projection.rules import all_token_bytes

if TYPE_CHECKING:
    from xtoken.projection import Projection
    from xtoken.vocab import Vocabulary


class CSD(SharedIdsLoss):
    """CSD (arXiv 2610.28895), a sum over chunks of a divergence over events and REST.

        1:1        the shared ids
        1:N, N:1   hold the realised prefix of the longer side fixed; its final tokens k whose
                   completion equals one token w of the other side: P(prefix) p(k) against p(w)
        M:N        the realised sequence alone

    On each side REST is what is left of probability one.

    Args:
        projection: gives the exact pairs and the masked ids.
        student_vocab, teacher_vocab: their tokens' bytes.
        direction, temperature, jsd_beta: as for every loss.
        beta: weight of the chunks that are not 1:1 (1).

    Metrics: `kept_mass`, the teacher's mass on the events (REST left out).

    Raises:
        LossError: no shared ids, or a setting out of range.
        ProjectionError: a projection built for other tokenizers.
    """

    kind: ClassVar[str] = "csd"

    def __init__(
        self,
        projection: Projection,
        student_vocab: Vocabulary,
        teacher_vocab: Vocabulary,
        *,
        direction: Direction = "teacher_to_student",
        temperature: float = 1.0,
        jsd_beta: float | None = None,
        beta: float = 1.0,
    ) -> None:
        super().__init__(
            projection, direction=direction, temperature=temperature, jsd_beta=jsd_beta
        )
        check_weight(self.kind, "beta", beta)
        projection.check_vocabularies(student_vocab, teacher_vocab)
        self.beta = float(beta)
        self._bytes = all_token_bytes(student_vocab), all_token_bytes(teacher_vocab)
        self._student_whole = Completions(*self._bytes)
        self._teacher_whole = Completions(self._bytes[1], self._bytes[0])

    @property
    def rows(self) -> RowsRead:
        """Prefixes are read too."""
        return "all"

    def block(self, student: Rows, teacher: Rows, state: Any = None) -> LossResult:
        """See `Loss.block`."""
        with torch.no_grad():
            teacher_RU = teacher.logp_RV
        student_RV = student.logp_RV
        is_one_C = (student.count_C == 1) & (teacher.count_C == 1)
        one, other = is_one_C.nonzero().squeeze(1), (~is_one_C).nonzero().squeeze(1)
        parts, masses = [], []
        if one.numel():
            # Where all chunks are 1:1, rows are chunks already: no copy of the block.
            all_one = not other.numel()
            pair = [
                rows_RX if all_one else rows_RX.index_select(0, rows.start_C[one])
                for rows_RX, rows in ((student_RV, student), (teacher_RU, teacher))
            ]
            shared_X, mass_X = self.shared(*pair)
            parts.append(shared_X)
            masses.append(mass_X)
        if other.numel():
            events_X, mass_X = self._events(student_RV, teacher_RU, student, teacher, other)
            parts.append(self.beta * events_X)
            masses.append(mass_X)
        return self.result(torch.cat(parts), kept_mass=torch.cat(masses))

    def _events(
        self, student_RV: Tensor, teacher_RU: Tensor, student: Rows, teacher: Rows, chunk_X: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the divergence of chunks that are not 1:1, and the teacher's mass on events."""
        bag, final_S, final_T = self._pairs(student, teacher, chunk_X)
        student_E, student_rest_X = final_events(student_RV, student, chunk_X, bag, final_S)
        with torch.no_grad():
            teacher_E, teacher_rest_X = final_events(teacher_RU, teacher, chunk_X, bag, final_T)
        how = self.direction, self.jsd_beta
        terms_E = divergence_terms(teacher_E, student_E, *how)
        rest_X = divergence_terms(teacher_rest_X, student_rest_X, *how)
        mass_X = torch.zeros_like(teacher_rest_X).index_add(0, bag, teacher_E.exp())
        return rest_X.index_add(0, bag, terms_E), mass_X

    def _pairs(
        self, student: Rows, teacher: Rows, chunk_X: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return each event's chunk (a place in `chunk_X`) and final token on either side."""
        chunks = chunk_X.tolist()
        realised = [
            [
                rows.target_R[start : start + count].tolist()
                for start, count in zip(
                    rows.start_C[chunk_X].tolist(), rows.count_C[chunk_X].tolist(), strict=True
                )
            ]
            for rows in (student, teacher)
        ]
        bags, finals_S, finals_T = [], [], []
        for place in range(len(chunks)):
            found = self._pairs_of(realised[0][place], realised[1][place])
            bags.append(np.full(len(found[0]), place))
            finals_S.append(found[0])
            finals_T.append(found[1])
        device = chunk_X.device
        return (
            torch.from_numpy(np.concatenate(bags)).to(device),
            torch.from_numpy(np.concatenate(finals_S)).to(device),
            torch.from_numpy(np.concatenate(finals_T)).to(device),
        )

    def _pairs_of(self, student: list[int], teacher: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return the final tokens of a chunk's events, the realised ones among them."""
        if len(student) > 1 and len(teacher) > 1:
            return np.array(student[-1:]), np.array(teacher[-1:])
        tables = self._student_whole, self._teacher_whole
        short, long, number = (student, teacher, 0) if len(student) == 1 else (teacher, student, 1)
        prefix = b"".join(self._bytes[1 - number][token] for token in long[:-1])
        whole, final = tables[number].find(prefix)
        # Other ids may have the realised tokens' bytes: the realised ones stand for them.
        text = self._bytes[number]
        is_realised = np.array([text[token] == text[short[0]] for token in whole.tolist()], bool)
        whole = np.append(whole[~is_realised], short[0])
        final = np.append(final[~is_realised], long[-1])
        return (whole, final) if number == 0 else (final, whole)
