"""Lists: adjectives that share a noun, articles that become ones, and members of what is counted already."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

from countgen.prompts.mentions import Mention
from countgen.prompts.nouns import singularise
from countgen.prompts.phrases import only_adjectives
from countgen.prompts.tokens import Tokens
from countgen.prompts.words import AND, GENERAL, MEMBERS, PEOPLE, SENTENCE_ENDS

_MOST_MEMBERS = 12


def _gap(tokens: Tokens, left: Mention, right: Mention) -> str:
    """Return what joins neighbours in a list: "and", a comma, or nothing when they are none."""
    between = [tokens.word(i) for i in range(left.end, min(right.start, left.end + 3))]
    if right.start - left.end > 2 or not between:
        return ""
    if between[-1] in AND and between[:-1] in ([], [","]):
        return "and"
    return "," if between == [","] else ""


def elliptic_nouns(tokens: Tokens, mentions: list[Mention]) -> list[Mention]:
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


def pairs_counted(tokens: Tokens, mentions: list[Mention]) -> list[Mention]:
    """Count "a pair of scissors" as a number, not as an article, beside another number in its sentence."""
    sentence = sentences(tokens)
    numbered = {sentence[m.start] for m in mentions if not m.article}
    for mention in mentions:
        pair = mention.article and tokens.word(mention.start + 1).startswith("pair")
        if pair and sentence[mention.start] in numbered:
            mention.article = False
    return mentions


def sentences(tokens: Tokens) -> list[int]:
    return [0, *accumulate(token.word in SENTENCE_ENDS for token in tokens)]


def without_members(tokens: Tokens, mentions: list[Mention]) -> list[Mention]:
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
    return _without_late_members(tokens, kept)


def _without_late_members(tokens: Tokens, mentions: list[Mention]) -> list[Mention]:
    """Leave out such lists further on: "two cakes sit on a counter, one chocolate and one vanilla"."""
    sentence = sentences(tokens)
    counts: set[tuple[int, int]] = set()  # sentence and number of what was counted
    kept: list[Mention] = []
    k = 0
    while k < len(mentions):
        first = mentions[k]
        members = [first]
        for mention in mentions[k + 1 : k + _MOST_MEMBERS]:
            if not _gap(tokens, members[-1], mention):
                break
            members.append(mention)
        heads = {singularise(m.words[-1]) for m in members if m.words}
        whole = (sentence[first.start], sum(m.count for m in members))
        if tokens.word(first.start - 1) == "," and heads and heads <= MEMBERS and whole in counts:
            k += len(members)
            continue
        counts.add((sentence[first.start], first.count))
        kept.append(first)
        k += 1
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


def listed_articles(tokens: Tokens, mentions: Sequence[Mention]) -> Iterator[Mention]:
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
