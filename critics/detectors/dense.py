"""Dense anchor-free detection: every cell inside an object predicts its class and its box, duplicates go.

After FCOS (Tian et al., arXiv 1904.01355), with centre sampling and without the centre-ness branch: many
positive cells an object, focal loss, generalised IoU, and greedy non-maximum suppression. A cell counts
for the class it finds likeliest, so that one object is never two nouns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from critics.base import CriticCard, Query, look_up
from critics.detectors.base import DetectionCritic
from critics.loading import checkpoint
from critics.loading.checkpoint import Config
from critics.loading.settings import global_settings_kept
from critics.parts.boxes import cell_boxes, intersection_over_union
from critics.parts.convnet import Pyramid, conv, normalise, resize
from critics.parts.queries import stack_classes
from critics.parts.readout import Detections, ReadOut

STRIDE = 4


class DenseNetwork(nn.Module):
    """Logits of every class and box sides at every fourth pixel, in separate towers.

    In evaluation both are means over the picture and its mirror image, which steadies close decisions.
    """

    def __init__(self, classes: int, width: int = 64) -> None:
        super().__init__()
        self.body = Pyramid((32, 64, 112, 128), (0, 1, 2, 1), width, first=2, stop=1)
        self.class_tower = conv(width, width)
        self.box_tower = conv(width, width)
        self.logits = nn.Conv2d(width, classes, 1)
        self.sides = nn.Conv2d(width, 4, 1)
        assert self.logits.bias is not None
        # A prior of one in a hundred, so that the many empty cells do not swamp the first steps.
        nn.init.constant_(self.logits.bias, -4.6)

    def forward(
        self, images: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b k hh ww"], Float[Tensor, "b 4 hh ww"]]:
        """Class logits, and the distances from a cell's centre to left, top, right, bottom in pixels."""
        logits, sides = self._see(images)
        if self.training:
            return logits, sides
        mirrored, turned = self._see(images.flip(-1))
        turned = turned.flip(-1)[:, [2, 1, 0, 3]]  # left and right change places
        return (logits + mirrored.flip(-1)) / 2, (sides + turned) / 2

    def _see(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(normalise(images))
        sides = F.softplus(self.sides(self.box_tower(features))) * 8
        return self.logits(self.class_tower(features)), sides


@dataclass
class DenseDetector:
    """The family's part of a ``critics.detectors.base.DetectionCritic``: every cell is a candidate.

    The rival of a class is the best other class.

    Attributes:
        side: in pixels, of the square that the network sees.
    """

    network: DenseNetwork
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
        index = classes[:, :, None, None].expand(-1, -1, rows, columns)
        mine = logits.gather(1, index)
        # The best other class: the second best where this one is the best.
        best, second = logits.topk(2, 1).values.split(1, 1)
        rivals = torch.where(mine >= best, second, best)
        scale = images.new_tensor([images.shape[-1], images.shape[-2]] * 2).float() / self.side
        boxes = cell_boxes(sides.detach(), STRIDE).flatten(2).transpose(1, 2).float() * scale
        return Detections(mine.flatten(2).float(), boxes, rivals.flatten(2).float())


def critic(
    network: DenseNetwork,
    card: CriticCard,
    vocabulary: tuple[str, ...],
    threshold: float,
    overlap: float = 0.2,
) -> DetectionCritic:
    """A network as a critic; the settings are those of ``critics.parts.readout.ReadOut``."""
    detector = DenseDetector(network, card.name, vocabulary, card.input_size)
    return DetectionCritic(detector, card, ReadOut(threshold, overlap, limit=160))


@global_settings_kept()
def load(folder: str | Path, cure: str = "") -> DetectionCritic:
    """Load a folder written by the training recipe.

    Raises:
        CheckpointError: missing, damaged or foreign files.
    """
    network, config = checkpoint.load_network(Path(folder), "dense-detector", _network, cure)
    vocabulary = config.get("vocabulary", tuple[str, ...])
    threshold, overlap = config.get("threshold", float), config.get("overlap", float)
    card = config.card(vocabulary)
    return config.build(lambda: critic(network, card, vocabulary, threshold, overlap))


def _network(config: Config) -> DenseNetwork:
    return DenseNetwork(len(config.get("vocabulary", tuple[str, ...])), config.get("width", int))


def dense_loss(
    logits: Float[Tensor, "b k h w"],
    sides: Float[Tensor, "b 4 h w"],
    target: Float[Tensor, "b k h w"],
    target_sides: Float[Tensor, "b 4 h w"],
    ignore: Bool[Tensor, "b h w"],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Focal loss (alpha 0.4, gamma 2) of the classes and 1 - GIoU of the boxes, over positive cells.

    ``ignore`` marks cells at an object's rim, where either answer is fine.
    """
    positive = target.amax(1) > 0
    cells = positive.sum().clamp_min(1)
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    p = logits.sigmoid()
    wrong = torch.where(target > 0, 1 - p, p)
    alpha = torch.where(target > 0, 0.4, 0.6)
    focal = (alpha * wrong.square() * entropy * ~ignore[:, None]).sum() / cells
    mine = cell_boxes(sides, STRIDE).movedim(1, -1)[positive]
    true = cell_boxes(target_sides, STRIDE).movedim(1, -1)[positive]
    shared = intersection_over_union(mine, true)
    low = torch.minimum(mine[:, :2], true[:, :2])
    high = torch.maximum(mine[:, 2:], true[:, 2:])
    hull = (high - low).prod(-1).clamp_min(1e-6)
    areas = (mine[:, 2:] - mine[:, :2]).prod(-1) + (true[:, 2:] - true[:, :2]).prod(-1)
    union = areas / (1 + shared)  # areas - intersection, as intersection = IoU * union
    return focal, (1 - (shared - (hull - union) / hull)).sum() / cells
