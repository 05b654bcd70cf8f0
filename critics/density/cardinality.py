"""Cardinality maps: every pixel of an object holds an equal share of it, so that the sum is the count.

YOLO-Count (arXiv 2508.00728) regresses y(pixel) = sum_i M_i(pixel) / |M_i| over instance masks M_i: unlike a
density of centre points it does not depend on an object's size, and its gradient reaches the whole object.
Count = sum of ReLU(map) where sigmoid(class logit) is above a threshold; pictures are fitted into a black
square of 640 pixels and not normalised, and what the map says of the black is left out. As in the authors'
code: read-out, preprocessing (but for antialiasing, which is ours), target. Code and weights are CC-BY-SA-4.0
and not part of this library: give the critic a network of your own, or train one on ``cardinality_target``.

Where the map is negative everywhere, its ReLU has no gradient, and no object can be asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from critics.base import CriticCard, Query
from critics.density.base import DensityCritic, density_of_pairs, encode_nouns, user_network
from critics.loading.settings import global_settings_kept
from critics.parts.preprocess import resize
from critics.parts.queries import noun_mask, stack_text

CARDS = {
    "yolo-count": CriticCard(
        name="yolo-count",
        family="yolo",
        summary="sum of a cardinality map, which no object's size changes; with a network of your own",
        license_code="CC-BY-SA-4.0",
        license_weights="CC-BY-SA-4.0",
        input_size=640,
        hub_id="zx1239856/yolo-count",
        citation="YOLO-Count, arXiv 2508.00728 (ICCV 2025)",
        published=True,
    )
}


@runtime_checkable
class CardinalityNetwork(Protocol):
    """What the user's network must do; an ``nn.Module``.

    Of the authors' model: ``encode`` is CLIP ViT-B/32's ``CLIPTextModelWithProjection``, L2-normalised, of
    the nouns in the singular; ``cardinality`` is its forward pass without the final masking and sum.
    """

    def encode(self, nouns: Sequence[str]) -> Float[Tensor, "n d"]:
        """Text embeddings of nouns. Called once a prompt, without gradient."""
        ...

    def cardinality(
        self, pixels: Float[Tensor, "p 3 side side"], text: Float[Tensor, "p d"]
    ) -> tuple[Float[Tensor, "p h w"], Float[Tensor, "p h w"]]:
        """The map before its ReLU and the class logits, both in objects' own cells, with gradient.

        Row i sees picture i, RGB in [0, 1], and noun i only.
        """
        ...


def read_out(
    maps: Float[Tensor, "*b h w"], logits: Float[Tensor, "*b h w"], threshold: float = 0.0
) -> Float[Tensor, "*b h w"]:
    """Objects per cell: ReLU(map) where the class is likelier than the threshold (0: everywhere)."""
    likely = logits.detach().sigmoid()
    # What is no number stays so, and is told.
    return torch.where(likely > threshold, maps.relu(), torch.where(likely.isnan(), likely, 0.0))


def letterbox(images: Float[Tensor, "b 3 h w"], side: int) -> Float[Tensor, "b 3 side side"]:
    """To a square: the longer side fills it, black pads the shorter one, rounded down, on both sides."""
    longer = max(images.shape[-2:])
    height, width = (max(1, length * side // longer) for length in images.shape[-2:])
    top, left = (side - height) // 2, (side - width) // 2
    padding = (left, side - width - left, top, side - height - top)
    return F.pad(resize(images, (height, width)), padding)


def inside(maps: Float[Tensor, "*b n m"], height: int, width: int) -> Float[Tensor, "*b n m"]:
    """The maps of a letterboxed picture of that size, 0 where a cell shows nothing of it."""
    kept = torch.zeros_like(maps)
    longer = max(height, width)
    rows, columns = (
        -(-n * size // longer) for n, size in zip(maps.shape[-2:], (height, width), strict=True)
    )
    top, left = (maps.shape[-2] - rows) // 2, (maps.shape[-1] - columns) // 2
    place = (..., slice(top, top + rows), slice(left, left + columns))
    kept[place] = maps[place]
    return kept


def cardinality_target(masks: Bool[Tensor, "n h w"], cell: int) -> Float[Tensor, "hh ww"]:
    """What a cardinality network should answer: each mask spreads a mass of 1 over its pixels.

    Args:
        masks: of instances, in pixels; they may overlap.
        cell: pixels that one value stands for; divides height and width.

    Returns:
        Objects per cell; the sum is n, whatever the objects' sizes.

    Raises:
        ValueError: an empty mask, which has nowhere to put its mass, or sides that are no whole cells.
    """
    height, width = masks.shape[-2:]
    if height % cell or width % cell:
        raise ValueError(f"masks of {height}x{width} pixels are no whole cells of {cell} pixels")
    areas = masks.sum((-2, -1))
    if not areas.all():
        empty = [i for i, area in enumerate(areas.tolist()) if not area]
        raise ValueError(
            f"masks {empty} are empty: an object that nobody can see cannot be counted, leave it out"
        )
    shares = (masks / areas[:, None, None]).sum(0)
    return F.avg_pool2d(shares[None, None], cell)[0, 0] * cell**2


@dataclasses.dataclass
class CardinalityCounter:
    """A density model (``critics.density.base``): the read-out of a cardinality network.

    Attributes:
        side: in pixels, of the square that pictures are letterboxed to.
        threshold: probability of the class from which a cell takes part; 0: all do, as published.
    """

    network: Any
    side: int = 640
    threshold: float = 0.0

    def prepare(self, nouns: Sequence[str]) -> Query:
        """Encode the nouns: ``text["nouns"]``, (k, d)."""
        return encode_nouns(self.network, nouns)

    def density(
        self, images: Float[Tensor, "b 3 height width"], queries: Sequence[Query]
    ) -> Float[Tensor, "b k h w"]:
        def count(pixels: Tensor, text: Tensor) -> Tensor:
            maps, logits = self.network.cardinality(pixels, text)
            objects = read_out(maps.float(), logits.float(), self.threshold)
            return inside(objects, *images.shape[-2:])

        text = stack_text(queries, "nouns", images.device)
        pixels = letterbox(images, self.side).to(text.dtype)
        return density_of_pairs(count, pixels, text, noun_mask(queries, images.device))


@global_settings_kept()
def load(
    name: str,
    source: str | Path | None = None,
    *,
    network: nn.Module | None = None,
    threshold: float = 0.0,
    side: int = 640,
    dtype: torch.dtype = torch.float32,
) -> DensityCritic:
    """YOLO-Count's read-out around a network of the user's own (see ``CardinalityNetwork``).

    Args:
        network: switched to evaluation and frozen.
        source: folder with ``model.safetensors`` that fills it; None: it has its weights already.
        threshold: probability of the class from which a cell takes part.
        side: that pictures are letterboxed to.
        dtype: of the network; counts are float32 in any case.

    Raises:
        TypeError: no network, or one without ``encode`` and ``cardinality``.
        ValueError: a threshold outside [0, 1) or a side that is not positive.
        CheckpointError: weights that are missing, damaged or of another network.
    """
    if not 0 <= threshold < 1 or side < 1:
        raise ValueError(
            f"the threshold of {name} is a probability from 0 to below 1 and its side a number of pixels, "
            f"not {threshold} and {side}"
        )
    network = user_network(name, network, source, CardinalityNetwork).to(dtype)
    card = CARDS[name].of(network, input_size=side)
    return DensityCritic(CardinalityCounter(network, side, threshold), card)
