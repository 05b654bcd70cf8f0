"""A hierarchical mixture of density experts: three decoders of different scale, blended twice.

After HMoDE (Du, Shi, Deng, Zafeiriou, arXiv 2208.02894). Three experts give density maps; a first level of
gates blends each pair of them, a second level blends the three pairs; all gates are softmaxes per place, so
that every blend lies between its parts. All seven maps are trained, each level counting twice as much as the
one below (``hmode_loss``), and a count is the sum of the last map over 100.

As published: the two levels, the seven maps and their weights, the factor of 100, ImageNet normalisation.
Ours: a small encoder of configurable width in place of VGG16, decoders without connections between them,
gates that see the experts' own features in place of the encoder's last and no attention over those, one map
and one set of gates a noun in place of a crowd's, softplus in place of ReLU (which has no gradient where
nothing is seen), windows. The published code and weights have no licence, so nothing of them is here and
nothing of them can be loaded: train one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from critics.base import CriticCard, Query, look_up
from critics.density.base import DensityCritic
from critics.loading import checkpoint
from critics.loading.checkpoint import CheckpointError, Config
from critics.loading.settings import global_settings_kept
from critics.parts.convnet import Residual, conv
from critics.parts.preprocess import IMAGENET, normalise
from critics.parts.queries import stack_classes
from critics.parts.tiling import count_in_windows

CARDS = {
    "hmode": CriticCard(
        name="hmode",
        family="crowd-density",
        summary="three density experts under two levels of gates; the nouns are those it was trained on",
        license_code="Apache-2.0",
        license_weights="as its training data; none are published",
        input_size=128,
        vocabulary=(),
        citation="after Du et al., arXiv 2208.02894",
    )
}
SCALE = 100.0
"""Sum of the density map that stands for one object."""
CELL = 8
PAIRS = ((0, 1), (0, 2), (1, 2))
"""Experts that the first level blends."""
_KIND = "hmode"
_CURE = "Write the folder with critics.density.hmode.save after training with hmode_loss; none are published."


class HmodeNetwork(nn.Module):
    """Density maps of every noun in cells of 8x8 pixels: three experts, three pairs, and the blend of all.

    Args:
        classes: number of nouns.
        width: channels of the widest features; 4 divides it.
    """

    def __init__(self, classes: int, width: int = 64) -> None:
        super().__init__()
        sizes = (width // 4, width // 2, width, width)
        inputs = (3, *sizes[:-1])
        self.width = width
        self.stages = nn.ModuleList(
            nn.Sequential(conv(a, b, stride=2), Residual(b))
            for a, b in zip(inputs, sizes, strict=True)
        )
        # One expert for each of the strides 4, 8 and 16: for small, middling and large objects.
        self.decoders = nn.ModuleList(
            nn.Sequential(conv(size, width), conv(width, width)) for size in sizes[1:]
        )
        self.experts = nn.ModuleList(nn.Conv2d(width, classes, 1) for _ in PAIRS)
        self.pair_gates = nn.ModuleList(nn.Conv2d(2 * width, 2 * classes, 1) for _ in PAIRS)
        self.gate = nn.Conv2d(3 * width, 3 * classes, 1)

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 7 k hh ww"]:
        """Maps of experts 0 to 2, of ``PAIRS``, and of all, in this order; of normalised pictures."""
        features = []
        for stage in self.stages:
            pixels = stage(pixels)
            features.append(pixels)
        size = features[2].shape[-2:]  # stride 8
        seen = [
            F.interpolate(decoder(map_), size, mode="bilinear", align_corners=False)
            for decoder, map_ in zip(self.decoders, features[1:], strict=True)
        ]
        experts = [F.softplus(head(map_)) for head, map_ in zip(self.experts, seen, strict=True)]
        pairs = [
            blend(gate(torch.cat([seen[i], seen[j]], 1)), [experts[i], experts[j]])
            for gate, (i, j) in zip(self.pair_gates, PAIRS, strict=True)
        ]
        return torch.stack([*experts, *pairs, blend(self.gate(torch.cat(seen, 1)), pairs)], 1)


def blend(
    gates: Float[Tensor, "b nk h w"], maps: Sequence[Float[Tensor, "b k h w"]]
) -> Float[Tensor, "b k h w"]:
    """Weighted mean of n maps, per place and noun: the softmax of the gates, n logits a noun."""
    weights = gates.unflatten(1, (len(maps), -1)).softmax(1)
    return (weights * torch.stack(list(maps), 1)).sum(1)


def hmode_loss(
    maps: Float[Tensor, "b 7 k h w"], counts: Float[Tensor, "b k h w"]
) -> Float[Tensor, ""]:
    """Squared errors of the seven maps, in objects, 2 ** (j // 3) times the j-th's, mean over the batch.

    Left out of the published loss: the gates' importance and attention terms.

    Args:
        maps: as the network gives them; they stand for 100 times as much as the counts.
        counts: objects in each cell.
    """
    weights = maps.new_tensor([2.0 ** (j // 3) for j in range(7)])
    error = (maps / SCALE - counts[:, None]).square().sum((-3, -2, -1))
    return (error * weights).sum(1).mean()


@dataclasses.dataclass
class Hmode:
    """A density model (``critics.density.base``): the last map of the mixture over 100, in windows.

    Attributes:
        window: side in pixels that it was trained on.
    """

    network: HmodeNetwork
    vocabulary: tuple[str, ...]
    window: int

    def prepare(self, nouns: Sequence[str]) -> Query:
        return look_up(nouns, self.vocabulary, "hmode")

    def density(
        self, images: Float[Tensor, "b 3 height width"], queries: Sequence[Query]
    ) -> Float[Tensor, "b k h w"]:
        classes, _ = stack_classes(queries, images.device)
        kind = self.network.gate.weight.dtype

        def count(windows: Tensor, rows: Tensor) -> Tensor:
            every = self.network(normalise(windows, IMAGENET).to(kind))[:, -1].float()
            index = classes[rows][:, :, None, None].expand(-1, -1, *every.shape[-2:])
            return every.gather(1, index) / SCALE

        return count_in_windows(count, images, self.window, CELL)


def save(
    folder: Path, network: HmodeNetwork, vocabulary: Sequence[str], window: int, half: bool = True
) -> None:
    """Write a trained network so that ``load`` reads it."""
    config = {"kind": _KIND, "vocabulary": list(vocabulary), "width": network.width}
    config["window"] = window
    checkpoint.save(folder, config, network, half)


@global_settings_kept()
def load(
    name: str,
    source: str | Path | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> DensityCritic:
    """A mixture from a folder that ``save`` wrote.

    Args:
        dtype: of the network; counts are float32 in any case.

    Raises:
        CheckpointError: no folder, or files that are missing, damaged or do not fit.
    """
    if source is None:
        raise CheckpointError(
            f"{name} has no published weights that may be used; name a folder. {_CURE}"
        )
    network, config = checkpoint.load_network(Path(source), _KIND, _network, _CURE)
    vocabulary, window = config.get("vocabulary", tuple[str, ...]), config.get("window", int)
    card = CARDS[name].of(network, vocabulary=vocabulary, input_size=window)
    return DensityCritic(Hmode(network.to(dtype), vocabulary, window), card)


def _network(config: Config) -> HmodeNetwork:
    window = config.get("window", int)
    if window < CELL or window % CELL:
        raise ValueError(f"a window of {window} pixels has no whole cells of {CELL}")
    classes = len(config.get("vocabulary", tuple[str, ...]))
    return HmodeNetwork(classes, config.get("width", int))
