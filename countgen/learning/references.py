"""What a picture says of itself in place of a text: embeddings of the whole, and of crops around its objects.

After prompt-free multi-object augmentation (PFCD, arXiv 2507.06146): CLIP's embedding of the whole picture is
the global reference, those of its objects' crops are the local ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from countgen.learning.prompted import Captioned
from countgen.learning.settings import check_boxes
from critics.base import Critic
from critics.parts.boxes import intersection_over_union
from critics.parts.preprocess import CLIP, normalise, resize

POCKET = "pocket"
SAME_PLACE = 0.7
"""Overlap (IoU) from which boxes of two nouns are one object, of which the surer noun is taken."""
Boxes = Float[Tensor, "n 4"]


@dataclass(frozen=True)
class Reference:
    """A picture as a generator is told of it.

    Attributes:
        whole: embedding of the picture.
        objects: of each object's crop.
    """

    whole: Float[Tensor, " d"]
    objects: Float[Tensor, "n d"]


@dataclass
class PictureEncoder:
    """A CLIP's image half, frozen.

    Attributes:
        network: ``transformers.CLIPModel`` or ``CLIPVisionModelWithProjection``.
        name: under which ``load_encoder`` finds it again.
        statistics: mean and deviation that pictures are normalised with.
    """

    network: Any
    name: str
    statistics: tuple[Sequence[float], Sequence[float]] = CLIP

    @property
    def side(self) -> int:
        """Pictures are squeezed to squares of so many pixels."""
        return int(self.network.vision_model.config.image_size)

    @property
    def width(self) -> int:
        """Of an embedding."""
        return int(self.network.visual_projection.out_features)

    def embed(self, images: Float[Tensor, "b 3 s s"], batch: int = 64) -> Float[Tensor, "b d"]:
        """Embeddings of squares in [0, 1] at the network's size; their mean square is 1."""
        weight = next(self.network.parameters())
        found = []
        with torch.no_grad():
            for part in images.split(batch):
                pixels = normalise(part, self.statistics).to(weight.device, weight.dtype)
                seen = self.network.vision_model(pixel_values=pixels).pooler_output
                found.append(self.network.visual_projection(seen).float())
        embedded = F.normalize(torch.cat(found), dim=-1)
        return embedded * embedded.shape[1] ** 0.5

    def __call__(self, image: Float[Tensor, "3 h w"], boxes: Boxes) -> Reference:
        """Of a picture in [0, 1] and its objects' boxes, x0 y0 x1 y1 in shares of the sides."""
        squares = [
            resize(crop[None], (self.side, self.side), "bicubic")
            for crop in (image, *crops(image, boxes))
        ]
        found = self.embed(torch.cat(squares))
        return Reference(found[0], found[1:])


def crops(image: Float[Tensor, "3 h w"], boxes: Boxes) -> list[Float[Tensor, "3 y x"]]:
    """The parts of a picture in boxes of shares, widened to whole pixels; one pixel at least."""
    height, width = image.shape[-2:]
    limits = torch.tensor([width, height, width, height])
    found = []
    for x0, y0, x1, y1 in (boxes.cpu() * limits).tolist():
        left, top = min(max(int(x0), 0), width - 1), min(max(int(y0), 0), height - 1)
        right, bottom = max(min(-int(-x1 // 1), width), 1), max(min(-int(-y1 // 1), height), 1)
        found.append(image[:, top : max(bottom, top + 1), left : max(right, left + 1)])
    return found


def load_encoder(name: str, device: torch.device | str = "cpu") -> PictureEncoder:
    """Pocket's own CLIP, or that of a hub id or folder: a whole one, or its image half.

    Raises:
        CheckpointError: weights that are missing, damaged or of another model.
    """
    from transformers import CLIPModel, CLIPVisionModelWithProjection

    from countgen.pocket import load_clip
    from critics.loading.hub import load_model

    if name == POCKET:
        network, statistics = load_clip()[0], ((0.5,) * 3, (0.5,) * 3)
        return PictureEncoder(network.to(device), name, statistics)
    config = Path(name) / "config.json"
    whole = config.is_file() and json.loads(config.read_text("utf-8")).get("model_type") == "clip"
    kind = CLIPModel if whole else CLIPVisionModelWithProjection
    network = load_model(kind, name, ignore=["position_ids$", "^text_", "^logit_scale$"])
    return PictureEncoder(network.to(device), name, _statistics(name))


def _statistics(name: str) -> tuple[Sequence[float], Sequence[float]]:
    """Of a folder that tells them; else CLIP's own."""
    for file in ("counting.json", "preprocessor_config.json"):
        path = Path(name) / file
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            if {"image_mean", "image_std"} <= set(found):
                return found["image_mean"], found["image_std"]
    return CLIP


# -- objects -----------------------------------------------------------------------------------------


def check_critic(critic: Critic) -> None:
    """Refuse a critic by whose boxes objects cannot be cut out.

    Raises:
        UsageError: it gives no boxes.
    """
    check_boxes(critic.card.name, critic.gives, "objects are cut out by the critic's boxes")


def find_objects(
    critic: Critic, image: Float[Tensor, "3 h w"], nouns: Sequence[str]
) -> dict[str, Boxes]:
    """What a detector counts in a picture: noun -> boxes in shares, of nouns that are there.

    Where it sees two nouns in one place, the surer one is taken.

    Raises:
        UsageError: a critic without boxes.
        critics.base.UnknownNounError: a noun that it cannot see.
    """
    check_critic(critic)
    device = next(critic.network.parameters()).device
    with torch.no_grad():
        seen = critic(image[None].to(device), [critic.prepare(list(nouns))]).candidates
    assert seen is not None
    kept = seen.kept[0].cpu().nonzero()
    boxes, sure = (t[0].float().cpu()[kept[:, 0], kept[:, 1]] for t in (seen.boxes, seen.margins))
    order = sure.argsort(descending=True)
    taken: list[int] = []
    for row in order.tolist():
        others = [one for one in taken if kept[one, 0] != kept[row, 0]]
        if not others or intersection_over_union(boxes[row], boxes[others]).max() < SAME_PLACE:
            taken.append(row)
    height, width = image.shape[-2:]
    shares = boxes / torch.tensor([width, height, width, height])
    rows = {noun: [i for i in taken if kept[i, 0] == k] for k, noun in enumerate(nouns)}
    return {noun: shares[own] for noun, own in rows.items() if own}


def counts_of(found: Mapping[str, Boxes]) -> dict[str, int]:
    """Noun -> how many."""
    return {noun: len(boxes) for noun, boxes in found.items()}


@dataclass
class References:
    """The references of training pictures, each computed once; known by the picture, not by its place.

    Boxes are the picture's own, or those of the nouns in its prompt by the critic's word.
    """

    encoder: PictureEncoder
    critic: Critic
    _known: dict[bytes, Reference] = field(default_factory=dict, repr=False)

    def __call__(self, picture: Captioned) -> Reference:
        data = (picture.image, picture.boxes)
        digest = hashlib.blake2b(digest_size=16)
        for tensor in data:
            digest.update(tensor.contiguous().numpy().tobytes())
        key = digest.digest()
        if key not in self._known:
            self._known[key] = self.encoder(picture.image, self._boxes(picture))
        return self._known[key]

    def _boxes(self, picture: Captioned) -> Boxes:
        nouns = [target.noun for target in picture.prompt.targets if target.count]
        if len(picture.boxes) or not nouns:
            return picture.boxes
        found = find_objects(self.critic, picture.image, nouns)
        return torch.cat(list(found.values())) if found else picture.boxes
