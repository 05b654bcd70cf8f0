"""Whether a count token serves other pictures than those it was fitted on, without more optimisation.

python -m benchmarks.token_reuse --json

Tokens are fitted on pocket (``countgen.guidance.tokens.fit_token``) on one prompt, or on several; then every
picture is drawn twice from one noise, plain and with the token in its prompt, once each, and the judge, which
took no part in the fit, counts both. Fitted tokens lie in --run and are not fitted again.
"""

from __future__ import annotations

import argparse
import json
import statistics as stats
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from countgen import CountGuidedPipeline, parse_prompt
from countgen.evaluation.statistics import bootstrap_by_prompt
from countgen.guidance.optimizers import Adam
from countgen.guidance.tokens import LearnedToken, fit_token
from countgen.pocket import ROLES, load_critic
from critics.base import Critic

FITTED = "a photo of seven cats"
FITS = {
    "not fitted": [FITTED],
    "one prompt": [FITTED],
    "four prompts": [
        FITTED,
        "a photo of five stars",
        "a photo of nine cups on grass",
        "a photo of six oranges in the snow",
    ],
}
"""Token -> the prompts that it is fitted on; the first takes no step, and is where others begin."""
USES = {
    "same prompt, new seeds": [FITTED],
    "new nouns": [
        f"a photo of seven {noun}" for noun in ("dogs", "penguins", "donuts", "cars", "flowers")
    ],
    "new counts": [
        f"a photo of {number} cats" for number in ("three", "four", "five", "six", "nine", "ten")
    ],
    "scenes": [
        f"seven cats {place}"
        for place in ("in the snow", "on grass", "on a carpet", "on the road", "in the sky")
    ],
    "another noun, count and scene": [
        "five birds on sand",
        "eight mushrooms on grass",
        "six balls on the road",
        "nine fish on a carpet",
        "ten bananas on white paper",
    ],
}


@dataclass(frozen=True)
class Drawn:
    """What the judge counted: prompt by prompt, the error of every picture."""

    errors: dict[str, list[int]]

    def mean(self, of: Callable[[int], float]) -> tuple[float, list[float]]:
        """Mean of a function of the errors, with its 95% interval over prompts (pictures where one)."""
        groups = [[of(error) for error in errors] for errors in self.errors.values()]
        if len(groups) == 1:  # one prompt: its pictures stand for themselves
            groups = [[value] for value in groups[0]]
        low, high = bootstrap_by_prompt(groups)
        value = stats.mean(v for group in groups for v in group)
        return round(value, 4), [round(low, 4), round(high, 4)]


MEASURES: dict[str, Callable[[int], float]] = {
    "judge_exact": lambda error: float(error == 0),
    "within_one": lambda error: float(abs(error) <= 1),
    "mae": lambda error: float(abs(error)),
    "bias": float,
}


def fitted(pipeline: CountGuidedPipeline, name: str, options: argparse.Namespace) -> LearnedToken:
    """A token of the run folder, fitted where it is not there yet."""
    path = options.run / f"{name.replace(' ', '-')}.safetensors"
    if path.exists():
        return LearnedToken.load(path)
    prompts = [parse_prompt(text) for text in FITS[name]]
    token = fit_token(
        pipeline,
        prompts,
        optimizer=Adam(options.lr, weight_decay=0.01),
        steps=1
        if name == "not fitted"
        else options.steps,  # the best of one step is where it begins
        num_images_per_prompt=options.batch // len(prompts),
        seed=options.seed,
        progress=lambda s: print(name, s.step, round(s.loss, 3), file=sys.stderr, flush=True),
    )
    token.save(path)
    return token


def drawn(
    pipeline: CountGuidedPipeline,
    judge: Critic,
    prompts: Sequence[str],
    token: LearnedToken | None,
    options: argparse.Namespace,
) -> Drawn:
    """Pictures of prompts from noises that depend on prompt and seed alone, counted by the judge."""
    found = pipeline(
        list(prompts),
        num_images_per_prompt=options.pictures // len(prompts),
        seed=options.seed + 1,
        guidance="none",
        budget=0,
        token=token,
        output_type="pt",
    )
    nouns = [job.request.nouns for job in found.jobs]
    with torch.no_grad():
        hard = judge(found.images, [judge.prepare(list(own)) for own in nouns]).hard[:, 0].tolist()
    errors: dict[str, list[int]] = {}
    for job, count in zip(found.jobs, hard, strict=True):
        errors.setdefault(job.prompt.text, []).append(count - job.request.wanted[0])
    return Drawn(errors)


def figures(made: Drawn, plain: Drawn | None = None) -> dict[str, Any]:
    """Every measure with its interval, and its difference from plain pictures of the same noises."""
    out: dict[str, Any] = {"pictures": sum(map(len, made.errors.values()))}
    for name, of in MEASURES.items():
        out[name], out[f"{name}_ci95"] = made.mean(of)
        if plain is None:
            continue
        gains = {
            text: [of(a) - of(b) for a, b in zip(errors, plain.errors[text], strict=True)]
            for text, errors in made.errors.items()
        }
        groups = list(gains.values())
        if len(groups) == 1:
            groups = [[value] for value in groups[0]]
        low, high = bootstrap_by_prompt(groups)
        gain = stats.mean(value for group in groups for value in group)
        out[f"{name}_gain"] = round(gain, 4)
        out[f"{name}_gain_ci95"] = [round(low, 4), round(high, 4)]
    return out


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(
        "--pictures", type=int, default=30, help="of every use, plain and with token"
    )
    parser.add_argument("--steps", type=int, default=30, help="of a fit")
    parser.add_argument("--batch", type=int, default=8, help="pictures in a fit")
    parser.add_argument("--lr", type=float, default=0.01, help="of a fit")
    parser.add_argument("--seed", type=int, default=31, help="run seed of fits; uses take the next")
    parser.add_argument("--run", type=Path, default=Path("runs/token_reuse"))
    options = parser.parse_args()
    options.run.mkdir(parents=True, exist_ok=True)
    torch.set_flush_denormal(True)
    pipeline, judge = CountGuidedPipeline.from_pretrained("pocket"), load_critic(ROLES["judge"])
    plain = {use: drawn(pipeline, judge, texts, None, options) for use, texts in USES.items()}
    tokens: dict[str, Any] = {}
    for name, texts in FITS.items():
        token = fitted(pipeline, name, options)
        tokens[name] = {
            "fitted_on": texts,
            "loss": round(token.about["loss"], 4),
            "uses": {
                use: figures(drawn(pipeline, judge, own, token, options), plain[use])
                for use, own in USES.items()
            },
        }
    report = {
        "command": f"python -m benchmarks.token_reuse --json --pictures {options.pictures} --steps "
        f"{options.steps} --batch {options.batch} --lr {options.lr:g} --seed {options.seed}",
        "plain": {use: figures(made) for use, made in plain.items()},
        "tokens": tokens,
    }
    print(json.dumps(report, indent=None if options.json else 1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
