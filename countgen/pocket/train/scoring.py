"""How well a counter counts scenes that it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from countgen.pocket.scenes import Scene, SceneSpec, compose, sample_spec
from countgen.pocket.train.scenery import pixels
from countgen.pocket.world import NAMES, SIZE
from critics.base import Critic, Query

Counts = Sequence[tuple[str, int]]
"""Nouns and how many of each."""
HELD_OUT = 7_000_000
"""Seeds of held-out scenes start here; training seeds are drawn from 2**62, calibration from below."""


def held_out_scenes(
    count: int, first_seed: int, total: tuple[int, int]
) -> list[tuple[SceneSpec, Scene]]:
    """Scenes in the generator's style with ``total`` objects (lowest, highest), of one to three kinds."""
    found: list[tuple[SceneSpec, Scene]] = []
    seed = first_seed
    while len(found) < count:
        spec = sample_spec(np.random.default_rng(seed))
        if total[0] <= spec.total <= total[1]:
            found.append((spec, compose(spec, seed)))
        seed += 1
    return found


def exact_share(
    critic: Critic,
    scenes: Sequence[tuple[SceneSpec, Scene]],
    images: Tensor | None = None,
    batch: int = 64,
) -> dict[str, float]:
    """Share of scenes in which every named noun is counted exactly, mean absolute error, mean bias.

    ``images`` (n, 3, h, w) are counted instead of the scenes' own pictures, where given.
    """
    images = pixels([scene for _, scene in scenes], SIZE) if images is None else images
    return exact_counts(critic, [spec.counts for spec, _ in scenes], images, batch)


def exact_counts(
    critic: Critic, wanted: Sequence[Counts], images: Tensor, batch: int = 64
) -> dict[str, float]:
    right, errors = 0, []
    for start in range(0, len(wanted), batch):
        part = wanted[start : start + batch]
        queries = [critic.prepare([noun for noun, _ in counts]) for counts in part]
        hard = _count(critic, images[start : start + batch], queries)
        for i, counts in enumerate(part):
            true = np.array([count for _, count in counts])
            error = hard[i, : len(true)].numpy() - true
            right += bool((error == 0).all())
            errors += error.tolist()
    return {
        "exact": right / len(wanted),
        "mae": float(np.abs(errors).mean()),
        "bias": float(np.mean(errors)),
    }


def _count(critic: Critic, images: Tensor, queries: Sequence[Query]) -> Tensor:
    """Hard counts, on whatever device the critic's network lives."""
    network = critic.network
    device = next(network.parameters()).device
    with torch.no_grad():
        return critic(images.to(device), queries).hard.cpu()


def scores(critic: Critic, count: int, seed: int = HELD_OUT) -> dict[str, Any]:
    """Held-out scores up to 10 and up to 20 objects, and what absent nouns are counted as."""
    small = held_out_scenes(count, seed, (1, 10))
    large = held_out_scenes(count, seed + 500_000, (11, 20))
    ghosts = []
    for start in range(0, len(small), 64):
        part = small[start : start + 64]
        absent = [[n for n in NAMES if n not in dict(spec.counts)][:8] for spec, _ in part]
        images = pixels([scene for _, scene in part], SIZE)
        hard = _count(critic, images, [critic.prepare(nouns) for nouns in absent])
        ghosts.append(hard.float().mean())
    return {
        "up_to_10": exact_share(critic, small),
        "11_to_20": exact_share(critic, large),
        "absent_nouns": float(torch.stack(ghosts).mean()),
    }


def brief(result: dict[str, Any]) -> str:
    low, high = result["up_to_10"], result["11_to_20"]
    return (
        f"exact {low['exact']:.1%} up to 10, {high['exact']:.1%} up to 20; "
        f"bias {low['bias']:+.3f}, {high['bias']:+.3f}; absent {result['absent_nouns']:.3f}"
    )
