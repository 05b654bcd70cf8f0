"""Jobs: what is kept, what is nearest, and what the outcome is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hand_made import PRICES, noun, record

from countgen import parse_prompt
from countgen.engine.actions import Record
from countgen.engine.job import OUTCOMES, Climb, Job, Observation, Request, rank
from pipelines.base import Noise


def job(text: str = "four cats", budget: float = 10.0) -> Job:
    def draw(candidate: int) -> Noise:
        return Noise(torch.full((1, 1, 2, 2), float(candidate)))

    return Job(Request(0, parse_prompt(text), 0, {}, draw, 7, budget))


def seen(made: Record, ahead: Climb | None = None) -> Observation:
    return Observation(
        made, torch.rand(3, 4, 4), (4, 4), Noise(torch.zeros(1, 1, 2, 2)), ahead=ahead
    )


CLIMB = Climb({}, {}, Noise(torch.zeros(1, 1, 2, 2)), {}, 1)
RIGHT, OFF = noun(4, 4), noun(4, 5)


def test_looks_are_ranked_by_the_critic_then_the_verifier_then_how_clear_they_are() -> None:
    exact = {"verifier_error": 0, "verifier_confidence": 0.5}
    order = [
        record(0, RIGHT, confidence=0.6, **exact),
        record(1, RIGHT, confidence=0.9, verifier_error=0, verifier_confidence=0.4),
        record(2, RIGHT, confidence=0.3, **exact),
        record(3, RIGHT, confidence=0.9, verifier_error=1),
        record(4, RIGHT, confidence=0.8, verifier_error=None),
        record(5, OFF, confidence=1.0),
        record(6, noun(4, 7), confidence=1.0),
        record(7, RIGHT, finite=False, **exact),
    ]
    shuffled = [order[i] for i in (4, 7, 1, 6, 0, 3, 5, 2)]
    assert [r.number for r in sorted(shuffled, key=rank)] == list(range(8))


def test_what_is_exact_is_nearest_though_another_look_seems_clearer() -> None:
    """Each counter has its own floor: 0.58 may be too narrow for the one, and 0.46 not for the other."""
    narrow = record(0, RIGHT, confidence=0.47, verifier_error=0, verifier_confidence=0.58)
    exact = record(1, RIGHT, confidence=0.46, verifier_error=0, verifier_confidence=0.7)
    own = job()
    for look in (narrow, replace(exact, exact=True)):
        own.tell(seen(look))
    assert own.best is not None and own.best.record.number == 1


def test_the_nearest_look_is_kept_and_the_first_one_is_the_plain_picture() -> None:
    own = job()
    looks = [seen(record(0, OFF)), seen(record(1, RIGHT)), seen(record(2, noun(4, 9)))]
    for look in looks:
        own.tell(look)
    assert own.plain is looks[0] and own.best is looks[1] and len(own.records) == 3
    assert own.spent == looks[2].record.pre
    view = own.view(PRICES)
    assert view.remaining == 10.0 - own.spent and view.wanted == (4,) and view.seed == 7
    assert view.records == tuple(own.records) and view.drawn == 3


def test_a_climb_that_has_gone_on_is_let_go_of() -> None:
    own = job()
    own.tell(seen(record(0, OFF, gradient=True, moved=True), CLIMB))
    assert own.observations[0].ahead is CLIMB
    own.tell(seen(record(1, OFF, move="improve", base=0, step=1), CLIMB))
    assert own.observations[0].ahead is None and own.observations[1].ahead is CLIMB
    # A first step from a picture takes nothing from it.
    own.tell(seen(record(2, OFF, move="improve", base=1, step=0), CLIMB))
    assert own.observations[1].ahead is CLIMB
    own.finish("budget spent")
    assert not own.observations and own.best is not None


@pytest.mark.parametrize(
    ("looks", "outcome"),
    [
        ([record(0, OFF)], "budget spent"),
        ([record(0, RIGHT, verifier_error=0), record(1, OFF)], "close call"),
        ([record(0, RIGHT)], "close call"),  # without a verifier
        ([record(0, OFF), record(1, RIGHT, verifier_error=2)], "disputed"),
        ([record(0, OFF, finite=False)], "non-finite picture"),
        ([record(0, OFF, finite=False), record(1, OFF)], "budget spent"),
        ([record(0, OFF, gradient=True)], "non-finite gradient"),
        ([record(0, OFF, gradient=True, grad_norm=float("inf"))], "non-finite gradient"),
        ([record(0, OFF, gradient=True, grad_norm=1.0)], "budget spent"),
        ([record(0, OFF, gradient=True, grad_norm=1.0, diverged=True)], "diverged"),
        (
            [record(0, OFF, gradient=True), record(1, OFF, gradient=True, grad_norm=1.0)],
            "budget spent",
        ),
        (
            [
                record(0, OFF, gradient=True, grad_norm=1.0),
                record(1, OFF, gradient=True, grad_norm=1.0, step=1, diverged=True),
            ],
            "diverged",
        ),
    ],
)
def test_a_job_whose_budget_is_spent_says_why(looks: list[Record], outcome: str) -> None:
    own = job()
    for look in looks:
        own.tell(seen(look))
    own.finish("budget spent")
    assert own.outcome == outcome and outcome in OUTCOMES and not own.verified


def test_verified_means_exact_with_a_verifier() -> None:
    for verifier, expected in (((4,), True), (None, False)):
        own = job()
        own.tell(seen(record(0, RIGHT, verifier=verifier, exact=True)))
        own.finish("exact")
        assert own.verified is expected
    own = job()
    own.tell(seen(record(0, RIGHT, verifier=(4,), verifier_error=0)))
    own.finish("cancelled")
    assert not own.verified


def test_a_request_names_its_nouns_and_their_counts() -> None:
    own = job("three cats and two dogs")
    assert own.request.wanted == (3, 2) and own.request.nouns == ("cat", "dog")
    failed: Any = ValueError("x")
    own.finish("failed", failed)
    assert own.error is failed and own.outcome == "failed" and own.best is None


def test_boxes_are_those_that_were_counted() -> None:
    from countgen.engine.job import Candidates

    boxes = torch.arange(12.0).reshape(3, 4)
    kept = torch.tensor([True, False, True])
    found = Candidates(torch.zeros(3), boxes, kept, kept)
    look = replace(seen(record(0)), candidates=(found,))
    assert look.boxes is not None and torch.equal(look.boxes[0], boxes[[0, 2]])
    assert seen(record(0)).boxes is None
