"""The policy ``engine``: what it weighs, and how a job's own history outweighs the rates; without torch."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hand_made import noun, record, view

from countgen.engine.actions import Change, Draw, Edit, Improve, NounSeen, Record
from countgen.engine.best_move import BestMove, bases_of, edits_of, grafts, splices
from countgen.engine.rates import (
    DEAREST,
    DISPUTED,
    EXACT,
    STATES,
    UNCLEAR,
    UNIFORM,
    Rates,
    read_rates,
    state_of,
)


def placed(count: int, centres: list[tuple[float, float]], wanted: int = 4) -> NounSeen:
    """A noun of which objects stand at these centres."""
    assert count == len(centres)
    kept = tuple(range(count))
    return NounSeen(wanted, count, kept, (), None, (3.0,) * count, tuple(centres))


def drawn(number: int, count: int, candidate: int | None = None) -> Record:
    made = record(number, noun(4, count, []), move="draw")
    return replace(made, candidate=number if candidate is None else candidate)


def answers(policy: BestMove, records: list[Record], seeds: int = 40) -> Counter[str]:
    """What kinds of moves are asked for, over many seeds of the job's chance."""
    found: Counter[str] = Counter()
    for seed in range(seeds):
        answer = policy(view(records, remaining=50.0, seed=seed))
        assert isinstance(answer, tuple)
        for action in answer:
            kind = type(action).__name__
            if isinstance(action, Edit):
                kind = action.changes[0].kind if len(action.changes) == 1 else "several"
            found[kind] += 1
    return found


@pytest.mark.parametrize(
    ("error", "verifier_error", "exact", "state"),
    [
        (0, 0, True, EXACT),
        (0, 0, False, UNCLEAR),
        (0, 2, False, DISPUTED),
        (1, None, False, "1"),
        (5, None, False, "4"),
        (17, None, False, "6"),
    ],
)
def test_states(error: int, verifier_error: int | None, exact: bool, state: str) -> None:
    made = replace(drawn(0, 4), error=error, verifier_error=verifier_error, exact=exact)
    assert state_of(made) == state
    assert state_of(replace(made, exact=False, finite=False)) == "6"


class TestRates:
    def test_the_way_is_what_the_moves_cost(self) -> None:
        """One move in four from "1" is exact, and each costs a render: four renders."""
        rates = Rates({"remove": {"1": {EXACT: 0.25, "1": 0.75}}})
        assert rates.values["1"] == pytest.approx(4.0, rel=1e-6)
        assert rates.values[EXACT] == 0.0
        assert rates.values["2"] == DEAREST

    def test_ways_add_up(self) -> None:
        step = {"1": {EXACT: 0.5, "2": 0.5}, "2": {"1": 0.5, "3": 0.5}}
        rates = Rates({"remove": step})
        assert rates.values["1"] == pytest.approx(2.0, rel=1e-6)
        assert rates.values["2"] == pytest.approx(4.0, rel=1e-6)

    def test_a_climb_costs_more(self) -> None:
        rates = Rates({"improve": {UNCLEAR: {EXACT: 0.5, UNCLEAR: 0.5}}}, climb=8.0)
        assert rates.values[UNCLEAR] == pytest.approx(16.0, rel=1e-6)

    @pytest.mark.parametrize(
        "moves",
        [
            {"teleport": {"1": {EXACT: 1.0}}},
            {"remove": {"1": {EXACT: 0.5}}},
            {"remove": {"7": {EXACT: 1.0}}},
            {"remove": {"1": {"perfect": 1.0}}},
        ],
    )
    def test_what_are_no_rates(self, moves: dict[str, dict[str, dict[str, float]]]) -> None:
        with pytest.raises(ValueError, match=r"kind of move|sum 1|states are"):
            Rates(moves)

    def test_uniform_rates_know_a_way_from_everywhere(self) -> None:
        assert all(0 < UNIFORM.values[state] < DEAREST for state in STATES[1:])

    def test_files(self, tmp_path: Path) -> None:
        path = tmp_path / "moves.json"
        path.write_text(
            json.dumps({"moves": {"draw": {"": {EXACT: 1.0}}}, "climb": 7.5, "trust": 4.0})
        )
        rates = read_rates(path)
        assert (rates.climb, rates.trust) == (7.5, 4.0)
        assert rates.of("draw", "") == {EXACT: 1.0}


class TestBestMove:
    def test_it_begins_with_draws(self) -> None:
        assert BestMove(draws=2)(view([])) == (Draw(),)
        assert BestMove(draws=3, width=4)(view([drawn(0, 6)])) == (Draw(), Draw())

    def test_a_surplus_object_is_taken_away_and_a_missing_one_added(self) -> None:
        surplus = answers(BestMove(), [drawn(0, 5), drawn(1, 5)])
        lacking = answers(BestMove(), [drawn(0, 3), drawn(1, 3)])
        assert set(surplus) & {"redraw", "clear"} and "copy" not in surplus
        assert set(lacking) & {"copy", "fresh"} and "clear" not in lacking

    def test_draws_that_are_often_exact_are_drawn_again(self) -> None:
        """Where the rates say that drawing is the way, nothing else is done."""
        rates = Rates({**UNIFORM.moves, "draw": {"": {EXACT: 0.9, "1": 0.1}}}, trust=20.0)
        assert set(answers(BestMove(rates=rates), [drawn(0, 5), drawn(1, 5)])) == {"Draw"}

    def test_a_base_whose_trials_fail_is_left(self) -> None:
        """After many failures from one record, the others get their turn."""
        first, second = drawn(0, 5), replace(drawn(1, 5), loss=9.0)
        failed = [
            replace(
                record(2 + i, noun(4, 6, []), move="edit", base=0),
                changes=(Change("redraw", 0, 0, purpose="remove"),),
            )
            for i in range(12)
        ]
        policy = BestMove(splices=False, steps=0)
        bases = Counter(
            action.base
            for seed in range(40)
            for action in policy(view([first, second, *failed], remaining=50.0, seed=seed))  # type: ignore[union-attr]
            if isinstance(action, Edit)
        )
        assert bases[0] == 0
        assert bases[1] > 0

    def test_the_jobs_own_moves_outweigh_the_rates(self) -> None:
        """Removals that never help are tried less than those that the rates promise."""
        rates = Rates(
            {
                "draw": {"": {EXACT: 0.02, "2": 0.98}},
                "remove": {"2": {"1": 0.5, "2": 0.5}, "1": {EXACT: 0.5, "1": 0.5}},
                "two": {"2": {"1": 0.4, "2": 0.6}},
            },
            trust=2.0,
        )
        begun = [drawn(0, 6), drawn(1, 6)]
        failed = [
            replace(
                record(2 + i, noun(4, 7, []), move="edit", base=i % 2),
                changes=(Change("redraw", 0, 0, purpose="remove"),),
            )
            for i in range(10)
        ]
        policy = BestMove(rates=rates, steps=0, splices=False)
        before, after = answers(policy, begun), answers(policy, begun + failed)
        assert before["redraw"] + before["clear"] > before["several"]
        assert after["several"] > after["redraw"] + after["clear"]

    def test_width(self) -> None:
        begun = [drawn(0, 5), drawn(1, 6)]
        answer = BestMove(width=3)(view(begun, remaining=50.0))
        assert isinstance(answer, tuple) and len(answer) == 3
        assert not any(isinstance(action, Improve) for action in answer)

    def test_without_gradient_there_are_no_climbs_and_without_edits_no_edits(self) -> None:
        unclear = [replace(drawn(i, 4), verifier=(4,), verifier_error=0) for i in range(2)]
        assert "Improve" not in answers(BestMove(steps=0), unclear)
        assert set(answers(BestMove(edits=False), unclear)) <= {"Draw", "Improve"}
        assert BestMove(steps=0).moves == {"draw", "edit"}
        assert BestMove(edits=False).moves == {"draw", "improve"}

    def test_one_climb_from_one_picture(self) -> None:
        rates = Rates({"improve": {UNCLEAR: {EXACT: 1.0}}, "draw": {"": {"6": 1.0}}})
        unclear = [replace(drawn(i, 4), verifier=(4,), verifier_error=0) for i in range(2)]
        policy = BestMove(rates=rates, splices=False)
        assert set(answers(policy, unclear)) == {"Improve"}
        looked = [
            replace(record(2 + i, noun(4, 6, []), move="improve", base=i), gradient=True)
            for i in range(2)
        ]
        assert "Improve" not in answers(policy, unclear + looked)

    def test_no_climb_is_made_twice_from_a_look_on_its_way(self) -> None:
        """The gradient there has been followed: the same pictures would come again."""
        rates = Rates({"improve": {UNCLEAR: {EXACT: 1.0}}, "draw": {"": {"6": 1.0}}})
        unclear = replace(drawn(0, 4), verifier=(4,), verifier_error=0)
        way = [
            replace(
                record(1 + step, noun(4, 4, []), move="improve", base=step),
                step=step,
                gradient=step < 2,
                moved=step < 2,
                verifier=(4,),
                verifier_error=0,
            )
            for step in range(3)
        ]
        policy = BestMove(rates=rates, splices=False, steps=3)
        history = [unclear, *way, replace(drawn(4, 6), number=4)]
        assert {base.number for base in bases_of(view(history))} == {0, 2, 3, 4}, "one picture once"
        for seed in range(20):
            answer = policy(view(history, remaining=50.0, seed=seed))
            assert isinstance(answer, tuple)
            assert all(a.base == 3 for a in answer if isinstance(a, Improve))

    @pytest.mark.parametrize(
        "wrong", [{"draws": 0}, {"steps": -1}, {"patience": 0.0}, {"width": 0}]
    )
    def test_settings(self, wrong: dict[str, float]) -> None:
        with pytest.raises(ValueError, match=r"draws|width"):
            BestMove(**wrong)  # type: ignore[arg-type]


class TestSplices:
    def two(self) -> list[Record]:
        """Three objects above and one below; one above and two below: 3 + 2 is 5, 1 + 1 is 2."""
        one = [(0.1, 0.2), (0.1, 0.5), (0.1, 0.8), (0.9, 0.5)]
        other = [(0.1, 0.5), (0.9, 0.2), (0.9, 0.8)]
        return [
            replace(drawn(0, 4), nouns=(placed(4, one, 5),), error=1, counts=(4,)),
            replace(drawn(1, 3), nouns=(placed(3, other, 5),), error=2, counts=(3,)),
        ]

    def test_the_predicted_counts_are_the_wanted_ones(self) -> None:
        found = list(splices(view(self.two()), UNIFORM))
        assert [(kind, edit.base) for kind, _, edit in found] == [("splice", 0)]
        (change,) = found[0][2].changes
        assert change.bases == (1,)
        assert change.part == (0.5, 0.0, 1.0, 1.0), "the cut that is furthest from all objects"

    def test_pictures_of_one_draw_are_not_spliced(self) -> None:
        one, other = self.two()
        assert not list(splices(view([one, replace(other, candidate=0)]), UNIFORM))

    def test_none_is_made_twice(self) -> None:
        begun = self.two()
        (_, _, edit) = next(splices(view(begun), UNIFORM))
        made = replace(record(2, noun(5, 7, []), move="edit", base=0), changes=edit.changes)
        assert not [e for _, _, e in splices(view([*begun, made]), UNIFORM) if e == edit]


class TestGrafts:
    def three(self) -> list[Record]:
        """One lacks a second object at the top; the two others have some there and at the bottom."""
        lacking = placed(1, [(0.9, 0.5)], 2)
        near, far = [(0.85, 0.4), (0.6, 0.5)], [(0.1, 0.5), (0.9, 0.6), (0.7, 0.1)]
        return [
            replace(drawn(0, 1), nouns=(lacking,), error=1, counts=(1,)),
            replace(drawn(1, 2), nouns=(placed(2, near, 2),), error=0, counts=(2,)),
            replace(drawn(2, 3), nouns=(placed(3, far, 2),), error=1, counts=(3,)),
        ]

    def test_the_object_with_most_room_is_taken(self) -> None:
        found = [edit for _, _, edit in grafts(view(self.three())) if edit.base == 0]
        (change,) = found[0].changes
        assert (change.kind, change.candidate, change.bases) == ("graft", 0, (2,))

    def test_what_lacks_nothing_gets_none_and_none_comes_from_the_same_draw(self) -> None:
        records = self.three()
        assert {edit.base for _, _, edit in grafts(view(records))} == {0}
        related = [replace(one, candidate=0) for one in records]
        assert not list(grafts(view(related)))

    def test_none_is_made_twice(self) -> None:
        records = self.three()
        (edit,) = [edit for _, _, edit in grafts(view(records))]
        made = replace(record(3, noun(2, 4, []), move="edit", base=0), changes=edit.changes)
        again = [e for _, _, e in grafts(view([*records, made])) if e.base == 0]
        assert again and edit not in again


def test_a_kind_that_is_not_there_yet_is_another_move() -> None:
    """To add the first object of a kind succeeds far less often than to add one beside others."""
    chance = view([]).random()
    lacking = replace(record(0, noun(2, 0, []), move="draw"), nouns=(placed(0, [], 2),))
    kinds = dict(edits_of(lacking, chance))
    assert "first" in kinds and "add" not in kinds
    assert kinds["first"][0].purpose == "first"


def test_what_is_least_clear_is_redone_and_the_verifier_points_to_nothing() -> None:
    weak = replace(placed(4, [(0.1, 0.1)] * 4, 4), margins=(3.0, 3.0, 0.2, 2.0))
    sure = replace(placed(3, [(0.8, 0.8)] * 3, 3), margins=(4.0, 4.0, 4.0))

    def redone(verifier: tuple[int, int]) -> Counter[tuple[int, int]]:
        disputed = replace(
            record(0, noun(4, 4, []), move="draw"),
            nouns=(weak, sure),
            counts=(4, 3),
            verifier=verifier,
            verifier_error=1,
            error=0,
        )
        return Counter(
            (change.noun, change.candidate)
            for seed in range(60)
            for kind, (change, *_) in edits_of(disputed, view([], seed=seed).random())
            if kind == "redo"
        )

    assert redone((3, 3)) == redone((4, 4)) == redone((4, 2))
    found = redone((3, 3))
    assert found[0, 2] + found[0, 3] > 2 * (found[0, 0] + found[0, 1])


def test_edits_say_what_they_are_for() -> None:
    chance = view([]).random()
    far = record(0, noun(4, 8, []), move="draw")
    kinds = dict(edits_of(far, chance))
    assert set(kinds) == {"remove", "two", "three"}
    assert kinds["remove"][0].purpose == "remove"
    assert [len(changes) for changes in kinds.values()] == [1, 2, 3]
    lacking = dict(edits_of(record(0, noun(4, 3, []), move="draw"), chance))
    assert set(lacking) == {"add"}


def test_only_the_nearest_finite_records_are_bases() -> None:
    many = [drawn(i, 4 + i) for i in range(1, 12)]
    many[0] = replace(many[0], finite=False)
    assert [r.error for r in bases_of(view(many))] == [2, 3, 4, 5, 6, 7]
