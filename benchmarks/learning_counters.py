"""What is new in each counter gains: trained with and without it, on the same scenes for as many steps.

python -m benchmarks.learning_counters --json

The referring counter is also set beside pocket's detector A with the referring wrapper, which is asked for
the kind alone where a place decides, since it knows no places. Scored on scenes that no training drew; no
judge takes part. Trainings are kept in ``--work``; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from countgen.learning import counters, refer
from countgen.learning.annotated import PocketPoints
from countgen.learning.loop import TrainConfig
from countgen.pocket import ROLES, load_critic
from critics.registry import load_critic as load_family
from critics.wrappers.referring import referring

RATES: dict[str, float] = {"clip-ebc": 2e-3, "hmode": 4e-3, "c-rex": 2e-3}


def settings(family: Any, new: bool, seed: int, steps: int, batch: int) -> counters.CounterSettings:
    train = TrainConfig(
        steps, batch, RATES[family], warmup=min(50, steps // 4), ema=0.98, seed=seed
    )
    return counters.CounterSettings(train, family, new=new)


def run(options: argparse.Namespace, family: str, new: bool, seed: int) -> dict[str, Any]:
    """One training, scored; what was done already is read."""
    out = options.work / f"{family}-{'new' if new else 'plain'}-{seed}"
    kept = out / "scores.json"
    if kept.is_file():
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    start = time.monotonic()
    counters.train(settings(family, new, seed, options.steps, options.batch), out)
    seconds = round(time.monotonic() - start)
    critic = load_family(family, out)
    row: dict[str, Any] = {"family": family, "new": new, "seed": seed, "seconds": seconds}
    if family == "c-rex":
        row["errors"] = refer.errors(critic, refer.held_out(options.held_out), refer.said)
    else:
        held = PocketPoints(options.held_out).held_out()
        row["errors"] = counters.count_errors(critic, held, options.held_out)
    kept.write_text(json.dumps(row))
    return row


def wrapped_detector(count: int) -> dict[str, Any]:
    """Detector A asked for the kind, red apples against green ones: the referring wrapper over it."""
    green, red = "green apple", "red apple"
    critic = referring(load_critic(ROLES["critic"]), {red: [green], green: [red]})
    return refer.errors(critic, refer.held_out(count), refer.head)


def compared(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Relative change of the errors by what is new, mean over the seeds that have both; by family."""
    result = {}
    for family in dict.fromkeys(row["family"] for row in rows):
        plain = {row["seed"]: row for row in rows if row["family"] == family and not row["new"]}
        both = [
            (plain[row["seed"]]["errors"], row["errors"])
            for row in rows
            if row["family"] == family and row["new"] and row["seed"] in plain
        ]
        groups = dict.fromkeys(name for a, _ in both for name in a)
        result[family] = {
            "seeds": len(both),
            **{
                group: {
                    name: round(
                        float(np.mean([b[group][name] / a[group][name] - 1 for a, b in both])), 4
                    )
                    for name in ("mae", "rmse")
                }
                for group in groups
            },
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--work", type=Path, default=Path("learning-counters"))
    parser.add_argument("--families", nargs="+", default=list(counters.FAMILIES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--held-out", type=int, default=400, help="scenes that are scored")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        run(options, family, new, seed)
        for seed in options.seeds
        for family in options.families
        for new in (False, True)
    ]
    example = settings(options.families[0], True, 0, options.steps, options.batch)
    document: dict[str, Any] = {
        "settings": asdict(example)
        | {"seeds": options.seeds, "learning_rates": RATES, "contrast": counters.CONTRAST},
        "held_out": options.held_out,
        "runs": rows,
        "change_by_what_is_new": compared(rows),
    }
    if "c-rex" in options.families:
        document["referring_wrapper_over_detector_a"] = wrapped_detector(options.held_out)
    if options.json:
        print(json.dumps(document, indent=1))
        return
    for row in rows:
        print(row["family"], row["new"], row["seed"], row["errors"]["all"])


if __name__ == "__main__":
    main()
