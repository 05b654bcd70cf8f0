"""How often each kind of move leads where, on pocket-dev alone: the prior rates of the policy ``engine``.

python -m benchmarks.pocket_moves --json            measure, and print
python -m benchmarks.pocket_moves --json --write    the same, and write countgen/pocket/moves.json

Moves are taken at random, kind by kind, so that each is seen from every distance; the judge takes no part.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import Any

import torch

from countgen import CountGuidedPipeline
from countgen.engine.actions import Answer, Draw, Edit, Improve, Record, Stop, View
from countgen.engine.best_move import (
    bases_of,
    climbed_from,
    edits_of,
    grafts,
    kind_of,
    splices,
)
from countgen.engine.policy import BUDGET_SPENT, goes_on
from countgen.engine.rates import UNIFORM, state_of
from countgen.guidance.methods import METHODS
from countgen.pocket.suites import suite
from countgen.pocket.world import FOLDER

STEPS = 4
LEAST = 8
"""Moves that must have been seen from a state before it has a rate of its own."""


@dataclass(frozen=True)
class AnyMove:
    """Two draws, then any kind of move from one of the nearest records, each kind as likely."""

    draws: int = 2
    moves: frozenset[str] = frozenset({"draw", "edit", "improve"})

    def __call__(self, view: View) -> Answer:
        climb = goes_on(view, STEPS)
        if climb is not None:
            return climb
        if view.drawn < self.draws:
            return (Draw(),)
        chance = view.random()
        found: dict[str, list[Edit | Improve | Draw]] = defaultdict(list)
        found["draw"].append(Draw())
        climbed = climbed_from(view)
        for base in bases_of(view):
            for kind, changes in edits_of(base, chance):
                found[kind].append(Edit(base.number, changes))
            if base.number not in climbed and base.error < 4:
                found["improve"].append(Improve(base.number))
        for kind, _, edit in (*splices(view, UNIFORM), *grafts(view)):
            found[kind].append(edit)
        action = chance.choice(found[chance.choice(sorted(found))])
        return (action,) if view.affords(action) else Stop(BUDGET_SPENT)


def tally(records: list[Record], seen: dict[str, dict[str, Counter[str]]]) -> list[float]:
    """Adds where every move of a job led; the prices of its climbs."""
    climbs: list[float] = []
    values = UNIFORM.values
    for number, record in enumerate(records):
        if record.move == "draw":
            seen["draw"][""][state_of(record)] += 1
        elif record.move == "edit" and record.base is not None:
            kind, froms = kind_of(record.changes), [records[record.base]]
            froms += [records[n] for change in record.changes for n in change.bases]
            base = min((state_of(one) for one in froms), key=lambda state: values[state])
            seen[kind][base][state_of(record)] += 1
        elif record.step == 0 and record.base is not None:
            looks = [record]
            for later in records[number + 1 :]:
                if later.move != "improve" or later.step == 0:
                    break
                looks.append(later)
            end = min((state_of(one) for one in looks), key=lambda state: values[state])
            seen["improve"][state_of(records[record.base])][end] += 1
            climbs.append(looks[-1].pre - records[number - 1].pre)
    return climbs


def measured(options: argparse.Namespace) -> dict[str, Any]:
    pipeline = CountGuidedPipeline.from_pretrained("pocket")
    prompts = [(p, i) for i in range(options.per_prompt) for p in suite("pocket-dev")]
    found = pipeline(
        [p.prompt for p, _ in prompts],
        targets=[p.targets for p, _ in prompts],
        prompt_ids=[f"{p.id}/{i}" for p, i in prompts],
        seed=options.seed,
        guidance=replace(METHODS["engine"], policy=AnyMove()),
        budget=options.budget,
        output_type="pt",
    )
    seen: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    climbs = [price for job in found.jobs for price in tally(job.records, seen)]
    return {
        "command": f"python -m benchmarks.pocket_moves --json --seed {options.seed} "
        f"--per-prompt {options.per_prompt} --budget {options.budget:g} --write",
        "climb": round(sum(climbs) / len(climbs), 2),
        "trust": UNIFORM.trust,
        "moves": {
            kind: {
                state: {then: round(n / results.total(), 4) for then, n in sorted(results.items())}
                for state, results in sorted(by_state.items())
                if results.total() >= LEAST
            }
            for kind, by_state in sorted(seen.items())
        },
        "seen": {
            kind: {state: results.total() for state, results in sorted(by_state.items())}
            for kind, by_state in sorted(seen.items())
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--seed", type=int, default=200, help="run seed")
    parser.add_argument("--per-prompt", type=int, default=3, help="pictures of each prompt")
    parser.add_argument("--budget", type=float, default=48.0, help="cap in plain renders a picture")
    parser.add_argument("--write", action="store_true", help="write countgen/pocket/moves.json")
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    report = measured(options)
    if options.write:
        (FOLDER / "moves.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=None if options.json else 1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
