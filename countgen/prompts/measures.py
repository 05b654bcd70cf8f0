"""Numbers that have a noun and count no objects: measures, times, places, and how someone stands."""

from __future__ import annotations

import re
from typing import Final

from countgen.prompts.lexicon import only_describes
from countgen.prompts.nouns import singularise
from countgen.prompts.numbers import Number
from countgen.prompts.phrases import Phrase
from countgen.prompts.tokens import Tokens
from countgen.prompts.words import (
    ABBREVIATED_UNITS,
    ABSTRACT,
    BODY_PARTS,
    BROKEN_INTO,
    DEPICTIONS,
    EXTENTS,
    MODIFIERS,
    PLACES,
    POSTURES,
    PREPOSITIONS,
    STRONG_UNITS,
    UNIT_COMPOUNDS,
    WEAK_UNITS,
    words_of,
)

YEAR: Final = re.compile(r"1\d{3}|20\d\d")
_FORMATIONS: Final = words_of("row line column direction rank")


def is_no_object(tokens: Tokens, phrase: Phrase, count: int | None = 1) -> bool:
    """Say whether a noun names nothing that a picture holds: "three styles", "a photo of two cats"."""
    head = singularise(phrase.head)
    if head == "shape":
        first = phrase.end - len(phrase.words)
        return "different" in (tokens.word(first - 1), tokens.word(first))
    if head in ABSTRACT:
        return True
    # "a photo of two cats" shows cats; "three photos of cats" shows photos
    return head in DEPICTIONS and tokens.word(phrase.end) == "of" and count in (0, 1)


def is_no_count(tokens: Tokens, phrase: Phrase, number: Number) -> bool:
    """Say whether a number tells size, time, place or manner, and not how many there are."""
    return (
        tokens.word(phrase.end) == "away"  # "one track away"
        or _is_measure(tokens, phrase, number)
        or _is_manner(tokens, phrase, number)
        or _is_year(tokens, phrase, number)
    )


def _is_measure(tokens: Tokens, phrase: Phrase, number: Number) -> bool:
    words, first, last = phrase.words, phrase.words[0], phrase.words[-1]
    if first in ABBREVIATED_UNITS:
        return True
    if number.group:
        return False
    if first in STRONG_UNITS:
        return _is_strong_measure(tokens, phrase, number)
    plural = phrase.is_plural
    if last in STRONG_UNITS and plural and singularise(last) not in ("foot", "pound"):
        # "three square meters", "five US dollars", but "three parking meters"
        return all(only_describes(word) or word in ("us", "u.s.") for word in words[:-1])
    if last in WEAK_UNITS:
        return True
    if first in WEAK_UNITS:
        return not plural and number.value != 1
    if first not in MODIFIERS or len(words) == 1 or number.value == 1:
        return False
    sits = len(words) > 2 and first.endswith("ed") and singularise(last) in POSTURES
    return not plural or sits  # "a big three sided clock stands ..."


def _is_strong_measure(tokens: Tokens, phrase: Phrase, number: Number) -> bool:
    words, first = phrase.words, phrase.words[0]
    if len(words) == 1:  # feet are parts of bodies too
        return first not in ("foot", "feet") or tokens.word(phrase.end) in EXTENTS
    if first in ("foot", "feet") and words[1] in EXTENTS:
        return True
    big = number.value is not None and number.value >= 1000
    return big or not (phrase.is_plural and words[1] in UNIT_COMPOUNDS.get(first, ()))


def _is_manner(tokens: Tokens, phrase: Phrase, number: Number) -> bool:
    """Say whether a number tells how or where: "in a single row", "on one leg", "into two pieces"."""
    head = singularise(phrase.head)
    before = tokens.word(number.start - 1)
    if number.value in (0, 1) and head in BODY_PARTS and len(phrase.words) == 1:
        return True
    if number.value == 1 and before in PREPOSITIONS:
        after = (tokens.word(phrase.end), tokens.word(phrase.end + 1))
        if head in PLACES or after in (("to", "another"), ("after", "another")):
            return True  # "in one corner", "from one name to another"
    if before == "into" and head in BROKEN_INTO:
        return True
    return before in ("in", "into") and head in _FORMATIONS


def _is_year(tokens: Tokens, phrase: Phrase, number: Number) -> bool:
    """Say whether a number is a year: "a 2024 calendar", "the 1984 Olympics"."""
    if not number.digits or not YEAR.fullmatch(tokens.word(number.start)):
        return False
    return not phrase.is_plural or tokens.word(number.start - 1) in ("the", "in", "from", "since")
