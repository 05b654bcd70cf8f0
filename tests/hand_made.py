"""Records and views as a job would show them to a policy, made by hand; without torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from countgen.engine.actions import MovePrices, NounSeen, Record, View

PRICES = MovePrices(look=1.0, verify=0.25, improve=2.5)


def noun(wanted: int, count: int, near: Sequence[float] = (), doubt: float = 9.0) -> NounSeen:
    """``count`` counted candidates, then uncounted ones with these margins; ``doubt`` of the last counted."""
    kept = tuple(range(count))
    weak = tuple((count + i, margin) for i, margin in enumerate(near))
    every = [*((i, doubt if i == count - 1 else 9.0) for i in kept), *weak]
    doubtful = min(every, key=lambda pair: abs(pair[1])) if every else None
    return NounSeen(wanted, count, kept, weak, doubtful)


def record(number: int, *nouns: NounSeen, move: Any = "draw", **fields: Any) -> Record:
    """One look; its counts are those of the nouns, and its loss is its error unless told."""
    nouns = nouns or (noun(4, 3),)
    counts = tuple(one.count for one in nouns)
    error = sum(abs(one.count - one.wanted) for one in nouns)
    settings: dict[str, Any] = {
        "number": number,
        "move": move,
        "base": None,
        "candidate": 0,
        "step": 0,
        "gradient": False,
        "moved": False,
        "counts": counts,
        "verifier": None,
        "confidence": 0.9,
        "verifier_confidence": 0.0,
        "exact": False,
        "error": error,
        "verifier_error": None,
        "loss": float(error),
        "soft": tuple(map(float, counts)),
        "finite": True,
        "pre": float(number + 1),
        "nouns": nouns,
    }
    return Record(**(settings | fields))


def view(records: Sequence[Record] = (), remaining: float = 1e6, seed: int = 0) -> View:
    """What a policy sees after these looks."""
    wanted = tuple(one.wanted for one in records[0].nouns) if records else (4,)
    return View(tuple(records), wanted, remaining, PRICES, seed)
