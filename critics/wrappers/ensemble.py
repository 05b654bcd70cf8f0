"""Several critics of different families as one: what fools one family seldom fools another.

That the disagreement of an ensemble tells where a reward is being gamed is GARDO's (arXiv 2512.24138), which
gates a penalty by it. Ours is how it is used here: the gradient is that of the mean of the members' soft
counts, and a count that the members do not share has no confidence, so that no run takes it for exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from critics.base import CountEstimate, Critic, CriticCard, Gives, Query
from critics.parts.guard import guarded_count
from critics.wrappers.base import Wrapper, join_cards, member_queries


class Ensemble(Wrapper):
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

    @property
    def critics(self) -> Sequence[Critic]:
        return self.members

    @property
    def gives(self) -> Gives:
        boxes = any(member.gives == "candidates" for member in self.members)
        return "candidates" if boxes else "soft"

    @property
    def card(self) -> CriticCard:
        return join_cards(
            [member.card for member in self.members],
            "+".join(member.card.name for member in self.members),
            f"mean of {len(self.members)} critics, gated by their disagreement",
        )

    def prepare(self, nouns: Sequence[str]) -> Query:
        """Ask every member.

        Raises:
            critics.base.UnknownNounError: for a noun outside the vocabulary of any member.
        """
        return Query(tuple(nouns), members=tuple(member.prepare(nouns) for member in self.members))

    @guarded_count
    def __call__(
        self, images: Float[Tensor, "b 3 height width"], queries: Sequence[Query]
    ) -> CountEstimate:
        asked = member_queries(queries, len(self.members))
        found = [member(images, own) for member, own in zip(self.members, asked, strict=True)]
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
