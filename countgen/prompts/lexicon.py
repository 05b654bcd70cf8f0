"""Parts of speech, from the table of word forms that lemminflect brings.

The table is read from lemminflect's file and not through the package, whose import loads numpy, and spaCy
wherever that is installed, which takes seconds. It tells what a word *can* be; ``phrases`` decides the rest.
"""

from __future__ import annotations

import gzip
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path

from countgen.prompts.words import COLOURS_AND_MATERIALS, MISSING_NOUNS, NOT_VERBS

_Forms = dict[str, tuple[str, ...]]  # part of speech -> base forms, the likeliest first
_NONE: _Forms = {}
_ADJECTIVE_ENDINGS = ("less", "ful", "ous", "ish", "able", "ible", "esque", "worn", "proof")


def _resource(name: str) -> Path:
    spec = find_spec("lemminflect")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("The package lemminflect is missing; install it: pip install lemminflect")
    return Path(spec.submodule_search_locations[0]) / "resources" / name


@cache
def _bases() -> dict[str, _Forms]:
    table: dict[str, _Forms] = {}
    text = gzip.decompress(_resource("lemma_lu.csv.gz").read_bytes()).decode()
    for line in text.split("\n"):
        word, _, rest = line.partition(",")
        part, _, bases = rest.partition(",")
        table.setdefault(word, {})[part] = tuple(bases.split("/"))
    for noun in MISSING_NOUNS:
        table.setdefault(noun, {})["noun"] = (noun,)
        table.setdefault(noun + "s", {})["noun"] = (noun,)
    return table


@cache
def _plurals() -> dict[str, tuple[str, ...]]:
    table: dict[str, tuple[str, ...]] = {}
    text = gzip.decompress(_resource("infl_lu.csv.gz").read_bytes()).decode()
    for line in text.split("\n"):
        word, _, rest = line.partition(",")
        part, _, plurals = rest.partition(",")
        if part == "noun" and plurals:
            table[word] = tuple(plurals.split("/"))
    return table


def plurals_of(noun: str) -> tuple[str, ...]:
    """Return the plurals of a noun in the lexicon, the likeliest first; none for a word that it lacks."""
    return _plurals().get(noun, ())


def noun_bases(word: str) -> tuple[str, ...]:
    """Return the singulars whose noun form a word is (itself, for a singular); none if it is no noun.

    >>> noun_bases("geese"), noun_bases("glasses"), noun_bases("asleep")
    (('goose',), ('glass', 'glasses'), ())
    """
    return _bases().get(word, _NONE).get("noun", ())


@lru_cache(maxsize=8192)
def parts_of_speech(word: str) -> frozenset[str]:
    """Return which of "noun", "verb", "adj" and "adv" a lower-case word can be; guessed if it is unknown.

    >>> sorted(parts_of_speech("stand")), sorted(parts_of_speech("asleep"))
    (['noun', 'verb'], ['adj'])
    """
    known = _bases().get(word)
    if known:
        parts = set(known) & {"noun", "verb", "adj", "adv"}
        if word.endswith("ing") and "verb" in parts and word not in NOT_VERBS:
            parts -= {"noun"}  # "sitting" and "clapping" are listed as nouns too
        return frozenset(parts)
    head = word.rpartition("-")[2]
    if head != word and head:
        if head.endswith("ed") or head in (
            "like",
            "style",
            "free",
            "old",
            "size",
            "sized",
            "colored",
        ):
            return frozenset({"adj"})
        return parts_of_speech(head) - {"verb"} or frozenset({"noun"})
    if len(word) > 4:
        if word.endswith("ing"):
            return frozenset({"noun"} if word in NOT_VERBS else {"verb"})
        if word.endswith("ed"):
            return frozenset({"noun"} if word in NOT_VERBS else {"verb", "adj"})
        if word.endswith("ly"):
            return frozenset({"adv"})
        if word.endswith(_ADJECTIVE_ENDINGS):
            return frozenset({"adj"})
    return frozenset({"noun"})


def may_be_noun(word: str) -> bool:
    """Say whether a word can be a noun, as far as the lexicon goes."""
    return "noun" in parts_of_speech(word)


def is_ing_verb(word: str) -> bool:
    """Say whether a word is a present participle, and no noun such as "building".

    >>> is_ing_verb("holding"), is_ing_verb("building"), is_ing_verb("king")
    (True, False, False)
    """
    return (
        len(word) > 4
        and word.endswith("ing")
        and "verb" in parts_of_speech(word)
        and word not in NOT_VERBS
    )


def is_participle(word: str) -> bool:
    """Say whether a word is a past participle that is listed as no noun ("shaped", "broken")."""
    bases = _bases().get(word, _NONE)
    if word in NOT_VERBS:
        return False
    if not bases:
        return len(word) > 4 and word.endswith("ed")
    return (
        "noun" not in bases
        and "verb" in bases
        and bases["verb"][0] != word
        and not word.endswith(("ing", "s"))
    )


def may_describe(word: str) -> bool:
    """Say whether a word can stand before a noun as its adjective does, even if it is a noun as well."""
    return (
        "adj" in parts_of_speech(word)
        or word in COLOURS_AND_MATERIALS
        or is_participle(word)
        or is_ing_verb(word)
    )


def only_describes(word: str) -> bool:
    """Say whether a word is an adjective, a colour or a past participle rather than the name of a thing.

    >>> only_describes("red"), only_describes("broken"), only_describes("piano"), only_describes("cat")
    (True, True, False, False)
    """
    if word in COLOURS_AND_MATERIALS or is_participle(word):
        return True
    parts = parts_of_speech(word)
    return "adj" in parts and "noun" not in parts


def only_adverb_or_adjective(word: str) -> bool:
    """Say whether a word can be neither a noun nor a verb."""
    parts = parts_of_speech(word)
    return bool(parts & {"adj", "adv"}) and not parts & {"noun", "verb"}
