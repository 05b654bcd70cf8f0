"""Critics that are detectors: a network that sees candidates, and the read-out that counts them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from critics.base import CountEstimate, CriticCard, Gives, Query
from critics.parts.guard import guarded_count, guarded_prepare, move, warn_caller
from critics.parts.queries import noun_mask
from critics.parts.readout import Detections, ReadOut


class Detector(Protocol):
    """A family's own part: preprocessing, network, and what the network says of every noun."""

    @property
    def network(self) -> nn.Module: ...

    def prepare(self, nouns: Sequence[str]) -> Query:
        """Look up or encode the nouns once; called without gradient."""
        ...

    def detect(
        self, images: Float[Tensor, "b 3 height width"], queries: Sequence[Query]
    ) -> Detections:
        """Candidates of a checked batch of RGB images in [0, 1], one query an image."""
        ...


@dataclass(slots=True)
class DetectionCritic:
    """A critic made of a detector and its read-out."""

    detector: Detector
    card: CriticCard
    read_out: ReadOut

    @property
    def network(self) -> nn.Module:
        return self.detector.network

    @property
    def gives(self) -> Gives:
        return "candidates"

    def to(self, device: str | torch.device) -> Self:
        move(self.network, device)
        return self

    def with_settings(self, **settings: Any) -> DetectionCritic:
        """The same networks with other settings of the read-out; see ``critics.parts.readout.ReadOut``.

        Raises:
            TypeError: no such setting.
            ValueError: a setting outside its range.
        """
        return replace(self, read_out=self.read_out.changed(**settings))

    @guarded_prepare
    def prepare(self, nouns: Sequence[str]) -> Query:
        return self.detector.prepare(nouns)

    @guarded_count
    def __call__(
        self, images: Float[Tensor, "b 3 height width"], queries: Sequence[Query]
    ) -> CountEstimate:
        found = self.detector.detect(images, queries)
        mask = noun_mask(queries, images.device)
        estimate = self.read_out.count(found, mask, self.card.name)
        self._warn_at_the_limit(estimate)
        return estimate

    def _warn_at_the_limit(self, estimate: CountEstimate) -> None:
        """Where all candidates that take part are counted, there may be more objects."""
        if estimate.candidates is None:
            return
        most = estimate.candidates.margins.shape[-1]
        if most and (estimate.hard == most).any():
            warn_caller(
                f"{self.card.name} counts {most} objects of a kind at most, and has counted as many: there "
                "may be more; count parts of the picture, or take a density counter"
            )
