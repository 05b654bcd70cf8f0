"""What published processors do to a picture, as differentiable tensor operations.

Equal to the processors of ``transformers`` to 1e-4, except that those round to 8 bits after resizing where
they work on PIL images, and that centre crops are replaced by squeezing, since a crop changes the count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Mode = Literal["bilinear", "bicubic"]
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
"""Means and standard deviations of the channels."""


def resize(
    images: Float[Tensor, "b 3 h w"], size: tuple[int, int], mode: Mode = "bilinear"
) -> Float[Tensor, "b 3 hh ww"]:
    """To (height, width) with antialiasing, in float32, as PIL and torchvision do it.

    Bicubic interpolation overshoots; like an 8-bit picture, the result is clamped to [0, 1].
    """
    images = images.to(torch.float32)  # antialiasing has no half-precision kernel on a CPU
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    resized = F.interpolate(images, size, mode=mode, antialias=True, align_corners=False)
    # A flat white picture comes out at 1 give or take rounding, and must keep its gradient.
    return resized.clamp(-1e-5, 1 + 1e-5) if mode == "bicubic" else resized


def fit_sides(
    height: int, width: int, shorter: int, longer: int, size_multiple: int = 1
) -> tuple[int, int]:
    """Height and width with the shorter side as given, or less where the longer one would be too long.

    The aspect ratio is kept up to rounding: the free side is rounded down, as DETR's processor does, and then
    both down to a multiple, as that of YOLOS does. An image whose shorter side already fits stays as it is,
    except that YOLOS' processor, alone, computes the longer side anew for upright ones.
    """
    small, large = sorted((height, width))
    exact: float = shorter
    if large / small * shorter > longer:
        exact = longer * small / large
    short = round(exact)
    if small != short or (size_multiple > 1 and width < height):
        small, large = short, int(exact * large / small)
    small, large = (max(side - side % size_multiple, size_multiple) for side in (small, large))
    return (small, large) if height <= width else (large, small)


def normalise(
    images: Float[Tensor, "b 3 h w"], statistics: tuple[Sequence[float], Sequence[float]]
) -> Float[Tensor, "b 3 h w"]:
    """Subtract the channels' means and divide by their deviations, in float32."""
    mean, deviation = (images.new_tensor(s, dtype=torch.float32) for s in statistics)
    return (images.to(torch.float32) - mean[:, None, None]) / deviation[:, None, None]


def scale_boxes(
    boxes: Float[Tensor, "*n 4"], images: Float[Tensor, "b 3 h w"]
) -> Float[Tensor, "*n 4"]:
    """Relative centre x, centre y, width, height to corners in pixels of the images, without gradient."""
    centre, size = boxes.detach().float().split(2, -1)
    corners = torch.cat([centre - size / 2, centre + size / 2], -1)
    return corners * corners.new_tensor([images.shape[-1], images.shape[-2]] * 2)
