"""What exists in the pocket world: its nouns, its backgrounds and the words of its captions."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from critics.parts.synonyms import by_meaning

FOLDER = Path(__file__).parent
SIZE = 64
"""Side of a pocket picture in pixels."""
MAX_OBJECTS = 20
"""Most objects in one scene that the generator and the counters were trained on."""
MAX_KINDS = 3


class PocketError(ValueError):
    """Something was asked of the pocket world that it cannot do; the message says what to do instead."""


@dataclass(frozen=True, slots=True)
class Noun:
    """One kind of object: ``name`` in the singular, ``plural``, and the sprite's file name."""

    name: str
    plural: str

    @property
    def sprite(self) -> Path:
        return FOLDER / "sprites" / f"{self.name.replace(' ', '-')}.png"


NOUNS: tuple[Noun, ...] = (
    Noun("red apple", "red apples"),
    Noun("green apple", "green apples"),
    Noun("orange", "oranges"),
    Noun("banana", "bananas"),
    Noun("cat", "cats"),
    Noun("dog", "dogs"),
    Noun("bird", "birds"),
    Noun("fish", "fish"),
    Noun("car", "cars"),
    Noun("flower", "flowers"),
    Noun("cup", "cups"),
    Noun("donut", "donuts"),
    Noun("ball", "balls"),
    Noun("star", "stars"),
    Noun("mushroom", "mushrooms"),
    Noun("penguin", "penguins"),
)
NAMES: tuple[str, ...] = tuple(noun.name for noun in NOUNS)
_INDEX = {name: index for index, name in enumerate(NAMES)}
_INDEX |= {noun.plural: index for index, noun in enumerate(NOUNS)}

BACKGROUNDS: dict[str, tuple[str, ...]] = {
    "table": ("on a table", "on the table", "on a wooden table"),
    "grass": ("on grass", "on the grass", "in a meadow"),
    "sky": ("in the sky", "in a blue sky"),
    "sand": ("on sand", "on the sand", "on a beach"),
    "snow": ("in the snow", "on snow"),
    "road": ("on the road", "on a road"),
    "carpet": ("on a carpet", "on a purple carpet"),
    "paper": ("on white paper", "on a white background"),
}
"""Background name -> the phrases that captions use for it."""


def noun_index(name: str) -> int:
    """Class index of a noun, given in the singular or the plural.

    Raises:
        PocketError: for a noun that pocket does not know, naming the nearest ones.
    """
    key = " ".join(name.lower().split())
    if key in _INDEX:
        return _INDEX[key]
    nearest = [n for n in NAMES if key in n.split() or (n.split()[-1] in key.split())]
    nearest += [n for n in by_meaning(key, NAMES) if n not in nearest]
    nearest = nearest or difflib.get_close_matches(key, NAMES, n=3, cutoff=0.5)
    hint = f"nearest: {', '.join(nearest[:3])}" if nearest else f"known: {', '.join(NAMES)}"
    raise PocketError(f"the pocket world has no {name!r}; {hint}")
