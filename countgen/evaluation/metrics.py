"""What judged pictures amount to: shares with intervals, errors, costs; methods against each other."""

from __future__ import annotations

import statistics as stats
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from countgen.evaluation.runs import Row, group
from countgen.evaluation.statistics import (
    bootstrap_by_prompt,
    bootstrap_ratio,
    mcnemar,
    sign_test,
    wilson,
)

ROLES = ("critic", "verifier", "judge")


CAPS = (1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Where the curve of success against spent cost is read."""


# -- one picture ----------------------------------------------------------------------------------


def is_exact(row: Row, role: str = "judge") -> bool:
    """The role counts what is wanted, of every noun; what could not be counted is not exact."""
    return counted(row, role) == row["wanted"]


def counted(row: Row, role: str) -> list[int] | None:
    """Counts by a role, or by a further judge by its name; None where it could not count."""
    found = row.get("judges", {}).get(role, row.get(role))
    return None if found is None else list(found)


def is_success(row: Row) -> bool:
    """Verified, and exact for the judge."""
    return bool(row["verified"]) and is_exact(row)


def penalised(row: Row, cap: float) -> float:
    """A picture's cost, or twice the cap where it is not both verified and exact for the judge (PAR-2)."""
    return row["pre"] if is_success(row) else 2 * cap


# -- one method -----------------------------------------------------------------------------------


def summary(rows: list[Row], cap: float = 64.0) -> dict[str, Any]:
    """Counts by role with intervals that resample prompts, what is verified, and what it cost.

    Roles that counted nothing at all have None.
    """
    out: dict[str, Any] = {"n_prompts": len({row["id"] for row in rows}), "n_images": len(rows)}
    for role in ROLES:
        out[role] = role_summary(rows, role)
    more = sorted({name for row in rows for name in row.get("judges", {})})
    if more:
        out["judges"] = {name: role_summary(rows, name) for name in more}
    verified = [(row, float(is_exact(row))) for row in rows if row["verified"]]
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


def role_summary(rows: Sequence[Row], role: str) -> dict[str, Any] | None:
    """How a counter's counts compare with what was wanted; None where it counted nothing.

    ``mae``, ``rmse``, ``bias`` (found minus wanted) and ``within_one`` are over nouns, in objects; exact is a
    whole picture. ``confusion`` has wanted -> found -> how often.
    """
    found = [counted(row, role) for row in rows]
    if not any(found):
        return None
    exact = [(row, float(is_exact(row, role))) for row in rows]
    pairs = [
        (noun, wanted, count)
        for row, counts in zip(rows, found, strict=True)
        for noun, wanted, count in zip(row["nouns"], row["wanted"], counts or (), strict=False)
    ]
    off = np.array([count - wanted for _, wanted, count in pairs], dtype=float)
    by_count = group([value for _, value in exact], [sum(row["wanted"]) for row, _ in exact])
    # A noun is right where its own count is.
    by_noun = group([float(w == c) for _, w, c in pairs], [noun for noun, _, _ in pairs])
    confusion: dict[int, Counter[int]] = defaultdict(Counter)
    for _, wanted, count in pairs:
        confusion[wanted][count] += 1
    return {
        **share(exact, "exact"),
        "mae": round(float(abs(off).mean()), 3),
        "rmse": round(float((off**2).mean() ** 0.5), 3),
        "bias": round(float(off.mean()), 3),
        "within_one": round(float((abs(off) <= 1).mean()), 4),
        "by_count": {n: round(stats.mean(v), 3) for n, v in sorted(by_count.items())},
        "by_count_ci95": {n: _wilson(v) for n, v in sorted(by_count.items())},
        "by_noun": {noun: round(stats.mean(v), 3) for noun, v in sorted(by_noun.items())},
        "by_noun_ci95": {noun: _wilson(v) for noun, v in sorted(by_noun.items())},
        "confusion": {n: dict(sorted(row.items())) for n, row in sorted(confusion.items())},
    }


def _wilson(values: Sequence[float]) -> list[float]:
    return [round(x, 3) for x in wilson(int(sum(values)), len(values))]


def share(values: Sequence[tuple[Row, float]], name: str) -> dict[str, Any]:
    """A mean over pictures under ``name``, with its 95% interval that resamples prompts."""
    groups = group([value for _, value in values], [row["id"] for row, _ in values])
    interval = bootstrap_by_prompt(list(groups.values()))
    return {
        name: round(stats.mean(value for _, value in values), 4),
        f"{name}_ci95": [round(x, 4) for x in interval],
    }


def par2(rows: list[Row], cap: float) -> dict[str, Any]:
    """The penalised mean cost, with its 95% interval that resamples prompts."""
    return share([(row, penalised(row, cap)) for row in rows], "par2")


def success_by_cap(rows: list[Row]) -> dict[str, float]:
    """Share of pictures that were verified and exact for the judge at no more than each cost."""
    costs = [row["pre"] for row in rows if is_success(row)]
    return {f"{c:g}": round(sum(cost <= c for cost in costs) / len(rows), 4) for c in CAPS}


# -- methods against each other -------------------------------------------------------------------


def ratio_of_par2(rows: list[Row], first: str, second: str, cap: float) -> dict[str, Any]:
    """PAR-2 of the first method over that of the second on the same prompts, with a 95% interval."""
    costs = by_prompt(rows, first, second, lambda row: penalised(row, cap))
    low, high = bootstrap_ratio(list(costs.values()))
    means = [stats.mean(cost for pair in costs.values() for cost in pair[side]) for side in (0, 1)]
    return {
        "ratio": round(means[0] / means[1], 4),
        "ratio_ci95": [round(low, 4), round(high, 4)],
    }


def paired(rows: list[Row], first: str, second: str) -> dict[str, Any]:
    """Shares of the first method minus those of the second, prompt by prompt, with 95% intervals.

    Both methods start from the same noises, so that a difference is steadier than the shares themselves. Two
    exact tests go with each: ``sign_p`` over prompts, and ``mcnemar_p`` over pictures of the same prompt and
    number, which takes the pictures of a prompt for independent. Prompts that only one of them drew are left
    out.
    """
    measures: dict[str, Callable[[Row], float]] = {
        "exact": lambda row: float(is_exact(row)),
        "verified": lambda row: float(row["verified"]),
        "verified_exact": lambda row: float(is_success(row)),
    }
    out: dict[str, Any] = {}
    for name, measure in measures.items():
        prompts = by_prompt(rows, first, second, measure).values()
        gaps = [stats.mean(ours) - stats.mean(theirs) for ours, theirs in prompts]
        out[name] = round(stats.mean(gaps), 4)
        out[f"{name}_ci95"] = [round(x, 4) for x in bootstrap_by_prompt([[gap] for gap in gaps])]
        out[f"{name}_sign_p"] = sign_test(gaps)
        out[f"{name}_mcnemar_p"] = mcnemar(*_one_sided(rows, first, second, measure))
    return out


def by_prompt(
    rows: Sequence[Row], first: str, second: str, measure: Callable[[Row], float]
) -> dict[str, tuple[list[float], list[float]]]:
    """Values of two methods' pictures by the prompts that both have drawn."""
    out: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for row in rows:
        if row["method"] in (first, second):
            out[row["id"]][row["method"] != first].append(measure(row))
    return {name: pair for name, pair in out.items() if all(pair)}


def _one_sided(
    rows: Sequence[Row], first: str, second: str, measure: Callable[[Row], float]
) -> tuple[int, int]:
    """How many pictures succeeded with the first method alone, and with the second alone."""
    ours, theirs = (
        {(row["id"], row["image"]): measure(row) for row in rows if row["method"] == method}
        for method in (first, second)
    )
    pairs = [(ours[key], theirs[key]) for key in ours.keys() & theirs.keys()]
    return sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)


def gap_beyond_plain(rows: list[Row], method: str, role: str, plain: str) -> dict[str, Any]:
    """How much more a counter that took part sees exact than the judge, beyond that gap in plain pictures.

    A method that fools its counter widens the gap. The interval resamples prompts, both methods together.
    """
    prompts = by_prompt(
        rows, method, plain, lambda row: float(is_exact(row, role)) - float(is_exact(row))
    )
    gaps = [stats.mean(ours) - stats.mean(theirs) for ours, theirs in prompts.values()]
    if not gaps:
        return {"gap": None, "gap_ci95": None}
    low, high = bootstrap_by_prompt([[gap] for gap in gaps])
    return {"gap": round(stats.mean(gaps), 4), "gap_ci95": [round(low, 4), round(high, 4)]}


# -- all of a run ---------------------------------------------------------------------------------


def evaluation(rows: list[Row], cap: float = 64.0, hard: Collection[str] = ()) -> dict[str, Any]:
    """All that is reported of a run: its methods, on all prompts and on the hard ones, and their pairs.

    Args:
        rows: judged.
        cap: budget of a picture in plain render equivalents.
        hard: ids of prompts that the plain generator hardly ever draws right, if they are known.
    """
    methods = group(rows, [row["method"] for row in rows])
    plain = next((name for name in ("none", "best-of-n") if name in methods), None)
    out: dict[str, Any] = {
        "n_prompts": len({row["id"] for row in rows}),
        "n_images": len(rows),
        "methods": {},
        "paired": {},
    }
    for name, own in methods.items():
        found = summary(own, cap)
        difficult = [row for row in own if row["id"] in hard]
        found["hard"] = summary(difficult, cap) if difficult else None
        if plain and name != plain:
            found["gap_beyond_plain"] = {
                role: gap_beyond_plain(rows, name, role, plain) for role in ("critic", "verifier")
            }
        out["methods"][name] = found
    for first in methods:
        for second in methods:
            if first != second and by_prompt(rows, first, second, lambda row: 0.0):
                out["paired"].setdefault(first, {})[second] = paired(rows, first, second) | {
                    "par2": ratio_of_par2(rows, first, second, cap)
                }
    return out
