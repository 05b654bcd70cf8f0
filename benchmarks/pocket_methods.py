"""Methods against each other on the pocket suites, at the same cap, by a judge that none of them sees.

python -m benchmarks.pocket_methods --json --suites pocket-small pocket-hard --methods none best-of-n noise

Every finished picture is a row of rows.jsonl in --run and a PNG beside it; the same command again goes on
where it was stopped. The judge sees the pictures only when all are there.
"""

from __future__ import annotations

import argparse
import json
import statistics as stats
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.progress import Progress

from benchmarks.statistics import bootstrap_by_prompt
from countgen import CountGuidedPipeline
from countgen.engine.pool import Picture
from countgen.guidance.methods import METHODS
from countgen.pipeline import counts, to_pil
from countgen.pocket import ROLES, load_critic
from countgen.pocket.suites import SELECTION_SEED, SUITES, SuitePrompt, suite
from critics.base import Critic

Row = dict[str, Any]


def draw(
    pipeline: CountGuidedPipeline,
    prompts: list[SuitePrompt],
    method: str,
    options: argparse.Namespace,
) -> None:
    """Draw what is missing in the rows, image index by image index, and append each picture's row."""
    path = options.run / "rows.jsonl"
    done = {(row["method"], row["id"], row["image"]) for row in read(path)}
    todo = [
        (prompt, image)
        for image in range(options.per_prompt)
        for prompt in prompts
        if (method, prompt.id, image) not in done
    ]
    with (
        Progress(disable=not sys.stderr.isatty()) as bar,
        path.open("a") as file,
    ):
        task = bar.add_task(method, total=len(todo))
        for start in range(0, len(todo), options.chunk):
            part = todo[start : start + options.chunk]
            states = pipeline.stream(
                [prompt.prompt for prompt, _ in part],
                targets=[prompt.targets for prompt, _ in part],
                # The image index is a part of the seed's prompt id, as in every other run.
                prompt_ids=[f"{prompt.id}/{image}" for prompt, image in part],
                seed=options.seed,
                guidance=method,
                budget=options.budget,
                batch_size=options.batch,
            )
            for state in states:
                for picture in state.finished:
                    prompt, image = part[picture.index]
                    assert picture.best is not None
                    to_pil(picture.best.image).save(
                        picture_path(options.run, method, prompt.id, image)
                    )
                    file.write(json.dumps(record(picture, prompt, image, method)) + "\n")
                    file.flush()
                    bar.advance(task)


def picture_path(run: Path, method: str, prompt: str, image: int) -> Path:
    return run / f"{method}-{prompt}-{image}.png"


def record(picture: Picture, prompt: SuitePrompt, image: int, method: str) -> Row:
    """What a picture came to."""
    roles = {role: list(values.values()) for role, values in counts(picture).items()}
    return {
        "method": method,
        "id": prompt.id,
        "image": image,
        "nouns": [noun for noun, _ in prompt.targets],
        "wanted": [count for _, count in prompt.targets],
        **roles,
        "verified": picture.verified,
        "outcome": picture.outcome,
        "pre": round(picture.spent, 3),
        "steps": sum(int(record["gradient"]) for record in picture.history),
    }


def judged(rows: list[Row], judge: Critic, run: Path) -> list[Row]:
    """The rows with the judge's counts of their saved pictures."""
    out: list[Row] = []
    for start in range(0, len(rows), 64):
        part = rows[start : start + 64]
        pixels = []
        for row in part:
            with Image.open(picture_path(run, row["method"], row["id"], row["image"])) as file:
                pixels.append(torch.from_numpy(np.asarray(file.convert("RGB")).copy()))
        images = torch.stack(pixels).permute(0, 3, 1, 2).float() / 255
        with torch.no_grad():
            hard = judge(images, [judge.prepare(row["nouns"]) for row in part]).hard.tolist()
        out += [
            row | {"judge": found[: len(row["wanted"])]}
            for row, found in zip(part, hard, strict=True)
        ]
    return out


def read(path: Path) -> list[Row]:
    """Rows written so far; a last line that was cut off is dropped from the file first."""
    if not path.exists():
        return []
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    return [json.loads(line) for line in whole.splitlines()]


def summary(rows: list[Row]) -> dict[str, Any]:
    """Exact shares by role with intervals that resample prompts, what is verified, and what it cost."""
    out: dict[str, Any] = {"n_prompts": len({row["id"] for row in rows}), "n_images": len(rows)}
    for role in ROLES:
        values = [(row, float(row.get(role) == row["wanted"])) for row in rows]
        off = [
            abs(a - b)
            for row in rows
            for a, b in zip(row.get(role, []), row["wanted"], strict=False)
        ]
        by_count: dict[int, list[float]] = defaultdict(list)
        for row, value in values:
            by_count[sum(row["wanted"])].append(value)
        out[role] = {
            **share(values, "exact"),
            "mae": round(stats.mean(off), 3) if off else None,
            "within_one": round(stats.mean(x <= 1 for x in off), 4) if off else None,
            "by_count": {n: round(stats.mean(v), 3) for n, v in sorted(by_count.items())},
        }
    verified = [(row, float(row["judge"] == row["wanted"])) for row in rows if row["verified"]]
    both = sum(value for _, value in verified)
    out["verified"] = {
        "share": round(len(verified) / len(rows), 4),
        **(share(verified, "judge_exact") if verified else {}),
    }
    spent = [row["pre"] for row in rows]
    out["cost"] = {
        "pre_median": round(stats.median(spent), 2),
        "pre_mean": round(stats.mean(spent), 2),
        "pre_per_verified_exact": round(sum(spent) / both, 2) if both else None,
    }
    return out


def paired(rows: list[Row], first: str, second: str) -> dict[str, Any]:
    """Shares of the first method minus those of the second, prompt by prompt, with 95% intervals.

    Both methods start from the same noises, so that a difference is steadier than the shares themselves.
    """
    values: dict[str, dict[str, dict[str, list[float]]]] = defaultdict(dict)
    for row in rows:
        exact = row["judge"] == row["wanted"]
        parts = {
            "exact": exact,
            "verified": row["verified"],
            "verified_exact": row["verified"] and exact,
        }
        for name, value in parts.items():
            by_method = values[name].setdefault(row["id"], {first: [], second: []})
            if row["method"] in by_method:
                by_method[row["method"]].append(float(value))
    out: dict[str, Any] = {}
    for name, prompts in values.items():
        gaps = [[stats.mean(each[first]) - stats.mean(each[second])] for each in prompts.values()]
        out[name] = round(stats.mean(gap for (gap,) in gaps), 4)
        out[f"{name}_ci95"] = [round(x, 4) for x in bootstrap_by_prompt(gaps)]
    return out


def share(values: list[tuple[Row, float]], name: str) -> dict[str, Any]:
    groups: dict[str, list[float]] = defaultdict(list)
    for row, value in values:
        groups[row["id"]].append(value)
    interval = bootstrap_by_prompt(list(groups.values()))
    return {
        name: round(stats.mean(value for _, value in values), 4),
        f"{name}_ci95": [round(x, 4) for x in interval],
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(
        "--suites",
        nargs="+",
        default=["pocket-small", "pocket-hard"],
        choices=[*SUITES, "pocket-hard"],
    )
    parser.add_argument(
        "--methods", nargs="+", default=["none", "best-of-n", "noise"], choices=list(METHODS)
    )
    parser.add_argument("--per-prompt", type=int, default=5, help="pictures of each prompt")
    parser.add_argument("--seed", type=int, default=0, help="run seed of the evaluation")
    parser.add_argument("--budget", type=float, default=64.0, help="cap in plain renders a picture")
    parser.add_argument("--batch", type=int, default=16, help="pictures drawn at once")
    parser.add_argument("--chunk", type=int, default=64, help="pictures in one pool")
    parser.add_argument("--run", type=Path, default=Path("runs/pocket_methods"))
    options = parser.parse_args()
    if options.seed == SELECTION_SEED:
        parser.error(f"run seed {SELECTION_SEED} chose the hard third; evaluate on another")
    options.run.mkdir(parents=True, exist_ok=True)
    torch.set_flush_denormal(True)
    pipeline, judge = CountGuidedPipeline.from_pretrained("pocket"), load_critic(ROLES["judge"])
    report: dict[str, Any] = {
        "command": " ".join(
            [
                "python -m benchmarks.pocket_methods --json",
                f"--suites {' '.join(options.suites)} --methods {' '.join(options.methods)}",
                f"--seed {options.seed} --per-prompt {options.per_prompt} --budget {options.budget:g}",
            ]
        ),
        "suites": {},
        "paired": {},
    }
    for name in options.suites:
        prompts = list(suite(name))
        for method in options.methods:
            draw(pipeline, prompts, method, options)
        ids = {prompt.id for prompt in prompts}
        kept = [
            row
            for row in read(options.run / "rows.jsonl")
            if row["id"] in ids
            and row["image"] < options.per_prompt
            and row["method"] in options.methods
        ]
        rows = judged(kept, judge, options.run)
        report["suites"][name] = {
            method: summary([row for row in rows if row["method"] == method])
            for method in options.methods
        }
        if {"noise", "best-of-n"} <= set(options.methods):
            report["paired"][name] = {"noise_minus_best_of_n": paired(rows, "noise", "best-of-n")}
    print(json.dumps(report, indent=None if options.json else 1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
