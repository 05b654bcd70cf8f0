"""Mask2Former as GenEval's judge counts with it: instances of COCO's nouns, without removing duplicates.

GenEval (Ghosh et al., arXiv 2310.11513; evaluation/evaluate_images.py of its repository) counts the
instances that mmdetection's Mask2Former (arXiv 2112.01527, Swin-S, COCO) reports with a score above 0.9
where a prompt asks for a number, and above 0.3 elsewhere; at most 16 of a noun, the strongest; two boxes that
overlap by more than ``max_overlap`` as one, which is 1 by default, so that none are. An instance's score is
the softmax probability of its class times the mean certainty of the pixels of its mask.

As published: thresholds, limit, score, picture size (shorter side 800, longer at most 1333), padding to
multiples of 32. Not as published: the weights are those of Mask2Former's own authors, the same architecture
trained apart from mmdetection's; and pictures are made smaller with antialiasing. The soft count is ours. It
has a gradient through classes and masks, but a mask's pixels are chosen without one, and a query that has
lost its mask has none: made to judge, not to guide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from critics.base import CriticCard, Query
from critics.detectors.base import DetectionCritic
from critics.loading.checkpoint import CheckpointError
from critics.loading.hub import load_model, load_part, resolve_source
from critics.loading.settings import global_settings_kept
from critics.parts.preprocess import IMAGENET, fit_sides, normalise, resize
from critics.parts.queries import stack_classes
from critics.parts.readout import Detections, ReadOut, softmax_log_odds
from critics.parts.vocabulary import COCO, Vocabulary

READ_OUT = ReadOut(threshold=0.9, limit=16)
"""GenEval's for prompts with a number. Its threshold for others is 0.3; ``overlap`` is its max_overlap."""
SIDES, SIZE_MULTIPLE = (800, 1333), 32
"""Of the network that GenEval uses: shorter and longest longer side, and what they are padded to."""

CARDS: dict[str, CriticCard] = {
    "mask2former": CriticCard(
        name="mask2former",
        family="mask2former",
        summary="GenEval's judge: Mask2Former with a Swin-S, COCO's 80 nouns, at most 16 of each",
        license_code="Apache-2.0",
        license_weights="other; see the model page",
        input_size=SIDES[0],
        vocabulary=COCO,
        hub_id="facebook/mask2former-swin-small-coco-instance",
        parameters=69_000_000,
        citation="Cheng et al., Masked-attention Mask Transformer, arXiv 2112.01527; "
        "Ghosh et al., GenEval, arXiv 2310.11513",
    )
}


@dataclass
class InstanceSegmenter:
    """The family's part of a ``critics.detectors.base.DetectionCritic``.

    Attributes:
        network: images -> ``class_queries_logits`` (b, c, n + 1), the last for no object, and
            ``masks_queries_logits`` (b, c, h / 4, w / 4).
        sides: the shorter side of what the network sees, and the longest that the longer one may be.
    """

    network: nn.Module
    vocabulary: Vocabulary
    sides: tuple[int, int] = SIDES

    def prepare(self, nouns: Sequence[str]) -> Query:
        return self.vocabulary.prepare(nouns, "mask2former")

    def detect(
        self, images: Float[Tensor, "b 3 height width"], queries: Sequence[Query]
    ) -> Detections:
        classes, _ = stack_classes(queries, images.device)
        dtype = next(self.network.parameters()).dtype
        height, width = fit_sides(images.shape[-2], images.shape[-1], *self.sides)
        pixels = normalise(resize(images, (height, width)), IMAGENET)
        pixels = F.pad(pixels, (0, -width % SIZE_MULTIPLE, 0, -height % SIZE_MULTIPLE))
        found = self.network(pixel_values=pixels.to(dtype))
        inside, outside, present, boxes = [], [], [], []
        # One query's mask after the other: all of them at the size of a picture fill gigabytes.
        for masks in found.masks_queries_logits.float().split(1, 1):
            masks = F.interpolate(masks, pixels.shape[-2:], mode="bilinear")[..., :height, :width]
            masks = F.interpolate(masks, images.shape[-2:], mode="bilinear")[:, 0]
            certainty, doubt, any_pixel = mask_certainty(masks)
            inside.append(certainty)
            outside.append(doubt)
            present.append(any_pixel)
            boxes.append(mask_boxes(masks.detach() > 0))
        odds = softmax_log_odds(found.class_queries_logits.float(), classes)
        scores = product_log_odds(
            odds, torch.stack(inside, -1)[:, None], torch.stack(outside, -1)[:, None]
        )
        seen = torch.stack(present, -1)[:, None]
        return Detections(torch.where(seen, scores, -torch.inf), torch.stack(boxes, 1))


def mask_certainty(
    masks: Float[Tensor, "b h w"],
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"], Bool[Tensor, " b"]]:
    """How sure a mask is of its own pixels, those with a logit above 0: the mean of their probabilities.

    Returns:
        the logarithm of that mean, in [log 0.5, 0]; the logarithm of 1 minus it; and where a mask has any
        pixel at all (without one both logarithms are 0).
    """
    own = ~(masks.detach() <= 0)  # with what is no number, so that the read-out can tell of it
    count = own.sum((-2, -1))
    means = [
        (torch.sigmoid(sign * masks) * own).sum((-2, -1)) / count.clamp_min(1) for sign in (1, -1)
    ]
    # The floor keeps the gradient finite where every pixel is certain in single precision.
    certainty, doubt = (torch.where(count > 0, mean.clamp_min(1e-30), 1.0).log() for mean in means)
    return certainty, doubt, count > 0


def product_log_odds(
    odds: Float[Tensor, "b k c"], certainty: Float[Tensor, "b 1 c"], doubt: Float[Tensor, "b 1 c"]
) -> Float[Tensor, "b k c"]:
    """log(s / (1 - s)) of a score s that is the product of a class's and a mask's probability.

    Args:
        odds: log(p / (1 - p)) of the class's probability p.
        certainty: log q of the mask's mean probability q.
        doubt: log(1 - q).
    """
    sure = F.logsigmoid(odds)
    return sure + certainty - torch.logaddexp(F.logsigmoid(-odds), sure + doubt)


def mask_boxes(masks: Bool[Tensor, "b h w"]) -> Float[Tensor, "b 4"]:
    """Corners x0 y0 x1 y1 in pixels around each mask; zeros where it is empty."""
    sides = []
    for other, length in ((-2, masks.shape[-1]), (-1, masks.shape[-2])):
        used = masks.to(torch.uint8).amax(other)  # many times as fast as any() of booleans
        first, last = (line.argmax(-1) for line in (used, used.flip(-1)))
        sides.append((first, torch.where(used.amax(-1) > 0, length - last, 0)))
    (left, right), (top, bottom) = sides
    return torch.stack([left, top, right, bottom], -1).float()


@global_settings_kept()
def load(
    name: str,
    source: str | Path | None = None,
    *,
    sides: tuple[int, int] = SIDES,
    revision: str | None = None,
    local_files_only: bool = False,
    dtype: torch.dtype = torch.float32,
    **settings: Any,
) -> DetectionCritic:
    """GenEval's judge. Its card names the nouns of the checkpoint, as its config spells them.

    Args:
        source: hub id or folder; None for the card's hub id.
        sides: shorter and longest longer side of what the network sees, in pixels. The checkpoint's own
            processor squeezes everything to 384 x 384, which is not the published protocol.
        dtype: of the network; counts are float32.
        settings: of the read-out, in place of those in ``READ_OUT``; see ``critics.parts.readout.ReadOut``.

    Raises:
        CheckpointError: not found, damaged, weights of another model, or scipy, which the
            class needs, is not installed.
    """
    import transformers

    read_out = READ_OUT.changed(**settings)
    source, options = resolve_source(CARDS[name], source, revision, local_files_only)
    config = load_part(transformers.AutoConfig, source, **options)
    if config.model_type != "mask2former":
        raise CheckpointError(
            f"{source} holds a model of the type {config.model_type!r}, but a mask2former is needed; "
            "name another checkpoint or another critic"
        )
    try:
        cls = transformers.Mask2FormerForUniversalSegmentation
        # Class weights of the training loss, and positions that are computed anew: not in every checkpoint.
        ignore = (r"^criterion\.", r"relative_position_index$")
        network = load_model(cls, source, ignore=ignore, dtype=dtype, **options)
    except ImportError as error:
        raise CheckpointError(
            'Mask2Former needs scipy: install it, or countgen with the extra "eval"'
        ) from error
    vocabulary = Vocabulary.from_labels(config.id2label)
    card = CARDS[name].of(network, vocabulary=vocabulary.names, input_size=sides[0])
    detector = InstanceSegmenter(network, vocabulary, sides)
    return DetectionCritic(detector, card, read_out)
