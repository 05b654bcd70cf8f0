"""What one unit of a density counter's sum is worth: a fixed factor, or one that a detector sets anew.

One scale does not fit every view: the same objects closer up have another density sum. *Iterative Object
Count Optimization* (arXiv 2408.11721) therefore divides the sum of CLIP-Count's raw density by a static
factor of 70 (CLIP-Count itself: 60), or by sum / n with n the objects that a detector (there YOLOS-tiny at
0.5) finds, recomputed at every step and without gradient. Ours is the fallback where that does not exist.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from critics.base import CountEstimate, Critic, CriticCard, Gives, Query
from critics.parts.guard import guarded_count
from critics.wrappers.base import Wrapper, join_cards, member_queries


@dataclasses.dataclass
class RescaledCritic(Wrapper):
    """A density critic whose counts are divided by a factor.

    With a detector the soft count's *value* is the detector's hard count and its *gradient* points where the
    density critic's does. Where the detector finds nothing, or the density critic's sum is no positive
    number, the static factor is used, so that there is always a direction in which objects appear. The hard
    count is the rounded soft one.

    Attributes:
        density: the critic whose soft counts are rescaled.
        factor: divides the counts of ``density``; positive. CLIP-Count's read-out has its 60 in it already:
            the published static factor 70 of the raw sum is 70 / 60 here.
        detector: counts the objects that the dynamic factor is made of; None for a static factor.
    """

    density: Critic
    factor: float = 1.0
    detector: Critic | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.factor) and self.factor > 0):
            raise ValueError(f"a factor must be positive and finite, not {self.factor}")

    @property
    def gives(self) -> Gives:
        return "density" if self.density.gives == "density" else "soft"

    @property
    def card(self) -> CriticCard:
        """The density critic's; with a detector, of both families: the counts are the detector's, the
        gradient is not."""
        card = self.density.card
        summary = f"{card.summary}; counts divided by {self.factor:g}"
        if self.detector is None:
            name = f"{card.name}-static"
            return dataclasses.replace(card, name=name, summary=summary, published=False)
        other = self.detector.card
        return join_cards(
            (card, other),
            f"{card.name}-by-{other.name}",
            f"{summary}, or by what makes them the count of {other.name}",
        )

    @property
    def critics(self) -> Sequence[Critic]:
        return (self.density,) if self.detector is None else (self.density, self.detector)

    def prepare(self, nouns: Sequence[str]) -> Query:
        """What both critics need to know of the nouns.

        Raises:
            critics.base.UnknownNounError: for a noun that either of them cannot see.
        """
        return Query(tuple(nouns), members=tuple(each.prepare(nouns) for each in self.critics))

    @guarded_count
    def __call__(
        self, images: Float[Tensor, "b 3 height width"], queries: Sequence[Query]
    ) -> CountEstimate:
        asked = member_queries(queries, len(self.critics))
        found = self.density(images, asked[0])
        scale = torch.full_like(found.soft.detach(), self.factor)
        if self.detector is not None:
            with torch.no_grad():
                seen = self.detector(images, asked[1]).hard
                quotient = found.soft.detach() / seen.clamp_min(1)
                # A quotient of 0 or of denormals would throw the gradient to infinity.
                usable = (seen > 0) & (quotient > _LEAST) & torch.isfinite(quotient)
                scale = torch.where(usable, quotient, scale)
        soft = found.soft / scale
        density = None if found.density is None else found.density / scale[..., None, None]
        hard = soft.detach().round().to(torch.int64)
        return CountEstimate(soft, hard, found.mask, density=density)


_LEAST = 1e-4
"""Smallest dynamic factor: below it the density critic sees nothing that could be moved."""
