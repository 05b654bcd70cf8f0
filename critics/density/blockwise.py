"""Blockwise density classification: how many objects of a class have their centre in each block.

After CLIP-EBC (Ma, Sanchez, Guha, arXiv 2403.09281): every block is classified into count bins, by the
cosine between its feature and one embedding a (class, bin) pair, and the block's count is the expectation
over the bins. A count is bounded by blocks times the last bin, so no block can explode. Here the bins'
embeddings are learned per noun of a closed vocabulary instead of coming from a text encoder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from critics.base import CountEstimate, CriticCard, Gives, Query, look_up
from critics.loading import checkpoint
from critics.loading.checkpoint import Config
from critics.loading.settings import global_settings_kept
from critics.parts.convnet import Pyramid, conv, normalise, resize
from critics.parts.guard import guarded_count, guarded_prepare, move
from critics.parts.queries import stack_classes

STRIDE = 8
KIND = "blockwise-counter"
"""Of the folders that a training writes."""


class BlockwiseNetwork(nn.Module):
    """Logits of every class and count bin in blocks of 8x8 pixels."""

    def __init__(self, classes: int, bins: int = 4, width: int = 96, embedding: int = 48) -> None:
        super().__init__()
        self.body = Pyramid((32, 64, 128), (1, 2, 2), width, first=2, stop=1)
        self.blocks = nn.Sequential(conv(width, 128, stride=2), nn.Conv2d(128, embedding, 1))
        self.bins = nn.Parameter(torch.randn(classes, bins, embedding))
        self.log_scale = nn.Parameter(torch.tensor(2.0))
        self.bias = nn.Parameter(torch.tensor([2.0] + [0.0] * (bins - 1)))

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k n hh ww"]:
        features = F.normalize(self.blocks(self.body(normalise(images))), dim=1)
        bins = F.normalize(self.bins, dim=-1)
        cosines = torch.einsum("bdhw,knd->bknhw", features, bins)
        return cosines * self.log_scale.exp() + self.bias[:, None, None]


@dataclass
class BlockwiseCounter:
    """A critic: the expectation of a blockwise classification.

    Attributes:
        anchors: (n,) count that each bin stands for; the last one is the mean of what falls into it.
        temperature: divides the logits; set on held-out scenes so that the sum is calibrated.
    """

    network: BlockwiseNetwork
    card: CriticCard
    vocabulary: tuple[str, ...]
    anchors: tuple[float, ...]
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if len(self.anchors) < 2 or not 0 < self.temperature < math.inf:
            raise ValueError(
                "a blockwise counter has two bins at least and a positive temperature, not "
                f"{len(self.anchors)} and {self.temperature}"
            )

    @classmethod
    @global_settings_kept()
    def from_pretrained(cls, folder: str | Path, cure: str = "") -> BlockwiseCounter:
        """Load a folder written by the training recipe.

        Raises:
            CheckpointError: missing, damaged or foreign files.
        """
        network, config = checkpoint.load_network(Path(folder), KIND, _network, cure)
        vocabulary = config.get("vocabulary", tuple[str, ...])
        anchors, temperature = (
            config.get("anchors", tuple[float, ...]),
            config.get("temperature", float),
        )
        card = config.card(vocabulary)
        return config.build(lambda: cls(network, card, vocabulary, anchors, temperature))

    @property
    def gives(self) -> Gives:
        return "density"

    def to(self, device: str | torch.device) -> Self:
        move(self.network, device)
        return self

    @guarded_prepare
    def prepare(self, nouns: Sequence[str]) -> Query:
        return look_up(nouns, self.vocabulary, self.card.name)

    @guarded_count
    def __call__(
        self, images: Float[Tensor, "b 3 height width"], queries: Sequence[Query]
    ) -> CountEstimate:
        classes, mask = stack_classes(queries, images.device)
        every = self._every(resize(images, self.card.input_size))
        index = classes[:, :, None, None].expand(-1, -1, *every.shape[-2:])
        density = every.gather(1, index) * mask[:, :, None, None]
        soft = density.sum((-2, -1))
        hard = soft.detach().round().to(torch.int64)
        return CountEstimate(soft, hard, mask, density=density)

    def _every(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k hh ww"]:
        """Density of every class; in evaluation the mean over the picture and its mirror image."""
        mine = expectation(self.network(images), self.anchors, self.temperature)
        if self.network.training:
            return mine
        mirrored = expectation(self.network(images.flip(-1)), self.anchors, self.temperature)
        return (mine + mirrored.flip(-1)) / 2


def _network(config: Config) -> BlockwiseNetwork:
    return BlockwiseNetwork(
        len(config.get("vocabulary", tuple[str, ...])),
        len(config.get("anchors", tuple[float, ...])),
        config.get("width", int),
        config.get("embedding", int),
    )


def expectation(
    logits: Float[Tensor, "b k n h w"], anchors: Sequence[float], temperature: float = 1.0
) -> Float[Tensor, "b k h w"]:
    """Expected count of each block: softmax over the bins times their anchors (arXiv 2403.09281, eq. 5).

    In float32 at least.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.einsum(
        "bknhw,n->bkhw", (wide / temperature).softmax(2), wide.new_tensor(tuple(anchors))
    )


def blockwise_loss(
    logits: Float[Tensor, "b k n h w"],
    counts: Float[Tensor, "b k h w"],
    anchors: Sequence[float],
    count_weight: float = 1.0,
) -> Float[Tensor, ""]:
    """Cross-entropy of the blocks' bins plus the L1 error of the total counts (DACE, CLIP-EBC).

    Ours: the entropy is divided by the number of blocks that hold an object, and the L1 error is the mean
    over the classes that a picture holds plus the mean over those that it does not.
    """
    bins = counts.long().clamp_max(logits.shape[2] - 1)
    entropy = F.cross_entropy(logits.transpose(1, 2), bins, reduction="none")
    full = counts > 0
    objects = full.sum().clamp_min(1)
    error = (expectation(logits, anchors).sum((-2, -1)) - counts.sum((-2, -1))).abs()
    present = counts.sum((-2, -1)) > 0
    # Absent classes outnumber present ones by far: without a weight they would drown the count term.
    count_error = error.new_zeros(())
    for group in (present, ~present):
        count_error = count_error + error[group].sum() / group.sum().clamp_min(1)
    return entropy.sum() / objects + count_weight * count_error
