"""What a counter is asked for: a noun and how many of it."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Final

MAX_COUNT: Final = 1000
"""The largest count that may be asked for."""


@dataclass(frozen=True, slots=True)
class CountTarget:
    """Exactly ``count`` objects of the kind ``noun``.

    The noun may be a referring expression ("red apple", "dog on the left"); a count of 0 keeps the
    noun out of the picture. White space around the noun is dropped.

    >>> CountTarget("red apple", 7)
    CountTarget(noun='red apple', count=7)
    >>> CountTarget("cat", 2.5)
    Traceback (most recent call last):
        ...
    ValueError: The count of 'cat' must be a whole number, not 2.5.
    """

    noun: str
    count: int

    def __post_init__(self) -> None:
        if not isinstance(self.noun, str) or not self.noun.strip():
            raise ValueError(f"The noun of a target must be a non-empty text, not {self.noun!r}.")
        object.__setattr__(self, "noun", self.noun.strip())
        if isinstance(self.count, bool) or not isinstance(self.count, Integral):
            raise ValueError(
                f"The count of {self.noun!r} must be a whole number, not {self.count!r}."
            )
        object.__setattr__(self, "count", int(self.count))  # numpy's integers are whole numbers too
        if not 0 <= self.count <= MAX_COUNT:
            raise ValueError(
                f"The count of {self.noun!r} must lie between 0 and {MAX_COUNT}, not {self.count}."
            )
