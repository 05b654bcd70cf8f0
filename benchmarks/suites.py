"""The prompt suites of countgen's own, made anew: python -m benchmarks.suites [--check].

They are written to countgen/evaluation/prompts; --check only compares. Half of the nouns are classes of COCO
and half are not; half of the numbers are words and half digits; two thirds of the prompts name a place.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

from countgen.evaluation.suites import FOLDER
from countgen.prompts import number_word, pluralise

COCO = {
    "indoors": (
        "cup",
        "bowl",
        "book",
        "clock",
        "teddy bear",
        "wine glass",
        "apple",
        "donut",
        "orange",
    ),
    "outdoors": (
        "dog",
        "cat",
        "bird",
        "sheep",
        "cow",
        "elephant",
        "car",
        "bicycle",
        "kite",
        "horse",
    ),
}
OTHER = {
    "indoors": (
        "candle",
        "cookie",
        "lantern",
        "coin",
        "key",
        "pumpkin",
        "marble",
        "button",
        "sea shell",
    ),
    "outdoors": (
        "penguin",
        "butterfly",
        "balloon",
        "turtle",
        "mushroom",
        "tent",
        "fox",
        "rabbit",
        "snowman",
    ),
}
PLACES = {
    "indoors": ("on a wooden table", "on a white cloth", "on a shelf"),
    "outdoors": ("on the grass", "in front of a lake", "in a park"),
}
DENSE = {
    "indoors": (
        "apple",
        "orange",
        "donut",
        "cup",
        "book",
        "candle",
        "cookie",
        "coin",
        "button",
        "marble",
    ),
    "outdoors": (
        "bird",
        "sheep",
        "cow",
        "kite",
        "balloon",
        "penguin",
        "butterfly",
        "mushroom",
        "tent",
        "rabbit",
    ),
}


def low() -> Iterator[list[tuple[str, int]]]:
    """1 to 10 of one kind, twelve prompts each."""
    nouns = _decks("low", COCO, OTHER)
    for count in range(1, 11):
        for _ in range(12):
            yield [(next(nouns), count)]


def high() -> Iterator[list[tuple[str, int]]]:
    """11 to 30 of one kind, five prompts each, of things that come in such numbers."""
    nouns = _decks("high", DENSE, DENSE)
    for count in range(11, 31):
        for _ in range(5):
            yield [(next(nouns), count)]


def several() -> Iterator[list[tuple[str, int]]]:
    """Two kinds of 1 to 7, sixty prompts, and three kinds of 1 to 5, sixty prompts."""
    random_ = random.Random("several")
    for kinds, most in ((2, 7), (3, 5)):
        for number in range(60):
            where = ("indoors", "outdoors")[number % 2]
            both = random_.sample(COCO[where], 2) + random_.sample(OTHER[where], 1)
            nouns = random_.sample(both, kinds) if kinds == 3 else [both[0], both[2]]
            yield [(noun, random_.randint(1, most)) for noun in nouns]


SUITES = {"low-density": low, "high-density": high, "several-kinds": several}


def lines(name: str) -> Iterator[str]:
    """The suite's file, line by line."""
    random_ = random.Random(f"places of {name}")
    for number, targets in enumerate(SUITES[name]()):
        place = random_.choice(PLACES[_where(targets[0][0])])
        yield json.dumps(
            {
                "id": f"{name}-{number:03d}",
                "prompt": _phrase(targets, number // 2 % 2 == 0, place if number % 3 else ""),
                "targets": [{"noun": noun, "count": count} for noun, count in targets],
            }
        )


def _phrase(targets: list[tuple[str, int]], words: bool, place: str) -> str:
    parts = [
        f"{number_word(count) if words else count} {pluralise(noun, count)}"
        for noun, count in targets
    ]
    text = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return f"a photo of {text} {place}".strip()


def _where(noun: str) -> str:
    indoors = (*COCO["indoors"], *OTHER["indoors"], *DENSE["indoors"])
    return "indoors" if noun in indoors else "outdoors"


def _decks(name: str, *tables: dict[str, tuple[str, ...]]) -> Iterator[str]:
    """Nouns of the tables by turns, every one as often as the others."""
    random_ = random.Random(name)
    nouns = [[noun for place in table.values() for noun in place] for table in tables]
    decks: list[list[str]] = [[] for _ in nouns]
    while True:
        for deck, every in zip(decks, nouns, strict=True):
            if not deck:
                deck.extend(random_.sample(every, len(every)))
            yield deck.pop()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="compare with the files, write nothing"
    )
    check = parser.parse_args().check
    for name in SUITES:
        path, text = Path(FOLDER) / f"{name}.jsonl", "".join(f"{line}\n" for line in lines(name))
        if check and path.read_text(encoding="utf-8") != text:
            print(f"{path} is not what this recipe makes")
            return 1
        if not check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
