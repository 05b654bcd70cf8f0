"""Intervals for shares."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int


def wilson(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95% interval of a share of independent trials; (0, 1) where there are none."""
    if trials == 0:
        return 0.0, 1.0
    share = successes / trials
    centre = share + z * z / (2 * trials)
    spread = z * (share * (1 - share) / trials + z * z / (4 * trials * trials)) ** 0.5
    scale = 1 + z * z / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def resamples(n: int, rounds: int = 2000, seed: int = 0) -> Int[np.ndarray, "rounds n"]:
    """Which of n prompts each round of the bootstrap takes: as many as there are, with repetition."""
    return np.random.default_rng(seed).integers(n, size=(rounds, n))


def bootstrap_by_prompt(
    groups: Sequence[Sequence[float]], rounds: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95% interval of a mean over pictures that resamples prompts, each with all its pictures."""
    sums = np.array([sum(g) for g in groups], dtype=float)
    sizes = np.array([len(g) for g in groups], dtype=float)
    picks = resamples(len(groups), rounds, seed)
    means = sums[picks].sum(1) / sizes[picks].sum(1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def bootstrap_ratio(
    pairs: Sequence[tuple[Sequence[float], Sequence[float]]], rounds: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95% interval of the ratio of two means over pictures that resamples prompts, both sides together."""
    sums = np.array([[sum(first), sum(second)] for first, second in pairs], dtype=float)
    sizes = np.array([[len(first), len(second)] for first, second in pairs], dtype=float)
    picks = resamples(len(pairs), rounds, seed)
    means = sums[picks].sum(1) / sizes[picks].sum(1)
    low, high = np.percentile(means[:, 0] / means[:, 1], (2.5, 97.5))
    return float(low), float(high)
