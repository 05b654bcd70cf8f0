"""Policies: what each asks for next, on histories made by hand; without torch."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hand_made import PRICES, noun, record, view
from hypothesis import given, settings
from hypothesis import strategies as st

from countgen.engine.actions import (
    Action,
    Change,
    Draw,
    Edit,
    Improve,
    Policy,
    Record,
    Stop,
    View,
    near_threshold,
)
from countgen.engine.best_move import BestMove
from countgen.engine.policy import (
    BestOfN,
    DrawThenEdit,
    DrawThenImprove,
    HillClimbing,
    PathIntegral,
    TrustRegion,
    nearness,
    possible_changes,
)

STOP = Stop("budget spent")
POLICIES: dict[str, Policy] = {
    "none": BestOfN(candidates=1),
    "best-of-n": BestOfN(),
    "noise": DrawThenImprove(),
    "from the first look": DrawThenImprove(draws=0, steps=3),
    "impatient": DrawThenImprove(draws=2, steps=4, candidates=3, patience=1),
    "edit": DrawThenEdit(),
    "wide": DrawThenEdit(draws=2, width=3, far=1, tries=2),
    "edits, then gradients": DrawThenEdit(steps=4),
    "engine": BestMove(),
    "engine, wide": BestMove(width=4, draws=3),
    "engine, without gradient": BestMove(steps=0),
    "engine, without boxes": BestMove(edits=False),
    "hill-climbing": HillClimbing(pool=3, batch=4),
    "trs": TrustRegion(pool=4, centres=2, batch=3),
    "zeno": PathIntegral(batch=3),
}


def test_a_policy_loads_no_torch() -> None:
    code = (
        "import sys, countgen.engine.policy, countgen.engine.best_move\n"
        "heavy = {'torch', 'numpy', 'diffusers', 'transformers'} & set(sys.modules)\n"
        "assert 'countgen.engine.policy' in sys.modules\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# -- budget: a job as the pool would run it, with chance for eyes --------------------------------


def looked(
    history: list[Record], action: Action, chance: random.Random, climbs: bool
) -> tuple[Record, float]:
    """A record of this action in which everything is drawn at random, and its price."""
    seen = noun(4, chance.randint(2, 6), [-1.0, -7.0][: chance.randint(0, 2)])
    base = None if isinstance(action, Draw) else history[action.base]
    gradient = (isinstance(action, Draw) and action.gradient) or (
        isinstance(action, Improve) and not action.last
    )
    goes_on = isinstance(action, Improve) and base is not None and base.moved
    exact = chance.random() < 0.2
    made = record(
        len(history),
        noun(4, 4, [-0.5]) if exact else seen,
        move={Draw: "draw", Edit: "edit", Improve: "improve"}[type(action)],
        base=base.number if base else None,
        step=base.step + 1 if base and goes_on else 0,
        gradient=gradient,
        moved=gradient and climbs and chance.random() < 0.9,
        loss=chance.random(),
        changes=action.changes if isinstance(action, Edit) else (),
    )
    if made.error == 0 and chance.random() < 0.5:
        made = replace(made, verifier=(5,), verifier_error=1)
    return made, (PRICES.improve if gradient else PRICES.look) + PRICES.verify * (made.error == 0)


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=25, deadline=None)
@given(budget=st.floats(0.0, 40.0), seed=st.integers(0, 10**6), climbs=st.booleans())
def test_nothing_is_asked_for_that_the_budget_does_not_allow(
    name: str, budget: float, seed: int, climbs: bool
) -> None:
    policy, chance = POLICIES[name], random.Random(seed)
    history: list[Record] = []
    spent = 0.0
    while True:
        now = View(tuple(history), (4,), budget - spent, PRICES, seed)
        answer = policy(now)
        assert policy(now) == answer, "the same history has another answer"
        if isinstance(answer, Stop):
            break
        assert answer
        done = []
        for action in answer:
            assert {Draw: "draw", Edit: "edit", Improve: "improve"}[type(action)] in policy.moves
            if not isinstance(action, Draw):
                assert 0 <= action.base < len(history)
            if isinstance(action, Improve) and action.last:
                assert history[action.base].moved
            made, price = looked(history, action, chance, climbs)
            done.append(replace(made, number=len(history) + len(done)))
            spent += price
        history += done
        # The verifier's word on the picture that is kept is paid for as well.
        assert len(history) == 1 or spent + PRICES.verify * (history[-1].error > 0) <= budget + 1e-9
    assert history and history[0].move == "draw"
    cheapest = PRICES.look + PRICES.verify
    if name not in ("none", "impatient"):
        assert budget - spent < max(cheapest, PRICES.improve + cheapest + PRICES.verify)


@pytest.mark.parametrize("name", POLICIES)
def test_the_first_draw_is_made_whatever_the_budget(name: str) -> None:
    answer = POLICIES[name](view(remaining=0.0))
    assert answer == (Draw(),)
    assert POLICIES[name](view([record(0)], remaining=-0.5)) == STOP


def test_what_is_afforded_has_the_verifier_and_the_look_after_a_step_in_it() -> None:
    for action, price in (
        (Draw(), 1.25),
        (Edit(0, ()), 1.25),
        (Improve(0, last=True), 1.25),
        (Improve(0), 4.0),
        (Draw(gradient=True), 4.0),
    ):
        assert view(remaining=price).affords(action)
        assert not view(remaining=price - 1e-6).affords(action)
        assert view(remaining=3 * price).affords(action, 3)
        assert not view(remaining=3 * price - 1e-6).affords(action, 3)


def test_chance_depends_on_the_seed_and_on_how_far_a_job_is() -> None:
    first = view([record(0)], seed=1).random().random()
    assert first == view([record(0, noun(4, 6))], seed=1).random().random()
    assert first != view([record(0)], seed=2).random().random()
    assert first != view([record(0), record(1)], seed=1).random().random()


# -- draws ----------------------------------------------------------------------------------------


def test_none_draws_once_and_best_of_n_until_the_budget_is_spent() -> None:
    assert BestOfN(1)(view()) == (Draw(),)
    assert BestOfN(1)(view([record(0)])) == STOP
    assert BestOfN(2)(view([record(0)])) == (Draw(),)
    assert BestOfN(2)(view([record(0), record(1)])) == STOP
    many = [record(i) for i in range(50)]
    assert BestOfN()(view(many)) == (Draw(),)
    assert BestOfN()(view(many, remaining=1.25)) == (Draw(),)
    assert BestOfN()(view(many, remaining=1.24)) == STOP


# -- draws, then climbs ---------------------------------------------------------------------------


def climb(
    numbers: range, base: int | None = 0, losses: list[float] | None = None, **fields: Any
) -> list[Record]:
    """Gradient steps, each from the one before."""
    found = []
    for step, number in enumerate(numbers):
        loss = losses[step] if losses else 1.0
        made = record(
            number,
            move="improve",
            base=base if step == 0 else number - 1,
            step=step,
            gradient=True,
            moved=True,
            loss=loss,
        )
        found.append(replace(made, **fields))
    return found


def test_the_nearest_of_the_draws_by_loss_is_climbed_from() -> None:
    policy = DrawThenImprove(draws=3, steps=2)
    draws = [record(0, loss=2.0), record(1, loss=0.5), record(2, loss=float("nan"))]
    assert policy(view(draws[:2])) == (Draw(),)
    assert policy(view(draws)) == (Improve(1),)
    history = draws + climb(range(3, 4), base=1)
    assert policy(view(history)) == (Improve(3),)
    history = draws + climb(range(3, 5), base=1)
    assert policy(view(history)) == (Improve(4, last=True),)
    history.append(record(5, move="improve", base=4, step=2))
    # The climb is over; fresh noises, as many as before, none of the old ones counted.
    for number in range(6, 9):
        assert policy(view(history)) == (Draw(),)
        history.append(record(number, loss=9.0 - number))
    assert policy(view(history)) == (Improve(8),)


def test_a_climb_that_leads_nowhere_is_left() -> None:
    policy = DrawThenImprove(draws=1, steps=9)
    history = [record(0), *climb(range(1, 3), moved=False)]
    assert policy(view(history)) == (Draw(),)


def test_a_climb_ends_with_a_look_that_the_budget_still_allows() -> None:
    policy = DrawThenImprove(draws=1, steps=9)
    history = [record(0), *climb(range(1, 3))]
    assert policy(view(history, remaining=4.0)) == (Improve(2),)
    assert policy(view(history, remaining=3.99)) == (Improve(2, last=True),)
    assert policy(view(history, remaining=1.24)) == STOP


def test_without_draws_every_noise_is_climbed_from_its_first_look() -> None:
    policy = DrawThenImprove(draws=0, steps=3, candidates=2)
    assert policy(view()) == (Draw(gradient=True),)
    assert policy(view(remaining=3.9)) == (Draw(),)
    first = record(0, gradient=True, moved=True)
    assert policy(view([first])) == (Improve(0),)
    assert policy(view([record(0, gradient=True)])) == (Draw(gradient=True),)
    two = [record(0, gradient=True), record(1, gradient=True)]
    assert policy(view(two)) == STOP


def test_candidates_limit_the_draws_before_a_climb_too() -> None:
    policy = DrawThenImprove(draws=12, steps=1, candidates=2)
    assert policy(view([record(0), record(1, loss=0.1)])) == (Improve(1),)
    history = [record(0), record(1), *climb(range(2, 3), base=1, moved=False)]
    assert policy(view(history)) == STOP


def test_patience_ends_a_climb_without_a_lower_loss() -> None:
    policy = DrawThenImprove(draws=1, steps=20, patience=2)
    going = [record(0), *climb(range(1, 5), losses=[3.0, 2.0, 2.5, 1.0])]
    assert policy(view(going)) == (Improve(4),)
    stuck = [record(0), *climb(range(1, 5), losses=[3.0, 1.0, 2.0, 1.5])]
    assert policy(view(stuck)) == (Draw(),)
    assert replace(policy, patience=3)(view(stuck)) == (Improve(4),)
    assert replace(policy, patience=0)(view(stuck)) == (Improve(4),)


# -- draws, then edits ----------------------------------------------------------------------------


def changes(*nouns: Any, copies: float = 0.0) -> Counter[Change]:
    return Counter(possible_changes(record(0, *nouns), random.Random(0).random, copies))


def test_surplus_is_redrawn_under_any_one_of_the_counted_boxes() -> None:
    assert changes(noun(2, 4, [-1.0])) == Counter(Change("redraw", 0, i) for i in range(4))


def test_what_is_missing_is_copied_or_drawn_afresh_or_grown_from_a_near_candidate() -> None:
    near = noun(4, 2, [-0.5, -5.9, -1.0])
    grown = {Change("redraw", 0, 2): 1, Change("redraw", 0, 3): 1}
    assert changes(near) == Counter({Change("fresh", 0): 2, **grown})
    found = changes(near, copies=1.0)
    assert sum(n for change, n in found.items() if change.kind == "copy") == 2
    assert {c.candidate for c in found if c.kind == "copy"} <= {0, 1}
    # Too weak a candidate is not there, and where none is there none is copied.
    assert changes(noun(4, 2, [-6.1])) == {Change("fresh", 0): 2}
    assert changes(noun(4, 0), copies=1.0) == {Change("fresh", 0): 2}


def test_copies_come_as_often_as_they_are_wanted() -> None:
    chance = random.Random(3).random
    kinds = Counter(
        change.kind
        for _ in range(500)
        for change in possible_changes(record(0, noun(4, 3)), chance, 0.7)
    )
    assert 0.64 < kinds["copy"] / 1000 < 0.76


def test_a_right_count_is_only_touched_where_it_is_in_doubt() -> None:
    both = changes(noun(2, 3), noun(4, 4, [-1.1]))
    assert both == Counter([*(Change("redraw", 0, i) for i in range(3)), Change("redraw", 1, 4)])
    assert Change("redraw", 1, 4) not in changes(noun(2, 3), noun(4, 4, [-1.3]))
    assert changes(noun(2, 3), noun(4, 4, doubt=1.1))[Change("redraw", 1, 3)] == 1


def test_where_nothing_is_wrong_for_the_critic_any_counted_box_is_redrawn() -> None:
    found = changes(noun(2, 2, [-4.0]), noun(1, 1))
    assert found == Counter(
        [Change("redraw", 0, 0), Change("redraw", 0, 1), Change("redraw", 1, 0)]
    )
    assert not changes(noun(0, 0))


def edited(number: int, base: int, *nouns: Any, **fields: Any) -> Record:
    return record(number, *nouns, move="edit", base=base, **fields)


def test_the_nearest_draw_is_edited_and_whatever_is_nearer_is_the_next_base() -> None:
    policy = DrawThenEdit(draws=2)
    history = [record(0, noun(4, 6)), record(1, noun(4, 5))]
    assert policy(view(history[:1])) == (Draw(),)
    (edit,) = policy(view(history))  # type: ignore[misc]
    assert edit.base == 1 and [c.kind for c in edit.changes] == ["redraw"]
    history.append(edited(2, 1, noun(4, 5), loss=5.0))  # no nearer
    (edit,) = policy(view(history))  # type: ignore[misc]
    assert edit.base == 1
    history.append(edited(3, 1, noun(4, 5), loss=0.5))  # nearer by its loss
    (edit,) = policy(view(history))  # type: ignore[misc]
    assert edit.base == 3


def test_a_disputed_picture_is_half_an_object_off() -> None:
    exact, disputed = record(0, noun(4, 4), loss=9.0), record(1, noun(4, 4), verifier_error=3)
    off = record(2, noun(4, 5), loss=0.0)
    assert not off.disputed and disputed.disputed and not exact.disputed
    broken = record(3, noun(4, 4), finite=False)
    unknown = record(4, noun(4, 4), loss=float("nan"))
    order = sorted([off, broken, disputed, unknown, exact], key=nearness)
    assert [r.number for r in order] == [0, 4, 1, 2, 3]


def test_two_things_are_changed_at_once_where_the_count_is_far_off() -> None:
    policy = DrawThenEdit(draws=1)
    for counted, several in ((6, 1), (7, 2), (9, 2)):
        (edit,) = policy(view([record(0, noun(4, counted))]))  # type: ignore[misc]
        assert len(edit.changes) == several
    (edit,) = DrawThenEdit(draws=1, far=2)(view([record(0, noun(4, 6))]))  # type: ignore[misc]
    assert len(edit.changes) == 2


def test_after_twenty_edits_without_a_nearer_picture_it_begins_again() -> None:
    policy = DrawThenEdit(draws=2)
    history = [record(0, noun(4, 5)), record(1, noun(4, 6))]
    for number in range(2, 22):
        (edit,) = policy(view(history))  # type: ignore[misc]
        assert isinstance(edit, Edit) and edit.base == 0
        history.append(edited(number, 0, noun(4, 6)))
    for number in (22, 23):
        assert policy(view(history)) == (Draw(),)
        history.append(record(number, noun(4, 9), loss=float(number)))
    # Only what came since the fresh start counts, however far off.
    (edit,) = policy(view(history))  # type: ignore[misc]
    assert edit.base == 22
    # A nearer picture sets the count of failures back.
    history = [record(0, noun(4, 7)), record(1, noun(4, 8))]
    history += [edited(n, 0, noun(4, 8)) for n in range(2, 21)]
    history += [edited(21, 0, noun(4, 6))]
    history += [edited(n, 21, noun(4, 8)) for n in range(22, 41)]
    (edit,) = policy(view(history))  # type: ignore[misc]
    assert edit.base == 21


def test_an_exact_picture_that_is_not_clear_is_climbed_from_once() -> None:
    policy = DrawThenEdit(draws=1, steps=2)
    exact = [record(0, noun(4, 4, [-0.5]))]
    assert policy(view(exact)) == (Improve(0),)
    assert DrawThenEdit(draws=1)(view(exact)) != (Improve(0),)
    assert policy(view([record(0, noun(4, 5))])) != (Improve(0),)
    seen = {"verifier_error": 1}
    again = climb(range(1, 3), losses=[4.0, 4.0])
    again = [replace(r, **(seen | {"nouns": exact[0].nouns, "error": 0})) for r in again]
    assert policy(view(exact + again[:1])) == (Improve(1),)
    assert policy(view(exact + again)) == (Improve(2, last=True),)
    after = exact + again + [record(3, noun(4, 5), move="improve", base=2, step=2)]
    (edit,) = policy(view(after))  # type: ignore[misc]
    assert isinstance(edit, Edit) and edit.base == 0
    # A step that came nearer is a base of its own, and is climbed from as well.
    nearer = replace(again[1], loss=-1.0, verifier_error=None)
    (found,) = policy(view(exact + again[:1] + [replace(nearer, moved=False)]))  # type: ignore[misc]
    assert found == Improve(2)
    # Where a climb is too dear, an edit may still be had.
    (edit,) = policy(view(exact, remaining=3.9))  # type: ignore[misc]
    assert isinstance(edit, Edit)


def test_several_edits_of_one_base_are_tried_at_once_as_far_as_the_budget_goes() -> None:
    policy = DrawThenEdit(draws=1, width=4)
    history = [record(0, noun(4, 12))]
    answer = policy(view(history))
    assert isinstance(answer, tuple) and len(answer) == 4
    assert {a.base for a in answer if isinstance(a, Edit)} == {0} and len(set(answer)) > 1
    assert len(policy(view(history, remaining=2.6))) == 2  # type: ignore[arg-type]
    assert policy(view(history, remaining=1.2)) == STOP


def test_where_nothing_can_be_edited_it_draws() -> None:
    assert DrawThenEdit(draws=1)(view([record(0, noun(0, 0), verifier_error=1)])) == (Draw(),)


@pytest.mark.parametrize(
    ("policy", "settings"),
    [
        (DrawThenImprove, {"steps": 0}),
        (DrawThenImprove, {"draws": -1}),
        (DrawThenImprove, {"patience": -1}),
        (DrawThenEdit, {"draws": 0}),
        (DrawThenEdit, {"tries": 0}),
        (DrawThenEdit, {"steps": -1}),
        (DrawThenEdit, {"width": 0}),
    ],
)
def test_settings_out_of_range_are_refused(policy: Any, settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"must.*at least"):
        policy(**settings)


def test_the_candidate_nearest_to_the_threshold() -> None:
    assert near_threshold([3.0, -0.4, 0.5]) == 1
