"""What guidance minimises: losses of a critic's counts, one value an image, least value 0.

Kinds that an image does not ask for (``estimate.mask`` False) add nothing; several kinds add up; a wanted
count of 0 pushes every candidate of that noun down. All compute in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from countgen.errors import UsageError
from countgen.guidance.base import Needs, Objective
from critics import rewards
from critics.base import CountEstimate
from critics.parts import readout


@dataclass(frozen=True)
class SoftCount:
    """Difference of soft and wanted count.

    With a detector this is the plain soft indicator of D2D (arXiv 2510.19278, steep sigmoids of logits); with
    a density critic, static or rescaled by a detector (``critics.wrappers.rescaled``), the counting loss of
    the count token (2408.11721). The latter's is an absolute difference; D2D's form is not public, and the
    same is taken.

    Attributes:
        error: "absolute"; "squared"; or "relative", the square of the difference over the wanted count (over
            1 where that is 0), as Counting Guidance has it (2306.17567).
        dead_zone: differences up to it are 0, so that a count that is right is left alone.
        needs: "density" asks for a density counter.
    """

    error: Literal["absolute", "squared", "relative"] = "absolute"
    dead_zone: float = 0.0
    needs: Needs = "soft"

    def __post_init__(self) -> None:
        if self.error not in ("absolute", "squared", "relative"):
            raise UsageError(
                f"the error of a soft count is absolute, squared or relative, not {self.error!r}"
            )
        if not 0 <= self.dead_zone < math.inf:
            raise UsageError(f"a dead zone is finite and at least 0, not {self.dead_zone}")

    def __call__(
        self, estimate: CountEstimate, wanted: Int64[Tensor, "b k"]
    ) -> Float[Tensor, " b"]:
        off = ((estimate.soft - wanted).abs() - self.dead_zone).clamp_min(0)
        if self.error == "relative":
            off = off / wanted.clamp_min(1)
        value = off if self.error == "absolute" else off.square()
        return torch.where(estimate.mask, value, torch.zeros_like(value)).sum(-1)


@dataclass(frozen=True)
class ScaledIndicator:
    """Margin times sigmoid of the margin, summed with the sign of the hard count's error.

    A reconstruction of D2D's scaled form: confident surplus boxes keep a gradient of about one, which the
    plain form lacks. Where objects are missing, the mirrored form keeps a gradient on candidates far below
    the threshold; that half is ours, since the published scaling leaves them none.
    """

    inverse_temperature: float = 4.0
    needs: Needs = "candidates"

    def __post_init__(self) -> None:
        if not 0 < self.inverse_temperature < math.inf:
            raise UsageError(
                "the inverse temperature of an indicator must be positive and finite, not "
                f"{self.inverse_temperature}"
            )

    def __call__(
        self, estimate: CountEstimate, wanted: Int64[Tensor, "b k"]
    ) -> Float[Tensor, " b"]:
        margins, distinct = _candidates(estimate)
        surplus = estimate.hard > wanted
        missing = estimate.hard < wanted
        sign = torch.where(surplus, 1.0, -1.0)[..., None]
        # For missing objects only the best candidates that are not counted yet, as many as are missing.
        rank = _ranks(distinct)
        below = (rank >= estimate.hard[..., None]) & (rank < wanted[..., None])
        chosen = torch.where(surplus[..., None], distinct, below & distinct)
        value = readout.scaled_indicator(sign * margins, self.inverse_temperature)
        value = torch.where(chosen, value, torch.zeros_like(value)).sum(-1)
        # Below a quarter of -1 / inverse temperature the form rises again: it is no distance there.
        active = estimate.mask & (surplus | missing)
        return torch.where(active, value, torch.zeros_like(value)).sum(-1)


@dataclass(frozen=True)
class TwoSidedHinge:
    """Hinge that lifts the strongest N candidates to +margin and lowers all others to -margin. Ours.

    Order and de-duplication are taken without gradient, so that each candidate is told one thing: the N
    strongest distinct ones are the wanted objects, whatever lies below them is surplus. Missing candidates
    keep their gradient however far below the threshold they are; what is beyond its margin has none (the dead
    zone).

    Attributes:
        margin: distance from the critic's threshold, in logits.
    """

    margin: float = 2.0
    needs: Needs = "candidates"

    def __post_init__(self) -> None:
        if not 0 < self.margin < math.inf:
            raise UsageError(
                f"the margin of a hinge must be positive and finite, not {self.margin}"
            )

    def __call__(
        self, estimate: CountEstimate, wanted: Int64[Tensor, "b k"]
    ) -> Float[Tensor, " b"]:
        margins, distinct = _candidates(estimate)
        scores = torch.where(distinct, margins, -torch.inf)
        return rewards.two_sided_hinge(
            scores, wanted, estimate.mask, high=self.margin, low=-self.margin
        )


@dataclass(frozen=True)
class CountingReward:
    """The counting loss of prompt-free multi-object augmentation (arXiv 2507.06146), one-sided as published.

    Attributes:
        critic_threshold: of the critic whose margins are read, as a probability.
        threshold, scale: as published.
    """

    critic_threshold: float
    threshold: float = 0.1
    scale: float = 0.5
    needs: Needs = "candidates"

    def __post_init__(self) -> None:
        if not (0 < self.critic_threshold < 1 and 0 < self.threshold < 1):
            raise UsageError(
                "the thresholds of a counting reward are probabilities between 0 and 1, not "
                f"{self.critic_threshold} and {self.threshold}"
            )
        if not 0 < self.scale < math.inf:
            raise UsageError(f"the scale of a counting reward is positive, not {self.scale}")

    def __call__(
        self, estimate: CountEstimate, wanted: Int64[Tensor, "b k"]
    ) -> Float[Tensor, " b"]:
        scores = rewards.probabilities(estimate, self.critic_threshold)
        return rewards.missing_hinge(
            scores, wanted, estimate.mask, threshold=self.threshold, scale=self.scale
        )


OBJECTIVES: dict[str, Objective] = {
    "soft": SoftCount(),
    "scaled": ScaledIndicator(),
    "hinge": TwoSidedHinge(),
    "density": SoftCount(needs="density"),
    "counting-reward": CountingReward(critic_threshold=0.5),
}
"""Each kind with its usual settings, by the name that ablations call it."""


def _ranks(distinct: Tensor) -> Tensor:
    """Position of every distinct candidate among the distinct ones (candidates come strongest first)."""
    return distinct.long().cumsum(-1) - 1


def _candidates(estimate: CountEstimate) -> tuple[Tensor, Tensor]:
    if estimate.candidates is None:
        raise ValueError(
            "this objective needs a detector's candidates, but the critic gives none; use the objective "
            "'soft' with density counters"
        )
    candidates = estimate.candidates
    # Padding is -inf, and -inf times zero is no number.
    margins = torch.where(candidates.distinct, candidates.margins, 0.0)
    return margins.float(), candidates.distinct
