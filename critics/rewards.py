"""The counting reward of prompt-free multi-object augmentation, on what a detector sees.

As published (PFCD, arXiv 2507.06146): ``missing_hinge``. A category that should appear c times has its c
strongest scores lifted to a low threshold; surplus objects cost nothing. Ours: ``two_sided_reward``, which
lowers the scores after the c-th too and needs duplicates to be left out first. Both are losses to minimise,
one value an image, and both read probabilities, so that a candidate near 0 or 1 has little gradient left:
where a detector sees nothing at all, the same hinge of its margins pulls harder.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from critics.base import CountEstimate


def probabilities(
    estimate: CountEstimate, threshold: float, *, duplicates: bool = True
) -> Float[Tensor, "b k c"]:
    """Probabilities of a detector's candidates, with gradient; 0 where there is none.

    Args:
        estimate: of a ``DetectionCritic`` or another critic whose margins are log-odds minus
            those of a threshold.
        threshold: that probability, in (0, 1): ``critic.threshold``.
        duplicates: True keeps every candidate, as published; False only those that are no duplicate of a
            stronger one, as ``two_sided_reward`` needs it.

    Raises:
        ValueError: the critic gives no candidates, or the threshold is no probability.
    """
    if estimate.candidates is None:
        raise ValueError(
            "this reward needs a detector's candidates, but the critic gives none; take a detector"
        )
    if not 0 < threshold < 1:
        raise ValueError(
            f"the threshold is a probability between 0 and 1, not {threshold}; pass the one that the critic "
            "was loaded with"
        )
    found = estimate.candidates
    real = found.margins.detach() > -torch.inf
    if not duplicates:
        real = real & found.distinct
    # Padding is -inf, whose gradient would be no number.
    margins = torch.where(real, found.margins, torch.zeros_like(found.margins))
    logits = margins + torch.logit(torch.tensor(threshold, dtype=torch.float64)).item()
    return torch.where(real, logits.sigmoid(), torch.zeros_like(logits))


def missing_hinge(
    scores: Float[Tensor, "b k c"],
    counts: Int64[Tensor, "b k"],
    mask: Bool[Tensor, "b k"] | None = None,
    *,
    threshold: float = 0.1,
    scale: float = 0.5,
) -> Float[Tensor, " b"]:
    """The published counting loss: scale / sum_k n_k * sum_k sum_{i <= n_k} relu(threshold - s_k^(i)).

    s_k^(i) is the i-th largest score of kind k and n_k its wanted count (arXiv 2507.06146; threshold 0.1 and
    scale 0.5 as published, where the values of a batch are added up and divided by its size). Ours: where a
    kind has fewer candidates than wanted, those that lack score 0; an image that wants nothing has loss 0.

    Args:
        scores: probabilities in [0, 1], in any order.
        counts: wanted, not negative.
        mask: False for kinds that an image does not have; all of them if None.

    Raises:
        ValueError: a negative count.
    """
    ranked, wanted, total = _rank(scores, counts, mask)
    lacking = (threshold - ranked).clamp_min(0)
    loss = torch.where(wanted, lacking, torch.zeros_like(lacking)).sum((-2, -1))
    return scale * loss / total


def two_sided_reward(
    scores: Float[Tensor, "b k c"],
    counts: Int64[Tensor, "b k"],
    mask: Bool[Tensor, "b k"] | None = None,
    *,
    high: float = 0.5,
    low: float = 0.2,
    scale: float = 0.5,
) -> Float[Tensor, " b"]:
    """Ours: scale / sum_k n_k * ``two_sided_hinge`` of probabilities.

    The n-th object must reach ``high`` and the next one stay below ``low``, so that no count rests on ghosts
    just above one threshold. Scores must be free of duplicates (``probabilities(..., duplicates=False)``), or
    a wanted object's second box is punished as surplus. Candidates that lack score 0, as in
    ``missing_hinge``. A wanted count of 0 pushes every score down, and an image that wants nothing else is
    divided by 1.

    Raises:
        ValueError: a negative count, or ``low`` not below ``high``.
    """
    if not 0 <= low < high <= 1:
        raise ValueError(
            f"low must lie below high, both in [0, 1], so that counts have a margin; not {low} and {high}"
        )
    ranked, _, total = _rank(scores, counts, mask)
    return scale * two_sided_hinge(ranked, counts, mask, high=high, low=low) / total


def two_sided_hinge(
    scores: Float[Tensor, "b k c"],
    counts: Int64[Tensor, "b k"],
    mask: Bool[Tensor, "b k"] | None = None,
    *,
    high: float,
    low: float,
) -> Float[Tensor, " b"]:
    """Ours: sum_k [sum_{i <= n_k} relu(high - s_k^(i)) + sum_{i > n_k} relu(s_k^(i) - low)].

    s_k^(i) is the i-th largest score of kind k and n_k its wanted count: the n strongest are lifted to
    ``high`` and the others lowered to ``low``. Which they are is decided without gradient. Where there are
    fewer scores than wanted, those that lack add nothing.

    Args:
        scores: probabilities, margins or logits, in any order; -inf is no candidate and adds nothing.
        counts: wanted, not negative.
        mask: False for kinds that an image does not have; all of them if None.
        high, low: in the unit of the scores.
    """
    candidates = scores.detach() > -torch.inf
    order = scores.detach().argsort(dim=-1, descending=True, stable=True)
    wanted = order.argsort(-1) < counts[..., None]
    # Finite in place of -inf, whose gradient would be no number.
    finite = torch.where(candidates, scores, 0.0)
    hinge = torch.where(wanted, high - finite, finite - low).clamp_min(0)
    hinge = torch.where(candidates, hinge, 0.0).sum(-1)
    if mask is not None:
        hinge = torch.where(mask, hinge, 0.0)
    return hinge.sum(-1)


def _rank(
    scores: Tensor, counts: Tensor, mask: Tensor | None
) -> tuple[Float[Tensor, "b k n"], Bool[Tensor, "b k n"], Float[Tensor, " b"]]:
    """Scores strongest first (0 where there are fewer than wanted), which are wanted, and how many in all."""
    if mask is not None:
        counts = torch.where(mask, counts, 0)
    if (counts < 0).any():
        raise ValueError("a wanted count cannot be negative")
    most = int(counts.max()) if counts.numel() else 0
    ranked = scores.sort(dim=-1, descending=True).values
    ranked = torch.nn.functional.pad(ranked, (0, max(0, most - ranked.shape[-1])))
    wanted = torch.arange(ranked.shape[-1], device=counts.device) < counts[..., None]
    return ranked, wanted, counts.sum(-1).clamp_min(1).to(scores.dtype)
