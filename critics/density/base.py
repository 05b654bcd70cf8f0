"""Critics that are density counters: a network that says how many objects each cell holds, and its sum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from critics.base import CountEstimate, CriticCard, Gives, Query, check_nouns
from critics.loading import checkpoint
from critics.parts.guard import guarded_count, guarded_prepare, move
from critics.parts.queries import noun_mask


class DensityModel(Protocol):
    """A family's own part: preprocessing, network, and how many objects the network sees where."""

    @property
    def network(self) -> nn.Module: ...

    def prepare(self, nouns: Sequence[str]) -> Query:
        """Look up or encode the nouns once; called without gradient."""
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

    @property
    def gives(self) -> Gives:
        return "density"

    def to(self, device: str | torch.device) -> Self:
        move(self.network, device)
        return self

    @guarded_prepare
    def prepare(self, nouns: Sequence[str]) -> Query:
        return self.model.prepare(nouns)

    @guarded_count
    def __call__(
        self, images: Float[Tensor, "b 3 height width"], queries: Sequence[Query]
    ) -> CountEstimate:
        mask = noun_mask(queries, images.device)
        if mask.any():
            found = self.model.density(images, queries).float()
            density = torch.where(mask[:, :, None, None], found, 0.0)
        else:
            density = torch.zeros(*mask.shape, 1, 1, device=images.device)
        soft = density.sum((-2, -1))
        return CountEstimate(soft, soft.detach().round().to(torch.int64), mask, density=density)


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


# -- networks of the user's own ---------------------------------------------------------------------


def user_network(
    name: str, network: nn.Module | None, source: str | Path | None, contract: type
) -> nn.Module:
    """The network that a user gives to the critic of that name: checked, filled, in evaluation, frozen.

    Args:
        source: folder with ``model.safetensors``; None: the network has its weights already.
        contract: the run-time checkable protocol that it must fulfil.

    Raises:
        TypeError: no network, or one without the methods of the contract.
        CheckpointError: weights that are missing, damaged or of another network.
    """
    where = f"{contract.__module__}.{contract.__name__}"
    if not isinstance(network, nn.Module) or not isinstance(network, contract):
        kind = "none was given" if network is None else f"{type(network).__name__} is none"
        raise TypeError(
            f"{name} counts with a network of your own, network=..., a torch.nn.Module with the methods of "
            f"{where}; {kind}"
        )
    if source is not None:
        checkpoint.load_weights(
            Path(source), network, f"Save the weights of the {name} network there."
        )
    return network.eval().requires_grad_(False)


def encode_nouns(network: Any, nouns: Sequence[str]) -> Query:
    """A query with the network's own text embeddings, ``text["nouns"]``: (k, d), in its precision."""
    check_nouns(nouns)
    if not nouns:
        return Query((), text={"nouns": torch.zeros(0, 1)})
    return Query(tuple(nouns), text={"nouns": network.encode(list(nouns))})
