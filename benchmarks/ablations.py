"""One choice of guidance changed at a time, on pocket-dev: every arm beside the base of its group.

python -m benchmarks.ablations --json                   all groups, about an hour on one core
python -m benchmarks.ablations --json --groups moves    one of them

Arms of a group begin from the same noises, so that differences are paired. The settings here are looked at
on development prompts alone, and the judge's word is reported beside them, never used. Every finished picture
is a row of rows.jsonl in --run and a PNG beside it; the same command again goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import statistics as stats
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.pocket_methods import draw
from countgen import CountGuidedPipeline
from countgen.engine.job import EXACT, Job
from countgen.engine.policy import BestOfN, DrawThenEdit, DrawThenImprove
from countgen.evaluation.metrics import paired, par2, ratio_of_par2, share
from countgen.evaluation.runs import Row, judged, read_rows
from countgen.evaluation.statistics import bootstrap_by_prompt
from countgen.guidance.edits import Edits
from countgen.guidance.methods import Method
from countgen.guidance.objectives import CountingReward, ScaledIndicator, SoftCount, TwoSidedHinge
from countgen.guidance.optimizers import SGD, Adam, Polyak
from countgen.guidance.priors import KL, ChiNorm, Free, Moments, Renormalise, Spectrum
from countgen.guidance.scores import pocket_score
from countgen.guidance.variables import CountToken, LatentModifier, MeanLogVariance
from countgen.pocket import ROLES, load_critic
from countgen.pocket.suites import SuitePrompt, suite
from critics.base import Critic
from critics.detectors.base import DetectionCritic
from critics.wrappers.augment import AugmentedCritic
from critics.wrappers.ensemble import Ensemble
from critics.wrappers.rescaled import RescaledCritic

Counters = Literal[
    "detector",
    "gentle",
    "soft-duplicates",
    "density",
    "views",
    "ensemble",
    "rescaled",
]
"""Which counter is the critic, see ``critic``."""


@dataclass(frozen=True)
class Arm:
    """A way of guiding and the counter that guides it.

    Attributes:
        verified: with a verifier of another family; without, a picture is accepted on the critic's word.
    """

    method: Method
    critic: Counters = "detector"
    verified: bool = True


@dataclass(frozen=True)
class Group:
    """Arms beside their base, which is the first.

    Attributes:
        question: what the group asks.
    """

    question: str
    arms: Mapping[str, Arm]


HINGE, SOFT = TwoSidedHinge(), SoftCount()
CLIMB = Method("climb", "gradient steps from the first look on", DrawThenImprove(0, 12), HINGE)


def climb(**changes: Any) -> Method:
    """Gradient steps from every noise, without searches or edits beside them."""
    return replace(CLIMB, **changes)


def edits(steps: int = 0, edges: Literal["hard", "soft"] = "hard", **policy: Any) -> Method:
    """Edits alone, or with gradient steps where the critic counts exactly."""
    return Method("edits", "", DrawThenEdit(steps=steps, **policy), HINGE, edits=Edits(edges))


def groups() -> dict[str, Group]:
    """All groups by name; an arm that stands in several is drawn once."""
    base = Arm(climb())
    threshold = _detector().read_out.threshold
    optimizers = {
        "optimizer-polyak-0.15": Polyak(0.15),
        "optimizer-sgd": SGD(5.0, momentum=0.9, nesterov=True, clip=0.1),
        "optimizer-adam": Adam(0.05),
    }
    priors = {
        "prior-free": Free(),
        "prior-chi": ChiNorm(0.01),
        "prior-chi-power-10": ChiNorm(0.01, 10.0),
        "prior-moments": Moments(),
        "prior-spectrum": Spectrum(),
    }
    return {
        "moves": Group(
            "what does a search gain from each kind of move, and from its settings?",
            {
                "edit": Arm(edits()),
                "best-of-n": Arm(Method("best-of-n", "", BestOfN())),
                "climb": base,
                "draw-3-then-climb": Arm(climb(policy=DrawThenImprove(3, 12))),
                "edit-soft-edges": Arm(edits(edges="soft")),
                "edit-never-copies": Arm(edits(copies=0.0)),
                "edit-always-copies": Arm(edits(copies=1.0)),
                "edit-width-4": Arm(edits(width=4)),
                "edit-draws-1": Arm(edits(draws=1)),
                "edit-draws-6": Arm(edits(draws=6)),
                "engine": Arm(edits(steps=4)),
                "engine-soft-edges": Arm(edits(steps=4, edges="soft")),
                "engine-soft-count": Arm(replace(edits(steps=4), objective=SOFT)),
            },
        ),
        "objective": Group(
            "which loss of the critic's counts, and which activation of its logits?",
            {
                "climb": base,
                "hinge-margin-1": Arm(climb(objective=TwoSidedHinge(1.0))),
                "soft": Arm(climb(objective=SOFT)),
                "soft-gentle": Arm(climb(objective=SOFT), "gentle"),
                "soft-duplicates": Arm(climb(objective=SOFT), "soft-duplicates"),
                "scaled": Arm(climb(objective=ScaledIndicator())),
                "scaled-gentle": Arm(climb(objective=ScaledIndicator(1.0))),
                "counting-reward": Arm(climb(objective=CountingReward(threshold))),
                "semantic": Arm(climb(semantic=2.0)),
            },
        ),
        "critic": Group(
            "which family of counter gives the gradient (soft count), verified by the other?",
            {
                "soft": Arm(climb(objective=SOFT)),
                "density": Arm(climb(objective=SOFT), "density"),
                "views": Arm(climb(objective=SOFT), "views"),
                "best-of-n": Arm(Method("best-of-n", "", BestOfN())),
                "density-best-of-n": Arm(Method("best-of-n", "", BestOfN()), "density"),
            },
        ),
        "alone": Group(
            "how far is a critic's own word from the judge's, where no verifier asks back?",
            {
                "alone-detector": Arm(climb(objective=SOFT), verified=False),
                "alone-hinge": Arm(climb(), verified=False),
                "alone-views": Arm(climb(objective=SOFT), "views", verified=False),
                "alone-density": Arm(climb(objective=SOFT), "density", verified=False),
                "alone-rescaled": Arm(climb(objective=SOFT), "rescaled", verified=False),
                "alone-ensemble": Arm(climb(objective=SOFT), "ensemble", verified=False),
                "alone-best-of-n": Arm(Method("best-of-n", "", BestOfN()), verified=False),
                "alone-density-best-of-n": Arm(
                    Method("best-of-n", "", BestOfN()), "density", verified=False
                ),
                "alone-edit": Arm(edits(), verified=False),
            },
        ),
        "variable": Group(
            "what is optimised: the noise, its mean and variance, a network that changes it, a token?",
            {
                "climb": base,
                "optimizer-adam": Arm(climb(optimizer=Adam(0.05))),
                "mean-variance": Arm(
                    climb(variable=MeanLogVariance(), prior=KL(), optimizer=Adam(0.05))
                ),
                "modifier": Arm(climb(variable=LatentModifier(), prior=ChiNorm(0.01, 10.0))),
                "modifier-adam": Arm(
                    climb(
                        variable=LatentModifier(),
                        prior=ChiNorm(0.01, 10.0),
                        optimizer=Adam(0.003),
                    )
                ),
                "token": Arm(climb(variable=CountToken(), prior=Free())),
                "token-adam": Arm(climb(variable=CountToken(), prior=Free(), optimizer=Adam(0.03))),
                "token-instead-adam": Arm(
                    climb(variable=CountToken(place="instead"), prior=Free(), optimizer=Adam(0.03))
                ),
            },
        ),
        "prior": Group(
            "what keeps the noise a noise, at the usual step?",
            {"climb": base} | {name: Arm(climb(prior=prior)) for name, prior in priors.items()},
        ),
        "prior-fast": Group(
            "what keeps the noise a noise, at three times the usual step?",
            {
                "optimizer-polyak-0.15": Arm(climb(optimizer=Polyak(0.15), prior=Renormalise())),
                "fast-free": Arm(climb(optimizer=Polyak(0.15), prior=Free())),
                "fast-chi": Arm(climb(optimizer=Polyak(0.15), prior=ChiNorm(0.01))),
                "fast-spectrum": Arm(climb(optimizer=Polyak(0.15), prior=Spectrum())),
            },
        ),
        "optimizer": Group(
            "how is a step made of a gradient?",
            {"climb": base}
            | {name: Arm(climb(optimizer=optimizer)) for name, optimizer in optimizers.items()},
        ),
        "steps": Group(
            "through how many of the last sampling steps does the gradient need to go (of 8)?",
            {"climb": base} | {f"grad-steps-{k}": Arm(climb(grad_steps=k)) for k in (1, 4)},
        ),
    }


@cache
def _detector() -> DetectionCritic:
    found = load_critic(ROLES["critic"])
    assert isinstance(found, DetectionCritic)
    return found


@cache
def critic(name: Counters) -> Critic:
    """A counter in the critic's role.

    "detector" is pocket's critic, "density" its verifier. "gentle" is the detector with sigmoids of slope 1
    in place of 4, "soft-duplicates" with duplicates left out by products of sigmoids. "views" means
    over four random views. "rescaled" has the detector's counts and the density
    counter's gradient, and "ensemble" the mean of both.
    """
    detector, density = _detector(), load_critic(ROLES["verifier"])
    made: dict[str, Callable[[], Critic]] = {
        "detector": lambda: detector,
        "gentle": lambda: detector.with_settings(inverse_temperature=1.0),
        "soft-duplicates": lambda: detector.with_settings(duplicates="soft"),
        "density": lambda: density,
        "views": lambda: AugmentedCritic(detector),
        "ensemble": lambda: Ensemble([detector, density]),
        "rescaled": lambda: RescaledCritic(density, 1.0, detector),
    }
    return made[name]()


def chosen_prompts(number: int) -> list[SuitePrompt]:
    """Prompts of pocket-dev that ask for 5 to 16 objects in all, evenly over their order."""
    fit = [p for p in suite("pocket-dev") if 5 <= sum(count for _, count in p.targets) <= 16]
    number = min(number, len(fit))
    return [fit[i * len(fit) // number] for i in range(number)]


def pipeline_of(arm: Arm, generator: Any) -> CountGuidedPipeline:
    """The pocket generator with an arm's counters."""
    other = ROLES["critic"] if arm.critic.startswith("density") else ROLES["verifier"]
    return CountGuidedPipeline(
        generator,
        critic(arm.critic),
        load_critic(other) if arm.verified else None,
        guidance="best-of-n",
        score=pocket_score() if arm.method.semantic else None,
    )


def noted(job: Job) -> Row:
    """What a row has beside the usual: what was accepted, and how far the noise of a climb went."""
    assert job.best is not None
    seen = job.best.record
    return {
        "verified": job.outcome == EXACT,
        "drift": round(seen.drift, 2),
        "norm": round(seen.norm, 2),
        "diverged": sum(record.diverged for record in job.records),
    }


def gap(rows: Sequence[Row]) -> dict[str, Any]:
    """Share exact for the critic less share exact for the judge, with its 95% interval over prompts."""
    return share([(row, _gap(row)) for row in rows], "critic_judge_gap")


def _gap(row: Row) -> float:
    return float(row["critic"] == row["wanted"]) - float(row["judge"] == row["wanted"])


def figures(rows: list[Row], cap: float) -> dict[str, Any]:
    """What an arm came to; ``verified`` is what it accepted."""
    accepted = [(row, float(row["judge"] == row["wanted"])) for row in rows if row["verified"]]
    climbed = [row["drift"] for row in rows if row["steps"]]
    return {
        "n_images": len(rows),
        **par2(rows, cap),
        **share([(row, float(row["verified"])) for row in rows], "verified"),
        **share([(row, float(row["judge"] == row["wanted"])) for row in rows], "judge_exact"),
        **(share(accepted, "judge_exact_among_verified") if accepted else {}),
        **gap(rows),
        "pre_mean": round(stats.mean(row["pre"] for row in rows), 2),
        "drift_mean": round(stats.mean(climbed), 1) if climbed else None,
        "diverged_looks": sum(row["diverged"] for row in rows),
    }


def against(rows: list[Row], name: str, base: str, cap: float) -> dict[str, Any]:
    """An arm against its base on the same prompts and noises."""
    found = paired(rows, name, base)
    keep = ("exact", "exact_ci95", "verified", "verified_ci95")
    gaps: dict[str, dict[str, list[float]]] = defaultdict(lambda: {name: [], base: []})
    for row in rows:
        gaps[row["id"]][row["method"]].append(_gap(row))
    each = [[stats.mean(both[name]) - stats.mean(both[base])] for both in gaps.values()]
    low, high = bootstrap_by_prompt(each)
    return {
        "base": base,
        "par2": ratio_of_par2(rows, name, base, cap),
        **{key: found[key] for key in keep},
        "critic_judge_gap": round(stats.mean(value for (value,) in each), 4),
        "critic_judge_gap_ci95": [round(low, 4), round(high, 4)],
    }


def report(
    rows: Sequence[Row], several: Mapping[str, Group], options: argparse.Namespace
) -> dict[str, Any]:
    """Every group's arms, each with its figures and its paired difference from the base."""
    out: dict[str, Any] = {}
    for name, group in several.items():
        arms = list(group.arms)
        own = {arm: [row for row in rows if row["method"] == arm] for arm in arms}
        base, found = arms[0], {}
        for arm in arms:
            found[arm] = figures(own[arm], options.budget)
            if arm != base:
                found[arm]["paired"] = against(own[arm] + own[base], arm, base, options.budget)
        out[name] = {"question": group.question, "base": base, "arms": found}
    return out


def main() -> int:
    several = groups()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--groups", nargs="+", default=list(several), choices=list(several))
    parser.add_argument("--prompts", type=int, default=28, help="of pocket-dev")
    parser.add_argument("--per-prompt", type=int, default=1, help="pictures of each prompt")
    parser.add_argument("--seed", type=int, default=715, help="run seed")
    parser.add_argument("--budget", type=float, default=32.0, help="cap in plain renders a picture")
    parser.add_argument("--batch", type=int, default=16, help="pictures drawn at once")
    parser.add_argument("--chunk", type=int, default=64, help="pictures in one pool")
    parser.add_argument("--run", type=Path, default=Path("runs/ablations"))
    options = parser.parse_args()
    options.run.mkdir(parents=True, exist_ok=True)
    torch.set_flush_denormal(True)
    generator = CountGuidedPipeline.from_pretrained("pocket").adapter
    prompts, chosen = chosen_prompts(options.prompts), {g: several[g] for g in options.groups}
    arms = {name: arm for group in chosen.values() for name, arm in group.arms.items()}
    for name, arm in arms.items():
        print(name, file=sys.stderr, flush=True)
        method = replace(arm.method, name=name)
        draw(pipeline_of(arm, generator), prompts, method, options, noted)
    ids = {prompt.id for prompt in prompts}
    drawn = [
        row
        for row in read_rows(options.run / "rows.jsonl")
        if row["id"] in ids and row["image"] < options.per_prompt and row["method"] in arms
    ]
    rows = judged(drawn, load_critic(ROLES["judge"]), options.run)
    result = {
        "command": f"python -m benchmarks.ablations --json --groups {' '.join(options.groups)} "
        f"--prompts {options.prompts} --per-prompt {options.per_prompt} --seed {options.seed} "
        f"--budget {options.budget:g}",
        "suite": "pocket-dev",
        "prompts": sorted(ids),
        "cap": options.budget,
        "groups": report(rows, chosen, options),
    }
    print(json.dumps(result, indent=None if options.json else 1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
