"""The plan of the pictures to be labelled, and the intervals that benchmarks report."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks.pocket_labels import plan
from benchmarks.statistics import bootstrap_by_prompt, wilson
from countgen.pocket import unknown_words
from countgen.pocket.world import MAX_OBJECTS


def test_the_plan_spreads_over_counts_and_kinds_and_does_not_change() -> None:
    rows = plan()
    assert rows == plan() and len(rows) >= 300
    assert len({row["id"] for row in rows}) == len({row["seed"] for row in rows}) == len(rows)
    assert Counter(row["kinds"] for row in rows) == {1: 200, 2: 70, 3: 50}
    single = Counter(sum(row["asked"].values()) for row in rows if row["kinds"] == 1)
    assert single == {n: 10 for n in range(1, 21)}
    for row in rows:
        assert sum(row["asked"].values()) <= MAX_OBJECTS and not unknown_words(row["prompt"])


def test_intervals_hold_their_share() -> None:
    low, high = wilson(95, 100)
    assert low == pytest.approx(0.8882, abs=1e-3) and high == pytest.approx(0.9785, abs=1e-3)
    assert wilson(0, 0) == (0.0, 1.0) and wilson(10, 10)[1] == 1.0
    low, high = bootstrap_by_prompt([[0, 0, 0], [1, 1, 1]] * 50)
    assert 0.39 < low < 0.45 and 0.55 < high < 0.61
    assert bootstrap_by_prompt([[1, 1]] * 5) == (1.0, 1.0)
