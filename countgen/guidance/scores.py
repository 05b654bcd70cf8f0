"""How well a picture fits its text, with gradient: the semantic term beside the count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from critics.parts.preprocess import CLIP, normalise, resize

Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]


@dataclass
class ClipScore:
    """(1 + cosine of a CLIP's embeddings of picture and text) / 2.

    Attributes:
        model: ``transformers.CLIPModel``.
        tokenizer: its own.
        statistics: mean and deviation that pictures are normalised with.
    """

    model: Any
    tokenizer: Any
    name: str = "clip"
    statistics: Statistics = CLIP

    def to(self, device: str | torch.device) -> ClipScore:
        self.model.to(device)
        return self

    def prepare(self, text: str) -> Float[Tensor, " d"]:
        """The text's embedding, of unit length; what is longer than the model reads is cut."""
        device = next(self.model.parameters()).device
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(
            text, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        with torch.inference_mode(False), torch.no_grad():
            # Padded and without a mask, as CLIPs are trained.
            found = self.model.get_text_features(input_ids=tokens["input_ids"].to(device))
            return F.normalize(_pooled(found), dim=-1)[0].clone()

    def __call__(
        self, images: Float[Tensor, "b 3 h w"], texts: Sequence[Float[Tensor, " d"]]
    ) -> Float[Tensor, " b"]:
        return self.compare(self.embed(self.shrink(images)), texts)

    def shrink(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 s s"]:
        """At the size that the model sees, still in [0, 1]."""
        side = self.model.config.vision_config.image_size
        return resize(images, (side, side), "bicubic")

    def embed(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b d"]:
        """Embeddings of pictures at the model's size, of unit length."""
        weight = next(self.model.parameters())
        pixels = normalise(images, self.statistics)
        found = self.model.get_image_features(pixel_values=pixels.to(weight.dtype))
        return F.normalize(_pooled(found).float(), dim=-1)

    def compare(
        self, seen: Float[Tensor, "b d"], texts: Sequence[Float[Tensor, " d"]]
    ) -> Float[Tensor, " b"]:
        """The scores of embedded pictures."""
        return (1 + (seen * torch.stack(list(texts)).to(seen)).sum(-1)) / 2


def _pooled(found: Any) -> Tensor:
    return found if isinstance(found, Tensor) else found.pooler_output


def pocket_score() -> ClipScore:
    """The small CLIP that comes with pocket, which sees pictures in [-1, 1]."""
    from countgen.pocket import load_clip

    model, tokenizer = load_clip()
    return ClipScore(model, tokenizer, "pocket-clip", ((0.5,) * 3, (0.5,) * 3))


def clip_score(source: str = "openai/clip-vit-base-patch32", **options: Any) -> ClipScore:
    """A CLIP of the hub or a folder.

    Raises:
        CheckpointError: weights or tokenizer that are missing, damaged or of another model.
    """
    from transformers import CLIPModel, CLIPTokenizer

    from critics.loading.hub import load_model, load_part

    model = load_model(CLIPModel, source, **options)
    return ClipScore(model, load_part(CLIPTokenizer, source, **options), source)
