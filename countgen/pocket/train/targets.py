"""What each of pocket's counters is trained towards, from the true boxes of scenes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from countgen.pocket.scenes import Scene
from countgen.pocket.world import NAMES
from critics.density import blockwise
from critics.detectors import dense, heatmap


def heatmap_targets(scenes: Sequence[Scene], side: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """Gaussian peaks (b, k, h, w), box sides and their mask at the centres, and the number of objects."""
    cells = side // heatmap.STRIDE
    peaks = np.zeros((len(scenes), len(NAMES), cells, cells), np.float32)
    sides = np.zeros((len(scenes), 4, cells, cells), np.float32)
    mask = np.zeros((len(scenes), cells, cells), bool)
    grid = np.arange(cells, dtype=np.float32)
    for b, scene in enumerate(scenes):
        boxes = scene.boxes * (side / scene.image.shape[0])
        for box, label in zip(boxes, scene.labels, strict=True):
            centre, size = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
            column, row = (centre / heatmap.STRIDE).astype(int).clip(0, cells - 1)
            spread = np.maximum(0.15 * size / heatmap.STRIDE, 0.5)
            bell_x = np.exp(-0.5 * ((grid - column) / spread[0]) ** 2)
            bell_y = np.exp(-0.5 * ((grid - row) / spread[1]) ** 2)
            np.maximum(peaks[b, label], bell_y[:, None] * bell_x, out=peaks[b, label])
            at = (np.array([column, row]) + 0.5) * heatmap.STRIDE
            sides[b, :, row, column] = np.concatenate([at - box[:2], box[2:] - at])
            mask[b, row, column] = True
    total = float(sum(len(scene.labels) for scene in scenes))
    return torch.from_numpy(peaks), torch.from_numpy(sides), torch.from_numpy(mask), total


def block_counts(scenes: Sequence[Scene], side: int) -> Tensor:
    """(b, k, h, w) number of object centres in every block."""
    blocks = side // blockwise.STRIDE
    counts = np.zeros((len(scenes), len(NAMES), blocks, blocks), np.float32)
    for b, scene in enumerate(scenes):
        boxes = scene.boxes * (side / scene.image.shape[0])
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        at = (centres / blockwise.STRIDE).astype(int).clip(0, blocks - 1)
        np.add.at(counts[b], (scene.labels, at[:, 1], at[:, 0]), 1)
    return torch.from_numpy(counts)


def dense_targets(scenes: Sequence[Scene], side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Classes (b, k, h, w) and sides (b, 4, h, w) of cells near object centres; rims to be ignored."""
    cells = side // dense.STRIDE
    classes = np.zeros((len(scenes), len(NAMES), cells, cells), np.float32)
    sides = np.zeros((len(scenes), 4, cells, cells), np.float32)
    ignore = np.zeros((len(scenes), cells, cells), bool)
    at = (np.arange(cells) + 0.5) * dense.STRIDE
    for b, scene in enumerate(scenes):
        boxes = scene.boxes * (side / scene.image.shape[0])
        area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
        for i in np.argsort(-area):  # small ones last: they win shared cells
            x0, y0, x1, y1 = boxes[i]
            cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
            reach_x = max(0.22 * (x1 - x0), 0.51 * dense.STRIDE)
            reach_y = max(0.22 * (y1 - y0), 0.51 * dense.STRIDE)
            core = (np.abs(at - cy) <= reach_y)[:, None] & (np.abs(at - cx) <= reach_x)
            inside = ((at > y0) & (at < y1))[:, None] & ((at > x0) & (at < x1))
            rim = inside & ~core & (classes[b].max(0) == 0)
            ignore[b] |= rim
            ignore[b] &= ~core
            classes[b][:, core] = 0
            classes[b, scene.labels[i]][core] = 1
            left = np.stack(
                np.broadcast_arrays(
                    at[None] - x0, at[:, None] - y0, x1 - at[None], y1 - at[:, None]
                )
            )
            sides[b][:, core] = left[:, core]
    return torch.from_numpy(classes), torch.from_numpy(sides), torch.from_numpy(ignore)
