"""What a prompt asks to be counted: a table of cases by risk, and properties over any text."""

from __future__ import annotations

import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from countgen.prompts import (
    MAX_COUNT,
    CountPrompt,
    number_word,
    parse_prompt,
    pluralise,
)
from critics.parts.vocabulary import COCO


def found(prompt: str) -> list[tuple[str, int]]:
    return [(t.noun, t.count) for t in parse_prompt(prompt).targets]


# --- prompts with counts -----------------------------------------------------------------------

COUNTED = {
    "numbers in words and digits": {
        "seven red apples on a table": [("red apple", 7)],
        "7 cats": [("cat", 7)],
        "Seven Cats": [("cat", 7)],
        "A Photo Of Seven Red Apples And Two Cats": [("red apple", 7), ("cat", 2)],
        "twenty-one birds": [("bird", 21)],
        "twenty one birds": [("bird", 21)],
        "a hundred balloons": [("balloon", 100)],
        "three hundred and five balloons": [("balloon", 305)],
        "one hundred and five and two cats": [("cat", 2)],
        "7 hundred balloons": [("balloon", 700)],
        "1,000 balloons": [("balloon", 1000)],
        "one cat": [("cat", 1)],
        "a single rose": [("rose", 1)],
        "\uff17 cats": [("cat", 7)],
        "\u0663 cats": [("cat", 3)],
        "exactly three cats": [("cat", 3)],
        "only one dog": [("dog", 1)],
        "the three kings on camels": [("king", 3)],
        "the first three dogs": [("dog", 3)],
        "all three cats": [("cat", 3)],
        "each of the two cats": [("cat", 2)],
        "3 cat": [("cat", 3)],
    },
    "groups": {
        "a pair of cats": [("cat", 2)],
        "three pairs of shoes": [("shoe", 6)],
        "two pairs of scissors": [("scissors", 2)],
        "a pair of scissors": [],
        "two pairs of glasses and two glasses": [("eyeglasses", 2), ("glass", 2)],
        "a pair of glasses and three books": [("eyeglasses", 1), ("book", 3)],
        "a pair of scissors and two forks": [("scissors", 1), ("fork", 2)],
        "a couple of dogs": [("dog", 2)],
        "a dozen red roses": [("red rose", 12)],
        "two dozen eggs": [("egg", 24)],
        "half a dozen eggs": [("egg", 6)],
        "a half dozen eggs": [("egg", 6)],
        "a trio of cats": [("cat", 3)],
        "a group of five people": [("person", 5)],
        "a couple kissing": [],
        "dozens of eggs": [],
        "hundreds of birds": [],
    },
    "none of something": {
        "no dogs": [("dog", 0)],
        "zero cats": [("cat", 0)],
        "a beach with no people": [("person", 0)],
        "two cats and no dog": [("cat", 2), ("dog", 0)],
        "no one": [],
        "no longer": [],
        "no text, no watermark": [],
        "a no smoking sign": [],
        "no more than three cats": [],
        "no two cats": [],
        "not one cat": [],
    },
    "several targets": {
        "seven red apples and two cats": [("red apple", 7), ("cat", 2)],
        "3 cats, 2 dogs and a bird": [("cat", 3), ("dog", 2), ("bird", 1)],
        "3 cats, 2 dogs, and a bird": [("cat", 3), ("dog", 2), ("bird", 1)],
        "four candles & two forks": [("candle", 4), ("fork", 2)],
        "5 cats.3 dogs": [("cat", 5), ("dog", 3)],
        "two cats\u2014three dogs": [("cat", 2), ("dog", 3)],
        "five tall trees under two clouds": [("tall tree", 5), ("cloud", 2)],
        "two red and three blue balls": [("red ball", 2), ("blue ball", 3)],
        "two dogs under no trees": [("dog", 2), ("tree", 0)],
    },
    "articles": {
        "an elephant and four bears": [("elephant", 1), ("bear", 4)],
        "a cat, a dog and three birds": [("cat", 1), ("dog", 1), ("bird", 3)],
        "a red and two blue cars": [("red car", 1), ("blue car", 2)],
        "two teddy bears and a hot dog": [("teddy bear", 2), ("hot dog", 1)],
        "two dogs and a man walking": [("dog", 2), ("man", 1)],
        "a cat": [],
        "a cat and a dog": [],
        "three cats on a table": [("cat", 3)],
        "two cats with a ball and a bone": [("cat", 2)],
        "a photo of a cat and two dogs": [("cat", 1), ("dog", 2)],
        "a man on a horse and two dogs": [("dog", 2)],
        "three cats, a wooden table, soft light": [("cat", 3)],
        "three cats and a blue background": [("cat", 3)],
        "three dogs and a lot of cats": [("dog", 3)],
        "two cats and a group of dogs": [("cat", 2)],
        "two cats, each with a hat, and three dogs": [("cat", 2), ("dog", 3)],
    },
    "where the noun ends": {
        "two dogs on the left": [("dog", 2)],
        "A photo of three cats": [("cat", 3)],
        "two small green apples": [("small green apple", 2)],
        "two big, red balls": [("big red ball", 2)],
        "two black and white cats": [("black and white cat", 2)],
        "three traffic lights": [("traffic light", 3)],
        "two sports balls": [("sports ball", 2)],
        "one sports ball": [("sports ball", 1)],
        "one red sports car": [("red sports car", 1)],
        "one dining table": [("dining table", 1)],
        "one office building in rain": [("office building", 1)],
        "one orange on a plate": [("orange", 1)],
        "one cat sleeping on a sofa": [("cat", 1)],
        "one cat sits on a mat": [("cat", 1)],
        "one apple placed on a plate": [("apple", 1)],
        "one small flying bird": [("small flying bird", 1)],
        "three sheep grazing": [("sheep", 3)],
        "three samurai fighting": [("samurai", 3)],
        "two three-legged dogs": [("three-legged dog", 2)],
        "two 50mm lenses": [("50mm lens", 2)],
        "two 10-year-old boys": [("10-year-old boy", 2)],
        "3 women's shoes": [("women's shoe", 3)],
        "two t-shirts": [("t-shirt", 2)],
        "two slices of pizza on a plate": [("slice of pizza", 2)],
        "two glasses of wine": [("glass", 2)],
        "three more cats": [("cat", 3)],
        "(seven cats:1.3), masterpiece": [("cat", 7)],
    },
    "plurals": {
        "two men and five children": [("man", 2), ("child", 5)],
        "three mice, four geese and six knives": [("mouse", 3), ("goose", 4), ("knife", 6)],
        "four octopuses": [("octopus", 4)],
        "two buses": [("bus", 2)],
        "a photo of four benchs": [("bench", 4)],
        "a photo of two knifes": [("knife", 2)],
        "a photo of four sheeps": [("sheep", 4)],
        "a photo of three persons": [("person", 3)],
        "a photo of four sandwichs": [("sandwich", 4)],
        "a photo of two toothbrushs": [("toothbrush", 2)],
        "three people dancing": [("person", 3)],
        "Snow White and the seven dwarfs": [("dwarf", 7)],
    },
    "numbers before what is no noun": {
        "two robots, one holding a lamp": [("robot", 2)],
        "three people, two wearing hats and one waving": [("person", 3)],
        "five balls, three red and two blue": [("ball", 5)],
        "six chairs, one of them broken": [("chair", 6)],
        "a lamp on one side and a plant on the other": [],
        "a crane standing on one leg": [],
        "two playing cards on a table": [("playing card", 2)],
        "three smiling children": [("smiling child", 3)],
    },
    "members of what is counted": {
        "two people, a man and a woman": [("person", 2)],
        "three zebras, two adults and a calf": [("zebra", 3)],
        "five jars: two red jars, and three lamps": [("jar", 5)],
        "three plates, but one plate is cracked": [("plate", 3)],
        "two chairs in a room, with one chair behind the other": [("chair", 2)],
        "two cats, one dog and one bird": [("cat", 2), ("dog", 1), ("bird", 1)],
        "two birds, one person and one bowl": [("bird", 2), ("person", 1), ("bowl", 1)],
        "three hens, four women, two lemons and one sink": [
            ("hen", 3),
            ("woman", 4),
            ("lemon", 2),
            ("sink", 1),
        ],
    },
    "verbs and adverbs behind the noun": {
        "one hen and one goat stand by a gate": [("hen", 1), ("goat", 1)],
        "one hot dog stand": [("hot dog stand", 1)],
        "a pair of swans glides": [("swan", 2)],
        "two goods trains": [("goods train", 2)],
        "two girls dresses": [("girls dress", 2)],
        "two men fish": [("man", 2)],
        "one cup full of tea": [("cup", 1)],
        "one snow covered mountain": [("snow covered mountain", 1)],
        "one bird crossed paths with a cat": [("bird", 1)],
        "one man and one woman share an umbrella": [("man", 1), ("woman", 1)],
        "two bears read two books": [("bear", 2), ("book", 2)],
        "a sign reads 12 above two doors": [("door", 2)],
    },
    "adjectives in a row": {
        "three sleek, modern lamps": [("sleek modern lamp", 3)],
        "two green, white, and gold banners": [("green white and gold banner", 2)],
        "two weatherworn, lopsided and creaky doors": [
            ("weatherworn lopsided and creaky door", 2),
        ],
        "one red, shiny apple": [("red shiny apple", 1)],
        "two salmon, a lemon and a knife": [("salmon", 2), ("lemon", 1), ("knife", 1)],
        "one orange, a pear and two plums": [("orange", 1), ("pear", 1), ("plum", 2)],
        "2 dogs, red ball, green grass": [("dog", 2)],
    },
    "places and containers": {
        "in front of a house and two cows": [("cow", 2)],
        "in the middle of a meadow and two cows": [("cow", 2)],
        "two cats to the left of a car, and three birds": [("cat", 2), ("car", 1), ("bird", 3)],
        "a cup of cocoa and two cookies": [("cup", 1), ("cookie", 2)],
        "six cones in a single row": [("cone", 6)],
        "a horse clears ten hurdles in one leap": [("hurdle", 10)],
        "only one slice of cake left": [("slice of cake", 1)],
        "a photo from 1932 of two miners": [("miner", 2)],
        "two mice peek out of two boxes": [("mouse", 2), ("box", 2)],
        "none out of seven": [],
        "six people around one table": [("person", 6), ("table", 1)],
        "a dog leaps over fifty hurdles": [("hurdle", 50)],
    },
    "units that are things": {
        "six side tables": [("side table", 6)],
        "two time machines": [("time machine", 2)],
        "five day lilies": [("day lily", 5)],
        "five 5 dollar bills": [],
        "two long days": [],
        "three square meters": [],
        "three parking meters": [("parking meter", 3)],
        "one evening, two foxes": [("fox", 2)],
        "three kids' bikes": [("kids' bike", 3)],
        "five U.S. flags": [("u.s. flag", 5)],
        "two trash cans and one tin can": [("trash can", 2), ("tin can", 1)],
    },
    "names with numbers": {
        "2024 calendar with three cats": [("cat", 3)],
        "four Formula 1 cars": [("formula 1 car", 4)],
        "three iPhone 15 phones": [("iphone 15 phone", 3)],
        "7 p.m., three birds": [("bird", 3)],
        "three 747s": [("747", 3)],
        "rider number 9 and 14 race": [],
    },
    "markup and tags": {
        "3x cats": [("cat", 3)],
        "3 \u00d7 cats": [("cat", 3)],
        "cats x 3": [("cat", 3)],
        "cats x3, sofa": [("cat", 3)],
        "cats: 3, dogs: 2": [("cat", 3), ("dog", 2)],
        "steps: 20, cats: 3": [("cat", 3)],
        "napkins, set of 4": [("napkin", 4)],
        "four (4) cats": [("cat", 4)],
        "(seven:1.3) red apples": [("red apple", 7)],
        "((two cats)), <lora:cats:0.7>, two dogs": [("cat", 2), ("dog", 2)],
        "2girls, 1boy": [("girl", 2), ("boy", 1)],
        "2 dogs + 1 cat": [("dog", 2), ("cat", 1)],
        "3 'Delphi' chairs": [("delphi chair", 3)],
        'a sign that says "two dogs"': [],
        "7 \U0001f34e": [("red apple", 7)],
        "two \U0001f431 and one \U0001f436": [("cat", 2), ("dog", 1)],
        "4\ufe0f\u20e3 cats": [("cat", 4)],
        "two cats --ar 3:2 --v 6": [("cat", 2)],
        "a park bench - 3 red apples": [("red apple", 3)],
        "no cats or dogs": [("cat", 0), ("dog", 0)],
        "no cats, dogs or birds": [("cat", 0), ("dog", 0), ("bird", 0)],
        "no cats, two dogs": [("cat", 0), ("dog", 2)],
    },
    "the same noun again": {
        "two cats on the left and three cats on the right": [("cat", 5)],
        "two cats on the left, three cats on the right": [("cat", 5)],
        "two cats on a mat and two cats on a sofa": [("cat", 4)],
        "seven cats, seven cats, masterpiece": [("cat", 7)],
        "Two cats on a sofa. The two cats are black.": [("cat", 2)],
        "two red apples and three green apples": [("red apple", 2), ("green apple", 3)],
    },
}


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        pytest.param(prompt, expected, id=f"{risk}: {prompt}")
        for risk, cases in COUNTED.items()
        for prompt, expected in cases.items()
    ],
)
def test_counted_nouns(prompt: str, expected: list[tuple[str, int]]) -> None:
    assert found(prompt) == expected


# Every one of these has a number that counts nothing, and nothing to tell the user about it.
UNCOUNTED = """
a 1980s car|a car from 1984|a 1984 car|nineteen eighty four cars|2020-05-05|the 1984 olympics
room 7|in room 7 cats sleep|number 5|number five|no. 5 perfume|chapter seven ends|iphone 14
a photo of Boeing 747 planes|007 agents|the second dog|1st place|the twenty-first bird
one of the three kings|one of three kings|three of them|none of the two cats|out of seven cats
10 years old|a 10 year old boy|five minutes later|4k photo|3d render|50mm lens|50 mm lens
at 7 pm|7:30 clock|7 o'clock|100 km road|16:9 --ar 16:9 --v 5|2 x 4 planks|512x512 pixels
$5 bill|5 dollars|3 million dollar houses|50% off|50 percent gray|two thirds of a cake
three quarters full|seven feet tall man|a three legged dog|three-legged dog|a 7 course meal
five star hotel|four leaf clover|two story house|no one here|this one cat|another one|one by one
a view from two angles|one two three go|often|someone alone
a|no|and|a seven|3 times|\u0000
""".strip().replace("\n", "|")


@pytest.mark.parametrize("prompt", UNCOUNTED.split("|"))
def test_numbers_that_count_nothing(prompt: str) -> None:
    assert parse_prompt(prompt) == CountPrompt(prompt, (), ())


@pytest.mark.parametrize(
    ("prompt", "expected", "note"),
    [
        ("10,000 balloons", [], "10000 is too many"),
        ("10 000 balloons", [], "10000 is too many"),
        ("1001 cats and two dogs", [("dog", 2)], "1001 is too many"),
        ("a million stars", [], "1000000 is too many"),
        ("9" * 5000 + " cats", [], "too many"),
        ("600 cats on the left and 600 cats on the right", [], "1200 is too many"),
        ("1.5 apples", [], "1.5 is not a whole number"),
        ("three point five apples", [], "3.5 is not a whole number"),
        ("1/2 apple", [], "1/2 is not a whole number"),
        ("\u00bd apple", [], "1/2 is not a whole number"),
        ("2\u00bd apples", [], "1/2 is not a whole number"),
        ("two and a half apples", [], "not a whole number"),
        ("3 to 5 cats", [], "range"),
        ("3-5 cats", [], "range"),
        ("3\u20135 cats", [], "range"),
        ("two or three cats", [], "range"),
        ("between 3 and 5 cats", [], "range"),
        ("more than three cats", [], "not an exact count"),
        ("two groups of three people", [], "for each of several"),
        ("two bowls of three oranges", [("bowl", 2)], "for each of several"),
        ("three boys each holding two balloons", [("boy", 3)], "for each of several"),
        ("3 houses with 4 windows each", [("house", 3)], "for each of several"),
        ("Two cats on a sofa. One cat is black.", [("cat", 2)], "counted more than once"),
        ("seven", [], "'seven' counts nothing"),
        ("of the three", [], "'three' counts nothing"),
        ("a family of five posing", [], "'five' counts nothing"),
        ("a band of three playing on a stage", [], "'three' counts nothing"),
        ("-3 cats", [], "cannot be negative"),
        ("minus three cats", [], "cannot be negative"),
        ("<3 cats", [], "'<3' is not an exact count; write one whole number before 'cats'"),
        ("under five cats", [], "'under five' is not an exact count"),
        ("at least four cats", [], "'at least four' is not an exact count"),
        ("a shelf with over fifty books", [], "'over fifty' is not an exact count"),
        ("up to ten cats", [], "'up to ten' is not an exact count"),
        ("6+ cats", [], "'6+' is not an exact count"),
        ("three or more cats", [], "'three or more' is not an exact count"),
        ("three cats or more", [], "'three cats or more' is not an exact count"),
        ("a dozen or so eggs", [], "'a dozen or so' is not an exact count"),
        ("8 - 10 donuts", [], "'8 - 10' is a range; write one whole number before 'donuts'"),
        ("two candles per cake", [], "for each of several"),
        ("three apples in each of two boxes", [("box", 2)], "'3 apples' is a number for each"),
        ("12345678901234567890123 cats", [], "12345678901234567890123 is too many"),
        ("cats x 5000", [], "5000 is too many"),
        ("x " * 30_000, [], "first 20,000 characters"),
    ],
)
def test_what_is_left_out_is_noted_once(
    prompt: str, expected: list[tuple[str, int]], note: str
) -> None:
    parsed = parse_prompt(prompt)
    assert found(prompt) == expected
    assert [note in n for n in parsed.notes] == [True]
    assert parsed.notes[0].endswith(".")


def test_count_at_the_limit_is_kept() -> None:
    assert found(f"{MAX_COUNT} cats") == [("cat", MAX_COUNT)]


# --- any text ----------------------------------------------------------------------------------

PIECE_WORDS = """seven 7 two a an the of and , . one no pair dozen half couple each or to - x
hundred cats apples red slice slices group men on than more between 1/2 1,000 $5 9% o point second
sheep 's"""
HEBREW_CAT = "\u202e\u05d7\u05ea\u05d5\u05dc"
SIGNS = [
    "",
    "\n",
    "\x00",
    "\u00bd",
    "\ufdfa",
    "\ud800",
    HEBREW_CAT,
    "\U0001f408",
    "\ufe0f",
    "\u200d",
]
PIECES = st.sampled_from([*PIECE_WORDS.split(), *SIGNS])
ANY_TEXT = st.one_of(
    st.text(st.characters(), max_size=300),  # surrogates, controls and all scripts included
    st.lists(PIECES, max_size=60).map(" ".join),
    st.lists(PIECES, max_size=60).map("".join),
)


@given(ANY_TEXT)
@settings(max_examples=400, deadline=None)
@example("\ud800 two cats")  # text2num panics on surrogates
@example("two \u0130")
@example("a a a")
def test_any_text_parses_to_valid_distinct_targets_in_one_way(text: str) -> None:
    try:
        parsed = parse_prompt(text)
    except BaseException as error:  # a panic in Rust is no Exception
        pytest.fail(f"{text!r} raised {error!r}")
    nouns = [t.noun for t in parsed.targets]
    assert parsed.text == text
    assert len(set(nouns)) == len(nouns)
    assert all(0 <= t.count <= MAX_COUNT and t.noun.strip() for t in parsed.targets)
    assert parse_prompt(text) == parsed


@pytest.mark.parametrize(
    "piece", ["2 cats, ", "a ", " two slices of", "9", "each ", "1 ", "one ", "red and ", "\ufdfa"]
)
def test_very_long_text_parses(piece: str) -> None:
    text = (piece * 100_000)[:100_000]
    parsed = parse_prompt(text)
    assert parsed.text == text
    assert any("20,000 characters" in note for note in parsed.notes)


def calls(text: str) -> int:
    """How many functions are called while a text is parsed: work without a clock."""
    number = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal number
        number += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        parse_prompt(text)
    finally:
        sys.setprofile(None)
    return number


MARKUP = ["two cats, ", "2girls, ", "red, ", "(a:1", "((b:1.2)) ", "<", '"', "'", "s' ", ",", "x3 "]
MARKUP += [
    "each ",
    "one vanilla, ",
    "no cats or ",
    "a cup of ",
    "1 ",
    "\u0663 ",
    "5 \U0001f34e ",
    "of ",
]


@pytest.mark.slow
@given(st.lists(st.one_of(PIECES, st.sampled_from(MARKUP)), min_size=1, max_size=4).map("".join))
@settings(max_examples=40, deadline=None)
@example("2girls, ")
@example("red,,and ")
def test_work_grows_no_faster_than_the_text(piece: str) -> None:
    if not piece:
        return
    once = (piece * 600)[:600]
    parse_prompt(once + once)  # fills the caches
    assert calls(once + once) < 2.2 * calls(once) + 500


def test_long_text_is_not_cut_within_a_word() -> None:
    text = "x" * 19_990 + " 10 caterpillars"
    assert "10 cat" in text[:20_000]
    assert found(text) == []


@pytest.mark.parametrize("text", [None, 7, b"two cats", ["two cats"]])
def test_what_is_no_string_is_refused(text: object) -> None:
    with pytest.raises(TypeError, match="must be a string"):
        parse_prompt(text)  # type: ignore[arg-type]


NOUNS = [
    *COCO,
    *"""red apple|small green apple|child|man|goose|octopus|tomato|wolf|cherry|ox|tooth|fish|
    striped balloon|emoji|star|t-shirt|rubber duck|black cat|candle|leaf|box""".replace(
        "\n    ", ""
    ).split("|"),
]
TEMPLATES = [
    "{}",
    "a photo of {}",
    "A photo of {} on a wooden table.",
    "there are {} in the garden",
    "an oil painting of {}, 4k, highly detailed",
    "{} standing next to a house",
]


@given(
    counted=st.lists(
        st.tuples(st.sampled_from(NOUNS), st.integers(0, 200)),
        min_size=1,
        max_size=3,
        unique_by=lambda pair: pair[0],
    ),
    template=st.sampled_from(TEMPLATES),
    comma=st.sampled_from([", ", " and ", " with ", " next to "]),
    last=st.sampled_from([" and ", ", and ", " & ", " plus "]),
    in_words=st.booleans(),
)
@settings(max_examples=500, deadline=None)
def test_captions_are_read_back_exactly(
    counted: list[tuple[str, int]], template: str, comma: str, last: str, in_words: bool
) -> None:
    said = [f"{number_word(n) if in_words else n} {pluralise(noun, n)}" for noun, n in counted]
    listed = last.join([comma.join(said[:-1]), said[-1]]) if len(said) > 1 else said[0]
    assert found(template.format(listed)) == counted
