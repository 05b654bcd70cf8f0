"""Singulars and plurals: the lexicon, the rules for what it lacks, and nouns as lists misspell them."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from countgen.prompts import parse_prompt, pluralise, singularise
from countgen.prompts.nouns import singular_of
from critics.parts.vocabulary import COCO


def test_there_are_80_coco_classes() -> None:
    assert len(set(COCO)) == 80


@pytest.mark.parametrize("noun", COCO)
def test_coco_classes_survive_every_plural(noun: str) -> None:
    plurals = {pluralise(noun), noun + "s"}
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        plurals.add(noun + "es")
    assert {singularise(plural) for plural in plurals} == {noun}
    assert singularise(noun) == noun
    assert pluralise(noun, 1) == noun
    assert pluralise(pluralise(noun)) == pluralise(noun)
    for plural in plurals:
        targets = parse_prompt(f"a photo of four {plural}").targets
        assert [(target.noun, target.count) for target in targets] == [(noun, 4)]


SINGULARS = """bus glass gas lens cactus octopus walrus dress tennis iris atlas canvas chess compass
news species red flying japanese rhinoceros oasis menu hoodie scissors jeans dice"""


@pytest.mark.parametrize("singular", SINGULARS.split())
def test_singulars_stay_singular(singular: str) -> None:
    assert singularise(singular) == singular
    assert singularise(pluralise(singular)) == singular


@pytest.mark.parametrize(
    ("plural", "singular"),
    [
        ("beanies", "beanie"),  # the lexicon lacks it; "ladies" and "lilies" it knows
        ("bowties", "bowtie"),
        ("walkie-talkies", "walkie-talkie"),
        ("ladies", "lady"),
        ("bureaux", "bureau"),
        ("chateaus", "chateau"),
        ("supernovas", "supernova"),
        ("jack-o'-lanterns", "jack-o'-lantern"),
        ("747s", "747"),
        ("pinecones", "pinecone"),
        ("groomsmen", "groomsman"),
        ("salespeople", "salesperson"),
        ("corgis", "corgi"),
        ("logs", "log"),
        ("goldfish", "goldfish"),
        ("glasses", "glass"),
    ],
)
def test_plurals_are_undone(plural: str, singular: str) -> None:
    assert singularise(plural) == singular
    assert singularise(pluralise(singular)) == singular


@pytest.mark.parametrize(
    "word", ["red", "sits", "asleep", "bus", "supernova", "boss", "this", "dining"]
)
def test_what_is_no_plural_has_no_singular(word: str) -> None:
    assert singular_of(word) is None


@pytest.mark.parametrize(
    ("noun", "count", "shown"),
    [
        ("red apple", 7, "red apples"),
        ("red apple", 1, "red apple"),
        ("red apple", 0, "red apples"),
        ("person", 2, "people"),
        ("slice of pizza", 3, "slices of pizza"),
        ("dog on the left", 2, "dogs on the left"),
        ("deer", 4, "deer"),
        ("snowman", 2, "snowmen"),
        ("pair of shoes", 2, "pairs of shoes"),
        ("747", 2, "747s"),
        ("corgi", 2, "corgis"),
    ],
)
def test_a_noun_beside_its_count(noun: str, count: int, shown: str) -> None:
    assert pluralise(noun, count) == shown


@given(st.one_of(st.text(max_size=60), st.from_regex(r"[a-z' -]{1,30}s", fullmatch=True)))
@settings(max_examples=300, deadline=None)
def test_noun_helpers_take_any_text(text: str) -> None:
    assert pluralise(text, 1) == singularise(text)
    assert len(pluralise(text).split()) == len(text.lower().split())


def test_importing_the_parser_loads_no_library_and_no_torch() -> None:
    heavy = {"inflect", "text_to_num", "lemminflect", "numpy", "torch"}
    code = f"import sys, countgen.prompts; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_parsing_loads_neither_numpy_nor_what_lemminflect_imports() -> None:
    code = (
        "import sys; from countgen.prompts import parse_prompt; parse_prompt('two geese and 3 mice');"
        "print({'inflect', 'lemminflect', 'spacy', 'numpy', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
