"""Centre-point detection: every object is one peak of its class's heatmap.

After CenterNet (Zhou et al., "Objects as Points", arXiv 1904.07850): one positive cell an object, so that the
sum of indicators over peaks is a count. Unlike there, a peak whose box covers much of a stronger one's is a
duplicate too, since large generated objects can have two peaks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from critics.base import CriticCard, Query, look_up
from critics.detectors.base import DetectionCritic
from critics.loading import checkpoint
from critics.loading.checkpoint import Config
from critics.loading.settings import global_settings_kept
from critics.parts.boxes import cell_boxes
from critics.parts.convnet import Pyramid, conv, normalise, resize
from critics.parts.queries import stack_classes
from critics.parts.readout import Detections, ReadOut

STRIDE = 2


class HeatmapNetwork(nn.Module):
    """Logits of every class and box sides at every second pixel."""

    def __init__(self, classes: int, width: int = 48) -> None:
        super().__init__()
        self.body = Pyramid((24, 48, 96, 128), (0, 1, 1, 2), width, first=1, stop=1)
        self.head = conv(width, width)
        self.logits = nn.Conv2d(width, classes, 1)
        self.sides = nn.Conv2d(width, 4, 1)
        assert self.logits.bias is not None
        # A prior of one in a hundred, so that the many empty cells do not swamp the first steps.
        nn.init.constant_(self.logits.bias, -4.6)

    def forward(
        self, images: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b k hh ww"], Float[Tensor, "b 4 hh ww"]]:
        """Class logits, and the distances from a cell's centre to left, top, right, bottom in pixels."""
        features = self.head(self.body(normalise(images)))
        return self.logits(features), F.softplus(self.sides(features)) * 4


@dataclass
class HeatmapDetector:
    """The family's part of a ``DetectionCritic``: peaks of class heatmaps are candidates.

    Attributes:
        side: in pixels, of the square that the network sees.
    """

    network: HeatmapNetwork
    name: str
    vocabulary: tuple[str, ...]
    side: int

    def prepare(self, nouns: Sequence[str]) -> Query:
        return look_up(nouns, self.vocabulary, self.name)

    def detect(
        self, images: Float[Tensor, "b 3 height width"], queries: Sequence[Query]
    ) -> Detections:
        classes, _ = stack_classes(queries, images.device)
        logits, sides = self.network(resize(images, self.side))
        rows, columns = logits.shape[-2:]
        # What is no number stays a peak, so that the read-out can tell of it.
        peaks = ~(logits < F.max_pool2d(logits.detach(), 3, 1, 1))
        index = classes[:, :, None, None].expand(-1, -1, rows, columns)
        mine = logits.gather(1, index).flatten(2).float()
        mine = mine.masked_fill(~peaks.gather(1, index).flatten(2), -torch.inf)
        scale = images.new_tensor([images.shape[-1], images.shape[-2]] * 2).float() / self.side
        boxes = cell_boxes(sides.detach(), STRIDE).flatten(2).transpose(1, 2).float() * scale
        return Detections(mine, boxes)


def critic(
    network: HeatmapNetwork,
    card: CriticCard,
    vocabulary: tuple[str, ...],
    threshold: float,
    overlap: float = 0.3,
) -> DetectionCritic:
    """A network as a critic; the settings are those of ``critics.parts.readout.ReadOut``."""
    detector = HeatmapDetector(network, card.name, vocabulary, card.input_size)
    return DetectionCritic(detector, card, ReadOut(threshold, overlap, limit=64))


@global_settings_kept()
def load(folder: str | Path, cure: str = "") -> DetectionCritic:
    """Load a folder written by the training recipe.

    Raises:
        CheckpointError: missing, damaged or foreign files.
    """
    network, config = checkpoint.load_network(Path(folder), "heatmap-detector", _network, cure)
    vocabulary = config.get("vocabulary", tuple[str, ...])
    threshold, overlap = config.get("threshold", float), config.get("overlap", float)
    card = config.card(vocabulary)
    return config.build(lambda: critic(network, card, vocabulary, threshold, overlap))


def _network(config: Config) -> HeatmapNetwork:
    return HeatmapNetwork(len(config.get("vocabulary", tuple[str, ...])), config.get("width", int))


def heatmap_loss(
    logits: Float[Tensor, "b k h w"], target: Float[Tensor, "b k h w"], objects: float
) -> Float[Tensor, ""]:
    """Penalty-reduced focal loss (arXiv 1904.07850, equation 1; alpha 2, beta 4), over the objects."""
    log_p, log_q = F.logsigmoid(logits), F.logsigmoid(-logits)
    p = logits.sigmoid()
    positive = target >= 1
    near = torch.where(positive, (1 - p).square() * log_p, (1 - target) ** 4 * p.square() * log_q)
    return -near.sum() / max(objects, 1.0)
