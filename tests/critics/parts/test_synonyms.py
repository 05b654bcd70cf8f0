"""Nouns that a closed vocabulary lacks are offered by meaning, and only then by spelling."""

from __future__ import annotations

import pytest

from countgen.pocket.world import NAMES
from critics.base import UnknownNounError, look_up
from critics.parts.synonyms import by_meaning
from critics.parts.vocabulary import COCO

# Labels in the manner of Objects365, LVIS and Open Images, which name these things otherwise than COCO.
OBJECTS365 = [
    "Person",
    "Sneakers",
    "Couch",
    "Cup",
    "Dog",
    "Street Lights",
    "Cell Phone",
    "Trash bin Can",
]
LVIS = [
    "sofa",
    "mug",
    "cup",
    "puppy",
    "dog",
    "cellular telephone",
    "doughnut",
    "television set",
    "armchair",
]
OPEN_IMAGES = [
    "Woman",
    "Person",
    "Loveseat",
    "Coffee cup",
    "Mobile phone",
    "Motorcycle",
    "Studio couch",
]


@pytest.mark.parametrize(
    ("noun", "vocabulary", "name"),
    [
        ("sofa", COCO, "couch"),
        ("woman", COCO, "person"),
        ("mug", COCO, "cup"),
        ("puppy", COCO, "dog"),
        ("television", COCO, "tv"),
        ("smartphone", COCO, "cell phone"),
        ("taxi", COCO, "car"),
        ("old woman", COCO, "person"),
        ("red mugs", COCO, "cup"),
        ("children", COCO, "person"),
        ("mug", NAMES, "cup"),
        ("puppy", NAMES, "dog"),
        ("kitten", NAMES, "cat"),
        ("doughnut", NAMES, "donut"),
        ("rose", NAMES, "flower"),
        ("couch", LVIS, "sofa"),
        ("tv", LVIS, "television set"),
        ("donut", LVIS, "doughnut"),
        ("cell phone", LVIS, "cellular telephone"),
        ("woman", OBJECTS365, "Person"),
        ("sofa", OBJECTS365, "Couch"),
        ("trainers", OBJECTS365, "Sneakers"),
        ("streetlamp", OBJECTS365, "Street Lights"),
        ("motorbike", OPEN_IMAGES, "Motorcycle"),
        ("cell phone", OPEN_IMAGES, "Mobile phone"),
    ],
)
def test_the_name_that_means_the_same_comes_first(
    noun: str, vocabulary: list[str], name: str
) -> None:
    assert by_meaning(noun, vocabulary)[0] == name


def test_what_means_the_same_comes_before_what_it_is_a_kind_of() -> None:
    assert by_meaning("puppy", ["dog", "puppy"]) == ["puppy", "dog"]
    assert by_meaning("woman", OPEN_IMAGES)[0] == "Woman"


def test_a_word_too_broad_is_offered_its_kinds() -> None:
    assert by_meaning("vehicle", COCO) == ["car", "truck", "bus"]


@pytest.mark.parametrize("noun", ["", "  ", "dragon", "red", "xyzzy"])
def test_no_meaning_is_made_up(noun: str) -> None:
    assert by_meaning(noun, COCO) == []


@pytest.mark.parametrize(
    ("noun", "name", "not_offered"),
    [("sofa", "couch", "scissors"), ("mug", "cup", "mouse"), ("woman", "person", "bowl")],
)
def test_a_critic_offers_by_meaning(noun: str, name: str, not_offered: str) -> None:
    with pytest.raises(UnknownNounError, match=f"cannot see '{noun}'.*{name}") as raised:
        look_up([noun], COCO, "yolo")
    assert not_offered not in str(raised.value)


def test_a_slip_of_the_pen_is_still_mended_by_spelling() -> None:
    with pytest.raises(UnknownNounError, match="giraffe"):
        look_up(["girafe"], COCO, "yolo")
