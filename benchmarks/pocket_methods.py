"""Methods against each other on the pocket suites, at the same cap, by a judge that none of them sees.

python -m benchmarks.pocket_methods --json --suites pocket-small pocket-hard --methods none best-of-n noise

Every method has the setting that ``pocket_tuning`` found best on pocket-dev (its committed result).
Every finished picture is a row of rows.jsonl in --run and a PNG beside it; the same command again goes on
where it was stopped. The judge sees the pictures only when all are there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from benchmarks.pocket_tuning import tuned
from countgen import CountGuidedPipeline
from countgen.engine.job import Job
from countgen.evaluation.metrics import paired, ratio_of_par2, summary
from countgen.evaluation.runs import Row, judged, picture_path, read_rows, record
from countgen.guidance.methods import METHODS, Method
from countgen.pipeline import to_pil
from countgen.pocket import ROLES, load_critic
from countgen.pocket.suites import SELECTION_SEED, SUITES, SuitePrompt, suite


def draw(
    pipeline: CountGuidedPipeline,
    prompts: list[SuitePrompt],
    method: Method,
    options: argparse.Namespace,
    also: Callable[[Job], Row] = lambda job: {},
) -> None:
    """Draw what is missing in the rows, image index by image index, and append each picture's row.

    Args:
        also: what else a row has of a finished picture.
    """
    path = options.run / "rows.jsonl"
    done = {(row["method"], row["id"], row["image"]) for row in read_rows(path)}
    todo = [
        (prompt, image)
        for image in range(options.per_prompt)
        for prompt in prompts
        if (method.name, prompt.id, image) not in done
    ]
    with (
        Progress(disable=not sys.stderr.isatty()) as bar,
        path.open("a") as file,
    ):
        task = bar.add_task(method.name, total=len(todo))
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
                        picture_path(options.run, method.name, prompt.id, image)
                    )
                    row = record(picture, prompt.id, prompt.targets, image, method.name)
                    file.write(json.dumps(row | also(picture)) + "\n")
                    file.flush()
                    bar.advance(task)


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
            draw(pipeline, prompts, tuned(method), options)
        ids = {prompt.id for prompt in prompts}
        kept = [
            row
            for row in read_rows(options.run / "rows.jsonl")
            if row["id"] in ids
            and row["image"] < options.per_prompt
            and row["method"] in options.methods
        ]
        rows = judged(kept, judge, options.run)
        report["suites"][name] = {
            method: summary([row for row in rows if row["method"] == method], options.budget)
            for method in options.methods
        }
        if "best-of-n" in options.methods:
            report["paired"][name] = {
                method: paired(rows, method, "best-of-n")
                | {"par2": ratio_of_par2(rows, method, "best-of-n", options.budget)}
                for method in options.methods
                if method not in ("none", "best-of-n")
            }
    print(json.dumps(report, indent=None if options.json else 1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
