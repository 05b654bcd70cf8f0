"""Boxes of detectors: from cells to corners, overlap, and suppression of duplicates."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def cell_boxes(sides: Float[Tensor, "b 4 h w"], stride: int) -> Float[Tensor, "b 4 h w"]:
    """Corner coordinates in pixels from the distances to the four sides."""
    rows = (torch.arange(sides.shape[-2], device=sides.device) + 0.5) * stride
    columns = (torch.arange(sides.shape[-1], device=sides.device) + 0.5) * stride
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    centre = torch.stack([x, y])
    return torch.cat([centre - sides[:, :2], centre + sides[:, 2:]], 1)


def suppress(
    boxes: Float[Tensor, "*batch c 4"], possible: Bool[Tensor, "*batch c"], overlap: float
) -> Bool[Tensor, "*batch c"]:
    """Greedy non-maximum suppression of boxes sorted by score, for a whole batch at once."""
    share = intersection_over_union(boxes[..., :, None, :], boxes[..., None, :, :])
    hits = share > overlap
    keep = possible.clone()
    last = int(possible.flatten(0, -2).any(0).nonzero().max()) if possible.any() else 0
    for i in range(1, last + 1):
        keep[..., i] &= ~(hits[..., i, :i] & keep[..., :i]).any(-1)
    return keep


def intersection_over_union(
    first: Float[Tensor, "*a 4"], second: Float[Tensor, "*b 4"]
) -> Float[Tensor, "*c"]:
    """IoU of boxes x0 y0 x1 y1, broadcast over the leading axes."""
    low = torch.maximum(first[..., :2], second[..., :2])
    high = torch.minimum(first[..., 2:], second[..., 2:])
    both = (high - low).clamp_min(0).prod(-1)
    areas = (first[..., 2:] - first[..., :2]).prod(-1) + (second[..., 2:] - second[..., :2]).prod(
        -1
    )
    return both / (areas - both).clamp_min(1e-6)
