"""Every loss, chosen by name; each is a sum over chunks and their count.

Example:
    loss = make_loss("p_kl", student_vocab=student, teacher_vocab=teacher, projection=W)
    result = loss(student_logits_NV, teacher_logits_MU, chunks)
    (result.total / result.count).backward()
"""

from __future__ import annotations

from xtoken.losses.base import Chunks, Direction, LossResult, Pooling, SignalKind, Support
from xtoken.losses.blocks import Term, run_terms
from xtoken.losses.chunked_head import Hidden, OutputHead
from xtoken.losses.cross_entropy import cross_entropy, cross_entropy_term
from xtoken.losses.direct import Direct
from xtoken.losses.divergence import divergence
from xtoken.losses.gold import GOLD
from xtoken.losses.h_kl import HKL
from xtoken.losses.loss import Loss
from xtoken.losses.metrics import agreement, kept_mass
from xtoken.losses.p_kl import PKL
from xtoken.losses.projector import Projector
from xtoken.losses.registry import LOSSES, loss_settings, make_loss
from xtoken.losses.uld import ULD

__all__ = [
    "GOLD",
    "HKL",
    "LOSSES",
    "PKL",
    "ULD",
    "Chunks",
    "Direct",
    "Direction",
    "Hidden",
    "Loss",
    "LossResult",
    "OutputHead",
    "Pooling",
    "Projector",
    "SignalKind",
    "Support",
    "Term",
    "agreement",
    "cross_entropy",
    "cross_entropy_term",
    "divergence",
    "kept_mass",
    "loss_settings",
    "make_loss",
    "run_terms",
]
