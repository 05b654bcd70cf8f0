"""The policy ``engine``: of all that could be tried next, what promises most for its price. No torch here."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from countgen.engine.actions import Action, Answer, Change, Draw, Edit, Improve, Record, Stop, View
from countgen.engine.policy import BUDGET_SPENT, goes_on, nearness
from countgen.engine.rates import UNIFORM, Rates, Results, state_of

BASES = 6
"""Records, the nearest ones, from which edits are weighed."""
CUTS = tuple(k / 16 for k in range(3, 14))
"""Where a picture may be cut in two, in shares of its side."""


@dataclass(frozen=True)
class Option:
    """Something that could be tried: its kind as in ``rates.MOVES``, and from what it would start."""

    kind: str
    state: str
    action: Action
    price: float
    bases: tuple[int, ...] = ()


@dataclass(frozen=True)
class BestMove:
    """Draws, edits, splices and climbs, each weighed by what it is expected to gain per render.

    A move from a state leads to others with certain probabilities: ``rates``, outweighed little by little by
    what the job's own moves led to. Its gain is by how much it is expected to shorten the way to an exact
    picture; what gains most for its price is tried next. A base whose trials have failed is trusted less
    with each of them, so that other bases, fresh draws among them, get their turn.

    Attributes:
        rates: prior probabilities; None for those of the model, which are uniform where none were measured.
        draws: plain noises before anything else.
        steps: gradient steps of a climb; 0 takes none.
        width: trials at the same time: one takes least compute, more take less waiting; "auto" fills the
            batch, shared by the pictures that are wanted.
        patience: failed trials from one base that halve the trust in it.
        edits: whether there are edits, which need boxes.
        splices: whether parts of other records are tried.
    """

    rates: Rates | None = None
    draws: int = 2
    steps: int = 4
    width: int | Literal["auto"] = 1
    patience: float = 6.0
    edits: bool = True
    splices: bool = True

    def __post_init__(self) -> None:
        if self.draws < 1 or self.steps < 0 or self.patience <= 0:
            raise ValueError("draws and patience must be positive, and steps not negative")
        if self.width != "auto" and self.width < 1:
            raise ValueError('width must be at least 1, or "auto"')

    @property
    def moves(self) -> frozenset[str]:
        edits = {"edit"} if self.edits else set()
        return frozenset({"draw"} | edits | ({"improve"} if self.steps else set()))

    def __call__(self, view: View) -> Answer:
        climb = goes_on(view, self.steps) if self.steps else None
        if climb is not None:
            return climb
        width = self.width if isinstance(self.width, int) else 1
        if view.drawn < self.draws:
            return self._draws(view, min(width, self.draws - view.drawn))
        chance = view.random()
        known = _Known(view, self.rates or UNIFORM, self.patience)
        options = sorted(
            self._options(view, known, chance),
            key=lambda option: known.worth(option) * chance.uniform(0.9, 1.1),
            reverse=True,
        )
        if options and isinstance(options[0].action, Improve):
            return (options[0].action,)
        plain = [option.action for option in options if not isinstance(option.action, Improve)]
        while plain and not view.affords(plain[0], min(width, len(plain))) and width > 1:
            width -= 1
        return tuple(plain[:width]) if plain else Stop(BUDGET_SPENT)

    def _draws(self, view: View, several: int) -> Answer:
        while several > 1 and not view.affords(Draw(), several):
            several -= 1
        # The first picture is always drawn, whatever the budget.
        first = not view.records
        return (Draw(),) * several if first or view.affords(Draw()) else Stop(BUDGET_SPENT)

    def _options(self, view: View, known: _Known, chance: random.Random) -> Iterator[Option]:
        """All that the budget allows; of the edits of one base and kind, one each, taken at random."""
        look = view.prices.look
        if view.affords(Draw()):
            yield Option("draw", "", Draw(), look)
        else:
            return
        nearest = bases_of(view)
        climbed = climbed_from(view)
        for base in nearest:
            state = known.states[base.number]
            if self.edits:
                for kind, changes in edits_of(base, chance):
                    yield Option(kind, state, Edit(base.number, changes), look, (base.number,))
            improve = Improve(base.number)
            if self.steps and base.number not in climbed and view.affords(improve):
                price = known.rates.climb
                yield Option("improve", state, improve, price, (base.number,))
        if self.edits and self.splices:
            for kind, state, edit in (*splices(view, self.rates or UNIFORM), *grafts(view)):
                yield Option(kind, state, edit, look, (edit.base, edit.changes[0].bases[0]))


class _Known:
    """What a job's records say of the moves that may come next."""

    def __init__(self, view: View, rates: Rates, patience: float) -> None:
        self.rates, self.patience = rates, patience
        self.states = [state_of(record) for record in view.records]
        self.failures = Counter[int]()
        self.hoped: dict[str, float] = defaultdict(float)
        self.won = Counter[str]()
        self.drawn = Counter[str]()
        for record in view.records:
            self._count(record)
        values = rates.values
        # The way that is left from the best base, longer the more its trials have failed.
        self.left = min(
            values[state] / self._trust(number) for number, state in enumerate(self.states)
        )

    def _count(self, record: Record) -> None:
        state = self.states[record.number]
        if record.move == "draw":
            self.drawn[state] += 1
        if record.base is None or record.move != "edit":
            return
        base = self.states[record.base]
        values = self.rates.values
        better = values[state] < values[base]
        kind = kind_of(record.changes)
        results = self.rates.of(kind, base)
        if results is not None:
            self.hoped[kind] += sum(p for then, p in results.items() if values[then] < values[base])
            self.won[kind] += better
        if not better:
            for number in (record.base, *(n for change in record.changes for n in change.bases)):
                self.failures[number] += 1

    def _trust(self, number: int) -> float:
        return self.patience / (self.patience + self.failures[number])

    def _results(self, option: Option) -> Results:
        rates = self.rates
        results = rates.of(option.kind, option.state) or {}
        if option.kind != "draw":
            return results
        n = sum(self.drawn.values())
        states = {*results, *self.drawn}
        return {
            state: (rates.trust * results.get(state, 0.0) + self.drawn[state]) / (rates.trust + n)
            for state in states
        }

    def worth(self, option: Option) -> float:
        """Expected shortening of the way to an exact picture, per plain render."""
        values = self.rates.values
        gain = sum(
            p * max(self.left - values[then], 0.0) for then, p in self._results(option).items()
        )
        # How this job's moves of the kind fared, against what was hoped of them.
        trust = self.rates.trust / 2
        share = (trust + self.won[option.kind]) / (trust + self.hoped[option.kind])
        for number in option.bases:
            share *= self._trust(number)
        return gain * share / option.price


def kind_of(changes: tuple[Change, ...]) -> str:
    """Of an edit that was made: its kind as in ``rates.MOVES``."""
    if changes[0].kind == "splice":
        return "splice"
    if len(changes) > 1:
        return "two" if len(changes) == 2 else "three"
    return changes[0].purpose


def edits_of(base: Record, chance: random.Random) -> Iterator[tuple[str, tuple[Change, ...]]]:
    """One edit of each kind: what could bring the picture nearer to its counts."""
    add: list[Change] = []
    first: list[Change] = []
    remove: list[Change] = []
    for number, noun in enumerate(base.nouns):
        if noun.count > noun.wanted:
            remove += [
                Change(kind, number, candidate, purpose="remove")
                for candidate in noun.kept
                for kind in ("redraw", "clear")
            ]
        elif noun.count < noun.wanted:
            purpose, found = ("add", add) if noun.kept else ("first", first)
            found += [Change("copy", number, candidate, purpose=purpose) for candidate in noun.kept]
            several = max(1, len(noun.kept) // 2)
            found += [Change("fresh", number, purpose=purpose)] * several
            found += [Change("redraw", number, near, purpose=purpose) for near, _ in noun.near[:1]]
    for kind, changes in (("add", add), ("first", first), ("remove", remove)):
        if changes:
            yield kind, (chance.choice(changes),)
    if base.error == 0:
        weak = list(_least_clear(base))
        every = [
            Change("redraw", number, candidate, purpose="redo")
            for number, noun in enumerate(base.nouns)
            for candidate in noun.kept
        ]
        if weak:  # half of the time any other object
            yield "redo", (chance.choice(chance.choice([weak, every or weak])),)
    needed = add + first + remove
    if base.error >= 2 and len(needed) >= 2:
        yield "two", tuple(chance.sample(needed, 2))
    if base.error >= 3 and len(needed) >= 3:
        yield "three", tuple(chance.sample(needed, 3))


def _least_clear(base: Record) -> Iterator[Change]:
    """Of every noun the two weakest objects, and what is nearest to the threshold, counted or not.

    By the critic's word alone: a verifier that pointed to objects would be a second critic.
    """
    for number, noun in enumerate(base.nouns):
        named = [candidate for _, candidate in sorted(zip(noun.margins, noun.kept, strict=False))]
        named = named[:2] + ([noun.doubtful[0]] if noun.doubtful is not None else [])
        for candidate in dict.fromkeys(named):
            yield Change("redraw", number, candidate, purpose="redo")


def splices(view: View, rates: Rates) -> Iterator[tuple[str, str, Edit]]:
    """Of every two records of different draws, the cut that is predicted to give the wanted counts.

    The noise decides locally what is drawn, so the objects on either side of a cut should stay; of several
    such cuts the one that passes furthest from all objects is taken. With each, the state of the better of
    the two.
    """
    nearest, values = bases_of(view), rates.values
    done = {(record.base, record.changes) for record in view.records}
    before = {record.number: _before(record) for record in nearest}
    for one in nearest:
        for other in nearest:
            if one.candidate == other.candidate or min(one.error, other.error) == 0:
                continue
            found = _best_cut(one, other, before[one.number], before[other.number])
            if found is not None and (one.number, found) not in done:
                state = min(state_of(one), state_of(other), key=lambda state: values[state])
                yield "splice", state, Edit(one.number, found)


def grafts(view: View) -> Iterator[tuple[str, str, Edit]]:
    """For every near record and noun that it lacks, the object of another draw that fits in best.

    The noise decides locally what is drawn, so an object should come along with the noise under it: the one
    is taken whose place is furthest from all that is there.
    """
    done = {(record.base, record.changes) for record in view.records}
    for base in bases_of(view):
        taken = [centre for noun in base.nouns for centre in noun.centres]
        for number, noun in enumerate(base.nouns):
            if noun.count >= noun.wanted:
                continue
            given = [
                (_room(place, taken), other.number, candidate)
                for other in view.records
                if other.candidate != base.candidate and other.finite and other.nouns
                for candidate, place in zip(
                    other.nouns[number].kept, other.nouns[number].centres, strict=False
                )
            ]
            for _, giver, candidate in sorted(given, key=lambda one: one[0], reverse=True):
                change = Change("graft", number, candidate, bases=(giver,), purpose="graft")
                if (base.number, (change,)) not in done:
                    yield "graft", state_of(base), Edit(base.number, (change,))
                    break


def _room(place: tuple[float, float], taken: Sequence[tuple[float, float]]) -> float:
    """The distance of a place from the nearest that is taken, down or across."""
    down, across = place
    room = 1.0
    for y, x in taken:  # a plain loop: no other line of the policy is gone through as often
        room = min(room, max(abs(down - y), abs(across - x)))
    return room


def climbed_from(view: View) -> set[int]:
    """Records from which a gradient was followed already; it would lead the same way again."""
    return {r.base for r in view.records if r.move == "improve" and r.base is not None}


def bases_of(view: View) -> list[Record]:
    """The nearest records, from which edits are weighed."""
    # The first look of a climb is at the picture of its base once more.
    again = {r.number for r in view.records if r.move == "improve" and r.step == 0}
    found = (r for r in view.records if r.finite and r.number not in again)
    return sorted(found, key=nearness)[:BASES]


def _before(record: Record) -> list[tuple[int, ...]]:
    """Objects of every noun on this side of each cut, of both axes."""
    found = []
    for axis in (0, 1):
        places = [sorted(centre[axis] for centre in noun.centres) for noun in record.nouns]
        found += [tuple(bisect_left(along, cut) for along in places) for cut in CUTS]
    return found


def _best_cut(
    one: Record,
    other: Record,
    here: Sequence[tuple[int, ...]],
    there: Sequence[tuple[int, ...]],
) -> tuple[Change, ...] | None:
    """A part of another record beside that of the first, so that every noun has its count."""
    best: tuple[float, int, float] | None = None
    lacking = [noun.wanted - len(noun.centres) for noun in other.nouns]
    for place, (before, after) in enumerate(zip(here, there, strict=True)):
        if any(a - b != n for a, b, n in zip(before, after, lacking, strict=True)):
            continue
        axis, cut = place // len(CUTS), CUTS[place % len(CUTS)]
        centres = (at for record in (one, other) for noun in record.nouns for at in noun.centres)
        clearance = min([1.0, *(abs(at[axis] - cut) for at in centres)])
        if best is None or clearance > best[0]:
            best = (clearance, axis, cut)
    if best is None:
        return None
    _, axis, cut = best
    part = (cut, 0.0, 1.0, 1.0) if axis == 0 else (0.0, cut, 1.0, 1.0)
    return (Change("splice", bases=(other.number,), part=part),)
