"""The numbers of a prompt: text2num finds the spoken ones; groups, ranges and bounds are settled here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from countgen.prompts.tokens import Tokens
from countgen.prompts.words import (
    ALWAYS_BOUNDS,
    ARTICLES,
    BOUNDS_AT_START,
    COMPARATIVES,
    GROUPS,
    OPENERS,
    SCALES,
)

_INTEGER: Final = re.compile(r"\d+|\d{1,3}(?:,\d{3})+")
_OTHER_NUMBER: Final = re.compile(r"[$€£¥₹]?\d+(?:[.,:/-]\d+)*[%°$€£¥₹]?")
_RANGE: Final = re.compile(r"\d+-\d+")
_FRACTION: Final = re.compile(r"\d+[./]\d+")
_SAYABLE: Final = re.compile(r"[a-z]+(?:-[a-z]+)*")
_OR_SO: Final = frozenset({"more", "less", "fewer", "so", "greater", "thereabouts"})
_LONGEST: Final = 18  # digits; int() refuses thousands of them, and nobody needs them

NEGATIVE: Final = "cannot be negative"
"""How the note on a count below zero can be told from the other notes."""


@dataclass(frozen=True)
class Number:
    """A number and the tokens that it takes up; without a value it counts nothing."""

    start: int
    end: int
    value: int | None
    digits: bool = False
    separate: bool = False  # may stand beside another number: "the first three dogs"
    group: str = ""  # "pair" in "a pair of"
    problem: str = ""  # why there is no value, where a user should hear of it


class _SpokenToken:
    """What text2num reads. It panics, past ``except Exception``, on what is no UTF-8 text."""

    def __init__(self, word: str) -> None:
        # Plural numbers ("hundreds of birds") are vague, and text2num takes "o" for zero.
        sayable = _SAYABLE.fullmatch(word) and word not in ("o", "oh")
        self._text = word if sayable and not word.endswith("s") else ","

    def text(self) -> str:
        return self._text

    def nt_separated(self, previous: object) -> bool:
        return False

    def not_a_number_part(self) -> bool:
        return False


def _spoken_numbers(tokens: Tokens) -> Iterator[Number]:
    from text_to_num import find_numbers

    for found in find_numbers([_SpokenToken(t.word) for t in tokens], "en", threshold=0):
        whole = float(found.value).is_integer() and not re.match(r"0\d", found.text)
        start = found.start
        if tokens.word(start) in SCALES and tokens.word(start - 1) in ARTICLES:
            start -= 1  # "a hundred"
        if found.is_ordinal or not whole:
            problem = "" if found.is_ordinal else f"{found.text} is not a whole number."
            yield Number(start, found.end, None, separate=found.is_ordinal, problem=problem)
        else:
            yield Number(start, found.end, int(found.value))


def _written_numbers(tokens: Tokens) -> Iterator[Number]:
    for i, token in enumerate(tokens):
        word = token.word
        if _INTEGER.fullmatch(word) and not (len(word) > 1 and word.startswith("0")):
            value = int(word.replace(",", "")) if len(word) <= _LONGEST else 10**_LONGEST
            yield Number(i, i + 1, value, digits=True)
        elif _OTHER_NUMBER.fullmatch(word):
            problem = ""
            if _RANGE.fullmatch(word):
                problem = f"'{token.raw[:40]}' is a range."
            elif _FRACTION.fullmatch(word):
                problem = f"{token.raw[:40]} is not a whole number."
            date_or_time = not problem and word[0].isdigit()
            yield Number(i, i + 1, None, digits=True, separate=date_or_time, problem=problem)


def find_numbers(tokens: Tokens) -> dict[int, Number]:
    """Return all numbers by their first token, in order."""
    by_end = {n.end: n for n in (*_spoken_numbers(tokens), *_written_numbers(tokens))}
    for i, token in enumerate(tokens):
        word = token.word
        if word in GROUPS:
            number = _group(tokens, i, by_end)
        elif word == "no":
            number = Number(i, i + 1, 0)
        elif word in ("single", "lone") and tokens.word(i - 1) == "a":
            number = Number(i - 1, i + 1, 1)
        else:
            continue
        if number is not None:
            by_end.pop(i, None)  # now part of the group
            by_end[number.end] = number
    numbers = sorted(by_end.values(), key=lambda n: n.start)
    return {n.start: _bounded(tokens, n) for n in _join_neighbours(tokens, numbers)}


def _group(tokens: Tokens, i: int, by_end: Mapping[int, Number]) -> Number | None:
    """Read "a dozen", "half a dozen", "two pairs of" around the group word at ``i``."""
    word = tokens.word(i)
    size = GROUPS[word]
    end = i + 1
    if tokens.word(end) == "of":
        end += 1
    elif not word.startswith("dozen"):
        return None  # "a couple kissing"
    if (number := by_end.get(i)) is not None:
        value = None if number.value is None else number.value * size
        return Number(number.start, end, value, group=word)
    before = (tokens.word(i - 2), tokens.word(i - 1))
    if size == 12 and (before[1] == "half" or before == ("half", "a")):
        start = i - 2 if before[0] in ("half", "a") else i - 1
        return Number(start, end, 6, group=word)
    if word.endswith("s"):
        return None  # "dozens of eggs" is vague
    return Number(i - 1 if before[1] in ARTICLES else i, end, size, group=word)


def _join_neighbours(tokens: Tokens, numbers: Sequence[Number]) -> list[Number]:
    """Settle numbers that touch: "7 hundred", "3 to 5", "2 x 4", "four (4)", "nineteen eighty four"."""
    joined: list[Number] = []
    for number in numbers:
        if joined and not joined[-1].separate:
            before = joined[-1]
            gap = [tokens.word(i) for i in range(before.end, min(number.start, before.end + 2))]
            scale = number.end - number.start == 1 and tokens.word(number.start) in SCALES
            if scale and not gap and before.value is not None and number.value is not None:
                value = before.value * number.value
                joined[-1] = replace(before, end=number.end, value=value, digits=False)
                continue
            bracketed = gap in (["("], ["["]) and tokens.word(number.end) in (")", "]")
            if bracketed and before.value == number.value and before.value is not None:
                joined[-1] = replace(before, end=number.end + 1)
                continue
            apart = number.start - before.end
            ranged = gap in (["to"], ["or"], ["-"], ["~"], ["/"]) or (
                gap == ["and"] and tokens.word(before.start - 1) == "between"
            )
            if apart <= 1 and (not gap or ranged or gap in (["x"], ["by"])):
                said = tokens.said(before.start, number.end)
                problem = f"'{said}' is a range." if ranged else ""
                joined[-1] = replace(before, value=None, problem=problem)
                number = replace(number, value=None, problem=problem or number.problem)
        if [tokens.word(number.end + k) for k in range(3)] == ["and", "a", "half"]:
            number = replace(number, end=number.end + 3, value=None)
            said = tokens.said(number.start, number.end)
            number = replace(number, problem=f"'{said}' is not a whole number.")
        joined.append(number)
    return joined


def _bounded(tokens: Tokens, number: Number) -> Number:
    """Take the value from a number that is negative, bounded or rough, and say why."""
    if number.value is None or tokens.word(number.start) == "no":
        return number
    start, end = number.start, number.end
    before = tokens.word(start - 1)
    if before == "minus" or (
        before == "-" and tokens.touch(start - 1) and not tokens.touch(start - 2) and number.digits
    ):
        said = tokens.said(start - 1, end)
        return replace(
            number, value=None, problem=f"'{said}': a count {NEGATIVE}; it goes from 0 on."
        )
    first, last = start, end
    if before == "than" and tokens.word(start - 2) in COMPARATIVES:
        first = start - 2
        if tokens.word(first - 1) in ("no", "not"):
            first -= 1
    elif before in ALWAYS_BOUNDS:
        first = start - 2 if before in ("least", "most") else start - 1
    elif before in BOUNDS_AT_START and _opens(tokens, start - 2):
        first = start - 1
    elif before == "to" and tokens.word(start - 2) == "up" and _opens(tokens, start - 3):
        first = start - 2
    elif tokens.word(end) == "+" and tokens.touch(end - 1):
        last = end + 1
    elif tokens.word(end) == "or" and tokens.word(end + 1) in _OR_SO:
        last = end + 2
    else:
        return number
    said = tokens.said(first, last)
    problem = f"'{said}' is not an exact count."
    return replace(number, end=last, value=None, problem=problem)


def _opens(tokens: Tokens, i: int) -> bool:
    """Say whether a phrase begins behind token ``i``: "about forty people", but "a book about two cats"."""
    return not tokens.at(i).is_word or tokens.word(i) in OPENERS


def as_written(tokens: Tokens, number: Number) -> str:
    """Return a number for a note: in digits, and what no one can read at a glance as it was written."""
    if number.value is not None and number.value < 10**_LONGEST:
        return str(number.value)
    raw = tokens.at(number.start).raw
    return raw if len(raw) <= 60 else f"A number of {len(raw):,} digits"
