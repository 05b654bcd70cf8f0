"""What there is: the cards behind ``countgen list``."""

from __future__ import annotations

import dataclasses
from typing import Any

KINDS = ("critics", "pipelines", "suites", "methods")


def items(kind: str) -> list[dict[str, Any]]:
    """Cards of all critics, pipelines, suites or methods, each with its ``name``."""
    return {"critics": _critics, "pipelines": _pipelines, "suites": _suites, "methods": _methods}[
        kind
    ]()


def _critics() -> list[dict[str, Any]]:
    from countgen.pocket import ROLES, load_critic
    from critics.registry import FAMILIES, card

    cards = [
        dataclasses.asdict(load_critic(name).card) | {"role_in_pocket": role}
        for role, name in ROLES.items()
    ]
    return cards + [dataclasses.asdict(card(name)) for name in sorted(FAMILIES)]


def _pipelines() -> list[dict[str, Any]]:
    from countgen.pocket import card as pocket
    from countgen.presets import roles
    from pipelines.registry import cards

    return [dataclasses.asdict(card) | {"roles": roles(card.name)} for card in [pocket(), *cards()]]


def _suites() -> list[dict[str, Any]]:
    from countgen.pocket.suites import SUITES, suite

    summaries = {
        "pocket-dev": "for tuning; never reported",
        "pocket-small": "1 to 10 objects of one kind",
        "pocket-dense": "11 to 20 objects of one kind",
        "pocket-multi": "two and three kinds",
        "pocket-hard": "prompts of the three above on which plain success is at most one in ten",
    }
    return [
        {"name": name, "summary": summaries[name], "prompts": len(suite(name))}
        for name in (*SUITES, "pocket-hard")
    ]


def _methods() -> list[dict[str, Any]]:
    from countgen.guidance.methods import METHODS

    return [dataclasses.asdict(method) for method in METHODS.values()]
