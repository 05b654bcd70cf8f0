"""What a guided step costs above the bare forward and backward of the same modules.

python -m benchmarks.guided_step --json            guided step against the floor, by batch size
python -m benchmarks.guided_step --json --first 9  also the seconds to a first verified picture
"""

from __future__ import annotations

import argparse
import json
import statistics as stats
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch

from countgen.engine.cost import Cost, PriceList, peak_bytes
from countgen.engine.evaluate import Evaluator
from countgen.engine.job import Job, Request
from countgen.engine.policy import DrawThenImprove
from countgen.engine.pool import Pool
from countgen.engine.sharing import frozen
from countgen.guidance.methods import Method, find_method
from countgen.guidance.objectives import TwoSidedHinge
from countgen.pipeline import CountGuidedPipeline
from countgen.prompts import parse_prompt
from critics.detectors.base import DetectionCritic
from pipelines.adapter import DiffusersAdapter
from pipelines.base import Noise, Plan

PROMPT = "twenty apples"
TARGETS = (("red apple", 20), ("green apple", 19))
"""Never exact, so that no picture leaves the batch while it is timed."""
FIRST = (
    "seven red apples on a table",
    "four cats on grass",
    "nine stars in the sky",
    "five cars on the road",
    "six oranges",
)


def guided(pipeline: CountGuidedPipeline, batch: int, plan: Plan) -> Callable[[], Any]:
    """One step of the pool on ``batch`` pictures, everything that a run does included."""
    adapter = pipeline.adapter
    method = Method(
        "timed", "endless", DrawThenImprove(draws=0, steps=10**9), objective=TwoSidedHinge()
    )
    assert pipeline.verifier is not None
    prompt = parse_prompt(PROMPT, TARGETS)
    nouns = [target.noun for target in prompt.targets]
    roles = {"critic": pipeline.critic, "verifier": pipeline.verifier}
    queries = {role: critic.prepare(nouns) for role, critic in roles.items()}
    look = Evaluator(
        adapter,
        plan,
        pipeline.critic,
        pipeline.verifier,
        method,
        adapter.encode([PROMPT], plan),
        [prompt],
        PriceList(adapter, plan, roles),
    )

    def draw(candidate: int) -> Noise:
        return adapter.noise([torch.Generator().manual_seed(candidate)], plan)

    jobs = [Job(Request(i, prompt, 0, queries, draw, i, 1e12)) for i in range(batch)]
    states = Pool(look, Cost(), batch).run(jobs)
    return lambda: next(states)


def floor(pipeline: CountGuidedPipeline, batch: int, plan: Plan) -> Callable[[], Any]:
    """The bare modules chained: denoiser at every step with an Euler update, decoder, critic's network."""
    adapter, critic = pipeline.adapter, pipeline.critic
    assert isinstance(adapter, DiffusersAdapter) and isinstance(critic, DetectionCritic)
    unet, vae = adapter.pipeline.unet, adapter.pipeline.vae
    text = adapter.encode([PROMPT] * batch, plan)
    times = torch.linspace(999, 1, plan.steps)
    side = (plan.height, plan.width, 0, 0, plan.height, plan.width)
    added = {"text_embeds": text.pooled, "time_ids": text.pooled.new_tensor(side).expand(batch, 6)}
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        leaf = torch.randn(batch, *plan.latent_shape, generator=generator).requires_grad_()
        latents = leaf
        for now in times:
            velocity = unet(latents, now, text.hidden, added_cond_kwargs=added).sample
            latents = latents - velocity / plan.steps
        images = vae.decode(latents).sample / 2 + 0.5
        logits, _ = critic.network(images)
        torch.autograd.grad(logits.sum(), leaf)

    return step


def compare(pipeline: CountGuidedPipeline, batch: int, repeats: int) -> dict[str, float]:
    """Both sides in turn, so that the machine's moods fall on both; medians of times and of ratios."""
    plan = pipeline.adapter.plan()
    sides = (guided(pipeline, batch, plan), floor(pipeline, batch, plan))
    for _ in range(2):
        for side in sides:
            side()
    times: list[tuple[float, float]] = []
    for _ in range(repeats):
        pair = []
        for side in sides:
            begun = time.perf_counter()
            side()
            pair.append(time.perf_counter() - begun)
        times.append((pair[0], pair[1]))
    ratios = [a / b for a, b in times]
    return {
        "ratio_to_floor": round(stats.median(ratios), 4),
        "ratio_min": round(min(ratios), 4),
        "ratio_max": round(max(ratios), 4),
        "seconds": round(stats.median(a for a, _ in times), 4),
        "floor_seconds": round(stats.median(b for _, b in times), 4),
    }


def first_pictures(runs: int) -> dict[str, Any]:
    """Seconds from process start to the saved picture, as a newcomer types it."""
    seconds, verified = [], 0
    for run in range(runs):
        with tempfile.TemporaryDirectory() as out:
            command = [
                *(sys.executable, "-m", "countgen", "generate", FIRST[run % len(FIRST)]),
                *("--seed", str(run), "--out", out, "--json"),
            ]
            begun = time.perf_counter()
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            seconds.append(time.perf_counter() - begun)
            verified += json.loads(done.stdout)["images"][0]["verified"]
    return {
        "runs": runs,
        "verified": verified,
        "seconds": round(stats.median(seconds), 2),
        "min": round(min(seconds), 2),
        "max": round(max(seconds), 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--repeats", type=int, default=9, help="timings of each side")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--first", type=int, default=0, metavar="N", help="time N first pictures")
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    pipeline = CountGuidedPipeline.from_pretrained("pocket", guidance=find_method("noise"))
    with frozen(pipeline.adapter.modules()):
        by_batch = {b: compare(pipeline, b, options.repeats) for b in options.batches}
    widest = by_batch[max(by_batch)]
    report: dict[str, Any] = {
        "command": f"python -m benchmarks.guided_step --json --repeats {options.repeats} --batches "
        f"{' '.join(map(str, options.batches))} --first {options.first}",
        "device": str(pipeline.adapter.device),
        "threads": torch.get_num_threads(),
        "ratio_to_floor": widest["ratio_to_floor"],
        "seconds": widest["seconds"],
        "peak_bytes": peak_bytes(pipeline.adapter.device),
        "by_batch": by_batch,
    }
    if options.first:
        report["first_picture"] = first_pictures(options.first)
    print(json.dumps(report, indent=None if options.json else 1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
