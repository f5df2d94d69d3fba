"""Bits per byte during training count what `xtoken eval` counts: tokens that hold bytes."""

from __future__ import annotations

import math

import pytest
import torch

from xtoken.losses import Chunks, cross_entropy
from xtoken.training.checkpoints import disk_full
from xtoken.training.measures import realised_nats
from xtoken.training.metrics import Sums
from xtoken.training.objective import Objective, Parts

EOS = 3
LENGTHS = torch.tensor([1, 2, 4, 0])


def test_an_eos_has_no_bytes_and_its_nats_stay_out() -> None:
    logits_NV = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    targets_N = torch.tensor([1, 2, EOS, -100, 0])
    parts = Parts(ce=cross_entropy(logits_NV, targets_N), kd=[])
    Objective([], byte_lengths=LENGTHS, chunks_of=lambda *_: None)._student_bytes(
        parts, logits_NV, targets_N
    )
    logp_NV = logits_NV.log_softmax(-1)
    nats = -sum(float(logp_NV[row, target]) for row, target in ((0, 1), (1, 2), (4, 0)))
    assert Sums.means([parts.sums.pairs()])["bpb"] == pytest.approx(nats / (math.log(2) * 7))


def test_the_teachers_eos_stays_out_too() -> None:
    logits_MU = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
    starts, ones = torch.tensor([0, 1, 2]), torch.tensor([1, 1, 1])
    targets_M = torch.tensor([0, 2, EOS, -1])
    chunks = Chunks(starts, ones, starts, ones, targets_M, targets_M)
    nats, size = realised_nats(logits_MU, chunks, LENGTHS)
    logp_MU = logits_MU.log_softmax(-1)
    assert int(size) == 5
    assert float(nats) == pytest.approx(-float(logp_MU[0, 0] + logp_MU[1, 2]), rel=1e-5)


def test_a_short_write_of_torchs_archive_is_a_full_disk() -> None:
    error = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 20 vs 10")
    assert disk_full(error) is not None
    assert disk_full(RuntimeError("shapes do not match")) is None
