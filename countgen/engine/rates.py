"""How often each kind of move leads from one distance to another: what the policy ``engine`` starts from.

Rates are prior knowledge alone: within a job they are outweighed by what its own moves led to. Pocket's were
measured on pocket-dev (``python -m benchmarks.pocket_moves``); every other model starts from ``UNIFORM``,
which knows no more than that most edits change little and that some help.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from countgen.engine.actions import Record

EXACT, UNCLEAR, DISPUTED = "exact", "unclear", "disputed"
STATES: Final = (EXACT, UNCLEAR, "1", DISPUTED, "2", "3", "4", "6")
"""What a look may show: exact; exact counts but not clear; the critic's distance, from 4 and from 6 on;
exact for the critic while the verifier disagrees."""
MOVES: Final = (
    "draw",
    "add",
    "first",
    "graft",
    "remove",
    "redo",
    "two",
    "three",
    "splice",
    "improve",
)
"""Kinds of moves: a fresh noise; an edit for a missing object of a kind that is there, and of one that is
not; a missing object from another record; an edit for a surplus object, and of one that is counted rightly;
two and three edits at once; a part of another record; a climb by the
gradient."""
DEAREST = 128.0
"""Plain render equivalents to an exact picture where nothing is known to lead there."""


def state_of(record: Record) -> str:
    """What a look showed, as the rates tell apart."""
    if record.exact:
        return EXACT
    if not record.finite:
        return "6"
    if record.error == 0:
        return DISPUTED if record.verifier_error else UNCLEAR
    return str(record.error if record.error < 4 else 4 if record.error < 6 else 6)


Results = Mapping[str, float]
"""State -> probability."""


@dataclass(frozen=True)
class Rates:
    """Where moves lead.

    Attributes:
        moves: kind of move -> state of the base -> probability of each state afterwards. Draws have no
            base, and stand under "".
        climb: price of a climb, in plain render equivalents.
        trust: how many of a job's own moves outweigh what is written here.
    """

    moves: Mapping[str, Mapping[str, Results]]
    climb: float = 8.0
    trust: float = 6.0

    def __post_init__(self) -> None:
        for kind, by_state in self.moves.items():
            if kind not in MOVES:
                raise ValueError(f"there is no kind of move {kind!r}; there are {', '.join(MOVES)}")
            for state, results in by_state.items():
                if (kind != "draw" and state not in STATES) or not set(results) <= set(STATES):
                    raise ValueError(f"{kind} from {state!r}: states are {', '.join(STATES)}")
                if abs(sum(results.values()) - 1) > 0.01 or min(results.values()) < 0:
                    raise ValueError(f"{kind} from {state!r}: probabilities must have the sum 1")

    def of(self, kind: str, state: str) -> Results | None:
        """Probabilities of what a move leads to; None where it is not known to be made from there."""
        return self.moves.get(kind, {}).get("" if kind == "draw" else state)

    @cached_property
    def values(self) -> Mapping[str, float]:
        """Expected plain render equivalents from each state to an exact picture, by the best moves.

        What was reached is kept: a move that leads nowhere better costs its price alone. Solved by value
        iteration.
        """
        cost = {state: 0.0 if state == EXACT else DEAREST for state in STATES}
        for _ in range(300):
            for state in STATES[1:]:
                ahead = [
                    (self.climb if kind == "improve" else 1.0)
                    + sum(p * min(cost[then], cost[state]) for then, p in results.items())
                    for kind in MOVES
                    for results in [self.of(kind, state)]
                    if results is not None
                ]
                cost[state] = min([*ahead, DEAREST])
        return cost


def read_rates(path: Path) -> Rates:
    """Rates of a JSON file: {"moves": {kind: {state: {state: probability}}}, "climb", "trust"}.

    Raises:
        ValueError: what is in it are no rates.
    """
    found = json.loads(path.read_text(encoding="utf-8"))
    return Rates(found["moves"], found["climb"], found["trust"])


def _uniform() -> Rates:
    nearer = {"1": EXACT, "2": "1", "3": "2", "4": "3", "6": "4"}
    further = {UNCLEAR: "1", DISPUTED: "1", "1": "2", "2": "3", "3": "4", "4": "6", "6": "6"}
    edits: dict[str, Results] = {}
    for state in STATES[1:]:
        then = nearer.get(state, EXACT)
        results = {then: 0.15, state: 0.55}
        results[further[state]] = results.get(further[state], 0.0) + 0.3
        edits[state] = results
    far = {state: edits[state] for state in STATES if state in ("2", "3", "4", "6")}
    return Rates(
        {
            "draw": {"": {EXACT: 0.1, UNCLEAR: 0.05, "1": 0.3, "2": 0.25, "3": 0.15, "4": 0.15}},
            "add": {state: edits[state] for state in STATES if state.isdigit()},
            "first": {state: edits[state] for state in STATES if state.isdigit()},
            "graft": {state: edits[state] for state in STATES if state.isdigit()},
            "remove": {state: edits[state] for state in STATES if state.isdigit()},
            "redo": {state: edits[state] for state in (UNCLEAR, DISPUTED)},
            "two": far,
            "three": {state: results for state, results in far.items() if state != "2"},
            "splice": edits,
            "improve": {
                UNCLEAR: {EXACT: 0.4, UNCLEAR: 0.6},
                DISPUTED: {EXACT: 0.2, DISPUTED: 0.8},
                "1": {EXACT: 0.3, "1": 0.7},
                "2": {EXACT: 0.15, "1": 0.25, "2": 0.6},
                "3": {EXACT: 0.1, "2": 0.3, "3": 0.6},
                "4": {EXACT: 0.05, "3": 0.35, "4": 0.6},
                "6": {"4": 0.3, "6": 0.7},
            },
        },
        trust=3.0,
    )


UNIFORM: Final = _uniform()
