"""What a look in the middle of sampling tells of the finished picture, and what it saves.

python -m benchmarks.early_looks --json

On pocket's development prompts, as a stand-in for models that need more steps: its generator with 30 of them.
agreement: of plain draws, how often the critic's count of the predicted clean picture is the finished one's,
by the share of the steps, and what drawing again would cost per exact picture if only those were finished
that look exact. cost: drawing again and the engine, each without early looks and with them after several
shares, at the same cap; PAR-2 by the judge's word, ratios paired by prompt. The command goes on where it was
stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.pocket_methods import draw
from countgen import CountGuidedPipeline
from countgen.engine.cost import PriceList
from countgen.engine.early import EarlyLook
from countgen.engine.job import Job
from countgen.evaluation.metrics import by_prompt, ratio_of_par2, summary
from countgen.evaluation.runs import Row, judged, read_rows
from countgen.evaluation.statistics import bootstrap_by_prompt, bootstrap_ratio, middle, resamples
from countgen.guidance.methods import Method, find_method
from countgen.pocket import ROLES, card, load_critic, load_generator
from countgen.pocket.suites import SuitePrompt, suite
from countgen.seeds import image_seed
from pipelines.adapter import DiffusersAdapter
from pipelines.base import Noise
from pipelines.registry import family

BASES = ("best-of-n", "engine")


def stand_in(steps: int) -> CountGuidedPipeline:
    """Pocket, sampled with more steps than it is meant for."""
    own = replace(card(), steps=steps)
    adapter = DiffusersAdapter(load_generator(), family("sdxl"), own, memory_plan="fast")
    critic, verifier = (load_critic(ROLES[role]) for role in ("critic", "verifier"))
    return CountGuidedPipeline(adapter, critic, verifier)


# -- what an early look tells ------------------------------------------------------------------------


def looked_at(
    pipeline: CountGuidedPipeline, prompts: Sequence[SuitePrompt], options: argparse.Namespace
) -> list[Row]:
    """A row for every plain draw: the critic's counts after every tenth of the steps."""
    path = options.run / "looks.jsonl"
    done = {(row["id"], row["image"]) for row in read_rows(path)}
    todo = [
        (prompt, image)
        for image in range(options.looks)
        for prompt in prompts
        if (prompt.id, image) not in done
    ]
    with path.open("a") as file:
        for start in range(0, len(todo), options.batch):
            for row in _batch(pipeline, todo[start : start + options.batch], options.seed):
                file.write(json.dumps(row) + "\n")
            file.flush()
            print(f"looks: {min(start + options.batch, len(todo))} of {len(todo)}", file=sys.stderr)
    kept = {prompt.id for prompt in prompts}
    return [row for row in read_rows(path) if row["id"] in kept and row["image"] < options.looks]


def _batch(
    pipeline: CountGuidedPipeline, some: Sequence[tuple[SuitePrompt, int]], seed: int
) -> Iterator[Row]:
    adapter: Any = pipeline.adapter
    plan = adapter.plan()
    queries = [pipeline.critic.prepare([noun for noun, _ in p.targets]) for p, _ in some]
    seeds = [image_seed(seed, prompt.id, image) for prompt, image in some]
    counts: dict[str, Any] = {}
    with torch.no_grad():
        noises = [adapter.noise([torch.Generator().manual_seed(own)], plan) for own in seeds]
        rows = adapter.encode([prompt.prompt for prompt, _ in some], plan)
        for step in adapter.trajectory(Noise.join(noises), rows, plan):
            done = step.step + 1
            if done * 10 % plan.steps == 0:
                images = adapter.decode(step.clean, plan)
                counts[str(done * 100 // plan.steps)] = pipeline.critic(images, queries).hard
    for i, (prompt, image) in enumerate(some):
        kinds = len(prompt.targets)
        seen = {share: hard[i, :kinds].tolist() for share, hard in counts.items()}
        wanted = [count for _, count in prompt.targets]
        yield {"id": prompt.id, "image": image, "wanted": wanted, "seen": seen}


def agreement(rows: Sequence[Row], prices: Mapping[str, float]) -> dict[str, Any]:
    """By percent of the steps: how often a count is the finished one's, and what it would save.

    Args:
        prices: of the denoiser in all steps, and of decoder and critic together, "look".
    """
    out: dict[str, Any] = {}
    for share in list(rows[0]["seen"])[:-1]:
        off = [(row, _distance(row["seen"][share], row["seen"]["100"])) for row in rows]
        out[share] = {
            "same": _by_prompt([(row, float(change == 0)) for row, change in off]),
            "within_one": _by_prompt([(row, float(change <= 1)) for row, change in off]),
        }
        for name, ends in (("exact", True), ("others", False)):
            some = [row for row in rows if (row["seen"]["100"] == row["wanted"]) is ends]
            right = [(row, float(row["seen"][share] == row["wanted"])) for row in some]
            out[share][f"{name}_look_exact"] = _by_prompt(right) if right else None
        out[share]["price_per_exact_over_without"] = _per_exact(rows, share, prices)
    return out


def _per_exact(rows: Sequence[Row], share: str, prices: Mapping[str, float]) -> dict[str, Any]:
    """Price of an exact picture where only what looks exact is finished, over that where everything is."""
    part = int(share) / 100
    whole = prices["denoiser"] + prices["look"]
    sums: dict[str, list[float]] = {}
    for row in rows:
        kept = row["seen"][share] == row["wanted"]
        exact = row["seen"]["100"] == row["wanted"]
        early = part * prices["denoiser"] + prices["look"]
        rest = (1 - part) * prices["denoiser"] + prices["look"]
        seen = (early + kept * rest, kept and exact, whole, exact)
        own = sums.setdefault(row["id"], [0.0] * 4)
        sums[row["id"]] = [a + b for a, b in zip(own, seen, strict=True)]
    table = np.array(list(sums.values()))
    with np.errstate(divide="ignore", invalid="ignore"):
        rounds = table[resamples(len(table))].sum(1)
        spread = rounds[:, 0] / rounds[:, 1] / (rounds[:, 2] / rounds[:, 3])
        early_spent, early_exact, spent, exact = table.sum(0)
        ratio = early_spent / early_exact / (spent / exact)
        low, high = middle(np.where(np.isnan(spread), np.inf, spread))
    return {"ratio": _rounded(ratio), "ratio_ci95": [_rounded(low), _rounded(high)]}


def _rounded(value: float | None) -> float | None:
    return round(float(value), 4) if value is not None and np.isfinite(value) else None


def prices_of(pipeline: CountGuidedPipeline) -> dict[str, float]:
    """Of one picture, in plain renders: the denoiser in all steps, and a look at it."""
    plan = pipeline.adapter.plan()
    query = pipeline.critic.prepare(["star"])
    found = PriceList(pipeline.adapter, plan, {"critic": pipeline.critic}).of({"critic": query})
    price = {name: flops.forward for name, flops in found.modules.items()}
    return {
        "denoiser": round(plan.evaluations * price["denoiser"], 4),
        "look": round(price["decoder"] + price["critic"], 4),
    }


def _distance(counts: Sequence[int], others: Sequence[int]) -> int:
    return sum(abs(a - b) for a, b in zip(counts, others, strict=True))


def _by_prompt(values: Sequence[tuple[Row, float]]) -> dict[str, Any]:
    groups: dict[str, list[float]] = {}
    for row, value in values:
        groups.setdefault(row["id"], []).append(value)
    low, high = bootstrap_by_prompt(list(groups.values()))
    mean = sum(value for _, value in values) / len(values)
    return {"share": round(mean, 4), "ci95": [round(low, 4), round(high, 4)], "of": len(values)}


# -- what it saves -----------------------------------------------------------------------------------


def arms(shares: Sequence[float]) -> dict[str, dict[str, Method]]:
    """Base -> the name of an arm -> its method; the first is without early looks."""
    return {
        base: {
            base: find_method(base),
            **{
                name: replace(find_method(base), name=name, early=EarlyLook(share))
                for share in shares
                for name in [f"{base}-early-{share * 100:g}"]
            },
        }
        for base in BASES
    }


def looks_of(job: Job) -> Row:
    """How many pictures of a job were begun, and how many of them abandoned."""
    gone = sum(record.abandoned for record in job.records)
    return {"begun": len(job.records), "abandoned": gone}


def costs(rows: list[Row], names: Sequence[str], cap: float) -> dict[str, Any]:
    """Every arm, and those with early looks over the first, which has none."""
    out: dict[str, Any] = {}
    for name in names:
        own = [row for row in rows if row["method"] == name]
        found = summary(own, cap)
        begun = sum(row["begun"] for row in own)
        out[name] = {
            "n_images": len(own),
            "verified": found["verified"],
            "cost": found["cost"],
            "abandoned": round(sum(row["abandoned"] for row in own) / begun, 4),
        }
        if name != names[0]:
            spent = list(by_prompt(rows, name, names[0], lambda row: row["pre"]).values())
            low, high = bootstrap_ratio(spent)
            means = [sum(sum(pair[side]) for pair in spent) for side in (0, 1)]
            out[name]["par2_over_without"] = ratio_of_par2(rows, name, names[0], cap)
            out[name]["pre_over_without"] = {
                "ratio": round(means[0] / means[1], 4),
                "ratio_ci95": [round(low, 4), round(high, 4)],
            }
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--parts", nargs="+", default=["agreement", "cost"])
    parser.add_argument("--steps", type=int, default=30, help="of sampling, a multiple of ten")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.3, 0.5])
    parser.add_argument("--every", type=int, default=1, help="take every n-th prompt of pocket-dev")
    parser.add_argument("--looks", type=int, default=4, help="plain draws of each prompt")
    parser.add_argument("--per-prompt", type=int, default=1, help="wanted pictures of each prompt")
    parser.add_argument("--seed", type=int, default=900, help="run seed")
    parser.add_argument("--budget", type=float, default=16.0, help="cap in plain renders a picture")
    parser.add_argument("--batch", type=int, default=16, help="pictures drawn at once")
    parser.add_argument("--chunk", type=int, default=64, help="pictures in one pool")
    parser.add_argument("--run", type=Path, default=Path("runs/early_looks"))
    options = parser.parse_args(arguments)
    if options.steps % 10:
        parser.error("--steps must be a multiple of ten, so that every tenth can be looked at")
    options.run.mkdir(parents=True, exist_ok=True)
    torch.set_flush_denormal(True)
    pipeline, prompts = stand_in(options.steps), list(suite("pocket-dev"))[:: options.every]
    report: dict[str, Any] = {
        "command": f"python -m benchmarks.early_looks --json --parts {' '.join(options.parts)} --steps "
        f"{options.steps} --shares {' '.join(f'{share:g}' for share in options.shares)} --every "
        f"{options.every} --looks {options.looks} --per-prompt {options.per_prompt} --seed {options.seed} "
        f"--budget {options.budget:g}",
        "steps": options.steps,
        "cap": options.budget,
        "n_prompts": len(prompts),
    }
    if "agreement" in options.parts:
        report["prices"] = prices_of(pipeline)
        report["agreement"] = agreement(looked_at(pipeline, prompts, options), report["prices"])
    if "cost" in options.parts:
        report["cost"] = what_it_saves(pipeline, prompts, options)
    print(json.dumps(report, indent=None if options.json else 1))
    return 0


def what_it_saves(
    pipeline: CountGuidedPipeline, prompts: list[SuitePrompt], options: argparse.Namespace
) -> dict[str, Any]:
    """Both bases, each without early looks and with them."""
    ids, judge = {prompt.id for prompt in prompts}, load_critic(ROLES["judge"])
    out: dict[str, Any] = {}
    for base, several in arms(options.shares).items():
        for name, method in several.items():
            print(f"cost: {name}", file=sys.stderr)
            draw(pipeline, prompts, method, options, looks_of)
        rows = [
            row
            for row in read_rows(options.run / "rows.jsonl")
            if row["id"] in ids and row["image"] < options.per_prompt and row["method"] in several
        ]
        out[base] = costs(judged(rows, judge, options.run), list(several), options.budget)
    return out


if __name__ == "__main__":
    raise SystemExit(main())
