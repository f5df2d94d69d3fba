"""The `loss:` block: one class a loss, named and defaulted as the losses themselves are."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field

from xtoken.config.base import AtLeastOne, NotNegative, Positive, Section, Share

# The same names as in `xtoken.losses` (which needs torch, so it isn't imported here; a test
# compares kinds, settings and defaults).
Direction = Literal["teacher_to_student", "student_to_teacher", "jsd"]
Pooling = Literal["first", "chain_rule", "mean"]
Support = Literal["full", "reached", "topk_rest", "topk_batch"]
Threshold = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]


class LossSettings(Section):
    """What a loss is called and how it is set."""

    kind: str

    def settings(self) -> dict[str, Any]:
        """Return the keyword arguments of `xtoken.losses.make_loss`, `kind` left out."""
        return self.model_dump(exclude={"kind"})


class _Divergence(LossSettings):
    direction: Direction = "teacher_to_student"
    temperature: Positive = 1.0
    jsd_beta: Share | None = None

    def ignored(self) -> dict[str, str]:
        """See `Section.ignored`."""
        if self.direction == "jsd":
            return {}
        return {
            "jsd_beta": f"has no effect with direction: {self.direction}; remove it, or set "
            "direction: jsd"
        }


class PKL(_Divergence):
    """P-KL: the student's distribution projected by W onto the teacher's vocabulary."""

    kind: Literal["p_kl"] = "p_kl"
    pooling: Pooling = "first"
    support: Support = "full"
    top_k: AtLeastOne | None = None
    weights: Literal["fixed", "learned"] = "fixed"
    weights_learning_rate: Positive | None = None

    def ignored(self) -> dict[str, str]:
        """See `Section.ignored`."""
        found = super().ignored()
        if self.support not in ("topk_rest", "topk_batch"):
            found["top_k"] = (
                f"has no effect with support: {self.support}; remove it, or set support: topk_rest"
            )
        if self.weights == "fixed":
            found["weights_learning_rate"] = (
                "has no effect with weights: fixed; remove it, or set weights: learned"
            )
        return found


class _Partition(_Divergence):
    pooling: Pooling = "first"
    uld_top_k: AtLeastOne | None = None

    def ignored(self) -> dict[str, str]:
        """See `Section.ignored`."""
        found = super().ignored()
        if getattr(self, "lambda_uld", None) == 0:
            found["uld_top_k"] = "has no effect with lambda_uld: 0; remove one of the two"
        return found


class HKL(_Partition):
    """H-KL: KL on common tokens (near matches above `threshold` too), sorted L1 on the rest."""

    kind: Literal["h_kl"] = "h_kl"
    threshold: Threshold = 0.6
    lambda_kl: NotNegative = 1.0
    lambda_uld: NotNegative = 1.0


class GOLD(_Partition):
    """GOLD: a divergence on exactly matching tokens, sorted L1 on the rest."""

    kind: Literal["gold"] = "gold"
    direction: Direction = "jsd"
    weights: Literal["auto", "fixed"] = "auto"
    lambda_kl: NotNegative | None = None
    lambda_uld: NotNegative | None = None

    def ignored(self) -> dict[str, str]:
        """See `Section.ignored`."""
        found = super().ignored()
        if self.weights == "auto":
            why = "has no effect with weights: auto; remove it, or set weights: fixed"
            found |= {"lambda_kl": why, "lambda_uld": why}
        return found


class ULD(LossSettings):
    """ULD: L1 between the sorted distributions."""

    kind: Literal["uld"] = "uld"
    temperature: Positive = 1.0
    pooling: Pooling = "first"
    top_k: AtLeastOne | None = None


class Direct(_Divergence):
    """KL per position; student and teacher must have one vocabulary."""

    kind: Literal["direct"] = "direct"


class ALM(LossSettings):
    """ALM: how likely each model finds a chunk's own text."""

    kind: Literal["alm"] = "alm"
    alm_temperature: Positive = 100.0


class Strict(_Divergence):
    """Strict 1:1: KL on shared tokens and a rest bucket, where both models say one token."""

    kind: Literal["strict"] = "strict"


class CSD(_Divergence):
    """CSD: events that both tokenizers can spell, and a rest bucket, in chunks of every kind."""

    kind: Literal["csd"] = "csd"
    beta: NotNegative = 1.0


class BPM(_Divergence):
    """BPM: the teacher's mass on the longest student token that begins each teacher token."""

    kind: Literal["bpm"] = "bpm"


class PathKL(_Divergence):
    """Path-KL: every position of a chunk as a conditional on the other side's tokens."""

    kind: Literal["path_kl"] = "path_kl"


def _with_kind(value: Any) -> Any:
    """Let `loss: {temperature: 2}` mean Path-KL, as no `loss:` at all does."""
    return {"kind": "path_kl", **value} if isinstance(value, dict) else value


LossConfig = Annotated[
    PKL | HKL | GOLD | ULD | Direct | ALM | Strict | CSD | BPM | PathKL,
    Field(discriminator="kind"),
    BeforeValidator(_with_kind),
]

LOSS_CLASSES: dict[str, type[LossSettings]] = {
    member.model_fields["kind"].default: member for member in get_args(get_args(LossConfig)[0])
}
