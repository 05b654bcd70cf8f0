"""What critics around critics share: the networks of all, and one card of several."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Self

import torch
from torch import nn

from critics.base import Critic, CriticCard, Gives, Query
from critics.parts.queries import foreign_query


class Wrapper(ABC):
    """A critic that asks others, and is moved with them."""

    @property
    @abstractmethod
    def critics(self) -> Sequence[Critic]:
        """Those that it asks, in order."""

    @property
    @abstractmethod
    def gives(self) -> Gives:
        """What its estimates hold beside the counts."""

    @property
    def network(self) -> nn.Module:
        """The networks of all critics, in their order."""
        return nn.ModuleList(critic.network for critic in self.critics).eval()

    def to(self, device: str | torch.device) -> Self:
        for critic in self.critics:
            critic.to(device)
        return self


def member_queries(queries: Sequence[Query], members: int) -> list[list[Query]]:
    """Every member's own queries of a batch, with the seed of the whole.

    Raises:
        ValueError: a query that another critic prepared.
    """
    for query in queries:
        if len(query.members) != members:
            raise foreign_query(query)
    return [
        [replace(query.members[i], seed=query.seed) for query in queries] for i in range(members)
    ]


def join_cards(cards: Sequence[CriticCard], name: str, summary: str) -> CriticCard:
    """One card for all: of every family in them, and what one of them cannot see or may not be used for, the
    whole cannot."""
    closed = [card.vocabulary for card in cards if card.vocabulary is not None]
    shared = None
    if closed:
        shared = tuple(noun for noun in closed[0] if all(noun in other for other in closed))

    def distinct(values: Sequence[str], glue: str) -> str:
        return glue.join(dict.fromkeys(value for value in values if value))

    return CriticCard(
        name=name,
        family=distinct([family for card in cards for family in card.family.split("+")], "+"),
        summary=summary,
        license_code=distinct([card.license_code for card in cards], " and "),
        license_weights=distinct([card.license_weights for card in cards], " and "),
        input_size=max(card.input_size for card in cards),
        vocabulary=shared,
        parameters=sum(card.parameters for card in cards),
        citation=distinct([card.citation for card in cards], "; "),
        min_confidence=max(card.min_confidence for card in cards),
    )
