"""Targets that a user writes out: ``targets=`` in Python, ``--target "red apple=7"`` on the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from countgen.prompts.nouns import singularise
from critics.targets import CountTarget

ExplicitTargets = Sequence[CountTarget | tuple[str, int]] | Mapping[str, int]

_WHOLE = re.compile(r"\d{1,18}", re.ASCII)


def explicit_targets(targets: ExplicitTargets) -> tuple[CountTarget, ...]:
    """Return the targets that a user gave.

    Raises TypeError for what is no mapping of nouns to counts and no sequence of pairs, ValueError for a noun
    or count that is none, or a noun that is named twice.
    """
    if isinstance(targets, str) or not isinstance(targets, Mapping | Sequence):
        raise TypeError(
            "Targets must be a mapping of noun to count or a sequence of (noun, count), "
            f"not {type(targets).__name__}."
        )
    pairs = targets.items() if isinstance(targets, Mapping) else targets
    result: list[CountTarget] = []
    for pair in pairs:
        if not isinstance(pair, CountTarget):
            if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
                raise TypeError(f"A target must be a CountTarget or (noun, count), not {pair!r}.")
            pair = CountTarget(*pair)
        if any(pair.noun == other.noun for other in result):
            raise ValueError(f"The targets name {pair.noun!r} twice.")
        result.append(pair)
    return tuple(result)


def parse_target(text: str) -> CountTarget:
    """Read a target as it is written on the command line; a plural noun becomes its singular.

    Raises ValueError, saying how to write one, for anything else.

    >>> parse_target("red apples=7")
    CountTarget(noun='red apple', count=7)
    """
    noun, sign, count = text.rpartition("=")
    if not sign or not noun.strip() or not _WHOLE.fullmatch(count.strip()):
        raise ValueError(f'a target is written NOUN=NUMBER, as in "red apple=7", not {text!r}')
    return CountTarget(singularise(noun), int(count))
