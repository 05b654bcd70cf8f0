"""Policies that search the whole noise: what each asks for next; without torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hand_made import noun, record, view

from countgen.engine.actions import Change, Draw, Edit, Record
from countgen.engine.policy import HillClimbing, PathIntegral, TrustRegion


def edited(number: int, base: int, *nouns: Any, **fields: Any) -> Record:
    return record(number, *nouns, move="edit", base=base, **fields)


def test_hill_climbing_steps_around_the_best_so_far() -> None:
    policy = HillClimbing(pool=2, batch=3, step=0.1)
    pool = [record(0, noun(4, 6)), record(1, noun(4, 5))]
    assert policy(view(pool[:1])) == (Draw(),)
    around = Edit(1, (Change("perturb", scale=0.1),))
    assert policy(view(pool)) == (around,) * 3
    assert policy(view(pool, remaining=2.6)) == (around,) * 2
    better = [edited(2, 1, noun(4, 6)), edited(3, 1, noun(4, 4)), edited(4, 1, noun(4, 6))]
    assert policy(view(pool + better)) == (replace(around, base=3),) * 3
    assert (HillClimbing().pool, HillClimbing().batch, HillClimbing().step) == (16, 16, 0.1)


def rounds(errors: list[int]) -> list[Record]:
    """A pool of two with error 9, then rounds of two whose best has these errors."""
    history = [record(0, noun(4, 13)), record(1, noun(4, 13))]
    for error in errors:
        history += [edited(len(history), 0, noun(4, 4 + error)) for _ in range(1)]
        history += [edited(len(history), 0, noun(4, 14))]
    return history


@pytest.mark.parametrize(
    ("errors", "length"),
    [
        ([], 0.8),
        ([8, 7], 0.8),
        ([8, 7, 6], 1.6),
        ([8, 7, 6, 5, 4, 3], 1.6),  # no longer than the whole cube's
        ([8, 7, 9, 6], 0.8),  # a failure between
        ([9, 9], 0.8),
        ([9, 9, 9], 0.4),
        ([9, 9, 8, 8, 8], 0.8),
        ([9, 9, 8, 8, 8, 8], 0.4),
        ([9] * 12, 0.05),
        ([9] * 15, 0.8),  # too small: it begins again
        ([9, 9, 9, 8, 7, 6], 0.8),
    ],
)
def test_a_trust_region_grows_after_three_successes_and_shrinks_after_three_failures(
    errors: list[int], length: float
) -> None:
    answer = TrustRegion(pool=2, centres=1, batch=2, share=0.3)(view(rounds(errors)))
    assert isinstance(answer, tuple) and len(answer) == 2
    for edit in answer:
        assert isinstance(edit, Edit)
        (change,) = edit.changes
        assert change.kind == "resample" and change.share == 0.3
        assert change.scale == pytest.approx(length)


def test_trust_regions_lie_around_the_best_pictures_in_turn() -> None:
    policy = TrustRegion(pool=3, centres=2, batch=5)
    history = [record(0, noun(4, 9)), record(1, noun(4, 5)), record(2, noun(4, 7))]
    assert policy(view(history[:2])) == (Draw(),)
    answer: Any = policy(view(history))
    assert [edit.base for edit in answer] == [1, 2, 1, 2, 1]
    answer = policy(view(history, remaining=2.5))
    assert [edit.base for edit in answer] == [1, 2]
    # A round that was cut short is gone on with.
    answer = policy(view([*history, edited(3, 1, noun(4, 4)), edited(4, 2, noun(4, 9))]))
    assert [edit.base for edit in answer] == [3, 1, 3]


def test_path_integral_control_weighs_a_round_by_its_losses() -> None:
    policy = PathIntegral(batch=3, step=0.4, temperature=0.5)
    assert policy(view()) == (Draw(),)
    first = [record(0, loss=3.0)]
    assert policy(view(first)) == (Edit(0, (Change("perturb", scale=0.4),)),) * 3
    assert len(policy(view(first, remaining=2.6))) == 2  # type: ignore[arg-type]
    history = first + [edited(i + 1, 0, loss=loss) for i, loss in enumerate((1.0, 2.0, 3.0))]
    answer: Any = policy(view(history))
    assert answer == answer[:1] * 3 and answer[0].base == 3
    (change,) = answer[0].changes
    assert change.kind == "mix" and change.scale == 0.4 and change.bases == (1, 2, 3)
    # exp(-(loss - least) / (0.5 * spread)) of 0, 1, 2 with a spread of 2, normalised.
    expected = [1.0, 0.36787944, 0.13533528]
    assert change.weights == pytest.approx([w / sum(expected) for w in expected], rel=1e-6)
    # Only the last whole round is weighed, and losses that are no numbers weigh nothing.
    history += [edited(4 + i, 3, loss=loss) for i, loss in enumerate((5.0, 7.0, 6.0))]
    (change,) = policy(view(history))[0].changes  # type: ignore[index, union-attr]
    assert change.bases == (4, 5, 6) and change.weights[0] == max(change.weights)


def test_a_loss_that_is_no_number_has_no_weight() -> None:
    policy = PathIntegral(batch=2)
    history = [record(0), edited(1, 0, loss=float("nan")), edited(2, 0, loss=1.0)]
    (change,) = policy(view(history))[0].changes  # type: ignore[index, union-attr]
    assert change.weights == pytest.approx((0.0, 1.0))
    history = [record(0), edited(1, 0, loss=float("nan")), edited(2, 0, loss=float("nan"))]
    (change,) = policy(view(history))[0].changes  # type: ignore[index, union-attr]
    assert change.weights == pytest.approx((0.5, 0.5))
