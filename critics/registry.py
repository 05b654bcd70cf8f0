"""Every published critic by name. Nothing of a family is imported before one of its critics is asked for."""

from __future__ import annotations

import difflib
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from critics.base import Critic, CriticCard

FAMILIES: dict[str, str] = {
    "c-rex": "critics.detectors.c_rex",
    "clip-count": "critics.density.clip_count",
    "clip-ebc": "critics.density.clip_ebc",
    "count-clip": "critics.contrastive.count_clip",
    "countgd": "critics.detectors.countgd",
    "d-fine": "critics.detectors.detr",
    "detr": "critics.detectors.detr",
    "dmcount-ebc": "critics.density.dmcount_ebc",
    "grounding-dino": "critics.detectors.grounding_dino",
    "hmode": "critics.density.hmode",
    "llmdet": "critics.detectors.grounding_dino",
    "mask2former": "critics.detectors.mask2former",
    "mm-grounding-dino": "critics.detectors.grounding_dino",
    "owl-vit": "critics.detectors.owl",
    "owlv2": "critics.detectors.owl",
    "rt-detrv2": "critics.detectors.detr",
    "sam3": "critics.detectors.sam3",
    "yolo": "critics.detectors.yolo",
    "yolo-count": "critics.density.cardinality",
    "yolo-world": "critics.detectors.yolo",
    "yoloe": "critics.detectors.yolo",
    "yolos": "critics.detectors.detr",
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
        CheckpointError: weights that are missing, gated, damaged or of another model.
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
