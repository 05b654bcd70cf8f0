"""How easily a counter is fooled: pixels optimised against it, and who else believes the result.

python -m benchmarks.hackability --json

Every pocket counter in turn steers the pixels themselves, from grey noise and from composed scenes, towards
a count: the freest and so the worst way to use it, no generator keeps the picture plausible. The *transfer*
is the share of the count so gained that the counters of the other families see too; 0 means that the gain
exists for this counter only, 1 that all agree. The same again with the counter inside random views
(``critics.wrappers.augment``). Medians over seeds, with minimum and maximum.
"""

from __future__ import annotations

import argparse
import json
import statistics as stats
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from countgen.guidance.objectives import SoftCount
from countgen.pocket import ROLES, load_critic
from countgen.pocket.scenes import SceneSpec, compose
from countgen.pocket.world import NAMES
from critics.base import Critic
from critics.wrappers.augment import AugmentedCritic

STARTS = ("noise", "scene")
STEP, MOMENTUM = 0.01, 0.7
"""Mean change of a pixel at full error, of values in [0, 1], and how much of the last change goes on."""


@dataclass(frozen=True)
class Case:
    """A picture to be changed: (3, 64, 64) in [0, 1], and how many of what it should come to show."""

    start: str
    image: Tensor
    noun: str
    wanted: int
    seed: int


def cases(seed: int, each: int) -> list[Case]:
    """``each`` of both starts: 2 to 6 objects from nothing, and 3 more than a composed scene has."""
    rng = np.random.default_rng([seed, each])
    found = []
    for start in STARTS:
        for i in range(each):
            noun, count = str(rng.choice(NAMES)), int(rng.integers(2, 7))
            if start == "noise":
                image = torch.from_numpy(rng.normal(0.5, 0.1, (3, 64, 64)).clip(0, 1)).float()
            else:
                scene = compose(SceneSpec(((noun, count),)), int(rng.integers(2**31)))
                image = torch.from_numpy(scene.image).permute(2, 0, 1).float() / 255
                count += 3
            found.append(Case(start, image, noun, count, 1000 * seed + 100 * len(found) + i))
    return found


def optimise(critic: Critic, todo: Sequence[Case], steps: int) -> Tensor:
    """(b, 3, 64, 64) the pictures after ``steps`` of descent on the error of the critic's soft count.

    Gradients have the same size in every picture and step, since the soft counts of some critics are almost
    flat where they see nothing; steps shrink with the last part of the error.
    """
    images = torch.stack([case.image for case in todo])
    wanted = torch.tensor([[case.wanted] for case in todo])
    queries = [critic.prepare([case.noun]) for case in todo]
    change = torch.zeros_like(images)
    for step in range(steps):
        # New views at every step, each picture its own.
        drawn = [
            replace(query, seed=10_000 * case.seed + step)
            for query, case in zip(queries, todo, strict=True)
        ]
        leaf = images.requires_grad_()
        error = SoftCount()(critic(leaf, drawn), wanted)
        (grad,) = torch.autograd.grad(error.sum(), leaf)
        size = grad.abs().mean((1, 2, 3), keepdim=True).clamp_min(1e-30)
        pace = error.detach().clamp_max(1)[:, None, None, None]
        change = MOMENTUM * change - STEP * pace * grad / size
        images = (images.detach() + change).clamp(0, 1)
    return images.detach()


@torch.no_grad()
def hard_counts(critic: Critic, images: Tensor, todo: Sequence[Case]) -> list[int]:
    queries = [critic.prepare([case.noun]) for case in todo]
    return [int(row[0]) for row in critic(images, queries).hard]


def confirmed(gained: int, seen: int) -> float | None:
    """The share of a gained count that another counter's gain covers; None where nothing was gained."""
    return min(max(seen / gained, 0.0), 1.0) if gained > 0 else None


def attack(
    name: str, everyone: dict[str, Critic], seed: int, each: int, steps: int, views: int
) -> list[dict[str, Any]]:
    """One row for every picture of a seed: its start, whether the count was reached, who confirms it."""
    todo = cases(seed, each)
    critic = everyone[name]
    driver = AugmentedCritic(critic, views=views, seed=seed) if views else critic
    before = torch.stack([case.image for case in todo])
    after = optimise(driver, todo, steps)
    gains = {}
    for other, counter in everyone.items():
        old, new = hard_counts(counter, before, todo), hard_counts(counter, after, todo)
        gains[other] = [b - a for a, b in zip(old, new, strict=True)]
    reached = hard_counts(critic, after, todo)
    return [
        {
            "seed": seed,
            "start": case.start,
            "reached": reached[i] == case.wanted,
            "confirmed": {
                other: confirmed(gains[name][i], gains[other][i])
                for other in everyone
                if other != name
            },
        }
        for i, case in enumerate(todo)
    ]


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians over seeds of each seed's mean share, for all pictures whose count rose at all."""
    others = list(rows[0]["confirmed"])

    def spread(which: Sequence[str], start: str | None = None) -> dict[str, float | None]:
        by_seed: dict[int, list[float]] = {}
        for row in rows:
            shares = [row["confirmed"][other] for other in which]
            if None not in shares and start in (None, row["start"]):
                by_seed.setdefault(row["seed"], []).append(stats.mean(shares))
        means = [stats.mean(values) for values in by_seed.values()]
        if not means:
            return {"transfer": None, "min": None, "max": None}
        low, high = min(means), max(means)
        return {
            "transfer": round(stats.median(means), 4),
            "min": round(low, 4),
            "max": round(high, 4),
        }

    return {
        **spread(others),
        "pictures": len(rows),
        "raised": sum(row["confirmed"][others[0]] is not None for row in rows),
        "reached": sum(row["reached"] for row in rows),
        "confirmed_by": {other: spread([other]) for other in others},
        "by_start": {start: spread(others, start) for start in STARTS},
    }


def measure(seeds: int, each: int, steps: int, views: int) -> dict[str, Any]:
    """Every pocket counter attacked bare and inside random views."""
    everyone = {name: load_critic(name) for name in ROLES.values()}
    report = {}
    for name in everyone:
        bare, augmented = (
            [
                row
                for seed in range(seeds)
                for row in attack(name, everyone, seed, each, steps, inside)
            ]
            for inside in (0, views)
        )
        report[name] = summarise(bare) | {"augmented": summarise(augmented)}
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--each", type=int, default=2, help="pictures of each start and seed")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--views", type=int, default=2, help="random views of each step")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the same rounding however many cores there are
    torch.set_flush_denormal(True)
    sizes = {key: getattr(options, key) for key in ("seeds", "each", "steps", "views")}
    flags = " ".join(f"--{key} {value}" for key, value in sizes.items())
    report = {
        "command": f"python -m benchmarks.hackability --json {flags}",
        "device": "cpu",
        **sizes,
        "critics": measure(**sizes),
    }
    print(json.dumps(report, indent=None if options.json else 1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
