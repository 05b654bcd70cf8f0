"""What an exact picture costs by the engine, beside drawing again and the best of the published methods.

python -m benchmarks.time_to_exact --json

hard: the committed comparison on the hard third (pocket_hard.json). easy: the engine and best-of-n over
all prompts of pocket-small, -dense and -multi. one_picture: seconds until one picture of a hard prompt is
verified, the engine as wide as the batch, best-of-n sixteen at once. Ratios are of the penalised mean cost
(PAR-2), with 95% intervals over prompts; those of seconds are paired by prompt. The command goes on
where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics as stats
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.pocket_methods import draw
from benchmarks.pocket_tuning import tuned
from benchmarks.tables import AGAIN, OURS, PLAIN, RESULTS
from countgen import CountGuidedPipeline
from countgen.engine.actions import Answer, Draw, Stop, View
from countgen.engine.best_move import BestMove
from countgen.engine.policy import BUDGET_SPENT
from countgen.evaluation.metrics import ratio_of_par2, summary
from countgen.evaluation.runs import judged, read_rows
from countgen.evaluation.statistics import bootstrap_ratio
from countgen.guidance.methods import find_method
from countgen.pocket import ROLES, load_critic
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


def hard() -> dict[str, Any]:
    """The engine over the cheapest of drawing again and the published methods, as committed."""
    found = json.loads((RESULTS / "pocket_hard.json").read_text(encoding="utf-8"))
    methods = found["suites"]["pocket-hard"]
    rivals = [name for name in methods if name not in (PLAIN, *OURS)]
    best = min(rivals, key=lambda name: methods[name]["cost"]["par2"])
    par2 = {name: methods[name]["cost"]["par2"] for name in (ENGINE, best, AGAIN)}
    return {
        "best_rival": best,
        "engine_over_best_rival": round(par2[ENGINE] / par2[best], 4),
        "engine_over_best_of_n": found["paired"]["pocket-hard"][ENGINE]["par2"],
        "par2": par2,
        "command": found["command"],
    }


def easy(pipeline: CountGuidedPipeline, options: argparse.Namespace) -> dict[str, Any]:
    """Engine and drawing again on every prompt of each suite."""
    for method in (ENGINE, AGAIN):
        for name in EASY:
            draw(pipeline, list(suite(name)), tuned(method), options)
    rows = judged(read_rows(options.run / "rows.jsonl"), load_critic(ROLES["judge"]), options.run)
    out: dict[str, Any] = {}
    for name in EASY:
        ids = {prompt.id for prompt in suite(name)}
        own = [row for row in rows if row["id"] in ids and row["image"] < options.per_prompt]
        out[name] = {
            "engine_over_best_of_n": ratio_of_par2(own, ENGINE, AGAIN, options.budget),
            "methods": {
                method: summary([row for row in own if row["method"] == method], options.budget)
                for method in (ENGINE, AGAIN)
            },
        }
    whole = ratio_of_par2(rows, ENGINE, AGAIN, options.budget)
    return {"engine_over_best_of_n": whole, "suites": out}


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
    parser.add_argument("--per-prompt", type=int, default=1, help="pictures of each easy prompt")
    parser.add_argument("--alone", type=int, default=20, help="prompts of single pictures")
    parser.add_argument("--seed", type=int, default=702, help="run seed")
    parser.add_argument("--budget", type=float, default=64.0, help="cap in plain renders a picture")
    parser.add_argument("--batch", type=int, default=16, help="pictures drawn at once")
    parser.add_argument("--chunk", type=int, default=200, help="pictures in one pool")
    parser.add_argument("--run", type=Path, default=Path("runs/time_to_exact"))
    options = parser.parse_args()
    options.run.mkdir(parents=True, exist_ok=True)
    torch.set_flush_denormal(True)
    pipeline = CountGuidedPipeline.from_pretrained("pocket")
    report = {
        "command": f"python -m benchmarks.time_to_exact --json --per-prompt {options.per_prompt} --alone "
        f"{options.alone} --seed {options.seed}",
        "threads": torch.get_num_threads(),
        "hard": hard(),
        "easy": easy(pipeline, options),
        "one_picture": one_picture(pipeline, options),
    }
    print(json.dumps(report, indent=None if options.json else 1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
