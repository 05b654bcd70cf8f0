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
from torch import Tensor, nn

from critics.base import CountEstimate, Critic, CriticCard, Query


@dataclasses.dataclass
class RescaledCritic:
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
    def card(self) -> CriticCard:
        """The density critic's; with a detector, of the detector's family, since its counts are reported."""
        card = self.density.card
        summary = f"{card.summary}; counts divided by {self.factor:g}"
        if self.detector is None:
            return dataclasses.replace(card, name=f"{card.name}-static", summary=summary)
        other = self.detector.card
        lists = [c.vocabulary for c in (card, other) if c.vocabulary is not None]
        return dataclasses.replace(
            card,
            name=f"{card.name}-by-{other.name}",
            family=other.family,
            summary=f"{summary}, or by what makes them the count of {other.name}",
            license_code=_both(card.license_code, other.license_code),
            license_weights=_both(card.license_weights, other.license_weights),
            vocabulary=tuple(n for n in lists[0] if all(n in v for v in lists)) if lists else None,
            parameters=card.parameters + other.parameters,
        )

    @property
    def network(self) -> nn.Module:
        parts = [self.density] if self.detector is None else [self.density, self.detector]
        both = nn.ModuleList(part.network for part in parts)  # type: ignore[attr-defined]
        both.training = False  # a new list would say that it is being trained
        return both

    def to(self, device: str | torch.device) -> RescaledCritic:
        self.network.to(device)
        return self

    def prepare(self, nouns: Sequence[str]) -> Query:
        """What both critics need to know of the nouns.

        Raises:
            critics.base.UnknownNounError: for a noun that either of them cannot see.
        """
        mine = self.density.prepare(nouns)
        if self.detector is None:
            return mine
        other = self.detector.prepare(nouns)
        text = {f"{_DENSITY}{key}": value for key, value in mine.text.items()}
        text |= {f"{_DETECTOR}{key}": value for key, value in other.text.items()}
        return Query(mine.nouns, mine.classes, text | {_CLASSES: other.classes})

    def __call__(
        self, images: Float[Tensor, "b 3 height width"], queries: Sequence[Query]
    ) -> CountEstimate:
        if self.detector is None:
            found = self.density(images, queries)
            scale = torch.full_like(found.soft.detach(), self.factor)
        else:
            found = self.density(images, [_part(query, _DENSITY) for query in queries])
            with torch.no_grad():
                seen = self.detector(images, [_part(query, _DETECTOR) for query in queries]).hard
                raw = found.soft.detach()
                quotient = raw / seen.clamp_min(1)
                # A quotient of 0 or of denormals would throw the gradient to infinity.
                usable = (seen > 0) & (quotient > _LEAST) & torch.isfinite(quotient)
                scale = torch.where(usable, quotient, self.factor)
        soft = found.soft / scale
        density = None if found.density is None else found.density / scale[..., None, None]
        hard = soft.detach().round().to(torch.int64)
        return CountEstimate(soft, hard, found.mask, density=density)


_DENSITY, _DETECTOR = "density/", "detector/"
_CLASSES = "classes of the detector"
_LEAST = 1e-4
"""Smallest dynamic factor: below it the density critic sees nothing that could be moved."""


def _part(query: Query, prefix: str) -> Query:
    text = {
        key.removeprefix(prefix): value
        for key, value in query.text.items()
        if key.startswith(prefix)
    }
    classes = query.classes if prefix == _DENSITY else query.text[_CLASSES]
    return Query(query.nouns, classes, text)


def _both(one: str, two: str) -> str:
    return one if one == two else f"{one}; {two}"
