"""From a detector's logits to counts: one differentiable, one exact.

What is published: D2D (arXiv 2510.19278) turns a detector's logits into counts by a steep sigmoid of the
margin (``plain_indicator``), and scales it by the margin where that plateau has no gradient left
(``scaled_indicator``); its equations are not public, so both are reconstructions. Ours are the
pre-selection of candidates, the removal of duplicates, and that candidates below the threshold take part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from critics.base import Candidates, CountEstimate
from critics.parts.boxes import intersection_over_union, suppress

STEEPNESS = 4.0


def plain_indicator(
    margins: Float[Tensor, "*n"], steepness: float = STEEPNESS
) -> Float[Tensor, "*n"]:
    """About 1 above the threshold, about 0 below: the steep sigmoid of the margin, in (0, 1)."""
    return torch.sigmoid(steepness * margins)


def scaled_indicator(
    margins: Float[Tensor, "*n"], steepness: float = STEEPNESS
) -> Float[Tensor, "*n"]:
    """The margin times its steep sigmoid: its slope stays about 1 where the plain form is flat.

    A loss term, not a count: it grows with the confidence of a candidate without bound.
    """
    return margins * torch.sigmoid(steepness * margins)


def soft_duplicates(
    margins: Float[Tensor, "b k c"],
    boxes: Float[Tensor, "b k c 4"],
    overlap: float,
    steepness: float = STEEPNESS,
) -> Float[Tensor, "b k c"]:
    """How much each candidate is an object of its own, in [0, 1], with gradient.

    The product, over the stronger candidates j whose boxes it meets, of 1 - indicator(j): a candidate
    counts again as its rival fades. Candidates come strongest first; -inf pads.
    """
    hits = intersection_over_union(boxes[..., :, None, :], boxes[..., None, :, :]) > overlap
    stronger = hits & torch.ones_like(hits).tril(-1)
    rival = plain_indicator(margins, steepness)[..., None, :]
    return torch.where(stronger, 1 - rival, torch.ones_like(rival)).prod(-1)


def softmax_log_odds(
    logits: Float[Tensor, "b c n"], classes: Int64[Tensor, "b k"]
) -> Float[Tensor, "b k c"]:
    """log(p / (1 - p)) of each class's softmax probability p at every candidate.

    The class's logit minus the log-sum-exp of all others, the class for no object among them: exact where
    p rounds to 0 or 1, and the slope never vanishes.
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


def count_candidates(
    margins: Float[Tensor, "b k c"],
    boxes: Float[Tensor, "b c 4"],
    mask: Bool[Tensor, "b k"],
    *,
    overlap: float | None = None,
    limit: int = 64,
    steepness: float = STEEPNESS,
    duplicates: Literal["hard", "soft"] = "hard",
) -> CountEstimate:
    """Counts of a batch from margins (logit minus threshold); -inf for what is no candidate.

    Only the ``limit`` strongest candidates of a noun take part, so that thousands of background anchors
    add no phantom objects; those below the threshold are among them, so that an object can be added.

    Args:
        overlap: intersection over union above which the weaker of two boxes is a duplicate; None for
            set predictors, which give every object one box.
        steepness: of the indicators.
        duplicates: how the soft count leaves them out. "hard": by the same decision as the hard count,
            without gradient; "soft": by ``soft_duplicates``.
    """
    possible = mask[..., None] & (margins.detach() > -torch.inf)
    ranked = torch.where(possible, margins.detach(), -torch.inf)
    chosen = ranked.topk(min(limit, margins.shape[-1]), -1).indices
    margins, possible = margins.gather(-1, chosen).float(), possible.gather(-1, chosen)
    places = boxes.detach().float()[:, None].expand(-1, chosen.shape[1], -1, -1)
    places = places.gather(2, chosen[..., None].expand(-1, -1, -1, 4))
    distinct = possible if overlap is None else suppress(places, possible, overlap)
    kept = distinct & (margins.detach() > 0)
    indicator = torch.where(possible, plain_indicator(margins, steepness), 0.0)
    if duplicates == "hard" or overlap is None:
        soft = torch.where(distinct, indicator, 0.0).sum(-1)
    else:
        safe = torch.where(possible, margins, -1e4)
        soft = (indicator * soft_duplicates(safe, places, overlap, steepness)).sum(-1)
    found = Candidates(margins, places, kept, distinct)
    return CountEstimate(soft, kept.sum(-1), mask, found)
