"""What a second look at verified pictures finds: the critic in the mirror, and more confidence.

    python -m benchmarks.second_looks --json --run RUN [RUN ...]

RUNS are folders of ``countgen evaluate`` on prompts that are not reported (pocket-dev), drawn before or after
a rule was taken up. For every rule: the share of their verified pictures that stay so, and how many of these
the judge counts as wanted. The mirror's mean confidence is what ``countgen.engine.verification`` asks for.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from countgen.evaluation.reading import read_run
from countgen.evaluation.runs import Row, load_picture
from countgen.evaluation.statistics import wilson
from countgen.pocket import ROLES, load_critic

BATCH = 48
Rule = Callable[[Row], bool]


def looked(rows: Sequence[Row]) -> list[Row]:
    """The rows with the critic's word on each picture as it is, and on its mirror image."""
    critic, out = load_critic(ROLES["critic"]), []
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        images = torch.stack([load_picture(row["run"], row) for row in part])
        seen: list[Row] = [{} for _ in part]
        for side, pictures in (("straight", images), ("mirror", images.flip(-1))):
            with torch.no_grad():
                found = critic(pictures, [critic.prepare(row["nouns"]) for row in part])
            for i, row in enumerate(part):
                counts = found.hard[i, : len(row["wanted"])].tolist()
                clear = float(found.confidence[i].amin())
                seen[i] |= {side: clear if counts == row["wanted"] else 0.0}
        out += [row | more for row, more in zip(part, seen, strict=True)]
    return out


def _mean(row: Row) -> float:
    return (row["straight"] + row["mirror"]) / 2 if row["mirror"] else 0.0


def rules() -> dict[str, Rule]:
    """By name, whether a verified picture stays verified."""
    found: dict[str, Rule] = {
        "as it is": lambda row: row["straight"] > 0,
        "the mirror has the same count": lambda row: row["mirror"] > 0,
    }
    for least in (0.4, 0.5, 0.6):
        found[f"and the mean confidence is {least:g}"] = lambda row, least=least: (  # type: ignore[misc]
            _mean(row) >= least
        )
    for critic, verifier in ((0.5, 0.6), (0.5, 0.8), (0.6, 0.8)):
        found[f"critic {critic:g} and verifier {verifier:g}, no mirror"] = (
            lambda row, critic=critic, verifier=verifier: (  # type: ignore[misc]
                row["straight"] >= critic and row["confidence"]["verifier"] >= verifier
            )
        )
    return found


def share(values: Sequence[bool]) -> dict[str, Any]:
    low, high = wilson(sum(values), len(values))
    return {"share": round(sum(values) / len(values), 4), "ci95": [round(low, 4), round(high, 4)]}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--run", type=Path, nargs="+", required=True, help="run folders")
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    rows = looked(
        [
            row | {"run": path}
            for path in options.run
            for row in read_run(path).rows
            if row["verified"]
        ]
    )
    report: dict[str, Any] = {
        "command": "python -m benchmarks.second_looks --json --run RUNS",
        "pictures": len(rows),
        "rules": {},
    }
    for name, rule in rules().items():
        kept = [row for row in rows if rule(row)]
        report["rules"][name] = {
            "kept": share([rule(row) for row in rows]),
            "judge_right": share([row["judge"] == row["wanted"] for row in kept]),
        }
    print(json.dumps(report, indent=None if options.json else 1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
