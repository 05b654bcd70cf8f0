"""What teaches CLIP to count: losses of a picture against its own caption with the right and wrong numbers.

Each takes the cosines of n pictures with m captions each that differ in nothing but the number. As published
for counting are ``one-wrong`` (L_count: Paiss et al., arXiv 2302.12066) and ``all-wrong`` (L_count+ of
CountCLIP, the re-implementation by Harkar et al., ReScience C, doi 10.5281/zenodo.10981852). The others
were published for other ends and are applied to counting here:

- ``decoupled``: decoupled contrastive learning (Yeh et al., arXiv 2110.06848).
- ``group-ordering``: group ordering constraints (GroCo: Shvetsova et al., arXiv 2301.02009) on differentiable
  odd-even sorting networks (Petersen et al., arXiv 2203.09630). Their groups are positives and negatives;
  ours are ordered further, by how far a number is off.
- ``regression-mixup``: supervised contrastive regression with mixtures (SupReMix: Wu et al., arXiv
2309.16633). Their
  samples are other pictures with labels; ours are the picture's captions with their numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from critics.contrastive.count_clip import counting_contrastive_loss

Variant = Literal["one-wrong", "all-wrong", "decoupled", "group-ordering", "regression-mixup"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)
FAR = 2
"""Group ordering: numbers that are off by so much or more are one group."""
WINDOW = 5
"""Regression with mixtures: positives are mixed of numbers less than this far from the right one."""


@dataclass(frozen=True)
class Sayings:
    """Pictures and what could be said of them.

    Attributes:
        images: (n, d) unit vectors of the pictures.
        captions: (n, m, d) unit vectors of each picture's caption with m numbers.
        numbers: (n, m) those numbers, each once.
        right: (n,) position of the right one.
        scale: CLIP's own, by which cosines become logits.
    """

    images: Float[Tensor, "n d"]
    captions: Float[Tensor, "n m d"]
    numbers: Int64[Tensor, "n m"]
    right: Int64[Tensor, " n"]
    scale: Float[Tensor, ""]

    @property
    def cosines(self) -> Float[Tensor, "n m"]:
        return torch.einsum("nd,nmd->nm", self.images, self.captions)

    @property
    def off(self) -> Int64[Tensor, "n m"]:
        """How much each caption's number is above the right one."""
        return self.numbers - self.numbers.gather(1, self.right[:, None])


def one_wrong(sayings: Sayings, draw: torch.Generator) -> Float[Tensor, ""]:
    """-1/n sum_k log [exp<i,t> / (exp<i,t> + exp<i,t_wrong>)], one wrong number a picture, at random.

    The formula of arXiv 2302.12066 has no temperature; logits carry CLIP's here, as in its other loss.
    """
    n, m = sayings.numbers.shape
    step = torch.randint(1, m, (n,), generator=draw).to(sayings.right.device)
    rows = torch.arange(n, device=sayings.right.device)
    right, wrong = (
        sayings.captions[rows, at] for at in (sayings.right, (sayings.right + step) % m)
    )
    return counting_contrastive_loss(sayings.scale * sayings.images, right, wrong)


def all_wrong(sayings: Sayings, draw: torch.Generator) -> Float[Tensor, ""]:
    """The same with every wrong number in the denominator: L_count+ of CountCLIP."""
    return F.cross_entropy(sayings.scale * sayings.cosines, sayings.right)


def decoupled(sayings: Sayings, draw: torch.Generator) -> Float[Tensor, ""]:
    """-s_right + log sum_wrong exp(s_wrong): no right caption in the denominator (2110.06848, eq. 6).

    What is left out, the positive's coupling, makes the gradient vanish once a picture is told apart.
    """
    logits = sayings.scale * sayings.cosines
    right = F.one_hot(sayings.right, logits.shape[1]).bool()
    return (logits.masked_fill(right, -torch.inf).logsumexp(1) - logits[right]).mean()


def group_ordering(sayings: Sayings, draw: torch.Generator) -> Float[Tensor, ""]:
    """How far a differentiable sort leaves captions in the wrong group (GroCo, arXiv 2301.02009).

    Groups, from the least like the picture to the most: numbers off by ``FAR`` or more, those that are off by
    less, the right one. Each is sorted by itself first; then all are sorted, and the chances that an element
    ends among its group's ranks are held against 1, those of other groups against 0, by binary cross-entropy.
    Steepness 1 on cosines, Cauchy comparisons and the activation of power 1/4, as published.
    """
    cosines = sayings.cosines
    off = sayings.off.abs().clamp_max(FAR)
    # Ascending within groups, the groups in ascending order: cosines lie in [-1, 1].
    order = (cosines.detach() - 3.0 * off).argsort(1)
    chances = soft_sort(cosines.gather(1, order))
    group = off.gather(1, order)
    kinds = range(FAR + 1)
    wanted = torch.stack([group == kind for kind in kinds], -1).to(chances.dtype)
    # Ranks stand in the groups' order, so that the group at a rank is that of the element there.
    found = torch.einsum("nem,nmg->neg", chances, wanted).clamp(0, 1)
    present = wanted.any(1, keepdim=True).expand_as(wanted)
    return F.binary_cross_entropy(found[present], wanted[present])


def soft_sort(values: Float[Tensor, "n m"]) -> Float[Tensor, "n m m"]:
    """Chances that element e of each row takes rank r in ascending order, of an odd-even sorting network.

    m layers compare neighbours; a comparison swaps them with the chance 1/2 + atan(x) / pi of their
    difference x, which is steepened near 0 by the activation x / |x|^(1/4).
    """
    n, m = values.shape
    chances = torch.eye(m, dtype=values.dtype, device=values.device).expand(n, m, m)
    for layer in range(m):
        first = torch.arange(layer % 2, m - 1, 2, device=values.device)
        low, high = values[:, first], values[:, first + 1]
        gap = high - low
        # The power has no gradient at 0, where two captions are alike.
        keep = 0.5 + torch.atan(gap / gap.abs().clamp_min(1e-12) ** 0.25) / math.pi
        values = values.index_copy(1, first, keep * low + (1 - keep) * high)
        values = values.index_copy(1, first + 1, keep * high + (1 - keep) * low)
        low, high, keep = chances[..., first], chances[..., first + 1], keep[:, None]
        chances = chances.index_copy(2, first, keep * low + (1 - keep) * high)
        chances = chances.index_copy(2, first + 1, keep * high + (1 - keep) * low)
    return chances


def regression_mixup(sayings: Sayings, draw: torch.Generator) -> Float[Tensor, ""]:
    """Contrast with mixtures (SupReMix, arXiv 2309.16633): hard pairs, weighted by distance.

    The captions of smaller and of larger numbers, both less than ``WINDOW`` off, are mixed so that their
    numbers average to the right one: positives beside the right caption. The picture mixed with each wrong
    caption (Beta(2, 8) of the picture) is a negative beside it. Every sample weighs 1 + |its number - the
    right one| in the denominator; mixtures have no gradient, as in the authors' code.
    """
    captions, images, scale = sayings.captions.detach(), sayings.images, sayings.scale
    off = sayings.off.to(captions.dtype)
    own, wrong = scale * sayings.cosines, off != 0

    share = _beta(2, 8, own.shape, draw).to(own)
    mixed = share[..., None] * images.detach()[:, None] + (1 - share[..., None]) * captions
    hard = scale * torch.einsum("nd,nmd->nm", images, mixed) + ((1 - share) * off.abs()).log1p()

    # (n, m, m): each smaller number (second axis) with each larger one (last axis).
    small, large = off[:, :, None], off[:, None, :]
    between = (small < 0) & (large > 0) & (small > -WINDOW) & (large < WINDOW)
    share = large / torch.where(between, large - small, 1.0)
    cosine = scale * torch.einsum("nd,nmd->nm", images, captions)
    easy = share * cosine[:, :, None] + (1 - share) * cosine[:, None, :]

    samples = [
        own + off.abs().log1p(),
        hard.masked_fill(~wrong, -torch.inf),
        easy.masked_fill(~between, -torch.inf).flatten(1),
    ]
    positives = own.gather(1, sayings.right[:, None])[:, 0]
    positives = positives + easy.masked_fill(~between, 0.0).flatten(1).sum(1)
    count = 1 + between.flatten(1).sum(1)
    return (torch.cat(samples, 1).logsumexp(1) - positives / count).mean()


def _beta(a: int, b: int, shape: torch.Size, draw: torch.Generator) -> Tensor:
    """Beta(a, b) of whole a and b, from one generator: the a-th smallest of a + b - 1 uniform numbers."""
    uniform = torch.rand(*shape, a + b - 1, generator=draw)
    return uniform.sort(-1).values[..., a - 1]


LOSSES: dict[Variant, Callable[[Sayings, torch.Generator], Float[Tensor, ""]]] = {
    "one-wrong": one_wrong,
    "all-wrong": all_wrong,
    "decoupled": decoupled,
    "group-ordering": group_ordering,
    "regression-mixup": regression_mixup,
}
