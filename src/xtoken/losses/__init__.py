"""Every loss, chosen by name; each is a sum over chunks and their count.

Example:
    loss = make_loss("path_kl", student_vocab=student, teacher_vocab=teacher, projection=W)
    result = loss(student_logits_NV, teacher_logits_MU, chunks)
    (result.total / result.count).backward()
"""

from __future__ import annotations

from xtoken.losses.alm import ALM
from xtoken.losses.base import Chunks, Direction, LossResult, Pooling, SignalKind, Support
from xtoken.losses.blocks import Term, run_terms
from xtoken.losses.bpm import BPM
from xtoken.losses.chunked_head import Hidden, OutputHead
from xtoken.losses.cross_entropy import cross_entropy, cross_entropy_term
from xtoken.losses.csd import CSD
from xtoken.losses.direct import Direct
from xtoken.losses.divergence import divergence
from xtoken.losses.gold import GOLD
from xtoken.losses.h_kl import HKL
from xtoken.losses.learned import LearnedWeights
from xtoken.losses.loss import Loss
from xtoken.losses.metrics import agreement, kept_mass
from xtoken.losses.p_kl import PKL
from xtoken.losses.path_kl import PathKL
from xtoken.losses.projector import Projector
from xtoken.losses.registry import LOSSES, loss_settings, make_loss
from xtoken.losses.signals import Realised, TopK
from xtoken.losses.strict import Strict
from xtoken.losses.uld import ULD

__all__ = [
    "ALM",
    "BPM",
    "CSD",
    "GOLD",
    "HKL",
    "LOSSES",
    "PKL",
    "ULD",
    "Chunks",
    "Direct",
    "Direction",
    "Hidden",
    "LearnedWeights",
    "Loss",
    "LossResult",
    "OutputHead",
    "PathKL",
    "Pooling",
    "Projector",
    "Realised",
    "SignalKind",
    "Strict",
    "Support",
    "Term",
    "TopK",
    "agreement",
    "cross_entropy",
    "cross_entropy_term",
    "divergence",
    "kept_mass",
    "loss_settings",
    "make_loss",
    "run_terms",
]
