"""Every published critic by name. Nothing of a family is imported before one of its critics is asked for."""

from __future__ import annotations

import difflib
from importlib import import_module
from pathlib import Path
from typing import Any

from critics.base import Critic, CriticCard

FAMILIES: dict[str, str] = {
    "clip-count": "critics.clip_count",
    "clip-ebc": "critics.clip_ebc",
    "count-clip": "critics.count_clip",
    "countgd": "critics.countgd",
    "d-fine": "critics.detr",
    "detr": "critics.detr",
    "dmcount-ebc": "critics.dmcount_ebc",
    "grounding-dino": "critics.grounding_dino",
    "hmode": "critics.hmode",
    "llmdet": "critics.grounding_dino",
    "mask2former": "critics.mask2former",
    "mm-grounding-dino": "critics.grounding_dino",
    "owl-vit": "critics.owl",
    "owlv2": "critics.owl",
    "rt-detrv2": "critics.detr",
    "sam3": "critics.sam3",
    "yolo": "critics.yolo",
    "yolo-count": "critics.cardinality",
    "yolo-world": "critics.yolo",
    "yoloe": "critics.yolo",
    "yolos": "critics.detr",
}
"""Name of a critic -> the module of its family, which has ``CARDS`` (by name) and ``load``."""


class UnknownCriticError(ValueError):
    """No critic has that name; the message has the nearest ones."""


def load_critic(name: str, source: str | Path | None = None, **options: Any) -> Critic:
    """A critic by name, with the weights of its card's hub id or of ``source``.

    Args:
        source: another hub id, or a local folder in the hub's layout.
        options: of the family's ``load``: ``threshold``, ``revision``, ``local_files_only`` and so on.

    Raises:
        UnknownCriticError: with the nearest names.
        critics.checkpoint.CheckpointError: weights that are missing, gated, damaged or of another model.
    """
    family = import_module(_module(name))
    critic: Critic = family.load(name, source, **options)
    return critic


def card(name: str) -> CriticCard:
    """The card of a critic, without loading it.

    Raises:
        UnknownCriticError: with the nearest names.
    """
    found: CriticCard = import_module(_module(name)).CARDS[name]
    return found


def _module(name: str) -> str:
    if name in FAMILIES:
        return FAMILIES[name]
    near = difflib.get_close_matches(name.lower().replace("_", "-"), FAMILIES, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(FAMILIES)}"
    raise UnknownCriticError(f"there is no critic {name!r}; {hint}")
