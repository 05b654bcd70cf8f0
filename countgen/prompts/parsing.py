"""From a prompt to what is to be counted: ``parse_prompt("seven red apples")``.

A prompt is cut into tokens; text2num finds the numbers; rules drop the numbers that count nothing
("room 7", "50 mm", "one of the three kings"); the noun phrase behind each other number is read up
to its head ("red apples", not "on a table"); and articles that stand in one list with a counted
noun become ones. Where this guesses wrong, explicit targets always win.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from countgen.prompts.mentions import TOO_MANY, Mention, MentionReader
from countgen.prompts.nouns import singularise
from countgen.prompts.phrases import only_adjectives
from countgen.prompts.targets import ExplicitTargets, explicit_targets
from countgen.prompts.tokens import Tokens, tokenise
from countgen.prompts.words import (
    AND,
    AUXILIARIES,
    DEFINITE,
    GENERAL,
    MEMBERS,
    PEOPLE,
    SENTENCE_ENDS,
)
from critics.targets import MAX_COUNT, CountTarget

_MOST_MEMBERS = 12


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
    mentions = _elliptic_nouns(tokens, list(MentionReader(tokens, notes).mentions()))
    mentions = _without_members(tokens, _pairs_counted(tokens, mentions))
    counted = [m for m in _listed_articles(tokens, mentions) if m.words]
    return CountPrompt(text, _merge(tokens, counted, notes), tuple(dict.fromkeys(notes)))


def _gap(tokens: Tokens, left: Mention, right: Mention) -> str:
    """Return what joins neighbours in a list: "and", a comma, or nothing when they are none."""
    between = [tokens.word(i) for i in range(left.end, min(right.start, left.end + 3))]
    if right.start - left.end > 2 or not between:
        return ""
    if between[-1] in AND and between[:-1] in ([], [","]):
        return "and"
    return "," if between == [","] else ""


def _elliptic_nouns(tokens: Tokens, mentions: list[Mention]) -> list[Mention]:
    """Give "two red and three blue balls" its first noun; drop adjectives that find none."""
    for k in range(len(mentions) - 1, -1, -1):
        mention = mentions[k]
        if not only_adjectives(mention.words) or mention.words[-1:] == ["orange"]:
            continue
        adjectives, mention.words = mention.words, []
        if k + 1 < len(mentions) and _gap(tokens, mention, mentions[k + 1]):
            shared = list(mentions[k + 1].words)
            while shared and only_adjectives(shared[:1]):
                shared.pop(0)
            mention.words = [*adjectives, *shared] if shared else []
    return mentions


def _pairs_counted(tokens: Tokens, mentions: list[Mention]) -> list[Mention]:
    """Count "a pair of scissors" as a number, not as an article, beside another number in its sentence."""
    sentence = _sentences(tokens)
    numbered = {sentence[m.start] for m in mentions if not m.article}
    for mention in mentions:
        pair = mention.article and tokens.word(mention.start + 1).startswith("pair")
        if pair and sentence[mention.start] in numbered:
            mention.article = False
    return mentions


def _sentences(tokens: Tokens) -> list[int]:
    return [0, *accumulate(token.word in SENTENCE_ENDS for token in tokens)]


def _without_members(tokens: Tokens, mentions: list[Mention]) -> list[Mention]:
    """Leave out lists of the members of what was just counted: "two people, a man and a woman"."""
    kept: list[Mention] = []
    k = 0
    while k < len(mentions):
        whole = mentions[k]
        kept.append(whole)
        k += 1
        joint = tokens.word(whole.end)
        if whole.article or whole.count < 2 or not whole.words or joint not in (",", ":", "("):
            continue
        members = _list_behind(tokens, mentions, k, whole)
        heads = {singularise(m.words[-1]) for m in members if m.words}
        people = singularise(whole.words[-1]) in GENERAL and heads <= PEOPLE
        telling = people or joint != "," or heads <= MEMBERS
        if telling and len(members) > 1 and sum(m.count for m in members) == whole.count:
            k += len(members)
    return kept


def _list_behind(
    tokens: Tokens, mentions: Sequence[Mention], k: int, whole: Mention
) -> list[Mention]:
    """Return the mentions from ``k`` on that make one list right behind a mention, up to its count."""
    members: list[Mention] = []
    total = 0
    for mention in mentions[k : k + _MOST_MEMBERS]:
        near = mention.start <= whole.end + 1 if not members else _gap(tokens, members[-1], mention)
        if not near or total + mention.count > whole.count:
            break
        members.append(mention)
        total += mention.count
    return members


def _listed_articles(tokens: Tokens, mentions: Sequence[Mention]) -> Iterator[Mention]:
    """Yield the numbers, and the articles of every list that holds a number and an "and"."""
    chain: list[Mention] = []
    last_and = 0  # a list goes as far as its last "and": a comma alone joins no article to it
    for mention in mentions:
        joint = _gap(tokens, chain[-1], mention) if chain else ""
        if not joint:
            yield from _counted(chain, last_and)
            chain, last_and = [], 0
        chain.append(mention)
        if joint == "and":
            last_and = len(chain) - 1
    yield from _counted(chain, last_and)


def _counted(chain: Sequence[Mention], last_and: int) -> Iterator[Mention]:
    listed = last_and > 0 and not all(m.article for m in chain[: last_and + 1])
    for k, mention in enumerate(chain):
        if not mention.article or (listed and k <= last_and):
            yield mention


def _merge(
    tokens: Tokens, mentions: Sequence[Mention], notes: list[str]
) -> tuple[CountTarget, ...]:
    """Make one target of each noun; see ``parse_prompt`` for what repeated nouns mean."""
    sentence = _sentences(tokens)
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
        elif mention.count != before.count or ands[start] != ands[before.end]:
            totals[noun] += mention.count
            last[noun] = mention
    for noun, total in totals.items():
        if total > MAX_COUNT:
            notes.append(f"{total} {TOO_MANY} {noun!r}: a count goes up to {MAX_COUNT}.")
    return tuple(CountTarget(noun, total) for noun, total in totals.items() if total <= MAX_COUNT)


def _is_part(tokens: Tokens, whole: Mention, part: Mention) -> bool:
    """Say whether a noun again tells of one of those counted: "three plates, but one plate is cracked"."""
    if part.count >= whole.count:
        return False
    before = tokens.word(part.start - 1)
    return before in ("but", "with") or (before == "," and tokens.word(part.end) in AUXILIARIES)
