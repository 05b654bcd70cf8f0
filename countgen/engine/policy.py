"""What is tried next: every policy is a pure function of one job's own history. No torch here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from countgen.engine.actions import (
    Answer,
    Change,
    Draw,
    Edit,
    Improve,
    Record,
    Stop,
    View,
)

BUDGET_SPENT = "budget spent"
_STOP = Stop(BUDGET_SPENT)


@dataclass(frozen=True)
class BestOfN:
    """Draw again until a picture is exact.

    Attributes:
        candidates: most noises; 0 leaves that to the budget.
    """

    candidates: int = 0
    moves: frozenset[str] = frozenset({"draw"})

    def __post_init__(self) -> None:
        if self.candidates < 0:
            raise ValueError("candidates must not be negative")

    def __call__(self, view: View) -> Answer:
        return _draw_again(view, self.candidates)


@dataclass(frozen=True)
class DrawThenImprove:
    """Draw a few noises, improve the nearest by the gradient, and begin again with fresh ones.

    Attributes:
        draws: plain noises before the nearest is improved; 0 improves every noise from its first look.
        steps: gradient steps of one climb.
        candidates: most noises; 0 leaves that to the budget.
        patience: looks of a climb without a lower loss before it is given up; 0 never gives up.
    """

    draws: int = 12
    steps: int = 16
    candidates: int = 0
    patience: int = 0
    moves: frozenset[str] = frozenset({"draw", "improve"})

    def __post_init__(self) -> None:
        if min(self.draws, self.candidates, self.patience) < 0 or self.steps < 1:
            raise ValueError(
                "draws, candidates and patience must not be negative, and steps at least 1"
            )

    def __call__(self, view: View) -> Answer:
        climb = goes_on(view, self.steps)
        if climb is not None and not self._gave_up(view):
            return climb
        draws = min(self.draws, self.candidates) if self.candidates else self.draws
        fresh = _since_climb(view.records)
        if fresh and len(fresh) >= draws:
            base = min(fresh, key=lambda record: _number(record.loss))
            if draws and view.affords(Improve(base.number)):
                return (Improve(base.number),)
        more = not self.candidates or view.drawn < self.candidates
        if not draws and more and view.affords(Draw(gradient=True)):
            return (Draw(gradient=True),)
        return _draw_again(view, self.candidates)

    def _gave_up(self, view: View) -> bool:
        if not self.patience:
            return False
        last = view.records[-1]
        climb = view.records[-last.step - 1 :]
        best = min(range(len(climb)), key=lambda i: _number(climb[i].loss))
        return len(climb) - 1 - best >= self.patience


@dataclass(frozen=True)
class DrawThenEdit:
    """Draw a few noises, then edit the nearest picture, one thing at a time; gradients make counts clear.

    From the nearest picture since the last fresh start one of the possible edits is taken at random: fresh
    noise under a surplus object, the noise under an object of a kind that is missing, copied elsewhere, fresh
    noise under a doubtful candidate. Whatever is nearer is the base of the next trial. Where the critic
    counts exactly, and nothing is verified yet, a few gradient steps come first.

    Attributes:
        draws: plain noises of a fresh start.
        tries: edits in a row without a nearer picture before a fresh start.
        steps: gradient steps from a picture that is exact for the critic; 0 takes none.
        width: edits of one base that are tried at the same time.
        far: from this distance on, two changes are made at once.
        copies: how often a missing object is copied; else it is fresh noise on a free spot.
    """

    draws: int = 3
    tries: int = 20
    steps: int = 0
    width: int = 1
    far: int = 3
    copies: float = 0.7

    def __post_init__(self) -> None:
        if min(self.draws, self.tries, self.width, self.far) < 1 or self.steps < 0:
            raise ValueError(
                "draws, tries, width and far must be at least 1, and steps not negative"
            )
        _check_share("copies", self.copies)

    @property
    def moves(self) -> frozenset[str]:
        return frozenset({"draw", "edit"} | ({"improve"} if self.steps else set()))

    def __call__(self, view: View) -> Answer:
        climb = goes_on(view, self.steps) if self.steps else None
        if climb is not None:
            return climb
        found = _search(view.records)
        if found.base is None or found.draws < self.draws or found.failures >= self.tries:
            return _draw_again(view, 0)
        base = found.base
        climb_first = self.steps and base.error == 0 and base.number not in found.climbed
        if climb_first and view.affords(Improve(base.number)):
            return (Improve(base.number),)
        return self._edits(view, base)

    def _edits(self, view: View, base: Record) -> Answer:
        chance = view.random()
        edits: list[Edit] = []
        while len(edits) < self.width:
            changes = possible_changes(base, chance.random, self.copies)
            if not changes:
                break
            chosen = [chance.choice(changes)]
            if base.error >= self.far:
                chosen.append(chance.choice(changes))
            edit = Edit(base.number, tuple(chosen))
            if not view.affords(edit, len(edits) + 1):
                break
            edits.append(edit)
        return tuple(edits) if edits else _draw_again(view, 0)


def possible_changes(
    base: Record, chance: Callable[[], float], copies: float, near: int = 2, weakest: float = -6.0
) -> list[Change]:
    """What could bring a picture nearer to its counts, each change as often as it deserves to be tried.

    Args:
        chance: a number in [0, 1) at every call.
        copies: how often a missing object is copied from one that is there.
        near: uncounted candidates, with a margin above ``weakest``, under which a missing object may grow.
    """
    changes: list[Change] = []
    for number, noun in enumerate(base.nouns):
        if noun.count > noun.wanted:
            changes += [Change("redraw", number, candidate) for candidate in noun.kept]
        elif noun.count < noun.wanted:
            for _ in range(2):
                if noun.kept and chance() < copies:
                    source = noun.kept[int(chance() * len(noun.kept))]
                    changes.append(Change("copy", number, source))
                else:
                    changes.append(Change("fresh", number))
            changes += [
                Change("redraw", number, candidate)
                for candidate, margin in noun.near[:near]
                if margin > weakest
            ]
        elif noun.doubtful is not None and abs(noun.doubtful[1]) < 1.2:
            changes.append(Change("redraw", number, noun.doubtful[0]))
    if not changes:  # nothing is wrong for the critic, and the verifier is not convinced
        kept = [(i, candidate) for i, noun in enumerate(base.nouns) for candidate in noun.kept]
        changes = [Change("redraw", number, candidate) for number, candidate in kept]
    return changes


@dataclass(frozen=True)
class HillClimbing:
    """Zero-order hill climbing: the best of a first pool is the centre, with small random steps around it.

    As the baseline of arXiv 2603.14504's repository: pool and batch of 16, steps of 0.1.
    """

    pool: int = 16
    batch: int = 16
    step: float = 0.1
    moves: frozenset[str] = frozenset({"draw", "edit"})

    def __post_init__(self) -> None:
        _check_search(self.pool, self.batch)
        _check_share("step", self.step)

    def __call__(self, view: View) -> Answer:
        if view.drawn < self.pool:
            return _draw_again(view, 0)
        base = min(view.records, key=nearness)
        edit = Edit(base.number, (Change("perturb", scale=self.step),))
        return _several(view, edit, self.batch - (len(view.records) - self.pool) % self.batch)


@dataclass(frozen=True)
class TrustRegion:
    """Trust-region search of the noise (after TRS, arXiv 2603.14504; reconstructed, Gaussian proposals).

    The best few of a first pool are the centres of regions. Each round tries a batch around them, a share of
    the entries changed by a normal of half the region's length, in the unit cube of the noise's quantiles. A
    region grows after three rounds with a
    success, shrinks after three without, and begins again at its first length once it is too small; centres
    are the best pictures so far.

    Attributes:
        pool, centres, batch: as published 16, 4 and 16.
        length, least, most: of a region, near 1 the whole cube.
        share: of the entries that a proposal changes.
    """

    pool: int = 16
    centres: int = 4
    batch: int = 16
    length: float = 0.8
    least: float = 0.05
    most: float = 1.6
    share: float = 0.3
    moves: frozenset[str] = frozenset({"draw", "edit"})

    def __post_init__(self) -> None:
        _check_search(self.pool, self.batch, self.centres)
        _check_share("share", self.share)
        if not 0 < self.least <= self.length <= self.most < math.inf:
            raise ValueError("a region's length lies between its least and its most, all positive")

    def __call__(self, view: View) -> Answer:
        if view.drawn < self.pool:
            return _draw_again(view, 0)
        length = self._length_now(view)
        centres = sorted(view.records, key=nearness)[: self.centres]
        done = (len(view.records) - self.pool) % self.batch
        edits: list[Edit] = []
        for place in range(done, self.batch):
            base = centres[place % len(centres)]
            edit = Edit(base.number, (Change("resample", scale=length, share=self.share),))
            if not view.affords(edit, len(edits) + 1):
                break
            edits.append(edit)
        return tuple(edits) or _STOP

    def _length_now(self, view: View) -> float:
        """The region's length after all full rounds."""
        length, successes, failures = self.length, 0, 0
        best = min(nearness(record) for record in view.records[: self.pool])
        for begin in range(self.pool, len(view.records) - self.batch + 1, self.batch):
            round_best = min(nearness(r) for r in view.records[begin : begin + self.batch])
            if round_best < best:
                best, successes, failures = round_best, successes + 1, 0
            else:
                successes, failures = 0, failures + 1
            if successes == 3:
                length, successes = min(2 * length, self.most), 0
            elif failures == 3:
                length, failures = length / 2, 0
                if length < self.least:
                    length = self.length
        return length


@dataclass(frozen=True)
class PathIntegral:
    """Zeroth-order noise optimisation as path-integral control (after ZeNO, arXiv 2605.11347; reconstructed).

    Each round perturbs the current noise by a step of the Ornstein-Uhlenbeck process, several times; the next
    current noise is their mean, weighted by exp(-loss / temperature), at a noise's norm.

    Attributes:
        batch: perturbations a round.
        step: of the process, in (0, 1).
        temperature: as a share of the spread of a round's losses.
    """

    batch: int = 8
    step: float = 0.6
    temperature: float = 0.3
    moves: frozenset[str] = frozenset({"draw", "edit"})

    def __post_init__(self) -> None:
        _check_search(self.batch)
        _check_share("step", self.step)
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"the temperature must be positive, not {self.temperature}")

    def __call__(self, view: View) -> Answer:
        if not view.records:
            return _draw_again(view, 0)
        done = (len(view.records) - 1) % self.batch
        whole = len(view.records) - done
        if whole == 1:
            change = Change("perturb", scale=self.step)
        else:
            last = view.records[whole - self.batch : whole]
            weights = _weights([record.loss for record in last], self.temperature)
            change = Change(
                "mix",
                scale=self.step,
                bases=tuple(record.number for record in last),
                weights=weights,
            )
        return _several(view, Edit(whole - 1, (change,)), self.batch - done)


# -- what policies share --------------------------------------------------------------------------


def nearness(record: Record) -> tuple[bool, float, float]:
    """Order for searches: finite, the critic's distance and a half where the verifier disagrees, the loss."""
    return not record.finite, record.error + 0.5 * record.disputed, _number(record.loss)


def _check_search(*numbers: int) -> None:
    if min(numbers) < 1:
        raise ValueError("pool, batch and centres of a search must be at least 1")


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie between 0 and 1, not {value}")


def _number(loss: float) -> float:
    return math.inf if math.isnan(loss) else loss


def _weights(losses: Sequence[float], temperature: float) -> tuple[float, ...]:
    """exp(-loss / (temperature * spread)), with the sum 1; what could not be counted weighs nothing."""
    known = [loss for loss in losses if math.isfinite(loss)]
    if not known:
        return (1 / len(losses),) * len(losses)
    spread = max(max(known) - min(known), 1e-9) * temperature
    weights = [math.exp((min(known) - _number(loss)) / spread) for loss in losses]
    return tuple(weight / sum(weights) for weight in weights)


def _draw_again(view: View, candidates: int) -> Answer:
    if candidates and view.drawn >= candidates:
        return _STOP
    # The first picture is always drawn, whatever the budget.
    return (Draw(),) if not view.records or view.affords(Draw()) else _STOP


def _several(view: View, edit: Edit, most: int) -> Answer:
    count = next((n for n in range(most, 0, -1) if view.affords(edit, n)), 0)
    return (edit,) * count or _STOP


def goes_on(view: View, steps: int) -> Answer | None:
    """The next step of a climb, or the look that ends it; None where no climb is under way."""
    last = view.records[-1] if view.records else None
    if last is None or not last.gradient or not last.moved:
        return None
    following = Improve(last.number)
    if last.step + 1 < steps and view.affords(following):
        return (following,)
    following = Improve(last.number, last=True)
    return (following,) if view.affords(following) else _STOP


def _since_climb(records: Sequence[Record]) -> list[Record]:
    """Plain draws since the last gradient."""
    fresh: list[Record] = []
    for record in reversed(records):
        if record.gradient or record.move == "improve":
            break
        fresh.append(record)
    return fresh[::-1]


@dataclass(frozen=True)
class _Search:
    """Where a search by edits stands since its last fresh start."""

    base: Record | None
    draws: int
    failures: int
    climbed: frozenset[int]


def _search(records: Sequence[Record]) -> _Search:
    base: Record | None = None
    draws = failures = 0
    climbed: set[int] = set()
    edited = False
    for record in records:
        if record.move == "draw":
            if edited:  # a fresh start
                base, draws, failures, edited = None, 0, 0, False
            draws += 1
        else:
            edited = True
        if record.move == "improve" and record.step == 0 and record.base is not None:
            climbed.add(record.base)
        if base is None or nearness(record) < nearness(base):
            # The same picture seen again, at the beginning of a climb, is no new base.
            if not (record.move == "improve" and record.step == 0):
                base, failures = record, 0
        elif record.move == "edit":
            failures += 1
    return _Search(base, draws, failures, frozenset(climbed))
