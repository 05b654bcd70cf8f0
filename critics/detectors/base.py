"""Critics that are detectors: a network that sees candidates, and the read-out that counts them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from critics.base import CountEstimate, CriticCard, Query, check_images
from critics.parts.readout import STEEPNESS, Detections, count_candidates


class Detector(Protocol):
    """A family's own part: preprocessing, network, and what the network says of every noun."""

    @property
    def network(self) -> nn.Module: ...

    def prepare(self, nouns: Sequence[str]) -> Query:
        """Look up or encode the nouns once."""
        ...

    def detect(
        self, images: Float[Tensor, "b 3 height width"], queries: Sequence[Query]
    ) -> Detections:
        """Candidates of a checked batch of RGB images in [0, 1], one query an image."""
        ...


@dataclass
class DetectionCritic:
    """A critic made of a detector and its read-out.

    Attributes:
        threshold: probability above which a candidate counts as an object.
        overlap: intersection over union above which the weaker of two boxes is a duplicate; None for set
            predictors.
        limit: most candidates a noun that take part.
        steepness: of the soft count's indicators, a logit.
        duplicates: how the soft count leaves duplicates out; see ``critics.parts.readout.count_candidates``.

    Raises:
        ValueError: a threshold outside (0, 1).
    """

    detector: Detector
    card: CriticCard
    threshold: float
    overlap: float | None = None
    limit: int = 64
    steepness: float = STEEPNESS
    duplicates: Literal["hard", "soft"] = field(default="hard")

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ValueError(
                f"the threshold of {self.card.name} is a probability between 0 and 1, not {self.threshold}"
            )

    @property
    def network(self) -> nn.Module:
        return self.detector.network

    def to(self, device: str | torch.device) -> DetectionCritic:
        self.network.to(device)
        return self

    def prepare(self, nouns: Sequence[str]) -> Query:
        return self.detector.prepare(nouns)

    def __call__(
        self, images: Float[Tensor, "b 3 height width"], queries: Sequence[Query]
    ) -> CountEstimate:
        check_images(images, queries)
        found = self.detector.detect(images, queries)
        mask = noun_mask(queries, images.device)
        level = math.log(self.threshold / (1 - self.threshold))
        estimate = count_candidates(
            found.margins(level),
            found.boxes,
            mask,
            overlap=self.overlap,
            limit=self.limit,
            steepness=self.steepness,
            duplicates=self.duplicates,
        )
        self._warn_of_more(estimate)
        return estimate

    def _warn_of_more(self, estimate: CountEstimate) -> None:
        """A count of all candidates that take part is the least that there may be."""
        if estimate.candidates is None:
            return
        most = estimate.candidates.margins.shape[-1]
        if most and (estimate.hard == most).any():
            warnings.warn(
                f"{self.card.name} counts {most} objects of a kind at most, and has counted as many: there "
                "may be more; count parts of the picture, or take a density counter",
                stacklevel=3,
            )


def noun_mask(queries: Sequence[Query], device: torch.device) -> Tensor:
    """(b, k) True where an image's query really has a k-th noun."""
    counts = torch.tensor([len(query.nouns) for query in queries], device=device)
    width = max((len(query.nouns) for query in queries), default=0)
    return torch.arange(width, device=device) < counts[:, None]


def join_pairs(
    logits: Float[Tensor, "p c"], boxes: Float[Tensor, "p c 4"], mask: Bool[Tensor, "b k"]
) -> Detections:
    """What a network says that is asked for one noun of one image at a time.

    Candidates of an image are those of its nouns in turn, and those of one noun can be no other.

    Args:
        logits: of each True of ``mask``, row by row, what its candidates are worth.
        boxes: in pixels of the image given, without gradient.
        mask: where an image's query really has a k-th noun.
    """
    (b, k), count = mask.shape, logits.shape[-1]
    rows, columns = mask.nonzero(as_tuple=True)
    every = logits.new_full((b, k, k, count), -torch.inf)
    every[rows, columns, columns] = logits
    places = boxes.new_zeros(b, k, count, 4)
    places[rows, columns] = boxes
    return Detections(every.flatten(2), places.flatten(1, 2))
