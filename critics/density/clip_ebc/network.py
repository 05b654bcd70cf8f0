"""CLIP-EBC's network: a CLIP image encoder whose blocks are compared with CLIP's embeddings of sentences.

After CLIP-EBC (Ma, Sanchez, Guha, arXiv 2403.09281) and its authors' code. Two image encoders, each as
published: a ViT, frozen, with learned tokens in front of every layer (deep visual prompt tuning, arXiv
2203.12119), on modules of ``transformers``; and CLIP's ResNet, whose last stage keeps its size. Their
features are resampled to one a block, go through residual blocks and a projection, and are compared with
sentences.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from critics.parts.clip_resnet import Bottleneck, ClipResNet

Numerals = Literal["words", "digits"]
NWPU_ANCHORS = (0.0, 1.0, 2.0, 3.0, 4.21931)
"""Mean count of each bin in its training set. Last ones of others: SHA 4.29992, SHB 4.41009, QNRF 4.21937."""


@dataclasses.dataclass(frozen=True)
class ClipEbcConfig:
    """What the weights do not say.

    Attributes:
        vision: of a ViT: fields of ``transformers.CLIPVisionConfig``, ``image_size`` being its window. Of a
            ResNet: ``layers`` and ``width`` of ``critics.parts.clip_resnet.ClipResNet``, ``decoder``, the
            channels of the blocks after it, and ``image_size``, the least that pictures' shorter sides have.
        text: fields of ``transformers.CLIPTextConfig``; ``projection_dim`` is shared with the picture.
        prompt_tokens: learned tokens in front of every layer of a ViT; 0: none.
        block: side in pixels of the block that is classified.
        anchors: mean count of each bin; the last bin stands for its number and everything above.
        numerals: whether the sentences have "two" or "2".
        subject: "people": the published sentences; "noun": the noun that is asked for takes their place.
    """

    vision: dict[str, Any]
    text: dict[str, Any]
    prompt_tokens: int = 32
    block: int = 8
    anchors: tuple[float, ...] = NWPU_ANCHORS
    subject: Literal["people", "noun"] = "people"
    backbone: Literal["vit", "resnet"] = "vit"
    numerals: Numerals = "words"

    def __post_init__(self) -> None:
        for what, given, known in (
            ("subject", self.subject, ("people", "noun")),
            ("backbone", self.backbone, ("vit", "resnet")),
            ("kind of numerals", self.numerals, ("words", "digits")),
        ):
            if given not in known:
                raise ValueError(f"a {what} is {' or '.join(map(repr, known))}, not {given!r}")
        if len(self.anchors) < 3 or self.prompt_tokens < 0:
            raise ValueError(
                "three anchors at least are needed (none, one, more), and no fewer than 0 tokens"
            )
        if self.block < 1 or self.window < 1 or self.window % self.block:
            raise ValueError(
                f"a window of {self.window} pixels has no whole number of blocks of {self.block} pixels"
            )

    @property
    def window(self) -> int:
        return int(self.vision["image_size"])


class ClipEbcNetwork(nn.Module):
    """Pictures to logits of every count bin in every block, and sentences to what they are compared with."""

    def __init__(self, config: ClipEbcConfig) -> None:
        super().__init__()
        from transformers import CLIPTextConfig, CLIPTextModelWithProjection

        self.config = config
        self.text_encoder = CLIPTextModelWithProjection(CLIPTextConfig(**config.text))
        self.image_encoder: PromptedViT | ClipResNet
        if config.backbone == "vit":
            self.image_encoder = PromptedViT(config.vision, config.prompt_tokens)
            width = self.image_encoder.channels
            self.image_decoder = nn.Sequential(_ResidualBlock(width))
        else:
            vision = config.vision
            stride = 16 if config.block <= 16 else 32
            self.image_encoder = ClipResNet(vision["layers"], vision["width"], stride)
            widths = [self.image_encoder.channels, *vision["decoder"]]
            self.image_decoder = nn.Sequential(
                *(Bottleneck(a, b, b) for a, b in itertools.pairwise(widths))
            )
            width = widths[-1]
        embedding = self.text_encoder.config.projection_dim
        self.projection = nn.Conv2d(width, embedding, 1) if width != embedding else nn.Identity()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def encode_text(
        self, ids: Int64[Tensor, "n t"], attended: Int64[Tensor, "n t"]
    ) -> Float[Tensor, "n d"]:
        """Unit vectors of sentences, from their token ids and attention mask."""
        found = self.text_encoder(input_ids=ids, attention_mask=attended).text_embeds
        return F.normalize(found, dim=-1)

    def features(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d hh ww"]:
        """Unit vectors of the blocks of normalised pictures: a ViT's have the size of its window, a ResNet's
        any that its stride and the block divide."""
        grid = self.image_encoder(pixels)
        blocks = (pixels.shape[-2] // self.config.block, pixels.shape[-1] // self.config.block)
        if blocks != tuple(grid.shape[-2:]):
            grid = F.interpolate(grid, blocks, mode="bilinear", align_corners=False)
        return F.normalize(self.projection(self.image_decoder(grid)), dim=1)

    def forward(
        self, pixels: Float[Tensor, "b 3 h w"], sentences: Float[Tensor, "b k n d"]
    ) -> Float[Tensor, "b k n hh ww"]:
        """Logits of the count bins of every noun: scaled cosines of blocks and sentences."""
        cosines = torch.einsum("bdhw,bknd->bknhw", self.features(pixels), sentences)
        return cosines * self.logit_scale.exp()


class PromptedViT(nn.Module):
    """CLIP's ViT with learned tokens of its own in front of every layer; the map of its patches."""

    def __init__(self, fields: Mapping[str, Any], tokens: int) -> None:
        super().__init__()
        from transformers import CLIPVisionConfig, CLIPVisionModel

        config = CLIPVisionConfig(**fields)
        self.vit = CLIPVisionModel(config)
        self.channels, self.stride, self.tokens = config.hidden_size, config.patch_size, tokens
        spread = math.sqrt(6 / (3 * config.patch_size + config.hidden_size))
        shape = (config.num_hidden_layers, tokens, config.hidden_size)
        self.prompts = nn.Parameter(torch.empty(shape).uniform_(-spread, spread))

    def forward(self, pixels: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b c hh hh"]:
        hidden = self.vit.pre_layrnorm(self.vit.embeddings(pixels))
        for prompt, layer in zip(self.prompts, self.vit.encoder.layers, strict=True):
            # Every layer sees tokens of its own; what it made of them is dropped.
            prompted = [hidden[:, :1], prompt.expand(len(hidden), -1, -1), hidden[:, 1:]]
            hidden = layer(torch.cat(prompted, 1), None)
            hidden = torch.cat([hidden[:, :1], hidden[:, 1 + self.tokens :]], 1)
        patches = self.vit.post_layernorm(hidden)[:, 1:]
        side = math.isqrt(patches.shape[1])
        return patches.mT.unflatten(-1, (side, side))


class _ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; named as in the published files."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
