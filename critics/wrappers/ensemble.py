"""Several critics of different families as one: what fools one family seldom fools another.

That the disagreement of an ensemble tells where a reward is being gamed is GARDO's (arXiv 2512.24138), which
gates a penalty by it. Ours is how it is used here: the gradient is that of the mean of the members' soft
counts, and a count that the members do not share has no confidence, so that no run takes it for exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from critics.base import CountEstimate, Critic, CriticCard, Query, check_images


class Ensemble:
    """A critic made of critics, no two of one family.

    Its estimate has

    - ``soft``: the mean of the members' soft counts;
    - ``hard``: the count that the members share, else the median of theirs (of an even number of members the
      lower of the two in the middle);
    - ``disagreement``: the distance of the members' largest and smallest hard count where it is more than
      ``bound``, else 0; where it is not 0, ``confidence`` is;
    - ``candidates``: of the first member that has any. Objectives of margins therefore follow that one
      member, and only those of the soft count follow all.

    Attributes:
        members: in the order given.
        bound: how far apart hard counts may be that still pass for one. 0 asks for the very same count of
            all; 1 only flags what no rounding of a close decision explains.
    """

    def __init__(self, members: Sequence[Critic], *, bound: int = 0) -> None:
        """Join critics.

        Raises:
            ValueError: fewer than two members, two of one family, or a negative bound.
        """
        if len(members) < 2:
            raise ValueError(
                f"an ensemble needs at least two critics, but there are {len(members)}"
            )
        if bound < 0:
            raise ValueError(f"the bound of a disagreement cannot be negative, but it is {bound}")
        seen: dict[str, str] = {}
        for member in members:
            for family in sorted(member.card.families):
                if family in seen:
                    raise ValueError(
                        f"{seen[family]} and {member.card.name} are both of the family {family}: what fools "
                        "one fools the other; take a critic of another family for one of them"
                    )
                seen[family] = member.card.name
        self.members, self.bound = tuple(members), bound
        self.card = _join([member.card for member in members])

    @property
    def network(self) -> nn.Module:
        """The members' networks, in their order."""
        members: Sequence[Any] = self.members
        return nn.ModuleList(member.network for member in members).eval()

    def to(self, device: str | torch.device) -> Ensemble:
        members: Sequence[Any] = self.members
        for member in members:
            member.to(device)
        return self

    def prepare(self, nouns: Sequence[str]) -> Query:
        """Ask every member.

        Raises:
            critics.base.UnknownNounError: for a noun outside the vocabulary of any member.
        """
        return Query(tuple(nouns), members=tuple(member.prepare(nouns) for member in self.members))

    def __call__(
        self, images: Float[Tensor, "b 3 height width"], queries: Sequence[Query]
    ) -> CountEstimate:
        check_images(images, queries)
        found = [
            member(images, [replace(query.members[i], seed=query.seed) for query in queries])
            for i, member in enumerate(self.members)
        ]
        hard = torch.stack([estimate.hard for estimate in found])
        apart = hard.amax(0) - hard.amin(0)
        within = [e.disagreement for e in found if e.disagreement is not None]
        disagreement = torch.stack([torch.where(apart > self.bound, apart, 0), *within]).amax(0)
        return CountEstimate(
            soft=torch.stack([estimate.soft for estimate in found]).mean(0),
            hard=hard.median(0).values,
            mask=found[0].mask,
            candidates=next((e.candidates for e in found if e.candidates is not None), None),
            disagreement=disagreement,
        )


def _join(cards: Sequence[CriticCard]) -> CriticCard:
    """One card for all: what any of them cannot see or may not be used for, the whole cannot."""
    closed = [card.vocabulary for card in cards if card.vocabulary is not None]
    shared = (
        tuple(noun for noun in closed[0] if all(noun in other for other in closed))
        if closed
        else None
    )

    def every(values: Sequence[str], glue: str) -> str:
        return glue.join(dict.fromkeys(value for value in values if value))

    return CriticCard(
        name="+".join(card.name for card in cards),
        family="+".join(card.family for card in cards),
        summary=f"mean of {len(cards)} critics, gated by their disagreement",
        license_code=every([card.license_code for card in cards], " and "),
        license_weights=every([card.license_weights for card in cards], " and "),
        input_size=max(card.input_size for card in cards),
        vocabulary=shared,
        parameters=sum(card.parameters for card in cards),
        citation=every([card.citation for card in cards], "; "),
    )
