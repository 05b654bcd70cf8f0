"""Counts of pictures summed up: against what was asked for, against what is there, and against each other."""

from __future__ import annotations

import itertools
import statistics as stats
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from countgen.evaluation.statistics import bootstrap_by_prompt

ENOUGH = 5
"""Fewest pictures of a noun on which a counter is called the best for it."""


@dataclass(frozen=True)
class Reading:
    """One counter's count of one noun in one picture.

    Attributes:
        group: what is resampled together: the prompt of the picture, or the picture.
        picture: which one, so that counters are compared on the same.
        expected: what it is compared with.
    """

    group: str
    picture: str
    noun: str
    count: int
    expected: int


def scores(readings: Sequence[Reading]) -> dict[str, Any]:
    """Share of exact counts with its 95% interval, errors and their direction, by count and by noun."""
    if not readings:
        return {"n": 0}
    by_count: dict[int, list[Reading]] = defaultdict(list)
    by_noun: dict[str, list[Reading]] = defaultdict(list)
    for reading in readings:
        by_count[reading.expected].append(reading)
        by_noun[reading.noun].append(reading)
    return {
        **_errors(readings),
        "exact_ci95": _interval(readings),
        "by_count": {n: _errors(found) for n, found in sorted(by_count.items())},
        "by_noun": {noun: _errors(found) for noun, found in sorted(by_noun.items())},
    }


def _errors(readings: Sequence[Reading]) -> dict[str, Any]:
    off = [reading.count - reading.expected for reading in readings]
    return {
        "n": len(off),
        "exact": round(stats.fmean(x == 0 for x in off), 4),
        "within_one": round(stats.fmean(abs(x) <= 1 for x in off), 4),
        "mae": round(stats.fmean(map(abs, off)), 4),
        "rmse": round(stats.fmean(x * x for x in off) ** 0.5, 4),
        "bias": round(stats.fmean(off), 4),
    }


def _interval(readings: Sequence[Reading]) -> list[float]:
    groups: dict[str, list[float]] = defaultdict(list)
    for reading in readings:
        groups[reading.group].append(float(reading.count == reading.expected))
    return [round(bound, 4) for bound in bootstrap_by_prompt(list(groups.values()))]


def absent_score(readings: Iterable[Reading]) -> dict[str, Any]:
    """Of nouns that are not there: the share for which nothing was counted, and how much was on average."""
    found = [reading.count for reading in readings if reading.expected == 0]
    if not found:
        return {"n": 0}
    return {
        "n": len(found),
        "none_counted": round(stats.fmean(count == 0 for count in found), 4),
        "mean_count": round(stats.fmean(found), 4),
    }


def agreement(by_counter: Mapping[str, Sequence[Reading]]) -> list[dict[str, Any]]:
    """Every two counters on the pictures and nouns that both have counted.

    ``same`` is the share of equal counts, ``mean_difference`` how much more the first counts than the second.
    """
    counts = {
        name: {(reading.picture, reading.noun): reading.count for reading in readings}
        for name, readings in by_counter.items()
    }
    rows = []
    for first, second in itertools.combinations(counts, 2):
        both = counts[first].keys() & counts[second].keys()
        off = [counts[first][key] - counts[second][key] for key in both]
        row: dict[str, Any] = {"counters": [first, second], "n": len(off)}
        if off:
            row |= {
                "same": round(stats.fmean(x == 0 for x in off), 4),
                "within_one": round(stats.fmean(abs(x) <= 1 for x in off), 4),
                "mean_difference": round(stats.fmean(off), 4),
            }
        rows.append(row)
    return rows


def trusted(by_counter: Mapping[str, Sequence[Reading]]) -> dict[str, dict[str, Any]]:
    """For each noun the counter that is nearest to the truth, where all are compared on the same pictures.

    Nouns with fewer than ``ENOUGH`` pictures that all counters have counted are left out. ``sure`` says
    whether its mean error is smaller than the next one's by more than chance (95%, pictures resampled).
    """
    tables = {
        name: {(r.noun, r.picture): abs(r.count - r.expected) for r in readings}
        for name, readings in by_counter.items()
    }
    if not tables:
        return {}
    shared = set.intersection(*(set(table) for table in tables.values()))
    pictures: dict[str, list[str]] = defaultdict(list)
    for noun, picture in sorted(shared):
        pictures[noun].append(picture)
    out = {}
    for noun, names in pictures.items():
        if len(names) < ENOUGH:
            continue
        errors = {
            counter: [table[noun, picture] for picture in names]
            for counter, table in tables.items()
        }
        ranked = sorted(errors, key=lambda counter: stats.fmean(errors[counter]))
        best = ranked[0]
        found: dict[str, Any] = {
            "counter": best,
            "mae": round(stats.fmean(errors[best]), 4),
            "n": len(names),
        }
        if len(ranked) > 1:
            gaps = [[float(b - a)] for a, b in zip(errors[best], errors[ranked[1]], strict=True)]
            found["sure"] = bootstrap_by_prompt(gaps)[0] > 0
        out[noun] = found
    return out
