"""CSD, BPM and ALM on a dozen tokens, worked out by hand."""

from __future__ import annotations

from math import exp, log

import pytest
import torch

from losses.helpers import STUDENT, TEACHER, make_chunks
from xtoken.losses import ALM, BPM, CSD
from xtoken.losses.bpm import byte_prefixes
from xtoken.losses.completions import Completions
from xtoken.projection import Projection
from xtoken.projection.rules import all_token_bytes

W = Projection.build(STUDENT, TEACHER)
ONE, TWO, TWELVE, A, AB, B, ZERO, END, _, C, BC, THIRTEEN = range(12)
T_A, T_1, T_2, T_0, T_END, T_20, T_ABC, T_B, T_C, T_3, T_120, _, T_21 = range(13)


def rows(size: int, *distributions: dict[int, float]) -> torch.Tensor:
    """Logits of rows that have these probabilities and (next to) nothing elsewhere."""
    logits = torch.full((len(distributions), size), -1e30, dtype=torch.float64)
    for row, distribution in enumerate(distributions):
        assert sum(distribution.values()) == pytest.approx(1.0)
        for token, p in distribution.items():
            logits[row, token] = log(p)
    return logits


def test_csd_of_one_token_against_two():
    """The text is "12": the student's one token, the teacher's "1" then "2".

    Teacher prefix "1" with probability 0.8. Final tokens that complete it to one student token:
    "2" -> "12" and "3" -> "13" ("0" would make "10", "20" "120", "21" "121": no student tokens).

        event   student   teacher
        12      0.5       0.8 * 0.6 = 0.48
        13      0.2       0.8 * 0.3 = 0.24
        REST    0.3       1 - 0.72  = 0.28
    """
    student = rows(14, {TWELVE: 0.5, THIRTEEN: 0.2, ONE: 0.25, A: 0.05})
    teacher = rows(13, {T_1: 0.8, T_A: 0.2}, {T_2: 0.6, T_3: 0.3, T_0: 0.06, T_21: 0.04})
    chunks = make_chunks([(0, 1)], [(0, 2)], torch.tensor([TWELVE]), torch.tensor([T_1, T_2]))
    result = CSD(W, STUDENT, TEACHER)(student, teacher, chunks)
    expected = 0.48 * log(0.48 / 0.5) + 0.24 * log(0.24 / 0.2) + 0.28 * log(0.28 / 0.3)
    assert float(result.total) == pytest.approx(expected, rel=1e-12)
    assert float(result.metrics["kept_mass"][0]) == pytest.approx(0.72)
    half = CSD(W, STUDENT, TEACHER, beta=0.5)(student, teacher, chunks)
    assert float(half.total) == pytest.approx(expected / 2)


def test_csd_of_two_tokens_against_one():
    """The text is "abc": student "ab" + "c", the teacher's one token.

    Teacher tokens that begin with "ab": "abc" alone, completed by the student's "c".

        event   student           teacher
        abc     0.7 * 0.9 = 0.63  0.4
        REST    0.37              0.6
    """
    student = rows(14, {AB: 0.7, A: 0.3}, {C: 0.9, B: 0.1})
    teacher = rows(13, {T_ABC: 0.4, T_A: 0.6})
    chunks = make_chunks([(0, 2)], [(0, 1)], torch.tensor([AB, C]), torch.tensor([T_ABC]))
    result = CSD(W, STUDENT, TEACHER)(student, teacher, chunks)
    expected = 0.4 * log(0.4 / 0.63) + 0.6 * log(0.6 / 0.37)
    assert float(result.total) == pytest.approx(expected, rel=1e-12)


def test_csd_of_two_tokens_against_two():
    """The text is "120": student "12" + "0", teacher "1" + "20": the sequences, and REST."""
    student = rows(14, {TWELVE: 0.5, A: 0.5}, {ZERO: 0.8, A: 0.2})
    teacher = rows(13, {T_1: 0.9, T_A: 0.1}, {T_20: 0.5, T_A: 0.5})
    chunks = make_chunks(
        [(0, 2)], [(0, 2)], torch.tensor([TWELVE, ZERO]), torch.tensor([T_1, T_20])
    )
    result = CSD(W, STUDENT, TEACHER)(student, teacher, chunks)
    expected = 0.45 * log(0.45 / 0.4) + 0.55 * log(0.55 / 0.6)
    assert float(result.total) == pytest.approx(expected, rel=1e-12)


def test_completions_are_found_once_and_kept():
    table = Completions(all_token_bytes(STUDENT), all_token_bytes(TEACHER))
    whole, final = table.find(b"1")
    assert whole.tolist() == [TWELVE, THIRTEEN]
    assert final.tolist() == [T_2, T_3]
    assert table.find(b"1")[0] is whole
    assert table.find(b"zz")[0].tolist() == []


def test_bpm_maps_to_the_longest_prefix():
    """a b c 0 1 2 eos map to themselves; 20 and 21 to 2, abc to ab, 120 to 12; 3 to nothing."""
    expected = {
        T_A: A, T_1: ONE, T_2: TWO, T_0: ZERO, T_END: END, T_20: TWO, T_ABC: AB, T_B: B, T_C: C,
        T_3: -1, T_120: TWELVE, T_21: TWO,
    }  # fmt: skip
    found = byte_prefixes(STUDENT, TEACHER).tolist()
    assert {u: found[u] for u in expected} == expected


def test_bpm():
    """Teacher 2: 0.1, 20: 0.2, 120: 0.3, 3: 0.15, a: 0.25.

    bucket     student              teacher
    2          0.4                  0.1 + 0.2
    12         0.1                  0.3
    a          0.3                  0.25
    residual   0.2 (13 and bc)      0.15 (3)
    """
    student = rows(14, {TWO: 0.4, TWELVE: 0.1, A: 0.3, THIRTEEN: 0.15, BC: 0.05})
    teacher = rows(13, {T_2: 0.1, T_20: 0.2, T_120: 0.3, T_3: 0.15, T_A: 0.25})
    chunks = make_chunks([(0, 1)], [(0, 1)], torch.tensor([A]), torch.tensor([T_A]))
    result = BPM(W, STUDENT, TEACHER)(student, teacher, chunks)
    expected = (
        0.3 * log(0.3 / 0.4) + 0.3 * log(0.3 / 0.1)
        + 0.25 * log(0.25 / 0.3) + 0.15 * log(0.15 / 0.2)
    )  # fmt: skip
    assert float(result.total) == pytest.approx(expected, rel=1e-12)
    assert float(result.metrics["kept_mass"][0]) == pytest.approx(0.85)


def test_alm():
    """Chunk "12": l_S = ln 0.5, l_T = ln 0.8 + ln 0.6; a coin each at tau_a = 10."""
    student = rows(14, {TWELVE: 0.5, A: 0.5})
    teacher = rows(13, {T_1: 0.8, T_A: 0.2}, {T_2: 0.6, T_A: 0.4})
    chunks = make_chunks([(0, 1)], [(0, 2)], torch.tensor([TWELVE]), torch.tensor([T_1, T_2]))
    result = ALM(W, alm_temperature=10.0)(student, teacher, chunks)
    a, b = exp(log(0.48) / 10), exp(log(0.5) / 10)
    expected = a * log(a / b) + (1 - a) * log((1 - a) / (1 - b))
    assert float(result.total) == pytest.approx(expected, rel=1e-9)


def test_alm_of_a_certain_chunk_is_finite():
    """log(1 - p) of p = 1 on either side must not make NaN."""
    certain, other = torch.tensor([[0.0, -1e30, -1e30]]), torch.zeros(1, 3)
    from losses.helpers import identity_projection

    loss = ALM(identity_projection(3))
    chunks = make_chunks([(0, 1)], [(0, 1)], torch.tensor([0]), torch.tensor([0]))
    for student, teacher in ((certain, certain), (certain, other), (other, certain)):
        student = student.clone().requires_grad_()
        total = loss(student, teacher, chunks).total
        total.backward()
        assert torch.isfinite(total)
        assert torch.isfinite(student.grad).all()
