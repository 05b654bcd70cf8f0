"""Intervals and tests are those of scipy and statsmodels."""

from __future__ import annotations

import numpy as np
import pytest

from countgen.evaluation.statistics import (
    bootstrap_by_prompt,
    bootstrap_ratio,
    mcnemar,
    resamples,
    sign_test,
    wilson,
)

scipy_stats = pytest.importorskip("scipy.stats")


def test_intervals_of_a_share_are_statsmodels() -> None:
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    for successes, trials in ((0, 5), (3, 7), (95, 100), (200, 200)):
        expected = proportion.proportion_confint(successes, trials, 0.05, "wilson")
        assert wilson(successes, trials) == pytest.approx(expected, abs=1e-6)
    assert wilson(0, 0) == (0.0, 1.0)


def test_exact_tests_are_statsmodels_and_scipys() -> None:
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    for first, second in ((0, 0), (5, 0), (9, 4), (30, 31)):
        expected = tables.mcnemar([[50, first], [second, 7]], exact=True).pvalue
        assert mcnemar(first, second) == pytest.approx(min(expected, 1.0), abs=1e-6)
    differences = [0.2, 0.4, 0.0, -0.2, 1.0, 0.6, 0.2]  # five up, one down, one tie
    assert sign_test(differences) == pytest.approx(2 * (1 + 6) / 2**6, abs=1e-9)


def test_the_bootstrap_is_scipys_on_the_same_resamples() -> None:
    groups = np.random.default_rng(1).random((23, 4))

    class SameResamples(np.random.Generator):
        """A generator that gives scipy the indices that we draw."""

        def integers(self, *_: object, **__: object) -> np.ndarray:
            return resamples(23, 500, 7)

    found = scipy_stats.bootstrap(
        (groups.mean(1),),
        np.mean,
        n_resamples=500,
        method="percentile",
        rng=SameResamples(np.random.PCG64()),
    )
    expected = (found.confidence_interval.low, found.confidence_interval.high)
    # Prompts with equally many pictures: the mean of the pictures is that of the prompts' means.
    assert bootstrap_by_prompt(groups.tolist(), 500, 7) == pytest.approx(expected, abs=1e-6)


def test_prompts_with_more_pictures_weigh_more() -> None:
    groups = [[1.0] * 9, [0.0]]
    low, high = bootstrap_by_prompt(groups, 4000)
    assert (low, high) == (0.0, 1.0)
    picks = resamples(2, 4000)
    sizes, sums = np.array([9, 1])[picks].sum(1), np.array([9, 0])[picks].sum(1)
    assert (sums / sizes).mean() == pytest.approx(0.25 * 0 + 0.25 * 1 + 0.5 * 0.9, abs=0.02)


def test_ratios_resample_both_sides_together() -> None:
    pairs = [([2.0 * x], [x]) for x in (1.0, 5.0, 30.0)]
    assert bootstrap_ratio(pairs) == (2.0, 2.0)
