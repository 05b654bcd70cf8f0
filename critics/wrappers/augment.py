"""A critic that looks at random views of a picture, so that no single pixel pattern pays.

Random augmentation inside the critic against adversarial pictures is FuseDream's (AugCLIP, arXiv
2112.01573) and DiffAugment's (arXiv 2006.10738). Their cutouts would change a count. Ours is the choice of
views that keep it (mirror image, small shift with reflected border, shrinking onto a plain border, colour,
low-pass, noise), and that every draw belongs to an image and not to its place in a batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from critics.base import CountEstimate, Critic, CriticCard, Gives, Query
from critics.parts.guard import guarded_count
from critics.wrappers.base import Wrapper


@dataclass(frozen=True)
class Strength:
    """How far a view may differ from the picture; 0 (or False, or a ``smallest`` of 1) switches one off.

    Attributes:
        flip: half of the views are mirrored.
        shift: largest shift along each axis, as a share of the side.
        smallest: smallest scale, in (0, 1]; views are drawn between it and 1.
        colour: largest relative change of brightness, of contrast and of saturation. Hue stays, since nouns
            may name a colour.
        blur: largest standard deviation of the low-pass, in pixels of the critic's input (of the image where
            that is smaller).
        noise: standard deviation of the noise, of values in [0, 1].
    """

    flip: bool = True
    shift: float = 0.04
    smallest: float = 0.8
    colour: float = 0.1
    blur: float = 0.7
    noise: float = 0.02

    def __post_init__(self) -> None:
        wrong = [f.name for f in fields(self) if not 0 <= getattr(self, f.name) <= 1]
        if wrong or not self.smallest:
            name = wrong[0] if wrong else "smallest"
            raise ValueError(
                f"{name} of the augmentations must lie between 0 and 1, not {getattr(self, name)}"
            )


@dataclass(frozen=True)
class Views:
    """The numbers that make one view of each image of a batch.

    Attributes:
        mirrored: (b,) True where left and right change places.
        offset: (b, 2) whole pixels to the right and down.
        scale: (b,) side of the shrunken picture as a share of the view's.
        colour: (b, 3) factors of brightness, contrast and saturation.
        blur: (b,) standard deviation of the low-pass in pixels of the image.
        noise: (b, 3, h, w) that is added.
    """

    mirrored: Bool[Tensor, " b"]
    offset: Int64[Tensor, "b 2"]
    scale: Float[Tensor, " b"]
    colour: Float[Tensor, "b 3"]
    blur: Float[Tensor, " b"]
    noise: Float[Tensor, "b 3 h w"]


def draw_views(
    seeds: Sequence[int], size: tuple[int, int], strength: Strength, unit: float = 1.0
) -> Views:
    """Views of a batch, each drawn on the CPU from its own seed and nothing else.

    Args:
        seeds: one for each image; any integer.
        size: height and width of the images in pixels.
        unit: pixels of the image to one of the critic's input, for the low-pass.
    """
    height, width = size
    rows = []
    for seed in seeds:
        draw = torch.Generator().manual_seed(_mix(seed))
        # All are drawn whatever the strength, so that switching one off leaves the others as they were.
        mirrored, small, low, *even = torch.rand(8, generator=draw).tolist()
        right, down, *colour = (2 * value - 1 for value in even)
        rows.append(
            (
                torch.tensor(strength.flip and mirrored < 0.5),
                torch.tensor(
                    [round(right * strength.shift * width), round(down * strength.shift * height)]
                ),
                torch.tensor(1 - small * (1 - strength.smallest)),
                1 + strength.colour * torch.tensor(colour),
                torch.tensor(low * strength.blur * unit),
                strength.noise * torch.randn(3, height, width, generator=draw),
            )
        )
    return Views(*(torch.stack(column) for column in zip(*rows, strict=True)))


def look(images: Float[Tensor, "b 3 h w"], views: Views) -> Float[Tensor, "b 3 h w"]:
    """One view of each image: placed, coloured, low-passed, with noise, and clamped to [0, 1].

    Differentiable in the images, in float32 or more. The clamp passes the gradient straight through, since
    saturated pixels would otherwise have none.
    """
    images = images.to(torch.promote_types(images.dtype, torch.float32))
    views = Views(
        *(
            value.to(images.device, images.dtype if value.is_floating_point() else None)
            for value in (getattr(views, f.name) for f in fields(Views))
        )
    )
    seen = place(images, views.mirrored, views.offset, views.scale)
    seen = low_pass(recolour(seen, views.colour), views.blur) + views.noise
    return seen + (seen.clamp(0, 1) - seen).detach()


def place(
    images: Float[Tensor, "b 3 h w"],
    mirrored: Bool[Tensor, " b"],
    offset: Int64[Tensor, "b 2"],
    scale: Float[Tensor, " b"],
) -> Float[Tensor, "b 3 h w"]:
    """Shift by whole pixels with reflected border, mirror, and shrink onto a border of one colour.

    That colour is the median of the picture's rim, without gradient. A border by reflection would show
    objects near the rim twice, and a grey one is a sharp frame that small counters take for something.
    """
    sides = [images[..., 0, :], images[..., -1, :], images[..., 0], images[..., -1]]
    border = torch.cat(sides, -1).detach().median(-1).values[..., None, None]
    height, width = images.shape[-2:]
    y, x = (
        (torch.arange(n, device=images.device, dtype=images.dtype) * 2 + 1) / n - 1
        for n in (height, width)
    )
    x, y = x / scale[:, None], y / scale[:, None]
    inside = (x.abs() <= 1)[:, None, None, :] & (y.abs() <= 1)[:, None, :, None]
    x = torch.where(mirrored[:, None], -x, x) - 2 * offset[:, :1] / width
    y = y - 2 * offset[:, 1:] / height
    grid = torch.stack(
        [x[:, None, :].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)], -1
    )
    moved = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    return torch.where(inside, moved, border)


def recolour(
    images: Float[Tensor, "b 3 h w"], factors: Float[Tensor, "b 3"]
) -> Float[Tensor, "b 3 h w"]:
    """Scale brightness, contrast about the picture's mean grey, and saturation about each pixel's grey."""
    brightness, contrast, saturation = (f[:, None, None, None] for f in factors.unbind(1))
    images = images * brightness
    images = torch.lerp(_grey(images).mean((-2, -1), keepdim=True), images, contrast)
    return torch.lerp(_grey(images), images, saturation)


def low_pass(
    images: Float[Tensor, "b 3 h w"], deviations: Float[Tensor, " b"]
) -> Float[Tensor, "b 3 h w"]:
    """Gaussian blur with each image's own standard deviation in pixels, the border continued by its rim."""
    radius = int(torch.ceil(3 * deviations.max()).item()) if len(deviations) else 0
    steps = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    # A deviation of 0 gives the picture itself.
    weights = torch.exp(-0.5 * (steps / deviations.clamp_min(1e-3)[:, None]) ** 2)
    weights = (weights / weights.sum(-1, keepdim=True)).repeat_interleave(3, 0)
    flat = F.pad(images.flatten(0, 1)[None], [radius] * 4, mode="replicate")
    flat = F.conv2d(flat, weights[:, None, None, :], groups=len(weights))
    flat = F.conv2d(flat, weights[:, None, :, None], groups=len(weights))
    return flat[0].unflatten(0, (-1, 3))


def _grey(images: Tensor) -> Tensor:
    """Luma of ITU-R BT.601, as image libraries take it."""
    weights = images.new_tensor([0.299, 0.587, 0.114])
    return (images * weights[:, None, None]).sum(1, keepdim=True)


def _mix(*numbers: int) -> int:
    """One seed of several numbers, so that neighbouring ones give unrelated draws."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass
class AugmentedCritic(Wrapper):
    """A critic around another: its soft count is the mean over ``views`` random views of the picture.

    The hard count, the candidates and the disagreement are those of the untouched picture; only the soft
    count, and with it every objective of the soft count, feels the views (objectives of margins do not).
    There is no density map, since the views' maps do not lie over each other.

    A call is a function of images and queries: it repeats exactly. Which views an image gets is set by
    ``seed`` and by its query's own seed, so neither the batch nor the image's place in it matters. Queries
    share seed 0 unless told otherwise; for an image of one's own draws, or for new views at every step of a
    search, pass ``dataclasses.replace(query, seed=...)``. A picture costs ``views + 1`` calls' worth.

    Attributes:
        critic: what looks at the views.
        views: how many, at least 1.
        seed: of all draws.
        strength: how far views differ from the picture.
    """

    critic: Critic
    views: int = 4
    seed: int = 0
    strength: Strength = Strength()

    def __post_init__(self) -> None:
        if self.views < 1:
            raise ValueError(f"a mean needs at least one view, not {self.views}")

    @property
    def card(self) -> CriticCard:
        card = self.critic.card
        return replace(
            card,
            name=f"{card.name}-augmented",
            summary=f"{card.summary}; mean over {self.views} random views",
            published=False,
        )

    @property
    def gives(self) -> Gives:
        return "candidates" if self.critic.gives == "candidates" else "soft"

    @property
    def critics(self) -> Sequence[Critic]:
        return (self.critic,)

    def prepare(self, nouns: Sequence[str]) -> Query:
        return self.critic.prepare(nouns)

    @guarded_count
    def __call__(
        self, images: Float[Tensor, "b 3 height width"], queries: Sequence[Query]
    ) -> CountEstimate:
        untouched = self.critic(images, queries)
        if not len(images):
            return untouched
        height, width = images.shape[-2:]
        unit = max(1.0, min(height, width) / self.card.input_size)
        total = torch.zeros_like(untouched.soft)
        for view in range(self.views):
            seeds = [_mix(self.seed, query.seed, view) for query in queries]
            drawn = draw_views(seeds, (height, width), self.strength, unit)
            total = total + self.critic(look(images, drawn), queries).soft
        return replace(untouched, soft=total / self.views, density=None)
