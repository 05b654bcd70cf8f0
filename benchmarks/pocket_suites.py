"""The tables of README and docs: all pocket suites by ``countgen evaluate``, and their hard third.

    python -m benchmarks.pocket_suites --json --seed 801 --per-prompt 5

Every suite is a run folder below --run, drawn by the command that users have; the same command again goes on
where it was stopped. ``zeno`` was the best of others' methods on the prompts before these
(``pocket_hard.json``); every method has the setting that pocket-dev chose.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.pocket_tuning import tuned
from countgen.evaluation.metrics import penalised as penalised_cost
from countgen.evaluation.metrics import ratio_of_par2, share, success_by_cap, summary
from countgen.evaluation.reading import read_run
from countgen.evaluation.runs import Row
from countgen.guidance.methods import METHODS
from countgen.pocket.suites import SELECTION_SEED, SUITES, hard_ids

CHOSEN = ("none", "best-of-n", "zeno", "edit", "engine")
CAP = 64.0
HARD = "pocket-hard"


def draw(name: str, options: argparse.Namespace) -> Path:
    """One suite by all methods."""
    run = Path(options.run) / name
    command = [
        *(sys.executable, "-m", "countgen", "evaluate", "--prompts", name),
        *("--methods", *options.methods, "--num-images", str(options.per_prompt)),
        *("--seed", str(options.seed), "--budget", f"{CAP:g}", "--out", str(run), "--json"),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise SystemExit(f"countgen evaluate of {name} ended with {done.returncode}")
    return run


def of_methods(rows: Sequence[Row], methods: Sequence[str]) -> dict[str, Any]:
    """Every method's numbers, without the tables by noun."""
    out = {}
    for method in methods:
        found = summary([row for row in rows if row["method"] == method], CAP)
        for role in ("critic", "verifier", "judge"):
            for name in ("by_noun", "by_noun_ci95", "confusion"):
                (found[role] or {}).pop(name, None)
        out[method] = found
    return out


def of_group(rows: Sequence[Row], methods: Sequence[str]) -> dict[str, Any]:
    """Of some prompts: by method what a picture costs, and how many are verified and right."""
    found: dict[str, Any] = {"n_prompts": len({row["id"] for row in rows})}
    for method in methods:
        own = [row for row in rows if row["method"] == method]
        verified = [row for row in own if row["verified"]]
        found[method] = {
            **share([(row, penalised_cost(row, CAP)) for row in own], "par2"),
            "verified": round(len(verified) / len(own), 4),
            "judge_right_of_verified": sum(row["judge"] == row["wanted"] for row in verified),
            "n_verified": len(verified),
        }
    return found


def group_of(row: Row) -> str:
    """By what is asked for: one kind in five ranges of counts, or two or three kinds, few or many."""
    total, kinds = sum(row["wanted"]), len(row["wanted"])
    if kinds == 1:
        low = next(n for n in (16, 11, 8, 4, 1) if total >= n)
        return f"1 kind, {low} to { {1: 3, 4: 7, 8: 10, 11: 15, 16: 20}[low] }"
    return f"{kinds} kinds, " + ("up to 8" if total <= 8 else "9 or more")


def report_of(rows: dict[str, list[Row]], methods: Sequence[str]) -> dict[str, Any]:
    """All numbers, suite by suite; the hard third are the hard prompts of all of them."""
    hard = set(hard_ids())
    every = [row for own in rows.values() for row in own]
    suites = {**rows, HARD: [row for row in every if row["id"] in hard]}
    first, *others = reversed(methods)
    return {
        "suites": {name: of_methods(own, methods) for name, own in suites.items()},
        "ratios": {
            name: {other: ratio_of_par2(own, first, other, CAP) for other in others}
            for name, own in {**suites, "all": every}.items()
        },
        "by_group": {
            name: of_group([row for row in every if group_of(row) == name], methods)
            for name in sorted({group_of(row) for row in every})
        },
        "hard_by_group": {
            name: of_group([row for row in suites[HARD] if group_of(row) == name], methods)
            for name in sorted({group_of(row) for row in suites[HARD]})
        },
        "all_suites_success_by_cap": {
            method: success_by_cap([row for row in every if row["method"] == method])
            for method in methods
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--suites", nargs="+", default=SUITES[1:], choices=SUITES[1:])
    parser.add_argument("--methods", nargs="+", default=CHOSEN, choices=list(METHODS))
    parser.add_argument("--per-prompt", type=int, default=5, help="pictures of each prompt")
    parser.add_argument("--seed", type=int, default=801, help="run seed of the evaluation")
    parser.add_argument("--run", type=Path, default=Path("runs/pocket_suites"))
    options = parser.parse_args()
    if options.seed == SELECTION_SEED:
        parser.error(f"run seed {SELECTION_SEED} chose the hard third; evaluate on another")
    if changed := [name for name in options.methods if tuned(name) != METHODS[name]]:
        parser.error(f"the presets {', '.join(changed)} have not the setting that was tuned")
    rows = {name: read_run(draw(name, options)).rows for name in options.suites}
    report = {
        "command": f"python -m benchmarks.pocket_suites --json --seed {options.seed} "
        f"--per-prompt {options.per_prompt}",
        "seed": options.seed,
        "per_prompt": options.per_prompt,
        "cap": CAP,
        **report_of(rows, options.methods),
    }
    print(json.dumps(report, indent=None if options.json else 1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
