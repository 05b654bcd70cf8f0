"""Critics that are density counters: a network that says how many objects each cell holds, and its sum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from critics.base import CountEstimate, CriticCard, Query, check_images, check_nouns
from critics.detectors.base import noun_mask
from critics.loading import checkpoint


class DensityModel(Protocol):
    """A family's own part: preprocessing, network, and how many objects the network sees where."""

    @property
    def network(self) -> nn.Module: ...

    def prepare(self, nouns: Sequence[str]) -> Query:
        """Look up or encode the nouns once."""
        ...

    def density(
        self, images: Float[Tensor, "b 3 height width"], queries: Sequence[Query]
    ) -> Float[Tensor, "b k h w"]:
        """Objects per cell, with gradient, in a checked batch of RGB images in [0, 1], one query an image.

        What it says of a noun that a query does not have is ignored.
        """
        ...


@dataclass
class DensityCritic:
    """A critic made of a density model: the soft count is the sum of the map, the hard one rounds it."""

    model: DensityModel
    card: CriticCard

    @property
    def network(self) -> nn.Module:
        return self.model.network

    def to(self, device: str | torch.device) -> DensityCritic:
        self.network.to(device)
        return self

    def prepare(self, nouns: Sequence[str]) -> Query:
        return self.model.prepare(nouns)

    def __call__(
        self, images: Float[Tensor, "b 3 height width"], queries: Sequence[Query]
    ) -> CountEstimate:
        check_images(images, queries)
        mask = noun_mask(queries, images.device)
        if mask.any():
            found = self.model.density(images, queries).float()
            density = torch.where(mask[:, :, None, None], found, 0.0)
        else:
            density = torch.zeros(*mask.shape, 1, 1, device=images.device)
        soft = density.sum((-2, -1))
        return CountEstimate(soft, soft.detach().round().to(torch.int64), mask, density=density)


def stack_text(queries: Sequence[Query], key: str, device: torch.device) -> Float[Tensor, "b k *d"]:
    """What the text encoder made of each query's nouns, padded with zeros to the longest query."""
    texts = [query.text[key] for query in queries]
    longest = max(texts, key=len)
    stacked = longest.new_zeros(len(texts), *longest.shape)
    for row, text in enumerate(texts):
        if len(text):
            stacked[row, : len(text)] = text
    return stacked.to(device)


def density_of_pairs(
    counter: Callable[[Float[Tensor, "p 3 h w"], Float[Tensor, "p d"]], Float[Tensor, "p hh ww"]],
    pixels: Float[Tensor, "b 3 h w"],
    text: Float[Tensor, "b k d"],
    mask: Bool[Tensor, "b k"],
) -> Float[Tensor, "b k hh ww"]:
    """Maps of a counter that sees one picture and one noun at a time; 0 where a query has no such noun."""
    rows, columns = mask.nonzero(as_tuple=True)
    maps = counter(pixels[rows], text[rows, columns])
    joined = maps.new_zeros(*mask.shape, *maps.shape[-2:])
    return joined.index_put((rows, columns), maps)


# -- networks that users bring ----------------------------------------------------------------------


def brought(
    name: str, network: nn.Module | None, source: str | Path | None, contract: type
) -> nn.Module:
    """A network that a user brings to the critic of that name: checked, filled, in evaluation, frozen.

    Args:
        source: folder with ``model.safetensors``; None: the network has its weights already.
        contract: the run-time checkable protocol that it must fulfil.

    Raises:
        TypeError: nothing was brought, or something without the methods of the contract.
        CheckpointError: weights that are missing, damaged or of another network.
    """
    where = f"{contract.__module__}.{contract.__name__}"
    if not isinstance(network, nn.Module) or not isinstance(network, contract):
        kind = "none was given" if network is None else f"{type(network).__name__} is none"
        raise TypeError(
            f"{name} counts with a network that you bring, network=..., a torch.nn.Module with the methods "
            f"of {where}; {kind}"
        )
    if source is not None:
        checkpoint.load_weights(
            Path(source), network, f"Save the weights of the {name} network there."
        )
    return network.eval().requires_grad_(False)


def encode_once(network: nn.Module, nouns: Sequence[str]) -> Query:
    """A query with the network's own text embeddings, ``text["nouns"]``: (k, d), in its precision."""
    check_nouns(nouns)
    if not nouns:
        return Query((), text={"nouns": torch.zeros(0, 1)})
    # Outside of inference mode, whose tensors could not take part in a later backward pass.
    with torch.inference_mode(False), torch.no_grad():
        text: Tensor = network.encode(list(nouns))  # type: ignore[operator]
    return Query(tuple(nouns), text={"nouns": text})
