"""A small residual network with a top-down pyramid: the body of critics that are trained from scratch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


def conv(inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    """Convolution, batch norm, SiLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.SiLU(),
    )


class Residual(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = conv(width, width)
        self.second = nn.Sequential(
            nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x + self.second(self.first(x)))


class Pyramid(nn.Module):
    """Features at one stride that have seen the whole picture.

    ``widths[i]`` channels at stride ``first * 2**i`` on the way down, ``depths[i]`` residual blocks
    each; on the way up the maps are added until the one at stride ``first * 2**stop`` is reached.
    """

    def __init__(
        self,
        widths: Sequence[int],
        depths: Sequence[int],
        out: int,
        first: int = 1,
        stop: int = 1,
    ) -> None:
        super().__init__()
        self.stop = stop
        stages: list[nn.Module] = []
        inputs = 3
        for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            stride = first if i == 0 else 2
            blocks = [Residual(width) for _ in range(depth)]
            stages.append(nn.Sequential(conv(inputs, width, stride), *blocks))
            inputs = width
        self.stages = nn.ModuleList(stages)
        self.laterals = nn.ModuleList(nn.Conv2d(width, out, 1) for width in widths[stop:])
        self.smooths = nn.ModuleList(conv(out, out) for _ in widths[stop:-1])

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c hh ww"]:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        merged = self.laterals[-1](maps[-1])
        for i in reversed(range(len(self.smooths))):
            fine = self.laterals[i](maps[self.stop + i])
            merged = self.smooths[i](fine + F.interpolate(merged, fine.shape[-2:], mode="nearest"))
        return merged


def resize(images: Float[Tensor, "b 3 h w"], side: int) -> Float[Tensor, "b 3 side side"]:
    """Squeeze to a square, with antialiasing: no crop, which would change the count."""
    if images.shape[-2:] == (side, side):
        return images
    images = images.to(torch.float32)  # antialiasing has no half-precision kernel on a CPU
    return F.interpolate(images, (side, side), mode="bilinear", antialias=True, align_corners=False)


def normalise(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """[0, 1] to [-1, 1], computed in float32."""
    return images.to(torch.float32) * 2 - 1
