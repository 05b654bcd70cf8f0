"""CLIP's residual networks as maps of features, with the names of OpenAI's files, so that weights load as is.

CLIP (Radford et al., arXiv 2103.00020) changed the ResNet in three places: a stem of three convolutions,
average pooling in place of strides, and attention in place of the last pooling. That last layer sees whole
pictures of one size and is left out here.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class Bottleneck(nn.Module):
    """Convolutions of 1x1, 3x3 and 1x1 around a shortcut, and pooling where the stride is more than 1."""

    def __init__(self, inputs: int, width: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.pool = nn.AvgPool2d(stride)
        self.downsample = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.downsample.append(nn.Conv2d(inputs, outputs, 1, bias=False))
            self.downsample.append(nn.BatchNorm2d(outputs))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d hh ww"]:
        seen = F.relu(self.bn1(self.conv1(x)))
        seen = self.pool(F.relu(self.bn2(self.conv2(seen))))
        return F.relu(self.bn3(self.conv3(seen)) + self.downsample(self.pool(x)))


class ClipResNet(nn.Module):
    """Features of normalised pictures, 32 times the width of the stem.

    Args:
        layers: blocks of the four stages: (3, 4, 6, 3) for a ResNet-50.
        width: channels that the stem ends with; 64 for a ResNet-50.
        stride: in pixels; 32, as trained, or 16, where the last stage keeps the size of its input.
    """

    def __init__(self, layers: Sequence[int], width: int, stride: int) -> None:
        super().__init__()
        if len(layers) != 4 or stride not in (16, 32):
            raise ValueError(
                f"a CLIP ResNet has 4 stages and a stride of 16 or 32, not {layers}, {stride}"
            )
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(width // 2), nn.BatchNorm2d(width // 2)
        self.bn3 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, layers[0], 1)
        self.layer2 = _stage(4 * width, 2 * width, layers[1], 2)
        self.layer3 = _stage(8 * width, 4 * width, layers[2], 2)
        self.layer4 = _stage(16 * width, 8 * width, layers[3], stride // 16)
        self.channels, self.stride = 32 * width, stride

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c hh ww"]:
        x = F.relu(self.bn1(self.conv1(pixels)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.avg_pool2d(F.relu(self.bn3(self.conv3(x))), 2)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


def _stage(inputs: int, width: int, depth: int, stride: int) -> nn.Sequential:
    blocks = [Bottleneck(inputs, width, 4 * width, stride)]
    blocks += [Bottleneck(4 * width, width, 4 * width) for _ in range(depth - 1)]
    return nn.Sequential(*blocks)
