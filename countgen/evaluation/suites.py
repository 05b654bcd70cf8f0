"""Prompt lists by name or by file, and what is taken of them.

``low-density``, ``high-density`` and ``several-kinds`` are this project's own and ship as files
(``benchmarks/suites.py`` made them); the pocket suites hold what the embedded generator can draw.
"""

from __future__ import annotations

import difflib
import heapq
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

from countgen.errors import UsageError
from countgen.evaluation.formats import ListedPrompt, read_list
from countgen.prompts import CountTarget

FOLDER = Path(__file__).parent / "prompts"
"""Where the suites lie that ship as files."""
OWN = {
    "low-density": "1 to 10 objects of one kind",
    "high-density": "11 to 30 objects of one kind",
    "several-kinds": "two and three kinds",
}
POCKET = {
    "pocket-dev": "for tuning; never reported",
    "pocket-small": "1 to 10 objects of one kind",
    "pocket-dense": "11 to 20 objects of one kind",
    "pocket-multi": "two and three kinds",
    "pocket-hard": "prompts of the three above on which plain success is at most one in ten",
}
SUMMARIES = OWN | POCKET
"""Suite -> what is in it."""
Stratum = tuple[int, int]
"""How many kinds, and how many objects in all."""


@dataclass(frozen=True)
class Survey:
    """What one pass over a list has shown.

    Attributes:
        strata: prompts with a count, by number of kinds and of objects.
        nouns: each with the place where it stands first.
        lacking: prompts without a usable count, which are left out.
        first_lacking: place and reason of the first of these.
        seeded: prompts that bring a seed of their own.
    """

    strata: Counter[Stratum] = field(default_factory=Counter)
    nouns: dict[str, str] = field(default_factory=dict)
    lacking: int = 0
    first_lacking: str = ""
    seeded: int = 0

    @property
    def prompts(self) -> int:
        """How many can be evaluated."""
        return self.strata.total()


@dataclass(frozen=True)
class PromptList:
    """A list that can be read again and again, and is never held.

    Attributes:
        name: of the suite, or of the file without its folder.
        read: makes a new stream of its prompts.
    """

    name: str
    read: Callable[[], Iterator[ListedPrompt]]

    def __iter__(self) -> Iterator[ListedPrompt]:
        """The prompts that have a count."""
        return (prompt for prompt in self.read() if prompt.targets)

    def survey(self, look: Callable[[ListedPrompt], None] = lambda prompt: None) -> Survey:
        """Read it all once, so that whatever is broken is told before anything is drawn.

        Args:
            look: at every prompt with a count; what it raises is passed on.

        Raises:
            ListError: a record that cannot be read, or no prompt that could be evaluated.
        """
        strata: Counter[Stratum] = Counter()
        nouns: dict[str, str] = {}
        lacking, first_lacking, seeded = 0, "", 0
        for prompt in self.read():
            if not prompt.targets:
                lacking += 1
                first_lacking = first_lacking or f"{prompt.place}: {prompt.lack}"
                continue
            look(prompt)
            strata[stratum(prompt)] += 1
            seeded += prompt.seed is not None
            for target in prompt.targets:
                nouns.setdefault(target.noun, prompt.place)
        if not strata:
            raise UsageError(f"no prompt of {self.name} names a count ({first_lacking})")
        return Survey(strata, nouns, lacking, first_lacking, seeded)

    def limited(self, limit: int | None, survey: Survey) -> PromptList:
        """At most so many prompts, each number of kinds and objects by its share in the list.

        Which ones depends on their ids alone, so that a higher limit keeps them, but for rounding.
        """
        if limit is None or limit >= survey.prompts:
            return self
        room = shares(limit, survey.strata)
        heaps: dict[Stratum, list[tuple[int, int, ListedPrompt]]] = {key: [] for key in room}
        for number, prompt in enumerate(self):
            heap = heaps[stratum(prompt)]
            entry = (-_rank(prompt.id), number, prompt)
            if len(heap) < room[stratum(prompt)]:
                heapq.heappush(heap, entry)
            elif heap and entry > heap[0]:
                heapq.heapreplace(heap, entry)
        kept = sorted((entry[1:] for heap in heaps.values() for entry in heap), key=lambda e: e[0])
        chosen = [prompt for _, prompt in kept]
        return PromptList(self.name, lambda: iter(chosen))


def stratum(prompt: ListedPrompt) -> Stratum:
    """What a limited list keeps the shares of."""
    return len(prompt.targets), sum(target.count for target in prompt.targets)


def shares(limit: int, strata: Counter[Stratum]) -> dict[Stratum, int]:
    """How many of each, in proportion; what is left over by rounding goes to the largest remainders."""
    total = strata.total()
    room = {key: limit * n // total for key, n in strata.items()}
    by_remainder = sorted(strata, key=lambda key: (-(limit * strata[key] % total), key))
    for key in by_remainder[: limit - sum(room.values())]:
        room[key] += 1
    return room


def _rank(identity: str) -> int:
    digest = blake2b(identity.encode("utf-8", "replace"), digest_size=8, person=b"limit").digest()
    return int.from_bytes(digest, "big")


def find_prompts(name: str) -> PromptList:
    """A suite by its name, or a file; only a name is looked at, and whether the file is there.

    Raises:
        UsageError: neither; the message has the nearest suite.
    """
    if name in OWN:
        return PromptList(name, lambda: read_list(FOLDER / f"{name}.jsonl"))
    if name in POCKET:
        return PromptList(name, lambda: _pocket(name))
    path = Path(name)
    if path.is_file():
        return PromptList(path.name, lambda: read_list(path))
    near = difflib.get_close_matches(name, SUMMARIES, 1)
    hint = f"did you mean {near[0]}? There are" if near else "there are"
    raise UsageError(
        f"there is neither a file nor a suite {name!r}; {hint} the suites {', '.join(SUMMARIES)}"
    )


def hard_ids(name: str) -> frozenset[str]:
    """Ids of the prompts of a suite on which the plain generator nearly always fails; none for lists."""
    if name not in POCKET or name == "pocket-dev":
        return frozenset()
    from countgen.pocket.suites import hard_ids as hard

    return frozenset(hard())


def _pocket(name: str) -> Iterator[ListedPrompt]:
    from countgen.pocket.suites import suite

    for prompt in suite(name):
        targets = tuple(CountTarget(noun, count) for noun, count in prompt.targets)
        yield ListedPrompt(prompt.id, prompt.prompt, targets, place=f"{name}, {prompt.id}")
