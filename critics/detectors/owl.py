"""OWL-ViT and OWLv2: open-vocabulary detection, one candidate for every patch of a vision transformer.

The networks and their scores are as published (Minderer et al., arXiv 2205.06230 and 2306.09683): the logit
of a noun at a patch is the cosine between the patch's and the noun's embedding, shifted and scaled by the
patch. Several patches see the same object; the papers' scores keep them all, so that removing duplicates
by their boxes, which a count needs, is ours. OWLv2's objectness takes no part: it knows no noun, and the
library computes it on detached features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from critics.base import CriticCard, Query, check_nouns
from critics.detectors.base import DetectionCritic
from critics.loading.hub import load_model, load_tokenizer, resolve_source
from critics.loading.settings import global_settings_kept
from critics.parts.guard import device_of
from critics.parts.preprocess import CLIP, normalise, resize, scale_boxes
from critics.parts.queries import stack_text
from critics.parts.readout import Detections, ReadOut
from critics.parts.text import tokenize

TEMPLATE = "a photo of a {}"
"""What a noun is put into before it is encoded, as in the library's examples; the article stays "a"."""

CARDS: dict[str, CriticCard] = {
    "owl-vit": CriticCard(
        name="owl-vit",
        family="clip",
        summary="open-vocabulary detector on a CLIP vision transformer, 576 candidates",
        license_code="Apache-2.0",
        license_weights="Apache-2.0",
        input_size=768,
        hub_id="google/owlvit-base-patch32",
        citation="Minderer et al., Simple Open-Vocabulary Object Detection with Vision Transformers, "
        "arXiv 2205.06230",
    ),
    "owlv2": CriticCard(
        name="owlv2",
        family="clip",
        summary="OWL-ViT trained on itself at scale, 3600 candidates",
        license_code="Apache-2.0",
        license_weights="Apache-2.0",
        input_size=960,
        hub_id="google/owlv2-base-patch16-ensemble",
        citation="Minderer et al., Scaling Open-Vocabulary Object Detection, arXiv 2306.09683",
    ),
}


READ_OUTS: dict[str, ReadOut] = {
    "owl-vit": ReadOut(threshold=0.1, overlap=0.5, limit=256),
    "owlv2": ReadOut(threshold=0.2, overlap=0.5, limit=256),
}
"""OWL-ViT's threshold is the library's default; OWLv2's and the overlap are ours (the library counts every
candidate). None is tuned for counting. Many candidates take part, since an object may bring several."""


@global_settings_kept()
def load(
    name: str,
    source: str | Path | None = None,
    *,
    template: str = TEMPLATE,
    revision: str | None = None,
    local_files_only: bool = False,
    dtype: torch.dtype = torch.float32,
    **settings: Any,
) -> DetectionCritic:
    """OWL-ViT or OWLv2 as a critic.

    Args:
        name: of a card.
        source: hub id, or folder in the hub's layout; the card's hub id unless given. Checkpoints of other
            sizes (large, patch 14 or 16) load the same way: the input size is the model's.
        template: what a noun is put into, with ``{}`` in its place.
        revision: of the hub's repository.
        local_files_only: never ask the hub.
        dtype: of the weights; counts and boxes are float32 anyway.
        settings: of the read-out, in place of those in ``READ_OUTS``; see ``critics.parts.readout.ReadOut``.

    Raises:
        CheckpointError: weights or tokenizer that are missing, gated, damaged or of
            another model.
        ValueError: a template without exactly one ``{}``.
    """
    import transformers

    if template.count("{}") != 1:
        raise ValueError(f"the template must have one {{}} in the noun's place, not {template!r}")
    card = CARDS[name]
    read_out = READ_OUTS[name].changed(**settings)
    place, hub = resolve_source(card, source, revision, local_files_only)
    cls = {
        "owl-vit": transformers.OwlViTForObjectDetection,
        "owlv2": transformers.Owlv2ForObjectDetection,
    }[name]
    # The weights first: what they lack is the better message where everything is wrong.
    network = load_model(cls, place, dtype=dtype, **hub)
    words = network.config.text_config.vocab_size
    tokenizer = load_tokenizer(transformers.CLIPTokenizer, place, words, **hub)
    detector = OwlDetector(network, tokenizer, square=name == "owlv2", template=template)
    return DetectionCritic(detector, replace(card, input_size=detector.side), read_out)


@dataclass
class OwlDetector:
    """The networks' own part of the critic.

    Attributes:
        network: ``OwlViTForObjectDetection`` or ``Owlv2ForObjectDetection`` of ``transformers``.
        tokenizer: CLIP's.
        square: pad pictures to a square and resize as OWLv2 does; else squeeze them, as OWL-ViT does.
        template: what a noun is put into, with ``{}`` in its place.
    """

    network: Any
    tokenizer: Any
    square: bool
    template: str = TEMPLATE

    @property
    def side(self) -> int:
        """Side in pixels of the pictures that the network sees."""
        side: int = self.network.config.vision_config.image_size
        return side

    def prepare(self, nouns: Sequence[str]) -> Query:
        """Encode the nouns, each in the template; ``text["owl"]`` is (n, d), of unit length.

        Raises:
            UnknownNounError: an empty noun, or one that is too long for the text encoder.
        """
        config = self.network.config.text_config
        check_nouns(nouns)
        if not nouns:
            return Query((), text={"owl": torch.zeros(0, config.hidden_size)})
        texts = [self.template.format(" ".join(noun.split())) for noun in nouns]
        length, device = config.max_position_embeddings, device_of(self.network)
        ids, attended = tokenize(self.tokenizer, texts, nouns, length, device, full=True)
        base = self.network.base_model
        found = base.get_text_features(input_ids=ids, attention_mask=attended).pooler_output
        return Query(tuple(nouns), text={"owl": F.normalize(found, dim=-1)})

    def detect(
        self, images: Float[Tensor, "b 3 height width"], queries: Sequence[Query]
    ) -> Detections:
        """Every patch is a candidate, for every noun.

        Raises:
            ValueError: a query that another critic prepared.
        """
        seen = pad_to_square(images) if self.square else images
        shrink = resize_blurred if self.square else resize_bicubic
        pixels = normalise(shrink(seen, self.side), CLIP)
        texts = stack_text(queries, "owl", images.device).to(self.network.dtype)
        features = self.network.image_embedder(pixels)[0].flatten(1, 2)
        logits = self.network.class_predictor(features, texts)[0]
        with torch.no_grad():
            # The library adds the patches' own places in the weights' precision: pixels off in bfloat16.
            raw = self.network.box_head(features).float() + self.network.box_bias.float()
            boxes = scale_boxes(raw.sigmoid(), seen)
        return Detections(logits.transpose(1, 2).float(), boxes)


def pad_to_square(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 side side"]:
    """Black below or to the right, so that the picture keeps its aspect and its place."""
    height, width = images.shape[-2:]
    side = max(height, width)
    return F.pad(images, (0, side - width, 0, side - height))


def resize_blurred(
    images: Float[Tensor, "b 3 s s"], side: int
) -> Float[Tensor, "b 3 {side} {side}"]:
    """OWLv2's resizing of square pictures: a Gaussian blur when shrinking, then plain bilinear.

    For a factor f = s / side above 1, the blur's deviation is (f - 1) / 2 pixels, cut off after 3 deviations,
    reflected at the rims. In float32.
    """
    images = images.to(torch.float32)
    factor = images.shape[-1] / side
    if factor == 1:
        return images
    if factor > 1:
        images = _blur(images, (factor - 1) / 2)
    return F.interpolate(images, (side, side), mode="bilinear", align_corners=False)


def resize_bicubic(
    images: Float[Tensor, "b 3 h w"], side: int
) -> Float[Tensor, "b 3 {side} {side}"]:
    """OWL-ViT's resizing: bicubic with antialiasing, whatever the aspect."""
    return resize(images, (side, side), "bicubic")


def _blur(images: Tensor, deviation: float) -> Tensor:
    reach = ceil(3 * deviation)
    offsets = torch.arange(-reach, reach + 1, device=images.device, dtype=torch.float32)
    weights = torch.softmax(-0.5 * (offsets / deviation).square(), 0)
    padded = F.pad(images, (reach,) * 4, mode="reflect")
    channels = images.shape[1]
    down = weights[None, None, :, None].expand(channels, -1, -1, -1)
    across = weights[None, None, None, :].expand(channels, -1, -1, -1)
    return F.conv2d(F.conv2d(padded, down, groups=channels), across, groups=channels)
