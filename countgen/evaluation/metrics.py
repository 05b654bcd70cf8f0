"""What judged pictures amount to: shares with intervals, errors, costs; methods against each other."""

from __future__ import annotations

import statistics as stats
from collections import Counter, defaultdict
from typing import Any

from countgen.evaluation.runs import Row
from countgen.evaluation.statistics import bootstrap_by_prompt, bootstrap_ratio

ROLES = ("critic", "verifier", "judge")


CAPS = (1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Where the curve of success against spent cost is read."""


def penalised(row: Row, cap: float) -> float:
    """A picture's cost, or twice the cap where it is not both verified and exact for the judge (PAR-2)."""
    return row["pre"] if is_success(row) else 2 * cap


def is_success(row: Row) -> bool:
    """Verified, and exact for the judge."""
    return bool(row["verified"]) and row["judge"] == row["wanted"]


def par2(rows: list[Row], cap: float) -> dict[str, Any]:
    """The penalised mean cost, with its 95% interval that resamples prompts."""
    return share([(row, penalised(row, cap)) for row in rows], "par2")


def ratio_of_par2(rows: list[Row], first: str, second: str, cap: float) -> dict[str, Any]:
    """PAR-2 of the first method over that of the second on the same prompts, with a 95% interval."""
    costs: dict[str, dict[str, list[float]]] = defaultdict(lambda: {first: [], second: []})
    for row in rows:
        if row["method"] in (first, second):
            costs[row["id"]][row["method"]].append(penalised(row, cap))
    low, high = bootstrap_ratio([(each[first], each[second]) for each in costs.values()])
    sums = [sum(sum(each[name]) for each in costs.values()) for name in (first, second)]
    counts = [sum(len(each[name]) for each in costs.values()) for name in (first, second)]
    ratio = (sums[0] / counts[0]) / (sums[1] / counts[1])
    return {"ratio": round(ratio, 4), "ratio_ci95": [round(low, 4), round(high, 4)]}


def success_by_cap(rows: list[Row]) -> dict[str, float]:
    """Share of pictures that were verified and exact for the judge at no more than each cost."""
    costs = [row["pre"] for row in rows if is_success(row)]
    return {f"{c:g}": round(sum(cost <= c for cost in costs) / len(rows), 4) for c in CAPS}


def summary(rows: list[Row], cap: float = 64.0) -> dict[str, Any]:
    """Exact shares by role with intervals that resample prompts, what is verified, and what it cost."""
    out: dict[str, Any] = {"n_prompts": len({row["id"] for row in rows}), "n_images": len(rows)}
    for role in ROLES:
        values = [(row, float(row.get(role) == row["wanted"])) for row in rows]
        off = [
            abs(a - b)
            for row in rows
            for a, b in zip(row.get(role, []), row["wanted"], strict=False)
        ]
        by_count: dict[int, list[float]] = defaultdict(list)
        for row, value in values:
            by_count[sum(row["wanted"])].append(value)
        out[role] = {
            **share(values, "exact"),
            "mae": round(stats.mean(off), 3) if off else None,
            "within_one": round(stats.mean(x <= 1 for x in off), 4) if off else None,
            "by_count": {n: round(stats.mean(v), 3) for n, v in sorted(by_count.items())},
        }
    verified = [(row, float(row["judge"] == row["wanted"])) for row in rows if row["verified"]]
    both = sum(value for _, value in verified)
    out["verified"] = {
        "share": round(len(verified) / len(rows), 4),
        **(share(verified, "judge_exact") if verified else {}),
    }
    spent = [row["pre"] for row in rows]
    out["cost"] = {
        "pre_median": round(stats.median(spent), 2),
        "pre_mean": round(stats.mean(spent), 2),
        "pre_per_verified_exact": round(sum(spent) / both, 2) if both else None,
        **par2(rows, cap),
    }
    out["success_by_cap"] = success_by_cap(rows)
    out["outcomes"] = dict(Counter(row["outcome"] for row in rows).most_common())
    return out


def paired(rows: list[Row], first: str, second: str) -> dict[str, Any]:
    """Shares of the first method minus those of the second, prompt by prompt, with 95% intervals.

    Both methods start from the same noises, so that a difference is steadier than the shares themselves.
    """
    values: dict[str, dict[str, dict[str, list[float]]]] = defaultdict(dict)
    for row in rows:
        exact = row["judge"] == row["wanted"]
        parts = {
            "exact": exact,
            "verified": row["verified"],
            "verified_exact": row["verified"] and exact,
        }
        for name, value in parts.items():
            by_method = values[name].setdefault(row["id"], {first: [], second: []})
            if row["method"] in by_method:
                by_method[row["method"]].append(float(value))
    out: dict[str, Any] = {}
    for name, prompts in values.items():
        gaps = [[stats.mean(each[first]) - stats.mean(each[second])] for each in prompts.values()]
        out[name] = round(stats.mean(gap for (gap,) in gaps), 4)
        out[f"{name}_ci95"] = [round(x, 4) for x in bootstrap_by_prompt(gaps)]
    return out


def share(values: list[tuple[Row, float]], name: str) -> dict[str, Any]:
    """A share of pictures under ``name``, with its 95% interval that resamples prompts."""
    groups: dict[str, list[float]] = defaultdict(list)
    for row, value in values:
        groups[row["id"]].append(value)
    interval = bootstrap_by_prompt(list(groups.values()))
    return {
        name: round(stats.mean(value for _, value in values), 4),
        f"{name}_ci95": [round(x, 4) for x in interval],
    }
