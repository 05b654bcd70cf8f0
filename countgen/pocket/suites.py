"""The pocket prompt suites, and their hard third.

Every suite is a fixed list of prompts: ``pocket-dev`` is for tuning settings, the others for reporting.
The *hard third* are the prompts of the reporting suites on which the plain generator succeeds at most one
time in ten; they are chosen on run seed ``SELECTION_SEED``, which no evaluation may use.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from countgen.pocket.captions import NUMBER_WORDS
from countgen.pocket.world import BACKGROUNDS, FOLDER, NAMES, NOUNS, PocketError

SELECTION_SEED = 990_002
"""Run seed of the pictures that chose the hard third; an evaluation must not reuse it."""
HARD_SUCCESS = 0.10
EDITION = 4
"""Of the reported prompts: those of the ones before have been looked at while methods were made."""
SUITES = ("pocket-dev", "pocket-small", "pocket-dense", "pocket-multi")


@dataclass(frozen=True, slots=True)
class SuitePrompt:
    """One prompt of a suite: a stable id, the text, and its (noun, count) pairs."""

    id: str
    prompt: str
    targets: tuple[tuple[str, int], ...]


def suite(name: str, edition: int = EDITION) -> tuple[SuitePrompt, ...]:
    """The prompts of a suite, or of the hard third (``pocket-hard``).

    Args:
        edition: another one has other prompts of the same make, which nobody has looked at yet; there is no
            hard third of it.

    Raises:
        PocketError: unknown suite.
    """
    if name == "pocket-hard":
        chosen = set(hard_ids())
        every = [p for s in SUITES[1:] for p in suite(s)]
        return tuple(prompt for prompt in every if prompt.id in chosen)
    if name not in SUITES:
        raise PocketError(
            f"there is no suite {name!r}; there are {', '.join((*SUITES, 'pocket-hard'))}"
        )
    return _build(name, edition)


@cache
def hard_ids() -> tuple[str, ...]:
    """Ids of the hard third, as committed in ``hard.json`` beside the plain success that chose them."""
    record = json.loads((FOLDER / "hard.json").read_text())
    return tuple(record["ids"])


@cache
def _build(name: str, edition: int) -> tuple[SuitePrompt, ...]:
    stream = name if name == "pocket-dev" else f"{name}/{edition}"
    rng = np.random.default_rng(list(stream.encode()))
    prompts: list[SuitePrompt] = []
    prefix = name if edition == EDITION else f"{name}-{edition}"

    def add(targets: Sequence[tuple[str, int]]) -> None:
        index = len(prompts)
        text = _phrase(targets, index, rng)
        if name == "pocket-dev":  # so that no prompt is both tuned on and reported
            text = f"a photo of {text}"
        prompts.append(SuitePrompt(f"{prefix}-{index:03d}", text, tuple(targets)))

    def one_kind(counts: range, each: int) -> None:
        deck = [
            n for _ in range(1 + each * len(counts) // len(NAMES)) for n in rng.permutation(NAMES)
        ]
        for i in range(each * len(counts)):
            add([(str(deck[i]), counts[i % len(counts)])])

    def several_kinds(kinds: int, totals: range, each: int) -> None:
        for i in range(each):
            total = totals[i * len(totals) // each]
            cuts = np.sort(rng.choice(np.arange(1, total), size=kinds - 1, replace=False))
            counts = np.diff(np.concatenate([[0], cuts, [total]]))
            nouns = rng.permutation(NAMES)[:kinds]
            add([(str(n), int(c)) for n, c in zip(nouns, counts, strict=True)])

    if name == "pocket-dev":
        one_kind(range(1, 11), 2)
        one_kind(range(11, 21), 1)
        several_kinds(2, range(3, 15), 6)
        several_kinds(3, range(4, 17), 6)
    elif name == "pocket-small":
        one_kind(range(1, 11), 8)
    elif name == "pocket-dense":
        one_kind(range(11, 21), 6)
    else:
        several_kinds(2, range(3, 17), 30)
        several_kinds(3, range(4, 19), 30)
    return tuple(prompts)


def _phrase(targets: Sequence[tuple[str, int]], index: int, rng: np.random.Generator) -> str:
    """Words and digits take turns, and every second prompt says where."""
    parts = []
    for noun, count in targets:
        kind = NOUNS[NAMES.index(noun)]
        number = NUMBER_WORDS[count] if index % 2 == 0 else str(count)
        parts.append(f"{number} {kind.name if count == 1 else kind.plural}")
    text = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    if index % 4 in (1, 2):
        place = list(BACKGROUNDS)[int(rng.integers(len(BACKGROUNDS)))]
        text += " " + BACKGROUNDS[place][0]
    return text
