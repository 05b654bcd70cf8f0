"""Singulars, plurals and number words: a thin layer over inflect, which is loaded on first use.

inflect knows irregular nouns but two things it cannot do: tell whether a word *is* a plural (it
turns "tennis" into "tenni" and "bus" into "bu"), and undo misspelt plurals of the nouns that end
in s ("buss"). The small tables here answer those; everything else is left to inflect.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import inflect


def words_of(text: str) -> frozenset[str]:
    """Return the set of the words in a text; how the word tables are written."""
    return frozenset(text.split())


PREPOSITIONS: Final = words_of(
    """about above across against along alongside among amid amidst amongst around as at atop before
    behind below beneath beside besides between beyond by despite down during except facing for from
    in inside into like near next of off on onto opposite out outside over past per save since than
    through throughout till to toward towards under underneath unlike until up upon versus via vs
    with within without"""
)

# Nouns whose singular and plural are one word. inflect knows sheep, fish, deer, aircraft and more.
_INVARIABLE: Final = words_of(
    """scissors skis pants jeans trousers shorts sunglasses eyeglasses goggles binoculars pliers
    tweezers tongs headphones pajamas pyjamas tights leggings overalls dice bison cattle elk koi
    ninja pokemon samurai shrimp squid"""
)
# "A pair of" these is one object, not two.
SOLD_IN_PAIRS: Final = words_of(
    """scissors skis pants jeans trousers shorts sunglasses eyeglasses glasses spectacles goggles
    binoculars pliers tweezers tongs headphones pajamas pyjamas tights leggings overalls"""
)

_PLURALS: Final = {
    # classical plurals that inflect makes only when asked to
    "cacti": "cactus",
    "octopi": "octopus",
    "fungi": "fungus",
    # -ie nouns that inflect takes for -y nouns
    "hoodies": "hoodie",
    "selfies": "selfie",
    "smoothies": "smoothie",
    # plural -us and -as words, which otherwise count as singular endings
    "emus": "emu",
    "gnus": "gnu",
    "menus": "menu",
    "gurus": "guru",
    "tutus": "tutu",
    # misspelt plurals, as prompt lists that only append an s hold them
    "buss": "bus",
    "busses": "bus",
    "mouses": "mouse",
    "skiss": "skis",
    "skises": "skis",
    "scissorss": "scissors",
    "scissorses": "scissors",
    "mens": "man",
    "womens": "woman",
    "childrens": "child",
}

# Singulars that end in s. Words in -ss, -us and -sis are covered by their ending.
_SINGULAR_IN_S: Final = words_of(
    """alias asbestos atlas bias biceps canvas chaos chassis christmas citrus clematis corps cosmos
    debris gallows gas hercules ibis iris lens mantis mars mercedes metropolis news pancreas paris
    pelvis physics rhinoceros series species tennis texas thermos trellis triceps
    venus axis albatros pegasus hibiscus electronics mathematics graphics always sometimes perhaps
    yes"""
) | {"as", "is", "was", "has", "his", "its", "this", "does", "us"}

_PLAIN_WORD: Final = re.compile(r"[a-z]{2,40}")  # what inflect can be trusted with


@cache
def _inflect() -> inflect.engine:
    import inflect  # takes most of a second, hence not at the top

    return inflect.engine()


@lru_cache(maxsize=4096)
def singular_of(word: str) -> str | None:
    """Return the singular of a lower-case plural, or None when the word is not a plural.

    >>> singular_of("geese"), singular_of("sheep"), singular_of("bus"), singular_of("red")
    ('goose', 'sheep', None, None)
    """
    stem, hyphen, word = word.rpartition("-")
    prefix = stem + hyphen  # "t-shirts": only the last part is inflected
    if word in _INVARIABLE:
        return prefix + word
    if word in _PLURALS:
        return prefix + _PLURALS[word]
    if word in _SINGULAR_IN_S or len(word) < 3 or word.endswith("'s"):
        return None
    if word.endswith("sss"):  # "wine glasss"
        return prefix + word[:-1]
    if word.endswith(("ss", "us", "sis")):
        return None
    if word.endswith("ese") and word not in ("geese", "cheese"):  # "japanese" is an adjective here
        return None
    if word.endswith("es") and word[:-2] in _SINGULAR_IN_S:  # "gases", "lenses"
        return prefix + word[:-2]
    if not _PLAIN_WORD.fullmatch(word):
        regular = len(word) > 3 and word.endswith("s") and word[:-1].isalpha()
        return prefix + word[:-1] if regular else None
    singular = _inflect().singular_noun(word)  # False: inflect sees no plural
    return prefix + singular if singular else None


def _split_at_head(noun_phrase: str) -> tuple[list[str], str, list[str]]:
    """Split "dog on the left" into what precedes its head, the head, and what follows."""
    words = noun_phrase.lower().split()
    if not words:
        return [], "", []
    end = next((i for i, word in enumerate(words) if i and word in PREPOSITIONS), len(words))
    return words[: end - 1], words[end - 1], words[end:]


def singularize(noun_phrase: str) -> str:
    """Return a noun phrase in lower case with its head in the singular; singulars stay as they are.

    >>> singularize("Red Apples"), singularize("buses"), singularize("bus")
    ('red apple', 'bus', 'bus')
    >>> singularize("toothbrushs"), singularize("dogs on the left")
    ('toothbrush', 'dog on the left')
    """
    before, head, after = _split_at_head(noun_phrase)
    return " ".join([*before, singular_of(head) or head, *after])


def pluralize(noun_phrase: str, count: int = 2) -> str:
    """Return a noun phrase as it follows a count: the singular after 1, else the plural.

    >>> pluralize("red apple", 7), pluralize("person"), pluralize("sheep"), pluralize("knife", 1)
    ('red apples', 'people', 'sheep', 'knife')
    >>> pluralize("dog on the left", 3)
    'dogs on the left'
    """
    before, head, after = _split_at_head(noun_phrase)
    head = singular_of(head) or head
    if count != 1:
        head = _plural_of(head)
    return " ".join([*before, head, *after])


@lru_cache(maxsize=4096)
def _plural_of(singular: str) -> str:
    stem, hyphen, word = singular.rpartition("-")
    if not word or word in _INVARIABLE:
        return singular
    if not _PLAIN_WORD.fullmatch(word):
        return singular + "s"
    plural = str(_inflect().plural_noun(word))
    if word.endswith("s") and plural == word + "s":
        plural = word + "es"  # inflect makes "tenniss"
    return stem + hyphen + plural


def number_word(n: int) -> str:
    """Return a whole number that is not negative in words.

    >>> number_word(0), number_word(21), number_word(305)
    ('zero', 'twenty-one', 'three hundred and five')
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 0:
        raise ValueError(f"Only whole numbers from zero on have a number word here, not {n!r}.")
    words = _inflect().number_to_words(str(n))
    assert isinstance(words, str)  # a list only when asked for with wantlist=True
    return words.replace(",", "")
