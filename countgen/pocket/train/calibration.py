"""Settings of a trained counter's read-out, chosen by what counts most calibration pictures exactly."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from countgen.pocket.captions import caption
from countgen.pocket.scenes import Scene, SceneSpec, compose, sample_spec
from countgen.pocket.train.autoencoder import LATENT_CHANNELS, STYLE
from countgen.pocket.train.scenery import REDRAWN_FROM, CountedPictures, Renderer, pixels
from countgen.pocket.train.scoring import exact_counts, held_out_scenes
from countgen.pocket.world import SIZE
from critics.detectors.base import DetectionCritic


def probability(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


THRESHOLDS = tuple(probability(round(-1.6 + 0.2 * i, 2)) for i in range(17))
TEMPERATURES = tuple(round(0.4 + 0.05 * i, 2) for i in range(19))
OVERLAPS = (0.2, 0.3, 0.4, 0.5)


def calibrate(
    critic: Any,
    settings: Mapping[str, Sequence[float]],
    renderer: Renderer | None,
    pictures: CountedPictures,
    held_out: int,
) -> None:
    """Set a critic's settings to what counts most calibration pictures exactly; the middle of equals.

    They are of three sorts that weigh alike: scenes as composed, scenes redrawn by the generator with up to
    a fifth of overlap (two fifths of ``held_out`` each), and pictures counted by eye.
    """
    count = max(1, held_out * 2 // 5)
    plain = held_out_scenes(count, 5_000_000, (1, 20))
    scenes = [(plain, pixels([scene for _, scene in plain], SIZE))]
    if renderer:
        scenes.append(_redrawn_scenes(renderer, count))
    sets = [([spec.counts for spec, _ in part], images) for part, images in scenes]
    by_eye = [tuple(row["counts"].items()) for row in pictures.rows[:held_out]]
    sets.append((by_eye, pictures.pictures[:held_out]))
    # The settings are of the read-out alone, so the network answers once and its answers are read again.
    holder: Any = critic.detector if isinstance(critic, DetectionCritic) else critic
    network, holder.network = holder.network, _Replay(holder.network)
    grid = list(itertools.product(*settings.values()))
    shares = []
    for values in grid:
        _set(critic, dict(zip(settings, values, strict=True)))
        holder.network.rewind()
        shares.append(sum(exact_counts(critic, *part)["exact"] for part in sets) / len(sets))
    best = [
        values for values, share in zip(grid, shares, strict=True) if share >= max(shares) - 0.002
    ]
    _set(critic, dict(zip(settings, map(float, best[len(best) // 2]), strict=True)))
    holder.network = network


def calibrated(critic: DetectionCritic) -> dict[str, Any]:
    """What ``calibrate`` sets, as a detector's config.json has it."""
    return {"threshold": critic.read_out.threshold, "overlap": critic.read_out.overlap}


def _set(critic: Any, settings: Mapping[str, float]) -> None:
    if isinstance(critic, DetectionCritic):
        critic.read_out = critic.read_out.changed(**settings)
        return
    for name, value in settings.items():
        setattr(critic, name, value)


class _Replay(nn.Module):
    """A network that, once rewound, gives the same answers in the same order without computing."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._answers: list[Any] = []
        self._next = 0

    def rewind(self) -> None:
        self._next = 0

    def forward(self, images: Tensor) -> Any:
        if self._next == len(self._answers):
            self._answers.append(self.network(images))
        self._next += 1
        return self._answers[self._next - 1]


def _redrawn_scenes(renderer: Renderer, count: int) -> tuple[list[tuple[SceneSpec, Scene]], Tensor]:
    rng, noise = np.random.default_rng(5_500_000), torch.Generator().manual_seed(5_500_000)
    device = renderer.pipeline.unet.device
    scenes, images = [], []
    for start in range(0, count, 32):
        specs = [sample_spec(rng) for _ in range(min(32, count - start))]
        part = [
            compose(
                spec,
                int(rng.integers(2**62)),
                dataclasses.replace(STYLE, max_overlap=float(rng.uniform(0.0, 0.2))),
            )
            for spec in specs
        ]
        begin = torch.from_numpy(rng.uniform(*REDRAWN_FROM, len(specs)).astype(np.float32))
        epsilon = torch.randn(len(specs), LATENT_CHANNELS, SIZE // 4, SIZE // 4, generator=noise)
        texts = [caption(spec, rng) for spec in specs]
        small = pixels(part, SIZE).to(device)
        images.append(renderer.redraw(small, texts, begin.to(device), epsilon.to(device), 3).cpu())
        scenes += list(zip(specs, part, strict=True))
    return scenes, torch.cat(images)
