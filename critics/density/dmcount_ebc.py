"""DMCount-EBC: a VGG whose blocks are classified into counts, without text.

The comparison of CLIP-EBC's authors (Ma, Sanchez, Guha, arXiv 2403.09281) with the network of DM-Count (Wang
et al., arXiv 2009.13077): VGG-19 up to a stride of 16, features resampled to one a block of 8x8 pixels, two
convolutions, one logit a bin; softmax over the bins, expectation over their mean counts (eq. 5), sum.

As published: network, its names, read-out, ImageNet normalisation, the whole picture at once, at least 448
pixels on its shorter side. Ours: pictures are stretched by less than a block to whole blocks. The layout of
published weights is that of the authors' code (Yiming-M/CLIP-EBC at b52a594), whose class gave the same map
for the same random weights; no published file has been tried.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from critics.base import CriticCard, Query, look_up
from critics.density.base import DensityCritic
from critics.density.blockwise import expectation
from critics.density.clip_ebc.network import NWPU_ANCHORS
from critics.loading import checkpoint
from critics.loading.checkpoint import CheckpointError, Config
from critics.loading.settings import global_settings_kept
from critics.parts.preprocess import IMAGENET, normalise
from critics.parts.queries import stack_classes
from critics.parts.tiling import fit
from critics.parts.vocabulary import PEOPLE

CARDS = {
    "dmcount-ebc": CriticCard(
        name="dmcount-ebc",
        family="crowd-density",
        summary="blockwise count classification by a VGG-19; people only; the layout of published weights is "
        "unverified against a real file",
        license_code="MIT",
        license_weights="MIT",
        input_size=448,
        vocabulary=PEOPLE,
        parameters=21_500_000,
        citation="Ma, Sanchez, Guha: CLIP-EBC, arXiv 2403.09281; after DM-Count, arXiv 2009.13077",
        published=True,
    )
}
SIDE, STRIDE = 448, 16
VGG19 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 256, 0, 512, 512, 512, 512, 0, 512, 512, 512, 512)
"""Channels of the convolutions, 0 for a pooling (configuration E of arXiv 1409.1556, but for its last)."""


@dataclasses.dataclass(frozen=True)
class DMCountEbcConfig:
    """What the weights do not say, or only by their shapes.

    Attributes:
        plan: channels of the convolutions, 0 for a pooling, of which there are four.
        batch_norm: one after every convolution of the plan.
        head: channels of the two convolutions after it.
        block: side in pixels of the block that is classified.
        anchors: mean count of each bin.
        side: least length in pixels of a picture's shorter side.
    """

    plan: tuple[int, ...] = VGG19
    batch_norm: bool = False
    head: tuple[int, int] = (256, 128)
    block: int = 8
    anchors: tuple[float, ...] = NWPU_ANCHORS
    side: int = SIDE

    def __post_init__(self) -> None:
        if self.plan.count(0) != 4 or len(self.head) != 2 or len(self.anchors) < 2:
            raise ValueError(
                "a plan has four poolings, a head two widths, and there are two bins at least"
            )
        if self.block < 1 or self.side < 1 or self.side % max(STRIDE, self.block):
            raise ValueError(
                f"a side of {self.side} pixels must be a multiple of {STRIDE} and of the block of "
                f"{self.block} pixels"
            )


class DMCountEbcNetwork(nn.Module):
    """Logits of every count bin in every block; the names are those of the published files."""

    def __init__(self, config: DMCountEbcConfig) -> None:
        super().__init__()
        self.config = config
        first, second = config.head
        head = nn.Sequential(
            nn.Conv2d(config.plan[-1], first, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(first, second, 3, padding=1),
            nn.ReLU(),
        )
        features = _features(config.plan, config.batch_norm)
        self.backbone = nn.ModuleDict({"features": features, "reg_layer": head})
        self.classifier = nn.Conv2d(second, len(config.anchors), 1)

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n hh ww"]:
        """Of normalised pictures whose sides 16 and the block divide."""
        seen = self.backbone["features"](pixels)
        size = (pixels.shape[-2] // self.config.block, pixels.shape[-1] // self.config.block)
        if size != tuple(seen.shape[-2:]):
            seen = F.interpolate(seen, size, mode="bilinear", align_corners=False)
        logits: Tensor = self.classifier(self.backbone["reg_layer"](seen))
        return logits


def _features(plan: Sequence[int], batch_norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    inputs = 3
    for width in plan:
        if not width:
            layers.append(nn.MaxPool2d(2))
            continue
        layers.append(nn.Conv2d(inputs, width, 3, padding=1))
        if batch_norm:
            layers.append(nn.BatchNorm2d(width))
        layers.append(nn.ReLU())
        inputs = width
    return nn.Sequential(*layers)


@dataclasses.dataclass
class DMCountEbc:
    """A density model (``critics.density.base``): the expectation of the blockwise classification."""

    network: DMCountEbcNetwork

    def prepare(self, nouns: Sequence[str]) -> Query:
        return look_up(nouns, PEOPLE, "dmcount-ebc")

    def density(
        self, images: Float[Tensor, "b 3 height width"], queries: Sequence[Query]
    ) -> Float[Tensor, "b k h w"]:
        config = self.network.config
        pixels = normalise(fit(images, config.side, max(STRIDE, config.block)), IMAGENET)
        logits = self.network(pixels.to(self.network.classifier.weight.dtype))
        classes, _ = stack_classes(queries, images.device)
        return expectation(logits[:, None], config.anchors).expand(-1, classes.shape[1], -1, -1)


@global_settings_kept()
def load(
    name: str,
    source: str | Path | None = None,
    *,
    allow_pickle: bool = False,
    anchors: Sequence[float] | None = None,
    block: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> DensityCritic:
    """DMCount-EBC from a published file, or from a folder that ``save`` wrote.

    Args:
        source: the file or the folder; files are not fetched, since they are pickles.
        allow_pickle: agree to read a ``.pth`` file; only tensors are taken from it (``weights_only``).
        anchors: of a file, which does not say it: mean count of each bin in the data that it was trained on,
            such as ``critics.density.clip_ebc.NWPU_ANCHORS``.
        block: of a file, which does not say it: side in pixels of the blocks, the authors' "reduction".
        dtype: of the network; counts are float32 in any case.

    Raises:
        CheckpointError: no source, a pickle without consent, files that are missing,
            damaged or do not fit.
    """
    if source is None:
        raise CheckpointError(
            f"{name} has pickled .pth files only: download one of "
            "https://github.com/Yiming-M/CLIP-EBC/releases and give its path with allow_pickle=True, or a "
            "folder of safetensors"
        )
    source = Path(source)
    if source.is_file():
        state = checkpoint.read_published(source, allow_pickle)
        if anchors is None or block is None:
            raise CheckpointError(
                f"{source} does not say which counts its bins stand for, nor how large its blocks are: pass "
                "anchors=..., block=... (the authors' folder vgg19_ae_448_8_4_fine_... has blocks of 8 "
                "pixels and 5 bins)"
            )
        network = _of_published(source, state, tuple(anchors), block)
    else:
        network, _ = checkpoint.load_network(source, _KIND, _network, _CURE)
    card = CARDS[name].of(network, input_size=network.config.side)
    return DensityCritic(DMCountEbc(network.to(dtype)), card)


def save(folder: Path, network: DMCountEbcNetwork, half: bool = True) -> None:
    """Write a network so that ``load`` reads it: no pickle."""
    checkpoint.save(folder, dataclasses.asdict(network.config) | {"kind": _KIND}, network, half)


_KIND = "dmcount-ebc"
_CURE = "Write the folder with critics.density.dmcount_ebc.save, or name a published .pth file."


def _network(config: Config) -> DMCountEbcNetwork:
    return DMCountEbcNetwork(config.fields(DMCountEbcConfig))


def _of_published(
    path: Path, state: Mapping[str, Tensor], anchors: tuple[float, ...], block: int
) -> DMCountEbcNetwork:
    """A network of the sizes that the file's tensors have, filled with them.

    Raises:
        CheckpointError: tensors of another model.
    """
    try:
        plan, batch_norm = _plan(state)
        first, second = (len(state[f"backbone.reg_layer.{i}.weight"]) for i in (0, 2))
        if len(anchors) != len(state["classifier.weight"]):
            raise ValueError(
                f"it has {len(state['classifier.weight'])} bins, but {len(anchors)} anchors were passed"
            )
        config = DMCountEbcConfig(plan, batch_norm, (first, second), block, anchors)
    except KeyError as error:
        raise CheckpointError(f"{path} is no DMCount-EBC: {error.args[0]} is missing") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is no DMCount-EBC: {error}") from None
    network = DMCountEbcNetwork(config)
    checkpoint.fill(network, state, path)
    return network


def _plan(state: Mapping[str, Tensor]) -> tuple[tuple[int, ...], bool]:
    """The plan of a VGG and whether it has batch norms, from the numbers of its convolutions."""
    found = (re.fullmatch(r"backbone\.features\.(\d+)\.weight", key) for key in state)
    numbers = sorted(int(m[1]) for m in found if m and state[m[0]].ndim == 4)
    if not numbers:
        raise KeyError("backbone.features.0.weight")
    batch_norm = "backbone.features.1.weight" in state
    plan: list[int] = []
    for i, number in enumerate(numbers):
        # A convolution, its activation and perhaps a norm lie between two; one more is a pooling.
        if i and number - numbers[i - 1] > 2 + batch_norm:
            plan.append(0)
        plan.append(len(state[f"backbone.features.{number}.weight"]))
    return tuple(plan), batch_norm
