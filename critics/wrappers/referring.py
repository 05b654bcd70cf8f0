"""Referring expressions: "red apple" counts what is rather a red apple than a green one.

A detector's score for "red apple" says more of apples than of red, and a threshold alone counts the green
ones too. CountGD++ (arXiv 2512.23351) gives a phrase negatives: a candidate counts if its score is above
the threshold and above its scores for the negatives. That rule is published, for its own network; applying
it to any detector, choosing negatives by the head noun, and the soft count are ours: instead of the product
of two sigmoids it is the sigmoid of the smaller margin, z+ - max(threshold, z-), which is positive exactly
where the rule counts, so that duplicates, pre-selection and confidence mean what they mean everywhere.

Only what the network's own scores tell apart is told apart: a detector that does not know left from right
does not learn it here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from critics.base import Critic, Query
from critics.detectors.base import DetectionCritic, Detector
from critics.parts.readout import Detections

# What follows the head of a noun phrase: "dog on the left", "cup that is full".
_AFTER_HEAD = re.compile(
    "above|across|against|along|among|around|at|atop|before|behind|below|beneath|beside|between|beyond|by|"
    "facing|for|from|in|inside|into|near|next|of|off|on|onto|opposite|out|outside|over|past|that|to|"
    "toward|towards|under|underneath|upon|wearing|which|who|with|within|without"
)


def referring(
    critic: Critic, negatives: Mapping[str, Sequence[str]] | None = None
) -> DetectionCritic:
    """The same critic, counting every noun against its negatives; weights are shared.

    Args:
        critic: any detection critic; of a closed vocabulary too, if that has the negatives.
        negatives: noun -> phrases that its objects must not rather be; an empty list for none. For a noun
            that is not in it: the other nouns of the same prompt, where ``are_rivals`` says so.

    Raises:
        TypeError: a critic that has no candidates.
        ValueError: a noun among its own negatives.
    """
    if not isinstance(critic, DetectionCritic):
        raise TypeError(
            f"{critic.card.name} has no candidates with a score for every phrase; referring expressions "
            "need a detection critic (critics.detectors.base.DetectionCritic)"
        )
    table = {_key(noun): tuple(phrases) for noun, phrases in (negatives or {}).items()}
    for noun, phrases in table.items():
        if noun in map(_key, phrases):
            raise ValueError(
                f"{noun!r} is among its own negatives, so that nothing could ever count"
            )
    card = replace(
        critic.card,
        name=f"{critic.card.name}-referring",
        summary=f"{critic.card.summary}; phrases against their negatives",
        citation=f"{critic.card.citation}; negatives after CountGD++, arXiv 2512.23351",
        published=False,
    )
    return replace(critic, detector=ReferringDetector(critic.detector, table), card=card)


@dataclass
class ReferringDetector:
    """A detector that is asked for the negatives too, and reports them as the nouns' rivals.

    Its queries are the inner detector's for all phrases, under the nouns that were asked for.

    Attributes:
        negatives: by noun in lower case with single spaces; see ``referring``.
    """

    detector: Detector
    negatives: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def network(self) -> nn.Module:
        return self.detector.network

    def prepare(self, nouns: Sequence[str]) -> Query:
        phrases, _ = self.ask(nouns)
        return replace(self.detector.prepare(phrases), nouns=tuple(nouns))

    def detect(
        self, images: Float[Tensor, "b 3 height width"], queries: Sequence[Query]
    ) -> Detections:
        asked = [self.ask(query.nouns) for query in queries]
        everything = [
            replace(query, nouns=phrases)
            for query, (phrases, _) in zip(queries, asked, strict=True)
        ]
        found = self.detector.detect(images, everything)
        width = max((len(query.nouns) for query in queries), default=0)
        if width == 0:
            return found
        against = torch.zeros(len(queries), width, found.logits.shape[1], dtype=torch.bool)
        for row, (_, rivals) in zip(against, asked, strict=True):
            row[: rivals.shape[0], : rivals.shape[1]] = rivals
        against = against.to(found.logits.device)[..., None]
        rivals = torch.where(against, found.logits[:, None], -torch.inf).amax(2)
        if found.rivals is not None:
            rivals = torch.maximum(rivals, found.rivals[:, :width])
        return Detections(found.logits[:, :width], found.boxes, rivals)

    def ask(self, nouns: Sequence[str]) -> tuple[tuple[str, ...], Bool[Tensor, "k n"]]:
        """The nouns and then their further negatives; and (k, n) which phrases are a noun's negatives."""
        rivals = [
            self.negatives.get(_key(noun), [other for other in nouns if are_rivals(noun, other)])
            for noun in nouns
        ]
        phrases, keys = list(nouns), [_key(noun) for noun in nouns]
        for phrase in (phrase for row in rivals for phrase in row):
            if _key(phrase) not in keys:
                phrases.append(phrase)
                keys.append(_key(phrase))
        against = torch.zeros(len(nouns), len(phrases), dtype=torch.bool)
        for row, own in zip(against, rivals, strict=True):
            row[[keys.index(_key(phrase)) for phrase in own]] = True
        return tuple(phrases), against


def are_rivals(phrase: str, other: str) -> bool:
    """Whether two phrases are taken to exclude each other: one head noun, and neither a case of the other.

    The head is the last word before a preposition; a plural in -s or -es is the same. A phrase that has all
    words of another is a case of it: a red apple is an apple. Of phrases that an object can both be, "red
    apple" and "apple on the left", say so with explicit negatives.

    >>> are_rivals("red apple", "green apples"), are_rivals("dog on the left", "dog on the right")
    (True, True)
    >>> are_rivals("red apple", "apple"), are_rivals("red apple", "red car")
    (False, False)
    """
    head, mine = _split(phrase)
    other_head, theirs = _split(other)
    short, long = sorted((head, other_head), key=len)
    if not short or long not in (short, short + "s", short + "es"):
        return False
    return not (mine <= theirs or theirs <= mine)


def _split(phrase: str) -> tuple[str, frozenset[str]]:
    """The head of a noun phrase, and its other words."""
    words = _key(phrase).split()
    end = next((i for i, word in enumerate(words) if i and _AFTER_HEAD.fullmatch(word)), len(words))
    return "".join(words[end - 1 : end]), frozenset(words[: end - 1] + words[end:])


def _key(phrase: str) -> str:
    return " ".join(phrase.lower().split())
