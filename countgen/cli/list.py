"""``countgen list``: what there is, with its cards."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

Kind = Literal["critics", "pipelines", "suites", "methods", "recipes"]


@dataclass(frozen=True)
class List:
    """List what there is: critics, pipelines, suites, methods or recipes, with their cards.

    Example: countgen list critics
    """

    kind: Annotated[Kind, tyro.conf.Positional]
    """What to list."""
    json: bool = False
    """Print one JSON document instead of a table."""

    def run(self, messages: Console) -> int:
        """Print the cards."""
        cards = items(self.kind)
        if self.json:
            print(json.dumps({"items": cards}))
            return 0
        for card in cards:
            print(f"{card['name']}: {card['summary']}")
            for key, value in card.items():
                if key not in ("name", "summary") and value not in (None, "", [], ()):
                    print(f"    {key.replace('_', ' ')}: {_plain(value)}")
        return 0


def items(kind: Kind) -> list[dict[str, Any]]:
    """Cards of all critics, pipelines, suites, methods or recipes, each with its ``name``."""
    tables = {
        "critics": _critics,
        "pipelines": _pipelines,
        "suites": _suites,
        "methods": _methods,
        "recipes": _recipes,
    }
    return tables[kind]()


def _critics() -> list[dict[str, Any]]:
    from countgen.presets import EMBEDDED
    from critics.registry import FAMILIES, card

    embedded = [
        dataclasses.asdict(preset.counter_card(name)) | {f"role_in_{preset.name}": role}
        for preset in EMBEDDED.values()
        for role, name in preset.roles().items()
    ]
    return embedded + [dataclasses.asdict(card(name)) for name in sorted(FAMILIES)]


def _pipelines() -> list[dict[str, Any]]:
    from countgen.presets import presets

    return [
        dataclasses.asdict(card) | {"roles": preset.roles()}
        for preset in presets()
        if (card := preset.card()) is not None
    ]


def _suites() -> list[dict[str, Any]]:
    from countgen.evaluation.suites import SUMMARIES, find_prompts

    surveys = {name: find_prompts(name).survey() for name in SUMMARIES}
    return [
        {
            "name": name,
            "summary": SUMMARIES[name],
            "prompts": survey.prompts,
            "kinds": sorted({kinds for kinds, _ in survey.strata}),
            "nouns": sorted(survey.nouns),
        }
        for name, survey in surveys.items()
    ]


def _methods() -> list[dict[str, Any]]:
    from countgen.guidance.methods import METHODS
    from countgen.guidance.names import LEARNT_NAMES, LEARNT_SUMMARIES

    parts = ("policy", "objective", "variable", "prior", "optimizer", "guide")
    told = ("name", "summary", "standing", "source", "chosen", "needs_candidates", "gradient")
    return [
        {key: getattr(method, key) for key in told}
        | {key: repr(part) for key in parts if (part := getattr(method, key)) is not None}
        for method in METHODS.values()
    ] + [
        {
            "name": kind,
            "summary": f"{LEARNT_SUMMARIES[kind]}; needs a file, {kind}=FILE",
            "standing": "reconstruction" if kind == "amortised" else "ours",
            "source": "HyperNoise, arXiv 2508.09968" if kind == "amortised" else "",
            "needs_candidates": False,
            "gradient": False,
            "file": f"what countgen learn {command} has written",
            "also": f"with another method, as engine+{kind}=FILE",
        }
        for kind, command in LEARNT_NAMES.items()
    ]


def _recipes() -> list[dict[str, Any]]:
    from countgen.evaluation.recipes import card, recipe_names

    return [card(name) for name in recipe_names()]


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
