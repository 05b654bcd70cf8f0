"""From a prompt to what is to be counted: ``parse_prompt("seven red apples")``.

A prompt is cut into tokens; text2num finds the numbers; rules drop the numbers that count nothing
("room 7", "50 mm", "one of the three kings"); the noun phrase behind each other number is read up
to its head ("red apples", not "on a table"); and articles that stand in one list with a counted
noun become ones. Where this guesses wrong, explicit targets always win.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from countgen.prompts.lists import (
    elliptic_nouns,
    listed_articles,
    pairs_counted,
    sentences,
    without_members,
)
from countgen.prompts.mentions import TOO_MANY, Mention, MentionReader
from countgen.prompts.targets import ExplicitTargets, explicit_targets
from countgen.prompts.tokens import Tokens, tokenise
from countgen.prompts.words import AND, AUXILIARIES, DEFINITE, words_of
from critics.targets import MAX_COUNT, CountTarget

_MORE = words_of("more other additional another")


@dataclass(frozen=True)
class CountPrompt:
    """A prompt with its targets, and notes (one sentence each) on numbers seen but not used."""

    text: str
    targets: tuple[CountTarget, ...]
    notes: tuple[str, ...] = ()


def parse_prompt(text: str, targets: ExplicitTargets | None = None) -> CountPrompt:
    """Find what a prompt asks to be counted, or take the ``targets`` given (even none) instead.

    Any text parses; one without a count has no targets. What a number means is decided so:

    - Adjectives belong to the noun; a prepositional phrase does not ("on a table"), except after
      portions ("slices of pizza"). Nouns come in lower case and in the singular.
    - A bare article counts as one only in a list with a counted noun, closed by "and"; one behind
      a preposition of place ("on a mat and ...") does not.
    - Mentions of one noun add up within a sentence. A mention that says nothing new (the same
      number again without an "and", "the two cats", a later sentence) does not; if it disagrees
      with the first, the first stands and a note says so. Nor do parts of what is counted already
      ("two robots, one holding a lamp", "three plates, but one plate is cracked").
    - Ranges, bounds, fractions, numbers "each", numbers without a noun and counts above
      ``MAX_COUNT`` are left out with a note.

    Raises TypeError for a text that is no string, ValueError for explicit targets that are wrong.

    >>> parse_prompt("seven red apples and two cats").targets
    (CountTarget(noun='red apple', count=7), CountTarget(noun='cat', count=2))
    >>> parse_prompt("a cat on a table").targets
    ()
    >>> parse_prompt("an elephant and four bears").targets
    (CountTarget(noun='elephant', count=1), CountTarget(noun='bear', count=4))
    >>> parse_prompt("10,000 balloons").notes
    ("10000 is too many for 'balloon': a count goes up to 1000.",)
    >>> parse_prompt("my birthday", {"candle": 9}).targets
    (CountTarget(noun='candle', count=9),)
    """
    if not isinstance(text, str):
        raise TypeError(f"A prompt must be a string, not {type(text).__name__}.")
    if targets is not None:
        return CountPrompt(text, explicit_targets(targets))
    notes: list[str] = []
    tokens = tokenise(text, notes)
    mentions = elliptic_nouns(tokens, list(MentionReader(tokens, notes).mentions()))
    mentions = without_members(tokens, pairs_counted(tokens, mentions))
    counted = [m for m in listed_articles(tokens, mentions) if m.words]
    return CountPrompt(text, _merge(tokens, counted, notes), tuple(dict.fromkeys(notes)))


def _merge(
    tokens: Tokens, mentions: Sequence[Mention], notes: list[str]
) -> tuple[CountTarget, ...]:
    """Make one target of each noun; see ``parse_prompt`` for what repeated nouns mean."""
    sentence = sentences(tokens)
    ands = [0, *accumulate(token.word in AND for token in tokens)]
    last: dict[str, Mention] = {}
    totals: dict[str, int] = {}
    for mention in mentions:
        noun, start = mention.noun, mention.start
        before = last.setdefault(noun, mention)
        if before is mention:
            totals[noun] = mention.count
        elif sentence[start] != sentence[before.end] or tokens.word(start) in DEFINITE:
            if mention.count != totals[noun]:
                notes.append(
                    f"{noun!r} is counted more than once; {totals[noun]} stands, "
                    f"{mention.count} was left out."
                )
        elif _is_part(tokens, before, mention):
            continue
        elif (
            _adds(tokens, mention)
            or mention.count != before.count
            or ands[start] != ands[before.end]
        ):
            totals[noun] += mention.count
            last[noun] = mention
    for noun, total in totals.items():
        if total > MAX_COUNT:
            notes.append(f"{total} {TOO_MANY} {noun!r}: a count goes up to {MAX_COUNT}.")
    return tuple(CountTarget(noun, total) for noun, total in totals.items() if total <= MAX_COUNT)


def _adds(tokens: Tokens, mention: Mention) -> bool:
    """Say whether a mention says itself that it adds: "with five more horses"."""
    near = (tokens.word(mention.start + 1), tokens.word(mention.start + 2))
    return not _MORE.isdisjoint(near)


def _is_part(tokens: Tokens, whole: Mention, part: Mention) -> bool:
    """Say whether a noun again tells of one of those counted: "three plates, but one plate is cracked"."""
    if part.count >= whole.count:
        return False
    before = tokens.word(part.start - 1)
    return before in ("but", "with") or (before == "," and tokens.word(part.end) in AUXILIARIES)
