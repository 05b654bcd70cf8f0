"""Captions that count, and the same with other numbers."""

from __future__ import annotations

import pytest

from countgen.learning.count_captions import count_caption


@pytest.mark.parametrize(
    ("text", "noun", "number", "said"),
    [
        ("Five dogs in the snow", "dog", 5, "Three dogs in the snow"),
        ("a photo of 7 red apples", "red apple", 7, "a photo of 3 red apples"),
        ("TWO fish", "fish", 2, "THREE fish"),
        ("a pair of cats on a sofa", "cat", 2, "three cats on a sofa"),
        ("a dozen donuts", "donut", 12, "three donuts"),
        ("exactly one cat", "cat", 1, "exactly three cats"),
        ("no dogs in the sky", "dog", 0, "three dogs in the sky"),
        ("Three large, fluffy dogs", "large fluffy dog", 3, "Three large, fluffy dogs"),
        ("ten children at a table", "child", 10, "three children at a table"),
    ],
)
def test_only_the_number_changes(text: str, noun: str, number: int, said: str) -> None:
    found = count_caption(text)
    assert found is not None
    assert (found.noun, found.number, found.say(3)) == (noun, number, said)
    assert found.say(number) == text


def test_the_noun_goes_into_the_singular_and_zero_is_no() -> None:
    found = count_caption("Ten children at a table")
    assert found is not None
    assert found.say(1) == "One child at a table" and found.say(0) == "No children at a table"
    digits = count_caption("12 cups")
    assert digits is not None and digits.say(0) == "0 cups" and digits.say(1) == "1 cup"


def test_a_noun_that_stands_elsewhere_cannot_be_put_into_the_singular() -> None:
    found = count_caption("Three large, fluffy dogs")
    assert found is not None and not found.inflects
    with pytest.raises(ValueError, match="does not follow"):
        found.say(1)


@pytest.mark.parametrize(
    "text",
    ["", "often a kitten", "a cat", "two cats and three dogs", "two cats in room 2", "3 to 5 cats"],
)
def test_captions_without_one_clear_count_are_none(text: str) -> None:
    assert count_caption(text) is None
