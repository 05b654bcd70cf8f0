"""What a policy can ask for, and what it sees of a job: plain values, without torch.

A policy is a pure function of a ``View``: the records of one wanted picture, its budget and the prices. So
its decisions depend on nothing else, and it is tested in milliseconds.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol


@dataclass(frozen=True)
class Change:
    """One change of a noise, without gradient; ``countgen.guidance.edits`` says how each kind is made.

    Attributes:
        kind: "redraw": fresh noise under one candidate's box; "clear": the noise of a free spot under it;
            "copy": the noise under one candidate's box to a free spot; "fresh": fresh noise on a free spot;
            "splice": the noise of another record in a rectangle; "graft": the noise under one candidate's
            box in another record, at the same place; "perturb": the whole noise a little;
            "resample": some entries of it, within a trust region; "mix": the weighted mean of several noises.
            Other kinds need a method whose ``edits`` make them.
        noun, candidate: whose box, as numbered in ``NounSeen``.
        scale: of "perturb" how far, in standard deviations; of "resample" the length of the region, of 1 in
            the unit cube of the noise's quantiles.
        share: of "resample": the share of the entries that are changed.
        bases, weights: of "mix": numbers of the records, and the weight of each; of "splice" and "graft":
            the one record.
        purpose: what the policy made it for; nothing else reads it.
        part: of "splice": top, left, bottom and right of the other record's part, in shares of the sides.
    """

    kind: str
    noun: int = 0
    candidate: int = 0
    scale: float = 0.0
    share: float = 1.0
    bases: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()
    part: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    purpose: str = ""


@dataclass(frozen=True)
class Draw:
    """A fresh noise.

    Attributes:
        gradient: look at it with gradient at once, as the first step of a climb.
    """

    gradient: bool = False


@dataclass(frozen=True)
class Edit:
    """The noise of a record, changed; the changes are made one after the other."""

    base: int
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class Improve:
    """A gradient step from a record: the first one of a climb, or the next one.

    Attributes:
        last: look without gradient at where the last step led to, and end the climb.
    """

    base: int
    last: bool = False


@dataclass(frozen=True)
class Stop:
    """No more of this job; ``outcome`` is a key of ``countgen.engine.job.OUTCOMES``."""

    outcome: str


Action = Draw | Edit | Improve
Answer = tuple[Action, ...] | Stop
"""What a policy answers: actions that may be done at the same time, all with gradient or none, or the end."""


@dataclass(frozen=True)
class NounSeen:
    """What the critic saw of one noun in a picture.

    Attributes:
        kept: the numbers of the candidates that were counted; empty for counters without candidates.
        margins, centres: of these; a centre is how far down and how far across, in shares of the sides.
        near: the strongest distinct candidates that were not counted, (number, margin), strongest first.
        doubtful: (number, margin) of the candidate nearest to the threshold, counted or not.
    """

    wanted: int
    count: int
    kept: tuple[int, ...] = ()
    near: tuple[tuple[int, float], ...] = ()
    doubtful: tuple[int, float] | None = None
    margins: tuple[float, ...] = ()
    centres: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Record:
    """One look at one picture, and how it came about. Nothing in a job's history ever changes.

    Attributes:
        number: position in the history.
        move: "draw", "edit" or "improve".
        base: the record that it was made from, None for draws.
        candidate: the number of the draw that it descends from.
        step: gradient steps since that draw or edit.
        gradient: whether a gradient was taken here.
        moved: whether a gradient step leads on from here.
        counts, verifier: counts of each noun by the critic, and by the verifier where it was asked.
        confidence, verifier_confidence: of the least clear noun (``CountEstimate.confidence``).
        exact: critic and verifier both count exactly, and each is clear.
        error, verifier_error: sums over the nouns of the distances from what is wanted.
        loss: the method's objective, penalties left out; not a number for methods without.
        soft: the critic's soft counts.
        finite: whether every pixel is a finite number.
        pre: plain render equivalents spent on the job so far, this look included.
        norm, drift: of the noise, and how far it is from the one that the climb began with.
        grad_norm: of the gradient; not a number where none was taken.
        diverged: the noise has left the shell on which noises lie.
        early: what the critic counted in the middle of sampling; None where nobody looked.
        abandoned: it was not finished, since too much was missing then; whatever is told of it was seen in
            its predicted clean picture.
    """

    number: int
    move: Literal["draw", "edit", "improve"]
    base: int | None
    candidate: int
    step: int
    gradient: bool
    moved: bool
    counts: tuple[int, ...]
    verifier: tuple[int, ...] | None
    confidence: float
    verifier_confidence: float
    exact: bool
    error: int
    verifier_error: int | None
    loss: float
    soft: tuple[float, ...]
    finite: bool
    pre: float
    changes: tuple[Change, ...] = ()
    nouns: tuple[NounSeen, ...] = field(default=(), repr=False)
    norm: float = float("nan")
    drift: float = 0.0
    grad_norm: float = float("nan")
    diverged: bool = False
    early: tuple[int, ...] | None = None
    abandoned: bool = False

    @property
    def disputed(self) -> bool:
        """The critic counts exactly, and the verifier does not."""
        return self.error == 0 and bool(self.verifier_error)


@dataclass(frozen=True)
class MovePrices:
    """Plain render equivalents: a look with the critic, the verifier, a gradient step with its look."""

    look: float
    verify: float
    improve: float


@dataclass(frozen=True)
class View:
    """All that a policy may read of a job."""

    records: tuple[Record, ...]
    wanted: tuple[int, ...]
    remaining: float
    prices: MovePrices
    seed: int

    @property
    def drawn(self) -> int:
        """How many fresh noises there were."""
        return sum(record.move == "draw" for record in self.records)

    def random(self) -> random.Random:
        """Chance that depends on the job's seed and on how far it is, and on nothing else."""
        return random.Random(f"{self.seed}/{len(self.records)}")

    def affords(self, action: Action, several: int = 1) -> bool:
        """Whether the budget allows it, with the verifier's price and for climbs the look after the step."""
        prices = self.prices
        gradient = (isinstance(action, Draw) and action.gradient) or (
            isinstance(action, Improve) and not action.last
        )
        need = prices.look + prices.verify
        if gradient:
            need += prices.improve + prices.verify
        return several * need <= self.remaining


class Policy(Protocol):
    """What is tried next: a frozen dataclass with its own settings."""

    @property
    def moves(self) -> frozenset[str]:
        """Which of "draw", "edit" and "improve" it may ask for, so that what they need is checked at once."""
        ...

    def __call__(self, view: View) -> Answer:
        """Actions, all of them from the same history; the budget must allow them (``View.affords``)."""
        ...


def near_threshold(margins: Sequence[float]) -> int:
    """Position of the margin nearest to 0."""
    return min(range(len(margins)), key=lambda i: abs(margins[i]))
