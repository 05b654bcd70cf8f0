"""Targets that a user writes out win over whatever the prompt says, and are checked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from countgen.prompts import MAX_COUNT, CountPrompt, CountTarget, parse_prompt, parse_target


@given(
    st.text(max_size=100),
    st.dictionaries(
        st.sampled_from(["cat", "red apple", "dog on the left"]), st.integers(0, MAX_COUNT)
    ),
)
@settings(max_examples=50, deadline=None)
def test_explicit_targets_always_win(text: str, targets: dict[str, int]) -> None:
    expected = CountPrompt(text, tuple(CountTarget(n, c) for n, c in targets.items()))
    assert parse_prompt(text, targets) == expected
    assert parse_prompt(text, list(targets.items())) == expected
    assert parse_prompt(text, expected.targets) == expected


def test_explicit_targets_win_over_a_counted_prompt() -> None:
    assert parse_prompt("seven cats", {"dog on the left": 2}).targets == (
        CountTarget("dog on the left", 2),
    )
    assert parse_prompt("seven cats", []).targets == ()


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        ("cat", TypeError, "mapping of noun to count"),
        (7, TypeError, "mapping of noun to count"),
        (["cat"], TypeError, r"CountTarget or \(noun, count\)"),
        ([("cat", 1, 2)], TypeError, r"CountTarget or \(noun, count\)"),
        ([("cat", 1), ("cat", 2)], ValueError, "'cat' twice"),
        ({"cat": -1}, ValueError, "between 0 and 1000"),
        ({"cat": MAX_COUNT + 1}, ValueError, "between 0 and 1000"),
        ({"cat": 1.0}, ValueError, "whole number"),
        ({"cat": True}, ValueError, "whole number"),
        ({" ": 1}, ValueError, "non-empty"),
        ([(None, 1)], ValueError, "non-empty"),
    ],
)
def test_wrong_explicit_targets_are_refused(
    targets: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        parse_prompt("seven cats", targets)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_numpy_integers_are_counts(kind: type[np.integer]) -> None:
    target = CountTarget("cat", kind(7))  # type: ignore[arg-type]
    assert target == CountTarget("cat", 7)
    assert type(target.count) is int  # so that reports can be written as JSON


@pytest.mark.parametrize("count", [np.float32(7), np.bool_(True), np.array([7]), 7.0])
def test_other_numbers_are_no_counts(count: object) -> None:
    with pytest.raises(ValueError, match="whole number"):
        CountTarget("cat", count)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("written", "target"),
    [
        ("red apple=7", CountTarget("red apple", 7)),
        ("red apples = 7 ", CountTarget("red apple", 7)),
        ("dog on the left=2", CountTarget("dog on the left", 2)),
        ("cat=0", CountTarget("cat", 0)),
        ("tile a=b=3", CountTarget("tile a=b", 3)),
    ],
)
def test_targets_of_the_command_line(written: str, target: CountTarget) -> None:
    assert parse_target(written) == target


@pytest.mark.parametrize(
    "written", ["", "cat", "cat=", "=7", "cat=seven", "cat=-1", "cat=1.5", "7=", " =3"]
)
def test_a_wrong_target_says_how_to_write_one(written: str) -> None:
    with pytest.raises(ValueError, match='"red apple=7"'):
        parse_target(written)


def test_a_target_above_the_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 1000"):
        parse_target("cat=1001")
