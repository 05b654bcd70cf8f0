"""What an exact picture costs by the engine, beside drawing again and the best of the published methods.

python -m benchmarks.time_to_exact --json

hard and easy: the committed comparison on the hard third and on all prompts (pocket_suites.json).
one_picture: seconds until one picture of a hard prompt is verified, the engine as wide as the batch,
best-of-n sixteen at once. Ratios are of the penalised mean cost (PAR-2), with 95% intervals over prompts;
those of seconds are paired by prompt.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics as stats
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from benchmarks.method_tables import AGAIN, HARD, OURS, PLAIN, result
from benchmarks.pocket_tuning import tuned
from countgen import CountGuidedPipeline
from countgen.engine.actions import Answer, Draw, Stop, View
from countgen.engine.best_move import BestMove
from countgen.engine.policy import BUDGET_SPENT
from countgen.evaluation.statistics import bootstrap_ratio
from countgen.guidance.methods import find_method
from countgen.pocket.suites import suite

ENGINE = "engine"
EASY = ("pocket-small", "pocket-dense", "pocket-multi")


@dataclass(frozen=True)
class DrawMany:
    """Draws so many noises at once as the budget allows, until one is exact."""

    width: int = 16
    moves: frozenset[str] = frozenset({"draw"})

    def __call__(self, view: View) -> Answer:
        several = self.width
        while several and not view.affords(Draw(), several):
            several -= 1
        return (Draw(),) * several if several else Stop(BUDGET_SPENT)


def compared() -> tuple[dict[str, Any], dict[str, Any]]:
    """The engine over the cheapest of drawing again and the published methods on the hard third, and over
    drawing again on all prompts of each suite."""
    found = result("pocket_suites")
    methods = found["suites"][HARD]
    rivals = [name for name in methods if name not in (PLAIN, *OURS)]
    par2 = {name: methods[name]["cost"]["par2"] for name in (ENGINE, *rivals)}
    best = min(rivals, key=lambda name: par2[name])
    ratios = found["ratios"]
    hard = {
        "best_rival": best,
        "engine_over_best_rival": ratios[HARD][best],
        "engine_over_best_of_n": ratios[HARD][AGAIN],
        "par2": par2,
        "command": found["command"],
    }
    easy = {
        "engine_over_best_of_n": ratios["all"][AGAIN],
        "suites": {
            name: {
                "engine_over_best_of_n": ratios[name][AGAIN],
                "by_count": {
                    method: found["suites"][name][method]["judge"]["by_count"]
                    for method in (ENGINE, AGAIN)
                },
            }
            for name in EASY
        },
        "command": found["command"],
    }
    return hard, easy


def one_picture(pipeline: CountGuidedPipeline, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds until a single picture is verified, of prompts of the hard third drawn by seed."""
    prompts = random.Random(options.seed).sample(suite("pocket-hard"), options.alone)
    engine = find_method(ENGINE)
    assert isinstance(engine.policy, BestMove)
    again = replace(tuned(AGAIN), policy=DrawMany())
    wide = replace(engine, policy=replace(engine.policy, width="auto"))
    seconds: dict[str, list[float]] = {ENGINE: [], AGAIN: []}
    verified: dict[str, int] = {ENGINE: 0, AGAIN: 0}
    for prompt in prompts:
        for name, method in ((ENGINE, wide), (AGAIN, again)):
            begun = time.perf_counter()
            found = pipeline(
                prompt.prompt,
                targets=prompt.targets,
                prompt_ids=[f"{prompt.id}/alone"],
                seed=options.seed,
                guidance=method,
                budget=options.budget,
                batch_size=16,
                output_type="pt",
            )
            seconds[name].append(time.perf_counter() - begun)
            verified[name] += found.verified[0]
    pairs = [((a,), (b,)) for a, b in zip(seconds[ENGINE], seconds[AGAIN], strict=True)]
    low, high = bootstrap_ratio(pairs)
    ratio = sum(seconds[ENGINE]) / sum(seconds[AGAIN])
    return {
        "prompts": [prompt.id for prompt in prompts],
        "seconds_engine_over_best_of_n": round(ratio, 4),
        "ci95": [round(low, 4), round(high, 4)],
        "methods": {
            name: {
                "median": round(stats.median(times), 2),
                "p90": round(float(np.quantile(times, 0.9)), 2),
                "verified": verified[name],
            }
            for name, times in seconds.items()
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--alone", type=int, default=20, help="prompts of single pictures")
    parser.add_argument("--seed", type=int, default=702, help="run seed")
    parser.add_argument("--budget", type=float, default=64.0, help="cap in plain renders a picture")
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    pipeline = CountGuidedPipeline.from_pretrained("pocket")
    hard, easy = compared()
    report = {
        "command": f"python -m benchmarks.time_to_exact --json --alone {options.alone} --seed {options.seed}",
        "threads": torch.get_num_threads(),
        "hard": hard,
        "easy": easy,
        "one_picture": one_picture(pipeline, options),
    }
    print(json.dumps(report, indent=None if options.json else 1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
