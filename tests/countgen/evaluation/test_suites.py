"""Suites that ship, lists by name, and limits that keep the shares of counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from benchmarks import suites as recipe
from countgen.errors import UsageError
from countgen.evaluation.formats import ListedPrompt
from countgen.evaluation.suites import (
    OWN,
    SUMMARIES,
    PromptList,
    find_prompts,
    hard_ids,
    shares,
    stratum,
)
from countgen.prompts import CountTarget, parse_prompt


@pytest.mark.parametrize("name", SUMMARIES)
def test_a_suite_asks_in_its_texts_for_what_it_counts(name: str) -> None:
    prompts = list(find_prompts(name))
    assert len({prompt.id for prompt in prompts}) == len(prompts) > 40
    for prompt in prompts:
        assert parse_prompt(prompt.prompt).targets == prompt.targets, prompt


@pytest.mark.parametrize("name", OWN)
def test_a_suite_of_files_is_what_its_recipe_makes(name: str) -> None:
    from countgen.evaluation.suites import FOLDER

    text = (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8")
    assert text == "".join(f"{line}\n" for line in recipe.lines(name))


def test_the_suites_hold_what_they_say() -> None:
    low, high = list(find_prompts("low-density")), list(find_prompts("high-density"))
    several = list(find_prompts("several-kinds"))
    assert Counter(p.targets[0].count for p in low) == dict.fromkeys(range(1, 11), 12)
    assert Counter(p.targets[0].count for p in high) == dict.fromkeys(range(11, 31), 5)
    assert Counter(len(p.targets) for p in several) == {2: 60, 3: 60}
    digits = [any(c.isdigit() for c in p.prompt) for p in low]
    known = [p.targets[0].noun in {n for every in recipe.COCO.values() for n in every} for p in low]
    for both in ((True, True), (True, False), (False, True), (False, False)):
        assert list(zip(digits, known, strict=True)).count(both) == 30
    assert hard_ids("pocket-hard") and not hard_ids("low-density")


def listed(counts: Counter[int]) -> PromptList:
    def read() -> Iterator[ListedPrompt]:
        number = 0
        for count, times in counts.items():
            for _ in range(times):
                yield ListedPrompt(f"p{number}", "x", (CountTarget("cat", count),))
                number += 1

    return PromptList("made", read)


def test_a_limit_keeps_the_shares_of_counts() -> None:
    every = listed(Counter({1: 500, 2: 300, 3: 199, 4: 1}))
    survey = every.survey()
    some = list(every.limited(100, survey))
    assert Counter(p.targets[0].count for p in some) == {1: 50, 2: 30, 3: 20}
    assert [p.id for p in some] == [p.id for p in every if p in some]  # in the list's order
    more = list(every.limited(200, survey))
    assert {p.id for p in some} <= {p.id for p in more} and len(more) == 200
    assert list(every.limited(5000, survey)) == list(every)


def test_shares_add_up() -> None:
    strata = Counter({(1, n): n * n for n in range(1, 20)})
    for limit in range(1, 200, 7):
        room = shares(limit, strata)
        assert sum(room.values()) == limit
        assert all(abs(room[k] - limit * n / strata.total()) < 1 for k, n in strata.items())


def test_an_unknown_list_is_told_with_the_nearest_suite() -> None:
    with pytest.raises(UsageError, match="low-density"):
        find_prompts("low-densty")


def test_prompts_without_a_count_are_left_out_and_told() -> None:
    prompts = (
        ListedPrompt("a", "cats", (), place="f.txt, line 1", lack="it names no count"),
        ListedPrompt("b", "two cats", (CountTarget("cat", 2),), place="f.txt, line 2"),
    )
    some = PromptList("f.txt", lambda: iter(prompts))
    survey = some.survey()
    assert (survey.prompts, survey.lacking) == (1, 1) and "line 1" in survey.first_lacking
    assert [p.id for p in some] == ["b"] and stratum(prompts[1]) == (1, 2)
    with pytest.raises(UsageError, match="no prompt"):
        PromptList("f.txt", lambda: iter(prompts[:1])).survey()
