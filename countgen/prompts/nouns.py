"""Singulars and plurals of English nouns: the lexicon first, rules for the words that it lacks."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from countgen.prompts.lexicon import noun_bases, parts_of_speech, plurals_of
from countgen.prompts.words import PREPOSITIONS, words_of

# Nouns whose singular and plural are one word; the lexicon marks mass nouns so too, and is not asked.
_INVARIABLE: Final = words_of(
    """sheep deer reindeer moose swine buffalo caribou salmon trout cod carp tuna mackerel fish
    aircraft spacecraft hovercraft watercraft series species offspring crossroads headquarters
    barracks gallows scissors skis pants jeans trousers shorts sunglasses eyeglasses goggles binoculars pliers
    tweezers tongs headphones pajamas pyjamas tights leggings overalls dice bison cattle elk koi
    ninja pokemon samurai shrimp squid earphones earbuds spectacles panties underpants swim-trunks
    clippers shears"""
)
# "A pair of" these is one object, not two.
SOLD_IN_PAIRS: Final = words_of(
    """scissors skis pants jeans trousers shorts sunglasses eyeglasses glasses spectacles goggles
    binoculars pliers tweezers tongs headphones pajamas pyjamas tights leggings overalls earphones
    earbuds panties underpants clippers shears"""
)

_SINGULARS: Final = {
    # where the lexicon knows another noun, or prefers it
    "dwarfs": "dwarf",
    "dwarves": "dwarf",
    "people": "person",
    "persons": "person",
    "octopi": "octopus",
    "cacti": "cactus",
    "axes": "axe",
    "leaves": "leaf",
    "loaves": "loaf",
    "bases": "base",
    "lens": "",
    "teeth": "tooth",
    "dies": "die",
    "oxen": "ox",
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
_PLURALS: Final = {
    "person": "people",
    "dwarf": "dwarfs",
    "octopus": "octopuses",
    "cactus": "cacti",
    "axe": "axes",
    "fish": "fish",
    "die": "dice",
    "mouse": "mice",
    "penny": "pennies",
    "cloth": "cloths",
    "ox": "oxen",
}

# Singulars that end in s. Words in -ss, -us and -sis are covered by their ending.
_SINGULAR_IN_S: Final = words_of(
    """alias asbestos atlas bias biceps canvas chaos chassis christmas citrus clematis corps cosmos
    debris gallows gas hercules ibis iris lens mantis mars mercedes metropolis news pancreas paris
    pelvis physics rhinoceros series species tennis texas thermos trellis triceps
    venus axis albatros pegasus hibiscus electronics mathematics graphics always sometimes perhaps
    yes boss swiss seuss"""
) | {"as", "is", "was", "has", "his", "its", "this", "does", "us", "plus", "ours", "theirs"}

_NUMBERED: Final = re.compile(r"\d+s")  # "three 747s"


@lru_cache(maxsize=8192)
def singular_of(word: str) -> str | None:
    """Return the singular of a lower-case plural, or None when the word is not a plural.

    >>> singular_of("geese"), singular_of("sheep"), singular_of("bus"), singular_of("red")
    ('goose', 'sheep', None, None)
    """
    if word in _SINGULARS:
        return _SINGULARS[word] or None
    stem, hyphen, last = word.rpartition("-")
    if hyphen and not noun_bases(word):  # "t-shirts": only the last part is inflected
        singular = singular_of(last)
        return stem + hyphen + singular if singular else None
    if word in _INVARIABLE or (word.endswith("fish") and len(word) > 6):
        return word
    if _NUMBERED.fullmatch(word):
        return word[:-1]
    bases = noun_bases(word)
    if bases:
        return next((base for base in bases if base != word), None)
    if word.endswith(("fs", "fes")) and noun_bases(word[:-1]):
        return word[:-1]  # "knifes", which the lexicon knows as a verb
    if word in _SINGULAR_IN_S or len(word) < 3 or parts_of_speech(word).isdisjoint({"noun"}):
        return None
    return _singular_by_rule(word)


def _singular_by_rule(word: str) -> str | None:
    """The singular of a word that the lexicon lacks, if it looks like a plural."""
    if word.endswith("men") and len(word) > 5:
        return word[:-2] + "an"  # "groomsmen"
    if word.endswith("people") and len(word) > 7:
        return word[:-6] + "person"
    if word.endswith("eaux"):
        return word[:-1]
    if not word.endswith("s") or not word[:-1].isalpha() or word.endswith("'s"):
        return None
    if word.endswith("sss"):  # "wine glasss"
        return word[:-1]
    for length in range(
        3, len(word) - 2
    ):  # a compound of two known words: "bow|ties", "pine|cones"
        if word[:-length].isascii() and noun_bases(word[:-length]) and noun_bases(word[-length:]):
            tail = singular_of(word[-length:])
            if tail and len(tail) > 2:
                return word[:-length] + tail
    if word.endswith("ies") and len(word) > 4:
        stem = word[:-3]
        return stem + ("ie" if noun_bases(stem) or "adj" in parts_of_speech(stem) else "y")
    if word.endswith("es") and word[:-2] in _SINGULAR_IN_S:  # "gases"
        return word[:-2]
    if word.endswith(("ches", "shes", "xes", "sses", "zzes")):
        return word[:-2]
    if word.endswith(("ss", "us", "sis")) and not word.endswith(("eaus", "aus")):
        return None
    return word[:-1]


def split_at_head(noun_phrase: str) -> tuple[list[str], str, list[str]]:
    """Split "dog on the left" into what precedes its head, the head, and what follows."""
    words = noun_phrase.lower().split()
    if not words:
        return [], "", []
    end = next((i for i, word in enumerate(words) if i and word in PREPOSITIONS), len(words))
    return words[: end - 1], words[end - 1], words[end:]


def singularise(noun_phrase: str) -> str:
    """Return a noun phrase in lower case with its head in the singular; singulars stay as they are.

    >>> singularise("Red Apples"), singularise("buses"), singularise("bus")
    ('red apple', 'bus', 'bus')
    >>> singularise("toothbrushs"), singularise("dogs on the left")
    ('toothbrush', 'dog on the left')
    """
    before, head, after = split_at_head(noun_phrase)
    return " ".join([*before, singular_of(head) or head, *after])


def pluralise(noun_phrase: str, count: int = 2) -> str:
    """Return a noun phrase as it follows a count: the singular after 1, else the plural.

    >>> pluralise("red apple", 7), pluralise("person"), pluralise("sheep"), pluralise("knife", 1)
    ('red apples', 'people', 'sheep', 'knife')
    >>> pluralise("dog on the left", 3)
    'dogs on the left'
    """
    before, head, after = split_at_head(noun_phrase)
    head = singular_of(head) or head
    if count != 1:
        head = _plural_of(head)
    return " ".join([*before, head, *after])


@lru_cache(maxsize=8192)
def _plural_of(singular: str) -> str:
    stem, hyphen, word = singular.rpartition("-")
    if not word or word in _INVARIABLE or (word.endswith("fish") and len(word) > 6):
        return singular
    if word in _PLURALS:
        return stem + hyphen + _PLURALS[word]
    known = plurals_of(word)
    if known and known[0] != word:
        return stem + hyphen + known[0]
    if known and len(known) == 1:
        return singular  # "sheep"
    if len(known) > 1:
        return stem + hyphen + known[1]
    if not word.isalpha():
        return singular + "s"
    return stem + hyphen + _plural_by_rule(word)


def _plural_by_rule(word: str) -> str:
    if word.endswith("man") and len(word) > 5:
        return word[:-2] + "en"
    if word.endswith("person") and len(word) > 6:
        return word[:-6] + "people"
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"
