"""A detector's estimates with chosen margins."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from critics.base import Candidates, CountEstimate
from critics.parts.readout import plain_indicator


def estimate(rows: Sequence[Sequence[float]], mask: Sequence[bool] | None = None) -> CountEstimate:
    """One kind an image; margins strongest first, all distinct, in float64 with gradient."""
    margins = torch.tensor(rows, dtype=torch.float64)[:, None].requires_grad_()
    distinct = torch.ones_like(margins, dtype=torch.bool)
    kept = margins.detach() > 0
    real = torch.tensor(mask if mask is not None else [True] * len(rows))[:, None]
    boxes = torch.zeros(*margins.shape, 4)
    soft = plain_indicator(margins).sum(-1).float()
    return CountEstimate(soft, kept.sum(-1), real, Candidates(margins, boxes, kept, distinct))
