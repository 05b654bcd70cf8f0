"""How well the plain pocket generator counts, and which prompts are the hard third.

python -m benchmarks.pocket_plain --json           plain success by suite and count, speed of a picture
python -m benchmarks.pocket_plain --select-hard    choose the hard third again (on its own seeds)
"""

from __future__ import annotations

import argparse
import json
import statistics as stats
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from rich.progress import track

from benchmarks.plain import Plain
from countgen.evaluation.statistics import bootstrap_by_prompt
from countgen.pipeline import to_pil
from countgen.pocket import ROLES, load_critic
from countgen.pocket.suites import HARD_SUCCESS, SELECTION_SEED, SUITES, SuitePrompt, suite
from countgen.pocket.world import FOLDER, SIZE
from countgen.seeds import image_seed

BATCH = 16


def judge(
    plain: Plain, prompts: Sequence[SuitePrompt], run_seed: int, per_prompt: int
) -> dict[str, dict[str, list[list[int]]]]:
    """Signed count errors of plain pictures: prompt id -> role -> picture -> error of each noun."""
    critics = {role: load_critic(name) for role, name in ROLES.items()}
    jobs = [(p, image) for p in prompts for image in range(per_prompt)]
    errors: dict[str, dict[str, list[list[int]]]] = {p.id: {r: [] for r in ROLES} for p in prompts}
    starts = range(0, len(jobs), BATCH)
    for start in track(starts, description="plain pictures", disable=not sys.stderr.isatty()):
        part = jobs[start : start + BATCH]
        seeds = [image_seed(run_seed, prompt.id, image) for prompt, image in part]
        pictures = plain.render([prompt.prompt for prompt, _ in part], seeds)
        for role, critic in critics.items():
            queries = [critic.prepare([noun for noun, _ in p.targets]) for p, _ in part]
            with torch.no_grad():
                hard = critic(pictures, queries).hard
            for i, (prompt, _) in enumerate(part):
                row = [int(hard[i, k]) - count for k, (_, count) in enumerate(prompt.targets)]
                errors[prompt.id][role].append(row)
    return errors


def summary(
    prompts: Sequence[SuitePrompt], errors: dict[str, dict[str, list[list[int]]]]
) -> dict[str, Any]:
    """Exact share with its interval, mean absolute error, share within one, and exact by total count."""
    out: dict[str, Any] = {"n_prompts": len(prompts)}
    for role in ROLES:
        exact = [[float(not any(row)) for row in errors[p.id][role]] for p in prompts]
        flat = [error for p in prompts for row in errors[p.id][role] for error in row]
        by_count: dict[int, list[float]] = defaultdict(list)
        for prompt, values in zip(prompts, exact, strict=True):
            by_count[sum(count for _, count in prompt.targets)] += values
        out[role] = {
            "exact": round(stats.mean(v for row in exact for v in row), 4),
            "exact_ci95": [round(x, 4) for x in bootstrap_by_prompt(exact)],
            "mae": round(stats.mean(map(abs, flat)), 3),
            "bias": round(stats.mean(flat), 3),
            "within_one": round(stats.mean(abs(e) <= 1 for e in flat), 4),
            "by_count": {n: round(stats.mean(v), 3) for n, v in sorted(by_count.items())},
        }
    return out


def speed(plain: Plain, repeats: int = 7) -> dict[str, dict[str, float]]:
    """Seconds a plain picture, median with minimum and maximum, at batch 1 and 16."""
    out = {}
    for batch in (1, 16):
        prompts = ["seven red apples on a table"] * batch
        plain.render(prompts, list(range(batch)))
        times = []
        for repeat in range(repeats):
            begun = time.perf_counter()
            plain.render(prompts, [repeat * batch + i for i in range(batch)])
            times.append((time.perf_counter() - begun) / batch)
        out[f"batch_{batch}"] = {
            "seconds": round(stats.median(times), 4),
            "min": round(min(times), 4),
            "max": round(max(times), 4),
        }
    return out


def select_hard(plain: Plain, per_prompt: int) -> None:
    """Write ``hard.json``: prompts whose plain success, by the judge, is at most one in ten."""
    prompts = [prompt for name in SUITES[1:] for prompt in suite(name)]
    errors = judge(plain, prompts, SELECTION_SEED, per_prompt)
    success = {
        p.id: stats.mean(float(not any(row)) for row in errors[p.id]["judge"]) for p in prompts
    }
    record = {
        "command": f"python -m benchmarks.pocket_plain --select-hard --per-prompt {per_prompt}",
        "run_seed": SELECTION_SEED,
        "pictures_per_prompt": per_prompt,
        "ids": [p.id for p in prompts if success[p.id] <= HARD_SUCCESS],
        "plain_success": {key: round(value, 3) for key, value in success.items()},
    }
    (FOLDER / "hard.json").write_text(json.dumps(record, indent=1) + "\n")


SHEET = (
    "three cats on grass",
    "seven red apples on a table",
    "five cars on the road",
    "twelve mushrooms on grass",
    "two dogs and four donuts on a carpet",
    "six penguins in the snow",
    "four oranges and five bananas",
    "sixteen stars in the sky",
)


def sheet(plain: Plain, path: Path, draws: int = 4, zoom: int = 3) -> None:
    """The first draws of run seed 0, none left out: prompts in two columns, a row of draws each."""
    side = SIZE * zoom
    page = Image.new("RGB", (2 * draws * side + 16, len(SHEET) // 2 * (side + 26)), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(16)
    for i, prompt in enumerate(SHEET):
        pictures = plain.render([prompt] * draws, [image_seed(0, prompt, k) for k in range(draws)])
        x, y = i % 2 * (draws * side + 16), i // 2 * (side + 26)
        pen.text((x + 2, y + 3), prompt, fill="black", font=font)
        for k in range(draws):
            tile = to_pil(pictures[k]).resize((side, side), Image.Resampling.BICUBIC)
            page.paste(tile, (x + k * side, y + 24))
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path, optimize=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--per-prompt", type=int, default=5, help="pictures of each prompt")
    parser.add_argument("--seed", type=int, default=0, help="run seed of the evaluation")
    parser.add_argument("--select-hard", action="store_true", help="choose the hard third again")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="draw a sheet of plain pictures")
    options = parser.parse_args()
    if options.seed == SELECTION_SEED:
        parser.error(f"run seed {SELECTION_SEED} chose the hard third; evaluate on another")
    plain = Plain()
    if options.select_hard:
        select_hard(plain, options.per_prompt)
        return 0
    if options.sheet:
        sheet(plain, options.sheet)
        return 0
    report: dict[str, Any] = {
        "command": f"python -m benchmarks.pocket_plain --json --seed {options.seed} "
        f"--per-prompt {options.per_prompt}",
        "threads": torch.get_num_threads(),
        "speed": speed(plain),
        "suites": {},
    }
    pooled: dict[str, dict[str, list[list[int]]]] = {}
    for name in SUITES:
        prompts = suite(name)
        errors = judge(plain, prompts, options.seed, options.per_prompt)
        pooled |= errors
        report["suites"][name] = summary(prompts, errors)
    hard = suite("pocket-hard")
    if hard:
        report["suites"]["pocket-hard"] = summary(hard, pooled)
    print(json.dumps(report, indent=None if options.json else 1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
