"""Settings of the methods, as many of each, compared on pocket-dev alone; the judge takes no part.

python -m benchmarks.pocket_tuning --json

A method's settings are ranked by the penalised mean cost of pictures that are *verified*; ties go to the
first, which is the one that its source names where there is one.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from countgen import CountGuidedPipeline
from countgen.engine.policy import (
    DrawThenEdit,
    DrawThenImprove,
    HillClimbing,
    PathIntegral,
    TrustRegion,
)
from countgen.evaluation.runs import read_rows
from countgen.guidance.edits import Edits
from countgen.guidance.methods import METHODS, Method
from countgen.guidance.optimizers import SGD, Adam
from countgen.guidance.steps import CountingGuidance, PromptSteering
from countgen.pocket.suites import suite


def settings() -> dict[str, dict[str, Method]]:
    """Method -> three settings by name, the first as it was."""
    token, initno = {"weight_decay": 0.01}, {"eps": 1e-3}
    choices: dict[str, dict[str, dict[str, Any]]] = {
        "noise": {
            "12 draws": {},
            "4 draws": {"policy": DrawThenImprove(draws=4)},
            "1 draw": {"policy": DrawThenImprove(draws=1)},
        },
        "edit": {
            "3 draws, hard edges": {"edits": Edits("hard")},
            "3 draws, soft edges": {"edits": Edits("soft")},
            "6 draws, hard edges": {"edits": Edits("hard"), "policy": DrawThenEdit(draws=6)},
        },
        "reno": {
            f"lr {lr:g}": {"optimizer": SGD(lr, momentum=0.9, nesterov=True, clip=0.1)}
            for lr in (5.0, 2.0, 10.0)
        },
        "d2d": {f"lr {lr:g}": {"optimizer": Adam(lr)} for lr in (0.01, 0.003, 0.001)},
        "count-token": {f"lr {lr:g}": {"optimizer": Adam(lr, **token)} for lr in (0.01, 0.03, 0.1)},
        "initno": {f"lr {lr:g}": {"optimizer": Adam(lr, **initno)} for lr in (0.01, 0.03, 0.1)},
        "counting-guidance": {
            f"strength {s:g}": {"guide": CountingGuidance(s)} for s in (0.2, 0.1, 0.05)
        },
        "prompt-steering": {
            f"weight {w:g}": {"guide": PromptSteering(weight=w)} for w in (4.0, 2.0, 1.0)
        },
        "prompt-steering-feedback": {
            f"weight {w:g}": {"guide": PromptSteering("feedback", w)} for w in (4.0, 2.0, 1.0)
        },
        "hill-climbing": {f"step {s:g}": {"policy": HillClimbing(step=s)} for s in (0.1, 0.3, 0.5)},
        "trs": {f"share {s:g}": {"policy": TrustRegion(share=s)} for s in (0.3, 0.1, 0.9)},
        "zeno": {f"step {s:g}": {"policy": PathIntegral(step=s)} for s in (0.4, 0.2, 0.6)},
    }
    return {
        name: {label: replace(METHODS[name], **changes) for label, changes in several.items()}
        for name, several in choices.items()
    }


RESULT = Path(__file__).parent / "results" / "pocket_tuning.json"


def tuned(name: str) -> Method:
    """A method with the setting that the committed result found best; untuned ones as they are."""
    found = json.loads(RESULT.read_text(encoding="utf-8"))["methods"].get(name)
    return settings()[name][found["best"]] if found else METHODS[name]


def draw(pipeline: CountGuidedPipeline, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for every picture of every setting; what is in the file already is not drawn again."""
    path = options.run / "rows.jsonl"
    options.run.mkdir(parents=True, exist_ok=True)
    prompts = suite("pocket-dev")[options.part :: options.parts]
    tried = [
        (name, label, method)
        for name, several in settings().items()
        if name in options.methods
        for label, method in several.items()
    ]
    done = {(row["method"], row["setting"], row["id"]) for row in read_rows(path)}
    with path.open("a") as file:
        for name, label, method in track(tried, disable=not sys.stderr.isatty()):
            todo = [p for p in prompts if (name, label, p.id) not in done]
            if not todo:
                continue
            found = pipeline(
                [p.prompt for p in todo],
                targets=[p.targets for p in todo],
                prompt_ids=[p.id for p in todo],
                seed=options.seed,
                guidance=method,
                budget=options.budget,
                output_type="pt",
            )
            for prompt, job in zip(todo, found.jobs, strict=True):
                row = {"method": name, "setting": label, "id": prompt.id}
                row |= {"verified": job.verified, "pre": round(job.spent, 3)}
                file.write(json.dumps(row) + "\n")
            file.flush()
    return read_rows(path)


def table(rows: list[dict[str, Any]], budget: float) -> dict[str, Any]:
    """Method -> setting -> penalised mean cost and verified share, and the best setting."""
    out: dict[str, Any] = {}
    for name, several in settings().items():
        found: dict[str, Any] = {}
        for label in several:
            own = [row for row in rows if (row["method"], row["setting"]) == (name, label)]
            if not own:
                continue
            costs = [row["pre"] if row["verified"] else 2 * budget for row in own]
            found[label] = {
                "par2_of_verified": round(sum(costs) / len(own), 2),
                "verified": round(sum(row["verified"] for row in own) / len(own), 3),
                "n": len(own),
            }
        if found:
            best = min(found, key=lambda label: found[label]["par2_of_verified"])
            out[name] = {"settings": found, "best": best}
    return out


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--methods", nargs="+", default=list(settings()), choices=list(settings()))
    parser.add_argument("--budget", type=float, default=64.0, help="cap in plain renders a picture")
    parser.add_argument("--seed", type=int, default=100, help="run seed")
    parser.add_argument("--parts", type=int, default=1, help="take every so manieth prompt ...")
    parser.add_argument("--part", type=int, default=0, help="... from this one on")
    parser.add_argument("--run", type=Path, default=Path("runs/pocket_tuning"))
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    rows = draw(CountGuidedPipeline.from_pretrained("pocket"), options)
    report = {
        "command": "python -m benchmarks.pocket_tuning --json "
        f"--seed {options.seed} --parts {options.parts} --part {options.part}",
        "suite": "pocket-dev",
        "cap": options.budget,
        "methods": table(rows, options.budget),
    }
    print(json.dumps(report, indent=None if options.json else 1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
