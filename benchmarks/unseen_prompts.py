"""The methods once more, on prompts that nobody had looked at while they were made.

python -m benchmarks.unseen_prompts --json

The reported suites were looked at where methods failed on them, and methods were mended by what was seen. So
another edition of the same suites is made here, its hard third is chosen by plain success as the reported
one was, and the methods draw it. Results count once: an edition that has been looked at is spent.
"""

from __future__ import annotations

import argparse
import json
import statistics as stats
from pathlib import Path
from typing import Any

import torch

from benchmarks.plain import Plain
from benchmarks.pocket_methods import draw
from benchmarks.pocket_plain import judge
from benchmarks.pocket_tuning import tuned
from countgen import CountGuidedPipeline
from countgen.evaluation.metrics import ratio_of_par2, summary
from countgen.evaluation.runs import judged, read_rows
from countgen.guidance.methods import METHODS
from countgen.pocket import ROLES, load_critic
from countgen.pocket.suites import EDITION, HARD_SUCCESS, SELECTION_SEED, SUITES, SuitePrompt, suite


def hard_prompts(edition: int, per_prompt: int, run: Path) -> list[SuitePrompt]:
    """Prompts of the edition whose plain success, by the judge, is at most one in ten; kept in the run."""
    prompts = [prompt for name in SUITES[1:] for prompt in suite(name, edition)]
    kept = run / "hard.json"
    if not kept.is_file():
        errors = judge(Plain(), prompts, SELECTION_SEED, per_prompt)
        success = {
            p.id: stats.mean(float(not any(row)) for row in errors[p.id]["judge"]) for p in prompts
        }
        kept.write_text(
            json.dumps([key for key, value in success.items() if value <= HARD_SUCCESS])
        )
    chosen = set(json.loads(kept.read_text()))
    return [prompt for prompt in prompts if prompt.id in chosen]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--edition", type=int, default=EDITION + 1, help="of the prompts")
    parser.add_argument(
        "--select", type=int, default=12, help="plain pictures that choose a prompt"
    )
    parser.add_argument(
        "--methods", nargs="+", default=["engine", "zeno", "best-of-n"], choices=list(METHODS)
    )
    parser.add_argument("--per-prompt", type=int, default=1, help="pictures of each prompt")
    parser.add_argument("--seed", type=int, default=701, help="run seed of the evaluation")
    parser.add_argument("--budget", type=float, default=64.0, help="cap in plain renders a picture")
    parser.add_argument("--batch", type=int, default=16, help="pictures drawn at once")
    parser.add_argument("--chunk", type=int, default=160, help="pictures in one pool")
    parser.add_argument("--run", type=Path, default=Path("runs/unseen_prompts"))
    options = parser.parse_args()
    if options.edition <= EDITION:
        parser.error(f"editions up to {EDITION} have been looked at; take a later one")
    options.run.mkdir(parents=True, exist_ok=True)
    torch.set_flush_denormal(True)
    prompts = hard_prompts(options.edition, options.select, options.run)
    pipeline = CountGuidedPipeline.from_pretrained("pocket")
    for method in options.methods:
        draw(pipeline, prompts, tuned(method), options)
    kept = [r for r in read_rows(options.run / "rows.jsonl") if r["method"] in options.methods]
    rows = judged(kept, load_critic(ROLES["judge"]), options.run)
    report: dict[str, Any] = {
        "command": f"python -m benchmarks.unseen_prompts --json --edition {options.edition} --methods "
        f"{' '.join(options.methods)} --seed {options.seed} --per-prompt {options.per_prompt}",
        "edition": options.edition,
        "prompts": [prompt.id for prompt in prompts],
        "methods": {
            method: summary([row for row in rows if row["method"] == method], options.budget)
            for method in options.methods
        },
        "ratios": {
            method: ratio_of_par2(rows, options.methods[0], method, options.budget)
            for method in options.methods[1:]
        },
    }
    print(json.dumps(report, indent=None if options.json else 1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
