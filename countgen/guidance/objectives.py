"""What guidance minimises: losses of a critic's counts, one value an image.

Every objective takes the estimate of a batch and the wanted counts (b, k), and returns (b,). Kinds that an
image does not ask for (``estimate.mask`` False) add nothing; a wanted count of 0 pushes every candidate of
that noun down.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from critics.base import CountEstimate
from critics.parts import readout

Objective = Callable[[CountEstimate, Tensor], Tensor]


def soft_count_error(estimate: CountEstimate, wanted: Int64[Tensor, "b k"]) -> Float[Tensor, " b"]:
    """Absolute difference of soft and wanted count.

    With a detector this is the plain soft indicator of D2D (arXiv 2510.19278, steep sigmoids of logits); the
    paper's loss form is not public, so the absolute difference is a reconstruction. Works for every critic,
    density counters included.
    """
    error = (estimate.soft - wanted).abs()
    return torch.where(estimate.mask, error, torch.zeros_like(error)).sum(-1)


def scaled_indicator(
    estimate: CountEstimate, wanted: Int64[Tensor, "b k"], steepness: float = 4.0
) -> Float[Tensor, " b"]:
    """Margin times sigmoid of the margin, summed with the sign of the hard count's error.

    A reconstruction of D2D's scaled form: confident surplus boxes keep a gradient of about one, which the
    plain form lacks. Where objects are missing, the mirrored form keeps a gradient on candidates far below
    the threshold; that half is ours, since the published scaling leaves them none.

    Raises:
        ValueError: the critic gives no candidates.
    """
    margins, distinct = _candidates(estimate)
    surplus = estimate.hard > wanted
    missing = estimate.hard < wanted
    sign = torch.where(surplus, 1.0, -1.0)[..., None]
    # For missing objects only the best candidates that are not counted yet, as many as are missing.
    rank = _ranks(distinct)
    below = (rank >= estimate.hard[..., None]) & (rank < wanted[..., None])
    chosen = torch.where(surplus[..., None], distinct, below & distinct)
    signed = sign * margins
    value = readout.scaled_indicator(signed, steepness)
    value = torch.where(chosen, value, torch.zeros_like(value)).sum(-1)
    active = estimate.mask & (surplus | missing)
    return torch.where(active, value, torch.zeros_like(value)).sum(-1)


def two_sided_margin(
    estimate: CountEstimate, wanted: Int64[Tensor, "b k"], margin: float = 2.0
) -> Float[Tensor, " b"]:
    """Hinge that lifts the strongest N candidates to +margin and lowers all others to -margin.

    Ours. Order and de-duplication are taken without gradient, so that each candidate is told one thing: the
    N strongest distinct ones are the wanted objects, whatever lies below them is surplus. Missing candidates
    keep their gradient however far below the threshold they are.

    Raises:
        ValueError: the critic gives no candidates.
    """
    margins, distinct = _candidates(estimate)
    wanted_here = (_ranks(distinct) < wanted[..., None]) & distinct
    hinge = torch.where(wanted_here, margin - margins, margins + margin).clamp_min(0)
    hinge = torch.where(distinct, hinge, torch.zeros_like(hinge)).sum(-1)
    return torch.where(estimate.mask, hinge, torch.zeros_like(hinge)).sum(-1)


OBJECTIVES: dict[str, Objective] = {
    "soft": soft_count_error,
    "scaled": scaled_indicator,
    "margin": two_sided_margin,
}


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
