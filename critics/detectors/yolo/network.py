"""ultralytics' detection models as plain modules: letterboxed pictures in, logits and boxes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from critics.parts.boxes import cell_boxes

PADDING = 114 / 255


@dataclass(frozen=True)
class Letterbox:
    """How a picture is put on the network's canvas, as ultralytics' ``LetterBox`` does for its predictor.

    The longer side becomes ``side``, whatever it was; grey (114 / 255) then pads both sides to multiples of
    the network's stride, half of it before the picture, rounded down. Bilinear without antialiasing, as in
    OpenCV.

    Attributes:
        size: height and width of the picture on the canvas.
        before: rows above it and columns to the left of it.
        canvas: height and width of the canvas.
    """

    size: tuple[int, int]
    before: tuple[int, int]
    canvas: tuple[int, int]

    @classmethod
    def of(cls, height: int, width: int, side: int, stride: int) -> Letterbox:
        scale = min(side / height, side / width)
        sizes = [max(round(height * scale), 1), max(round(width * scale), 1)]
        pads = [(side - size) % stride for size in sizes]
        return cls(
            (sizes[0], sizes[1]),
            (pads[0] // 2, pads[1] // 2),
            (sizes[0] + pads[0], sizes[1] + pads[1]),
        )

    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 hh ww"]:
        """The canvases, in float32."""
        images = images.float()
        if tuple(images.shape[-2:]) != self.size:
            images = F.interpolate(images, self.size, mode="bilinear", align_corners=False)
        (top, left), (height, width) = self.before, self.size
        bottom, right = self.canvas[0] - height - top, self.canvas[1] - width - left
        return F.pad(images, (left, right, top, bottom), value=PADDING)

    def back(
        self, boxes: Float[Tensor, "b c 4"], images: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, "b c 4"]:
        """Boxes from pixels of the canvas to pixels of the images."""
        (top, left), (height, width) = self.before, self.size
        scale = boxes.new_tensor([images.shape[-1] / width, images.shape[-2] / height] * 2)
        return (boxes - boxes.new_tensor([left, top] * 2)) * scale


class YoloNetwork(nn.Module):
    """A model of ultralytics and, where it is asked in words, the text encoder that goes with it.

    Args:
        model: ``DetectionModel`` or a model of one of its subclasses, in evaluation.
        text: ``CLIPTextModelWithProjection`` of ``transformers``; None for a closed vocabulary.
        keyword: by which the model takes text embeddings.
    """

    def __init__(self, model: Any, text: nn.Module | None = None, keyword: str = "") -> None:
        super().__init__()
        self.model, self.text, self.keyword = model, text, keyword
        # The head keeps the anchors of the last shape, and could not use those that it made in inference mode
        # for a gradient; "dynamic" has it make them anew.
        self.head.dynamic = True

    @property
    def head(self) -> Any:
        return self.model.model[-1]

    @property
    def stride(self) -> int:
        """What sides of a canvas are multiples of."""
        return int(self.model.stride.max())

    @property
    def single(self) -> bool:
        """Whether the model has a branch that gives every object one box."""
        return getattr(self.head, "one2one_cv2", None) is not None

    @property
    def width(self) -> int:
        """Length of the text embeddings that the head compares its cells with."""
        width: int = self.head.cv3[0][-1].out_channels
        return width

    def forward(
        self, pixels: Float[Tensor, "b 3 h w"], text: Float[Tensor, "b n d"] | None = None
    ) -> tuple[Float[Tensor, "b n a"], Float[Tensor, "b a 4"]]:
        """Logits of every class, or noun, with gradient, and the boxes in pixels of the canvas, without."""
        words = {}
        if text is not None:
            words[self.keyword] = text
            self.head.nc = text.shape[1]  # YOLO-World splits its output by it
        found = self.model(pixels, **words)[1]
        branch = found["one2one"] if self.single else found
        return branch["scores"], self._boxes(branch)

    @torch.no_grad()
    def _boxes(self, branch: Mapping[str, Any]) -> Tensor:
        """From distances to a cell's four sides, in cells, to corners in pixels of the canvas."""
        shapes = [tuple(features.shape[-2:]) for features in branch["feats"]]
        distances = self.head.dfl(branch["boxes"]).float()
        levels = distances.split([rows * columns for rows, columns in shapes], -1)
        strides = (int(stride) for stride in self.model.stride)
        corners = [
            cell_boxes(level.unflatten(-1, shape) * stride, stride).flatten(2)
            for level, shape, stride in zip(levels, shapes, strides, strict=True)
        ]
        return torch.cat(corners, -1).transpose(1, 2)
