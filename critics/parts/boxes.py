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
    """Greedy non-maximum suppression of boxes sorted by score, for a whole batch at once.

    A box stays if no stronger box that stays overlaps it. All are asked at once, until nothing changes
    (Zheng et al., arXiv 2005.03572): each round settles the next link of every chain of boxes that suppress
    one another, and such chains are short where boxes are many.
    """
    share = intersection_over_union(boxes[..., :, None, :], boxes[..., None, :, :])
    hits = (share > overlap).tril(-1)
    keep = possible
    while True:
        kept = possible & ~(hits & keep[..., None, :]).any(-1)
        if torch.equal(kept, keep):
            return kept
        keep = kept


def intersection_over_union(
    first: Float[Tensor, "*a 4"], second: Float[Tensor, "*b 4"]
) -> Float[Tensor, "*c"]:
    """IoU of boxes x0 y0 x1 y1, broadcast over the leading axes."""
    left, top, right, bottom = first.unbind(-1)
    other_left, other_top, other_right, other_bottom = second.unbind(-1)
    width = torch.minimum(right, other_right) - torch.maximum(left, other_left)
    height = torch.minimum(bottom, other_bottom) - torch.maximum(top, other_top)
    both = width.clamp_min(0) * height.clamp_min(0)
    area = (right - left) * (bottom - top)
    other_area = (other_right - other_left) * (other_bottom - other_top)
    return both / (area + other_area - both).clamp_min(1e-6)
