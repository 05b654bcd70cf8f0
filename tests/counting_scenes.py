"""Composed scenes as tensors, to show that a counter trained for half a minute really counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from countgen.pocket.scenes import SceneSpec, SceneStyle, compose

NOUNS = ("red apple", "dog", "cat")
MOST = 10


@dataclass(frozen=True)
class Scenes:
    """A batch of 64x64 scenes, each with one kind of object.

    Attributes:
        images: (b, 3, 64, 64) in [0, 1].
        nouns: (b,) which of ``NOUNS`` each scene shows.
        boxes: of each scene, (n, 4) x0 y0 x1 y1 in pixels.
    """

    images: Tensor
    nouns: Tensor
    boxes: list[Tensor]

    @property
    def counts(self) -> Tensor:
        return torch.tensor([len(boxes) for boxes in self.boxes])

    @property
    def asked(self) -> tuple[Tensor, Tensor]:
        """(b,) a noun to ask for and (b,) whether it is there: in every other scene it is not."""
        rows = torch.arange(len(self.nouns))
        there = rows % 2 == 0
        others = (self.nouns + 1 + rows // 2 % (len(NOUNS) - 1)) % len(NOUNS)
        return torch.where(there, self.nouns, others), there

    def centres(self, cell: int) -> Tensor:
        """(b, k, 64 / cell, 64 / cell) how many objects of each noun have their centre in each cell."""
        side = self.images.shape[-1] // cell
        found = torch.zeros(len(self.boxes), len(NOUNS), side, side)
        for row, noun, boxes in zip(found, self.nouns, self.boxes, strict=True):
            x, y = (((boxes[:, :2] + boxes[:, 2:]) / 2 / cell).long().clamp(0, side - 1)).unbind(1)
            row[noun].index_put_((y, x), torch.ones(len(boxes)), accumulate=True)
        return found


def draw(count: int, seed: int, size: int = 64) -> Scenes:
    """Scenes of 0 to ``MOST`` objects; other seeds are other scenes."""
    rng = np.random.default_rng(seed)
    images, nouns, boxes = [], [], []
    for _ in range(count):
        noun = int(rng.integers(len(NOUNS)))
        spec = SceneSpec(((NOUNS[noun], int(rng.integers(MOST + 1))),))
        # Unrotated, so that the few variants of a sprite are soon all cached.
        style = SceneStyle(size=size, rotation=0.0)
        scene = compose(spec, int(rng.integers(2**62)), style)
        images.append(torch.from_numpy(scene.image).permute(2, 0, 1) / 255)
        nouns.append(noun)
        boxes.append(torch.from_numpy(scene.boxes))
    return Scenes(torch.stack(images), torch.tensor(nouns), boxes)


def train(
    network: nn.Module, loss: Callable[[Scenes], Tensor], steps: int, rate: float, batch: int = 16
) -> None:
    """AdamW with warm-up and decay on fresh scenes; leaves the network frozen in evaluation."""
    network.train().requires_grad_(True)
    optimiser = torch.optim.AdamW(network.parameters(), rate)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # operations this small only wait for each other on several
    try:
        for step in range(steps):
            share = min((step + 1) / 20, (steps - step) / (0.5 * steps), 1.0)
            optimiser.param_groups[0]["lr"] = rate * share
            optimiser.zero_grad()
            loss(draw(batch, 1000 + step)).backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
    finally:
        torch.set_num_threads(threads)
    network.eval().requires_grad_(False)


def errors(predicted: Tensor, counts: Tensor) -> tuple[float, float]:
    """Mean absolute error of the predictions, and that of the best constant, the median."""
    truth = counts.double()
    return (
        (predicted.double() - truth).abs().mean().item(),
        (truth - truth.median()).abs().mean().item(),
    )
