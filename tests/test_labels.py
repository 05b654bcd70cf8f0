"""The labelled pictures, their plan, and the intervals that benchmarks report."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

import benchmarks
from benchmarks.pocket_labels import load, plan, score
from benchmarks.statistics import bootstrap_by_prompt, wilson
from countgen.pocket import unknown_words
from countgen.pocket.world import MAX_OBJECTS

RESULTS = Path(benchmarks.__file__).parent / "results"


def test_the_plan_spreads_over_counts_and_kinds_and_does_not_change() -> None:
    rows = plan()
    assert rows == plan() and len(rows) >= 300
    assert len({row["id"] for row in rows}) == len({row["seed"] for row in rows}) == len(rows)
    assert Counter(row["kinds"] for row in rows) == {1: 200, 2: 70, 3: 50}
    single = Counter(sum(row["asked"].values()) for row in rows if row["kinds"] == 1)
    assert single == {n: 10 for n in range(1, 21)}
    for row in rows:
        assert sum(row["asked"].values()) <= MAX_OBJECTS and not unknown_words(row["prompt"])


def test_every_planned_picture_is_labelled_kind_by_kind() -> None:
    rows, pictures = load()
    planned = plan()
    assert len(rows) == len(planned) == len(pictures)
    for row, asked in zip(rows, planned, strict=True):
        assert {key: row[key] for key in asked} == asked
        assert row["counts"].keys() == row["asked"].keys()
        assert all(n is None or 0 <= n <= 40 for n in row["counts"].values())
    assert pictures.std((1, 2, 3)).min() > 0.01


def test_the_committed_scores_are_those_of_the_committed_counters() -> None:
    committed = json.loads((RESULTS / "pocket_labels.json").read_text())
    found = score()
    assert found["sayable"] == committed["sayable"]
    for name, old in committed["counters"].items():
        new = found["counters"][name]
        # Rounding on another processor may flip a picture or two, not more.
        assert new["agrees"]["share"] == pytest.approx(old["agrees"]["share"], abs=0.015)
        assert new["sensitivity"]["of"] == old["sensitivity"]["of"]


def test_intervals_hold_their_share() -> None:
    low, high = wilson(95, 100)
    assert low == pytest.approx(0.8882, abs=1e-3) and high == pytest.approx(0.9785, abs=1e-3)
    assert wilson(0, 0) == (0.0, 1.0) and wilson(10, 10)[1] == 1.0
    low, high = bootstrap_by_prompt([[0, 0, 0], [1, 1, 1]] * 50)
    assert 0.39 < low < 0.45 and 0.55 < high < 0.61
    assert bootstrap_by_prompt([[1, 1]] * 5) == (1.0, 1.0)
