"""Intervals and exact tests. Pictures of one prompt are alike, so what is resampled are prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

ROUNDS = 2000
"""Of the bootstrap."""


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share of independent trials; (0, 1) where there are none."""
    if trials == 0:
        return 0.0, 1.0
    from scipy.stats import binomtest

    found = binomtest(successes, trials).proportion_ci(0.95, "wilson")
    return float(found.low), float(found.high)


def mcnemar(first_only: int, second_only: int) -> float:
    """Exact two-sided p of McNemar's test.

    Args:
        first_only, second_only: pairs in which one side alone succeeded.
    """
    from scipy.stats import binomtest

    if first_only + second_only == 0:
        return 1.0
    return float(binomtest(first_only, first_only + second_only, 0.5).pvalue)


def sign_test(differences: Sequence[float]) -> float:
    """Exact two-sided p of the sign test; ties are left out.

    Args:
        differences: one value a prompt, so that the pictures of one prompt count once.
    """
    signs = np.sign(np.asarray(differences, dtype=float))
    return mcnemar(int((signs > 0).sum()), int((signs < 0).sum()))


def resamples(n: int, rounds: int = ROUNDS, seed: int = 0) -> Int[np.ndarray, "rounds n"]:
    """Which of n prompts each round of the bootstrap takes: as many as there are, with repetition."""
    return np.random.default_rng(seed).integers(n, size=(rounds, n))


def middle(values: Float[np.ndarray, " rounds"]) -> tuple[float, float]:
    """The middle 95% of a bootstrap's values."""
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def bootstrap_by_prompt(
    groups: Sequence[Sequence[float]], rounds: int = ROUNDS, seed: int = 0
) -> tuple[float, float]:
    """95% interval of a mean over pictures that resamples prompts, each with all its pictures."""
    sums = np.array([sum(g) for g in groups], dtype=float)
    sizes = np.array([len(g) for g in groups], dtype=float)
    picks = resamples(len(groups), rounds, seed)
    return middle(sums[picks].sum(1) / sizes[picks].sum(1))


def bootstrap_ratio(
    pairs: Sequence[tuple[Sequence[float], Sequence[float]]], rounds: int = ROUNDS, seed: int = 0
) -> tuple[float, float]:
    """95% interval of the ratio of two means over pictures that resamples prompts, both sides together."""
    sums = np.array([[sum(first), sum(second)] for first, second in pairs], dtype=float)
    sizes = np.array([[len(first), len(second)] for first, second in pairs], dtype=float)
    picks = resamples(len(pairs), rounds, seed)
    means = sums[picks].sum(1) / sizes[picks].sum(1)
    return middle(means[:, 0] / means[:, 1])
