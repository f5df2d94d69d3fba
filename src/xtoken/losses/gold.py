"""GOLD: the strict partition of two vocabularies, JSD on what matches, ULD on the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from xtoken.errors import LossError
from xtoken.losses.base import Direction, Pooling
from xtoken.losses.checks import check_choice, check_weight
from xtoken.losses.h_kl import PartitionLoss

if TYPE_CHECKING:
    from xtoken.projection import Projection

Weights = Literal["auto", "fixed"]
WEIGHTS: tuple[Weights, ...] = ("auto", "fixed")


class GOLD(PartitionLoss):
    """GOLD (Hugging Face, Oct 2025): H-KL's form with exactly matching tokens only.

        loss = tau^2 * sum over chunks of
               w_common * JSD_beta(p_T, p_S on exact pairs) + w_rest * sorted L1 of the rest

    The peer is TRL's `ULDLoss` with `uld_use_hybrid_loss`: the same terms with `direction: jsd`,
    beta = `jsd_beta`, and `weights: auto` (w_common = matched pairs / teacher vocabulary,
    w_rest = 1 - w_common). Which merge rule a pooling reproduces:

        chain_rule  TRL's `observed` *merge* (first distribution times the later realised
                    tokens' probabilities). TRL reads `observed` rows one position late, at the
                    token instead of before it: to reproduce its figures to the last digit hand
                    over chunks that start one row later and targets moved by one row
        first       neither; equal to both on chunks of one token a side, with `bayesian` rows
        mean        neither (X-Token's code)
        -           TRL's `bayesian` merge (last distribution times the earlier tokens'
                    probabilities) has no counterpart here

    Differences left: TRL clamps probabilities at 1e-8 before logarithms, matches token strings
    rather than bytes, counts padded rows in w_common, drops the L1 part when one side has no
    unmatched token (here that side counts as zeros), divides by chunks, and has no tau^2.

    Args:
        projection: gives the exact pairs and the masked ids.
        direction: of the common part; `jsd` (default) as TRL.
        temperature, pooling, uld_top_k: as in H-KL.
        jsd_beta: mixture weight (0.5); 0 is KL(T || S), 1 is KL(S || T).
        weights: `auto` as TRL, or `fixed`: lambda_kl and lambda_uld.
        lambda_kl, lambda_uld: weights under `fixed` (1 and 1); refused under `auto`.

    Raises:
        LossError: an empty common set, or a setting out of range or without effect.
    """

    kind: ClassVar[str] = "gold"

    def __init__(
        self,
        projection: Projection,
        *,
        direction: Direction = "jsd",
        temperature: float = 1.0,
        pooling: Pooling = "first",
        weights: Weights = "auto",
        lambda_kl: float | None = None,
        lambda_uld: float | None = None,
        uld_top_k: int | None = None,
        jsd_beta: float | None = None,
    ) -> None:
        super().__init__(
            projection,
            projection.exact_pairs(),
            direction=direction,
            temperature=temperature,
            pooling=pooling,
            uld_top_k=uld_top_k,
            jsd_beta=jsd_beta,
        )
        check_choice(self.kind, "weights", weights, WEIGHTS)
        if weights == "auto":
            if lambda_kl is not None or lambda_uld is not None:
                raise LossError(
                    "gold: lambda_kl and lambda_uld have no effect with weights 'auto'; "
                    "set weights: fixed, or leave them out."
                )
            lambda_kl = len(self.common_teacher_X) / self.teacher_size
            lambda_uld = 1.0 - lambda_kl
        self.lambda_kl = 1.0 if lambda_kl is None else float(lambda_kl)
        self.lambda_uld = 1.0 if lambda_uld is None else float(lambda_uld)
        check_weight(self.kind, "lambda_kl", self.lambda_kl)
        check_weight(self.kind, "lambda_uld", self.lambda_uld)

    def weights(self) -> tuple[float, float]:
        """Return the weights of the common part and of the rest."""
        return self.lambda_kl, self.lambda_uld
