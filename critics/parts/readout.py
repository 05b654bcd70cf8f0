"""From a detector's logits to counts: one differentiable, one exact.

What is published: D2D (arXiv 2510.19278) turns a detector's logits into counts by a steep sigmoid of the
margin (``plain_indicator``), and scales it by the margin where that plateau has no gradient left
(``scaled_indicator``); its equations are not public, so both are reconstructions. Ours are the
pre-selection of candidates, the removal of duplicates, and that candidates below the threshold take part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from critics.base import Candidates, CountEstimate, NonFiniteCountError
from critics.parts.boxes import intersection_over_union, suppress

INVERSE_TEMPERATURE = 4.0
"""Of the indicators, unless told otherwise: what a margin is multiplied by before its sigmoid."""


def plain_indicator(
    margins: Float[Tensor, "*n"], inverse_temperature: float = INVERSE_TEMPERATURE
) -> Float[Tensor, "*n"]:
    """About 1 above the threshold, about 0 below: the steep sigmoid of the margin, in (0, 1)."""
    return torch.sigmoid(inverse_temperature * margins)


def scaled_indicator(
    margins: Float[Tensor, "*n"], inverse_temperature: float = INVERSE_TEMPERATURE
) -> Float[Tensor, "*n"]:
    """The margin times its steep sigmoid: its gradient stays about 1 where the plain form is flat.

    A loss term, not a count: it grows with the confidence of a candidate without bound.
    """
    return margins * torch.sigmoid(inverse_temperature * margins)


def soft_duplicates(
    margins: Float[Tensor, "b k c"],
    boxes: Float[Tensor, "b k c 4"],
    overlap: float,
    inverse_temperature: float = INVERSE_TEMPERATURE,
) -> Float[Tensor, "b k c"]:
    """How much each candidate is an object of its own, in [0, 1], with gradient.

    The product, over the stronger candidates j whose boxes it meets, of 1 - indicator(j): a candidate
    counts again as its rival fades. Candidates come strongest first; -inf pads.
    """
    hits = intersection_over_union(boxes[..., :, None, :], boxes[..., None, :, :]) > overlap
    stronger = hits & torch.ones_like(hits).tril(-1)
    rival = plain_indicator(margins, inverse_temperature)[..., None, :]
    return torch.where(stronger, 1 - rival, torch.ones_like(rival)).prod(-1)


def softmax_log_odds(
    logits: Float[Tensor, "b c n"], classes: Int64[Tensor, "b k"]
) -> Float[Tensor, "b k c"]:
    """log(p / (1 - p)) of each class's softmax probability p at every candidate.

    The class's logit minus the log-sum-exp of all others, the class for no object among them: exact where
    p rounds to 0 or 1, and the gradient never vanishes.
    """
    every = logits.transpose(1, 2)[:, None].expand(-1, classes.shape[1], -1, -1)
    index = classes[:, :, None, None].expand(-1, -1, 1, every.shape[-1])
    own = every.gather(2, index)[:, :, 0]
    return own - every.scatter(2, index, -torch.inf).logsumexp(2)


@dataclass(frozen=True)
class Detections:
    """What a detector sees before anything is thresholded or sorted.

    Attributes:
        logits: (b, k, c) of every noun at every candidate, with gradient: the log-odds that it is one. -inf
            where a candidate cannot be that noun. Candidate c is the same place for every noun.
        boxes: (b, c, 4) x0 y0 x1 y1 in pixels of the image given, without gradient.
        rivals: (b, k, c) highest logit of what a candidate must not rather be, with gradient; -inf where
            there is nothing; None where the threshold alone decides.
    """

    logits: Float[Tensor, "b k c"]
    boxes: Float[Tensor, "b c 4"]
    rivals: Float[Tensor, "b k c"] | None = None

    def margins(self, level: float) -> Float[Tensor, "b k c"]:
        """Logit minus what it has to exceed: ``level``, or the rivals' logit where that is higher."""
        return self.logits - (level if self.rivals is None else self.rivals.clamp_min(level))


@dataclass(frozen=True)
class ReadOut:
    """How a detector's candidates become a soft and a hard count.

    Attributes:
        threshold: probability above which a candidate counts as an object, in (0, 1).
        overlap: intersection over union above which the weaker of two boxes is a duplicate, in [0, 1]; None
            for set predictors, which give every object one box.
        limit: most candidates of a noun that take part, the strongest ones, so that thousands of background
            anchors add no phantom objects. Those below the threshold are among them, so that an object can
            be added. None: all.
        inverse_temperature: of the soft count's indicators: what a margin is multiplied by.
        duplicates: how the soft count leaves duplicates out. "hard": by the decision of the hard count,
            without gradient; "soft": by ``soft_duplicates``.

    Raises:
        ValueError: a setting outside its range.
    """

    threshold: float
    overlap: float | None = None
    limit: int | None = 64
    inverse_temperature: float = INVERSE_TEMPERATURE
    duplicates: Literal["hard", "soft"] = "hard"

    def __post_init__(self) -> None:
        overlap, limit = self.overlap, self.limit
        steep = self.inverse_temperature
        for name, valid, wanted in (
            (
                "threshold",
                _is_number(self.threshold) and 0 < self.threshold < 1,
                "a probability between 0 and 1",
            ),
            (
                "overlap",
                overlap is None or (_is_number(overlap) and 0 <= overlap <= 1),
                "None or a number from 0 to 1",
            ),
            (
                "limit",
                limit is None or (isinstance(limit, int) and limit >= 1),
                "None or a number of candidates, at least 1",
            ),
            (
                "inverse_temperature",
                _is_number(steep) and 0 < steep < math.inf,
                "a positive number",
            ),
            ("duplicates", self.duplicates in ("hard", "soft"), "'hard' or 'soft'"),
        ):
            if not valid:
                raise ValueError(
                    f"the {name} of a read-out is {wanted}, not {getattr(self, name)!r}"
                )

    def changed(self, **settings: Any) -> ReadOut:
        """The same with some settings of the user's own.

        Raises:
            TypeError: no such setting; the message has the nearest one.
            ValueError: a setting outside its range.
        """
        known = [field.name for field in fields(self)]
        for name in settings:
            if name not in known:
                near = get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
                raise TypeError(f"a critic has no setting {name!r}; {hint}")
        return replace(self, **settings)

    @property
    def level(self) -> float:
        """The threshold as a logit."""
        return math.log(self.threshold / (1 - self.threshold))

    def count(
        self, found: Detections, mask: Bool[Tensor, "b k"], name: str = "the critic"
    ) -> CountEstimate:
        """Counts of a batch of detections.

        Args:
            mask: where an image's query really has a k-th noun.
            name: of the critic, for messages.

        Raises:
            NonFiniteCountError: logits that are no numbers.
        """
        margins, boxes = found.margins(self.level), found.boxes
        if (wrong := (margins.detach().isnan() | (margins.detach() == torch.inf))).any():
            rows = (wrong & mask[..., None]).flatten(1).any(1).nonzero()[:, 0].tolist()
            if rows:
                raise NonFiniteCountError(rows, name)
        possible = mask[..., None] & (margins.detach() > -torch.inf)
        ranked = torch.where(possible, margins.detach(), -torch.inf)
        most = margins.shape[-1] if self.limit is None else min(self.limit, margins.shape[-1])
        chosen = ranked.topk(most, -1).indices
        margins, possible = margins.gather(-1, chosen).float(), possible.gather(-1, chosen)
        places = boxes.detach().float()[:, None].expand(-1, chosen.shape[1], -1, -1)
        places = places.gather(2, chosen[..., None].expand(-1, -1, -1, 4))
        distinct = possible if self.overlap is None else suppress(places, possible, self.overlap)
        kept = distinct & (margins.detach() > 0)
        indicator = plain_indicator(margins, self.inverse_temperature)
        indicator = torch.where(possible, indicator, 0.0)
        if self.duplicates == "hard" or self.overlap is None:
            soft = torch.where(distinct, indicator, 0.0).sum(-1)
        else:
            safe = torch.where(possible, margins, -1e4)
            own = soft_duplicates(safe, places, self.overlap, self.inverse_temperature)
            soft = (indicator * own).sum(-1)
        candidates = Candidates(margins, places, kept, distinct)
        return CountEstimate(soft, kept.sum(-1), mask, candidates)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def join_pairs(
    logits: Float[Tensor, "p c"], boxes: Float[Tensor, "p c 4"], mask: Bool[Tensor, "b k"]
) -> Detections:
    """Detections of a network that is asked for one noun of one image at a time.

    Candidates of an image are those of its nouns in turn, and those of one noun can be no other.

    Args:
        logits: of each True of ``mask``, row by row, those of its candidates.
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
