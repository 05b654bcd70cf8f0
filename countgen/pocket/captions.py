"""Captions for pocket scenes, and the closed vocabulary that they are written in."""

from __future__ import annotations

import re

import numpy as np

from countgen.pocket.scenes import SceneSpec
from countgen.pocket.world import BACKGROUNDS, NOUNS, noun_index

# fmt: off
NUMBER_WORDS: tuple[str, ...] = (
    "no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
    "twenty",
)
_EXTRA_WORDS = (
    "zero", "a", "an", "pair", "couple", "dozen", "half", "of", "and", "with", "the", "in", "on",
    "at", "is", "photo", "emoji", "some", "many", "few",
)
# fmt: on
TEMPLATES: tuple[str, ...] = (
    "{things}",
    "{things}",
    "{things}",
    "a photo of {things}",
    "a picture of {things}",
    "an image of {things}",
    "there are {things}",
    "a drawing of {things}",
    "exactly {things}",
)


def quantity(noun: str, count: int, rng: np.random.Generator) -> str:
    """ "seven red apples", "7 red apples", "a pair of cats", "no dogs": one way to say a count."""
    kind = NOUNS[noun_index(noun)]
    name = kind.name if count == 1 else kind.plural
    form = rng.random()
    if count == 1 and form < 0.25:
        return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
    if count == 2 and form < 0.1:
        return f"a {'pair' if form < 0.05 else 'couple'} of {name}"
    if count == 12 and form < 0.1:
        return f"a dozen {name}"
    return f"{count if form > 0.7 else NUMBER_WORDS[count]} {name}"


def caption(spec: SceneSpec, rng: np.random.Generator) -> str:
    """One caption of a scene, drawn from the templates. A scene without a count says only where it is."""
    parts = [quantity(noun, count, rng) for noun, count in spec.counts]
    things = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    text = TEMPLATES[int(rng.integers(len(TEMPLATES)))].format(things=things)
    if spec.background is not None:
        phrases = BACKGROUNDS[spec.background]
        text = f"{text} {phrases[int(rng.integers(len(phrases)))]}"
    return text


def vocabulary() -> tuple[str, ...]:
    """Every word and mark that captions use, sorted: the tokenizer's words."""
    texts = [*TEMPLATES, *NUMBER_WORDS, *_EXTRA_WORDS, *map(str, range(21)), ","]
    texts += [name for noun in NOUNS for name in (noun.name, noun.plural)]
    texts += [phrase for phrases in BACKGROUNDS.values() for phrase in phrases]
    return tuple(sorted({word for text in texts for word in words(text.replace("{things}", ""))}))


def words(text: str) -> list[str]:
    """Lower-case words, numbers and commas of a text, as the tokenizer splits them."""
    return re.findall(r"[^\W\d_]+|\d+|,", text.lower())
