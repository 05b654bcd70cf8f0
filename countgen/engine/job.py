"""One wanted picture: what was asked for, what was tried, the nearest so far, and the outcome."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from countgen.engine.actions import MovePrices, Record, View
from countgen.guidance.base import Rows
from countgen.prompts import CountPrompt
from critics.base import Query
from pipelines.base import Noise

EXACT = "exact"
CLOSE_CALL = "close call"
DISPUTED = "disputed"
BUDGET_SPENT = "budget spent"
DIVERGED = "diverged"
NON_FINITE_GRADIENT = "non-finite gradient"
NON_FINITE_PICTURE = "non-finite picture"
CANCELLED = "cancelled"
NO_COUNT = "no count in the prompt"
FAILED = "failed"
OUTCOMES = {
    EXACT: "Critic and verifier both count exactly what the prompt asks for, and neither narrowly.",
    CLOSE_CALL: "Critic and verifier count what the prompt asks for, but one of them narrowly, so the "
    "picture is not verified: look at it, or raise the budget.",
    DISPUTED: "The critic counts what the prompt asks for, but the verifier does not, so the picture is not "
    "verified: look at it, or raise the budget.",
    BUDGET_SPENT: "No picture was exact within the budget; the nearest one is kept. Raise the budget, or "
    "ask for fewer objects.",
    DIVERGED: "Every climb led away from what noises look like; the nearest picture is kept. Take a smaller "
    "step, or a prior that holds the noise.",
    NON_FINITE_GRADIENT: "The gradient was not finite for every noise that was tried; the nearest picture is "
    "kept. Use float32, or another seed.",
    NON_FINITE_PICTURE: "Every picture held values that are no finite numbers, so nothing could be counted. "
    "The likeliest causes are a decoder that overflows in half precision (use bfloat16 or float32, or a "
    "decoder made for it), a bad guidance scale, and a safety checker that withheld them.",
    CANCELLED: "Stopped before the picture was exact; the nearest one so far is kept.",
    NO_COUNT: "The prompt names no count, so the first picture is kept as it came.",
    FAILED: "Generator or counter raised an error on this picture alone; the others went on.",
}
"""Outcome -> a sentence for the user."""


@dataclass(frozen=True)
class Request:
    """What is wanted of one picture; immutable.

    Attributes:
        index: among the pictures of the run.
        row: of the run's encoded prompts.
        draw: number of a candidate -> the noise of one picture, on the CPU.
        seed: of the job's own chance: edits and choices.
        budget: plain render equivalents; the first look is always allowed.
        seconds: of wall-clock time, None without limit; such runs cannot be reproduced.
    """

    index: int
    prompt: CountPrompt
    row: int
    queries: dict[str, Query]
    draw: Callable[[int], Noise]
    seed: int
    budget: float
    seconds: float | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For pickles: all but how noises are drawn, which holds the generator."""
        return self.__dict__ | {"draw": None}

    @property
    def wanted(self) -> tuple[int, ...]:
        return tuple(target.count for target in self.prompt.targets)

    @property
    def nouns(self) -> tuple[str, ...]:
        return tuple(target.noun for target in self.prompt.targets)


@dataclass(frozen=True)
class Candidates:
    """Distinct candidates of one picture and noun, on the CPU, numbered as in ``NounSeen``."""

    margins: Float[Tensor, " c"]
    boxes: Float[Tensor, "c 4"]
    kept: Bool[Tensor, " c"]
    distinct: Bool[Tensor, " c"]


@dataclass(frozen=True)
class Observation:
    """A picture and all that was seen in it, on the CPU.

    Attributes:
        image: (3, h, w) in [0, 1].
        size: height and width of the picture, in pixels.
        noise: of this one picture; with prompt and plan it makes the picture again, ``rows`` apart.
        rows: what was optimised, where it is more than the noise, such as count tokens.
        candidates: per noun; None for counters without boxes.
        ahead: where the gradient step from here leads to; None where there is none.
    """

    record: Record
    image: Float[Tensor, "3 h w"]
    size: tuple[int, int]
    noise: Noise
    rows: Rows | None = None
    candidates: tuple[Candidates, ...] | None = None
    ahead: Climb | None = field(default=None, repr=False)

    @property
    def boxes(self) -> tuple[Float[Tensor, "_ 4"], ...] | None:
        """Per noun, the boxes that the critic counted: x0 y0 x1 y1 in pixels; None without boxes."""
        if self.candidates is None:
            return None
        return tuple(found.boxes[found.kept] for found in self.candidates)


@dataclass(frozen=True)
class Climb:
    """A climb to go on with.

    Attributes:
        rows: what is optimised, after the step.
        first: the same when the climb began.
        start: the noise that the climb began with.
        state: the optimiser's.
        step: gradient steps that led here.
    """

    rows: Rows
    first: Rows
    start: Noise
    state: Rows
    step: int


@dataclass
class Job:
    """A request, its append-only history, and what may be gone on with.

    Attributes:
        records: every look at the picture, in order.
        observations: by the number of the record, without the image, which ``plain`` and ``best`` alone keep.
        plain: the first draw, untouched by guidance.
        best: the nearest picture so far.
        error: what was raised, of failed jobs.
    """

    request: Request
    records: list[Record] = field(default_factory=list)
    observations: dict[int, Observation] = field(default_factory=dict, repr=False)
    plain: Observation | None = None
    best: Observation | None = None
    outcome: str = ""
    error: Exception | None = None
    spent: float = 0.0

    @property
    def index(self) -> int:
        return self.request.index

    @property
    def prompt(self) -> CountPrompt:
        return self.request.prompt

    @property
    def verified(self) -> bool:
        """Critic and verifier both count exactly, and each is clear."""
        return (
            self.outcome == EXACT
            and self.best is not None
            and self.best.record.verifier is not None
        )

    def view(self, moves: MovePrices) -> View:
        request = self.request
        return View(
            tuple(self.records), request.wanted, request.budget - self.spent, moves, request.seed
        )

    def tell(self, seen: Observation) -> None:
        """Commit one look: the only way in which a job changes before its outcome."""
        self.records.append(seen.record)
        self.spent = seen.record.pre
        before = self.observations.get(-1 if seen.record.base is None else seen.record.base)
        if before is not None and seen.record.step > 0:  # that climb has gone on
            self.observations[before.record.number] = replace(before, ahead=None)
        self.observations[seen.record.number] = replace(seen, image=seen.image.new_empty(3, 0, 0))
        self.plain = self.plain or seen
        if seen.record.abandoned:  # there is no picture of it
            return
        if self.best is None or rank(seen.record) < rank(self.best.record):
            self.best = seen

    def finish(self, outcome: str, error: Exception | None = None) -> None:
        """Give the job its outcome, and let go of what only a search needs."""
        if outcome == BUDGET_SPENT and self.best is not None:
            outcome = self._short_of_exact(self.best.record)
        self.outcome, self.error = outcome, error
        self.observations.clear()

    def _short_of_exact(self, best: Record) -> str:
        """Why nothing was verified within the budget."""
        if not any(record.finite for record in self.records):
            return NON_FINITE_PICTURE
        if best.error == 0 and not best.verifier_error:
            return CLOSE_CALL
        if best.disputed:
            return DISPUTED
        climbs = [record for record in self.records if record.gradient and record.step == 0]
        broken = [r for r in self.records if r.gradient and not _is_finite(r.grad_norm)]
        if climbs and len(broken) >= len(climbs):
            return NON_FINITE_GRADIENT
        if climbs and sum(record.diverged for record in self.records) >= len(climbs):
            return DIVERGED
        return BUDGET_SPENT


def rank(record: Record) -> tuple[bool, int, bool, bool, float]:
    """Order of looks, nearest first: finite, the critic's distance, the verifier's word, the confidence.

    How far the verifier is off says little where it disagrees; the critic's confidence says more. What is
    exact comes before what is not, whose lower confidence may be the higher one: each counter has its own
    floor.
    """
    doubted = record.verifier_error is None or record.verifier_error > 0
    clear = record.confidence
    if not doubted:
        clear = min(clear, record.verifier_confidence)
    return not record.finite, record.error, doubted, not record.exact, -clear


def _is_finite(value: float) -> bool:
    return value - value == 0
