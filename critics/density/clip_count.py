"""CLIP-Count: a sigmoid density map of the noun that is asked for, whose sum over 60 is the count.

CLIP-Count (arXiv 2305.07304). The shorter side of a picture becomes 384 pixels, windows of 384 are squeezed
to the 224 pixels of CLIP's ViT-B/16, with CLIP's normalisation, and the density of the windows is joined. As
published: read-out, normalisation, squeezing, windows every 128 pixels. Ours: pictures may be upright, the
last window is pushed back into the picture where the authors pad it with black, and overlaps are averaged
where they fade one into the other. The network itself is not rebuilt here: its patch-text interaction has
details that no test could hold against the original. Give it (the authors' code is MIT) as a module with two
methods, see ``DensityNetwork``.

One factor does not fit every view, see ``critics.wrappers.rescaled``; and a prompt for what is not in the
picture tends to count what is (FSC-147-S, 45.6 mean absolute error).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from critics.base import CriticCard, Query
from critics.density.base import DensityCritic, density_of_pairs, encode_nouns, user_network
from critics.loading.settings import global_settings_kept
from critics.parts.preprocess import CLIP, normalise, resize
from critics.parts.queries import noun_mask, stack_text
from critics.parts.tiling import count_in_windows

CARDS = {
    "clip-count": CriticCard(
        name="clip-count",
        family="clip",
        summary="sum of a text-prompted density map over 60; with a network of your own",
        license_code="MIT",
        license_weights="not stated apart from the code's MIT",
        input_size=224,
        hub_id="ozzafar/clip-count",
        citation="CLIP-Count, arXiv 2305.07304",
        published=True,
    )
}
SCALE = 60.0
"""Sum of the density map that stands for one object."""
SIDE, WINDOW, STRIDE = 224, 384, 128


@runtime_checkable
class DensityNetwork(Protocol):
    """What the user's network must do; an ``nn.Module``.

    Around the authors' ``CLIPCount``, ``encode(nouns)`` is ``model.text_encoder(tokens)[:, 0]`` and
    ``density(pixels, text)`` calls ``model.img_encoder(pixels, text[:, None])`` and gives the class token and
    the patches to ``model.forward_decoder``; so its own resizing and normalisation are left out.
    """

    def encode(self, nouns: Sequence[str]) -> Float[Tensor, "n d"]:
        """Text embeddings of nouns. Called once a prompt, without gradient."""
        ...

    def density(
        self, pixels: Float[Tensor, "p 3 224 224"], text: Float[Tensor, "p d"]
    ) -> Float[Tensor, "p h w"]:
        """The density after its sigmoid, in [0, 1], (384, 384) as published, with gradient.

        Row i sees picture i, with CLIP's normalisation, and noun i only.
        """
        ...


@dataclasses.dataclass
class ClipCount:
    """A density model (``critics.density.base``): the read-out of CLIP-Count.

    Attributes:
        factor: sum of the map that stands for one object.
        cell: pixels of a window that one value of the map stands for; 1 as published.
    """

    network: Any
    factor: float = SCALE
    cell: int = 1

    def prepare(self, nouns: Sequence[str]) -> Query:
        """Encode the nouns: ``text["nouns"]``, (k, d)."""
        return encode_nouns(self.network, nouns)

    def density(
        self, images: Float[Tensor, "b 3 height width"], queries: Sequence[Query]
    ) -> Float[Tensor, "b k h w"]:
        text, mask = stack_text(queries, "nouns", images.device), noun_mask(queries, images.device)

        def see(pixels: Tensor, nouns: Tensor) -> Tensor:
            maps: Tensor = self.network.density(pixels, nouns)
            return maps.float()

        def count(windows: Tensor, rows: Tensor) -> Tensor:
            pixels = normalise(resize(windows, (SIDE, SIDE)), CLIP).to(text.dtype)
            return density_of_pairs(see, pixels, text[rows], mask[rows]) / self.factor

        height, width = images.shape[-2:]
        scale = WINDOW / min(height, width)
        images = resize(images, (round(height * scale), round(width * scale)))
        return count_in_windows(count, images, WINDOW, self.cell, STRIDE)


@global_settings_kept()
def load(
    name: str,
    source: str | Path | None = None,
    *,
    network: nn.Module | None = None,
    factor: float = SCALE,
    cell: int = 1,
    dtype: torch.dtype = torch.float32,
) -> DensityCritic:
    """CLIP-Count's read-out around a network of the user's own (see ``DensityNetwork``).

    Args:
        network: switched to evaluation and frozen.
        source: folder with ``model.safetensors`` that fills it; None: it has its weights already.
        factor: sum of the map that stands for one object.
        cell: 384 over the side of the network's map.
        dtype: of the network; counts are float32 in any case.

    Raises:
        TypeError: no network, or one without ``encode`` and ``density``.
        ValueError: a factor that is not positive, or a cell that does not divide the stride of 128 pixels.
        CheckpointError: weights that are missing, damaged or of another network.
    """
    if not factor > 0:
        raise ValueError(f"the factor of {name} must be positive, not {factor}")
    if cell < 1 or STRIDE % cell:
        raise ValueError(f"a cell of {cell} pixels does not divide the stride of {STRIDE} pixels")
    network = user_network(name, network, source, DensityNetwork).to(dtype)
    return DensityCritic(ClipCount(network, factor, cell), CARDS[name].of(network))
