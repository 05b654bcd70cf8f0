"""Tables of what there is, from the cards of critics, models and methods (see ``benchmarks.tables``)."""

from __future__ import annotations

from typing import Any

from benchmarks.markdown import grid


def _items(kind: Any) -> list[dict[str, Any]]:
    from countgen.cli.list import items

    return items(kind)


def critic_licences() -> str:
    """Licences of counters, from their cards."""
    rows = [
        [f"`{card['name']}`", card["license_code"], card["license_weights"], card["citation"]]
        for card in _items("critics")
    ]
    return grid(["critic", "code", "weights", "source"], rows)


def model_licences() -> str:
    """Licences of generators, from their cards."""
    rows = [
        [
            f"`{card['name']}`",
            card["license_code"],
            card["license_weights"],
            "yes" if card["commercial"] else "no, or with terms",
            card["hub_id"] or "embedded",
        ]
        for card in _items("pipelines")
    ]
    return grid(["model", "code", "weights", "commercial use", "weights from"], rows)


def critic_list() -> str:
    """What there is to count with."""
    from countgen.presets import counter_output

    gives = {"candidates": "boxes", "density": "a density map", "other": "numbers"}
    rows = [
        [
            f"`{card['name']}`",
            card["family"],
            gives[counter_output(card["name"])],
            "any noun" if card["vocabulary"] is None else f"{len(card['vocabulary'])} nouns",
            card["summary"],
        ]
        for card in _items("critics")
    ]
    return grid(["critic", "family", "gives", "vocabulary", "what it is"], rows)


def model_list() -> str:
    """What there is to draw with."""
    rows = [
        [
            f"`{card['name']}`",
            card["steps"],
            f"{card['guidance_scale']:g}",
            card["size"],
            card["summary"],
        ]
        for card in _items("pipelines")
    ]
    return grid(["model", "steps", "guidance scale", "size", "what it is"], rows)


def method_list() -> str:
    """What there is to make a picture exact with."""
    rows = [
        [
            f"`{card['name']}`",
            card["standing"],
            "yes" if card["gradient"] else "",
            "yes" if card["needs_candidates"] else "",
            card["summary"],
            card["source"],
        ]
        for card in _items("methods")
    ]
    head = ["method", "standing", "gradient", "needs boxes", "what it does", "source"]
    return grid(head, rows)
