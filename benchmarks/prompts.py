"""How often prompts are read right, and how long the worst of them takes.

python -m benchmarks.prompts --json                                the tests' own prompts, and the times
python -m benchmarks.prompts --json --list geneval=PATH ...        public lists too, from local copies

Lists are read in their publishers' formats: GenEval and GenEval 2 (jsonl), CoCoCount, CoCoCount-E, ATHENA
and TIFA (json), GeckoNum, HRS counting and DSG (csv), PartiPrompts (tsv), and a prompt a line (txt). Where a
list says what its prompts count, ``right`` is the number of them whose true counts were all found, each under
a noun with the same head, and ``extra`` the number that got a target beside these; for the others there are
only rates.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import re
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from countgen.prompts import CountPrompt, parse_prompt

DATA = Path(__file__).parents[1] / "tests/countgen/prompts/data"
LENGTH = 20_000
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
# What a reader of prompts may stumble over: alone, repeated, and in pairs and triples.
PIECES = [
    "two cats, ",
    "and ",
    ", ",
    "and a ",
    "one ",
    "1 ",
    "1,",
    "9",
    "a ",
    "a a ",
    "each ",
    "each other ",
    "of ",
    "two slices of ",
    "no cats or ",
    "or ",
    '"',
    "'",
    '"a" ',
    "'s ",
    "(",
    ")",
    "((a:1.3)) ",
    "(a:1",
    "<",
    "<a ",
    "--ar 1:1 ",
    "--",
    "-",
    "- ",
    "3x ",
    "x3 ",
    "x ",
    "2girls, ",
    "red and ",
    "red, ",
    "red, shiny ",
    "green, white, and gold ",
    "three ",
    "dozen ",
    "half a ",
    "pair of ",
    "a pair of scissors ",
    "between 1 and ",
    "1-2 ",
    "1/2 ",
    "½",
    "ﷺ",
    "🍎",
    "5 🍎 ",
    "U.S. ",
    "Dr. ",
    "p.m. ",
    "girls' ",
    "to ",
    "to 5 ",
    "than ",
    "more than 3 ",
    "at least ",
    "set of ",
    ": 3 ",
    "cats: 3, ",
    "twenty ",
    "hundred ",
    "million ",
    "point ",
    "minus ",
    "+ ",
    "a cup of ",
    "in a single ",
    "cat sit ",
    "one cat sits ",
    "holding ",
    "is ",
    "but one ",
    ".",
    "!",
    "two, ",
    "a.b.",
    "1:2:",
    "a-",
    "a'",
    "_",
    "two_",
    "\\t",
    "é",
    "٣ ",
    "seven red apples on a table and ",
]


@dataclass(frozen=True)
class Row:
    """A prompt, and its true nouns and counts where the list knows them."""

    text: str
    wanted: list[tuple[str, int]] | None = None


def read_list(path: Path) -> list[Row]:
    """Read a public list in whatever form it has.

    Raises ValueError, naming file and line, for a row that cannot be read.
    """
    readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".tsv": _tsv, ".txt": _txt}
    if path.suffix not in readers:
        raise ValueError(
            f"{path}: the format {path.suffix!r} is not known; there are {', '.join(readers)}"
        )
    rows: list[Row] = []
    reading = readers[path.suffix](path)
    while True:
        try:
            rows.append(next(reading))
        except StopIteration:
            return rows
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise ValueError(f"{path}, row {len(rows) + 1}: {error!r}") from error


def _jsonl(path: Path) -> Iterator[Row]:
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if "include" in row:  # GenEval: only the rows on counting name numbers
            counted = [(kind["class"], kind["count"]) for kind in row["include"]]
            yield Row(row["prompt"], counted if row["tag"] == "counting" else [])
        elif "vqa_list" in row:
            yield Row(row["prompt"], _asked(row["vqa_list"]))
        else:
            targets = row.get("targets")
            wanted = None if targets is None else [(t["noun"], t["count"]) for t in targets]
            yield Row(row.get("text") or row["prompt"], wanted)


def _asked(questions: list[list[str]]) -> list[tuple[str, int]]:
    """GenEval 2 asks how many there are; a prompt of single things only has no number."""
    wanted = []
    for question, answer in questions:
        asked = re.fullmatch(r"How many (.+) are in the image\?", question)
        if asked:
            wanted.append((asked[1], NUMBERS.index(answer) + 1))
    return wanted if any(count > 1 for _, count in wanted) else []


def _json(path: Path) -> Iterator[Row]:
    for row in json.loads(path.read_text(encoding="utf-8")):
        if "int_number" in row:
            yield Row(row["prompt"], [(row["object"], row["int_number"])])
        else:
            yield Row(row["caption"])


def _csv(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        seen = set()
        for row in csv.DictReader(file):
            if "entities" in row:
                yield Row(row["prompt"], _entities(row))
            elif "synthetic_prompt" in row:
                pairs = [(row["obj1"], int(row["n1"])), (row["obj2"], int(row["n2"]))]
                yield Row(row["synthetic_prompt"], [pair for pair in pairs if pair[0]])
            elif row["text"] not in seen:
                seen.add(row["text"])
                yield Row(row["text"])


def _entities(row: dict[str, str]) -> list[tuple[str, int]] | None:
    """GeckoNum; its vague and fractional prompts have no whole numbers to compare with."""
    if not row["prompt_type"].startswith(("numeric", "2-additive", "3-additive", "attribute")):
        return None
    pairs = [entity.rsplit(":", 1) for entity in row["entities"].split(",")]
    return [(noun, int(count)) for noun, count in pairs]


def _tsv(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            yield Row(row["Prompt"])


def _txt(path: Path) -> Iterator[Row]:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip():
            yield Row(line.strip())


def figures(rows: list[Row]) -> dict[str, Any]:
    """Count what was read, and what was read right."""
    parsed = [parse_prompt(row.text) for row in rows]
    known = [
        (row.wanted, prompt)
        for row, prompt in zip(rows, parsed, strict=True)
        if row.wanted is not None
    ]
    found: dict[str, Any] = {
        "prompts": len(rows),
        "with_targets": sum(bool(prompt.targets) for prompt in parsed),
        "with_notes": sum(bool(prompt.notes) for prompt in parsed),
    }
    if known:
        found["known"] = len(known)
        found["right"] = sum(_found(wanted, prompt) for wanted, prompt in known)
        found["extra"] = sum(len(prompt.targets) > len(wanted) for wanted, prompt in known)
    return found


def _found(wanted: list[tuple[str, int]], prompt: CountPrompt) -> bool:
    """Say whether each true count was found under a noun with the same head."""
    left = list(prompt.targets)
    for noun, count in wanted:
        heads = _heads(noun)
        match = next((t for t in left if t.count == count and heads & _heads(t.noun)), None)
        if match is None:
            return False
        left.remove(match)
    return bool(wanted) or not prompt.targets


def _heads(noun: str) -> set[str]:
    """The head of a noun phrase in the forms that lists write; of "slice of pizza", "pizza" too."""
    heads = set()
    for part in (noun.lower().split(" of ")[0], noun.lower().split(" of ")[-1]):
        word = part.split()[-1] if part.split() else ""
        heads |= {word, word.removesuffix("s"), word.removesuffix("es")}
        heads |= {word[:-3] + "y"} if word.endswith("ies") else set()
        heads |= {word[:-3] + end for end in ("f", "fe")} if word.endswith("ves") else set()
    return heads | {"person"} if heads & {"people", "person"} else heads


def exact(path: Path) -> dict[str, Any]:
    """The tests' own rows, where noun and count must be equal; halves by line, the even one held out."""
    rows = read_list(path)
    right = [
        [(t.noun, t.count) for t in parse_prompt(row.text).targets] == row.wanted for row in rows
    ]
    return {
        "prompts": len(rows),
        "right": sum(right),
        "right_odd_lines": sum(right[::2]),
        "right_even_lines": sum(right[1::2]),
        "missed": [row.text for row, ok in zip(rows, right, strict=True) if not ok],
    }


def slowest(rounds: int, seed: int = 0) -> dict[str, Any]:
    """Search for texts of 20,000 characters that take long.

    Every piece is repeated, then random pairs and triples, then changes of the five slowest; while searching,
    a text's seconds are the least of two runs.
    """
    rng = random.Random(seed)
    tried = {piece: _seconds(piece) for piece in PIECES}
    for _ in range(rounds):
        piece = "".join(rng.choices(PIECES, k=rng.choice((2, 2, 3))))
        tried[piece] = _seconds(piece)
    for _ in range(rounds):
        start = rng.choice(sorted(tried, key=tried.__getitem__, reverse=True)[:5])
        piece = start + rng.choice(PIECES) if rng.random() < 0.5 else rng.choice(PIECES) + start
        tried[piece] = _seconds(piece)
    worst = max(tried, key=tried.__getitem__)
    again = [_seconds(worst, 1) for _ in range(5)]
    half, full = _seconds(worst, 3, LENGTH // 2), _seconds(worst, 3)
    return {
        "tried": len(tried),
        "characters": LENGTH,
        "worst": worst,
        "seconds": {"median": statistics.median(again), "min": min(again), "max": max(again)},
        "seconds_over_those_of_half_the_length": full / half,
        "median_over_all": statistics.median(tried.values()),
    }


def _seconds(piece: str, runs: int = 2, length: int = LENGTH) -> float:
    text = (piece * (length // len(piece) + 1))[:length]
    took = []
    for _ in range(runs):
        start = time.perf_counter()
        parse_prompt(text)
        took.append(time.perf_counter() - start)
    return min(took)


def run(lists: dict[str, Path], rounds: int) -> dict[str, Any]:
    """The whole document."""
    parse_prompt("two cats")  # loads the lexicon
    return {
        "cases": exact(DATA / "cases.jsonl"),
        "captions": exact(DATA / "captions.jsonl"),
        "lists": {name: figures(read_list(path)) for name, path in lists.items()},
        "slowest": slowest(rounds),
    }


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(
        "--list", action="append", default=[], metavar="NAME=PATH", help="a public list"
    )
    parser.add_argument(
        "--rounds", type=int, default=200, help="texts tried in each search for slow ones"
    )
    options = parser.parse_args()
    try:
        lists = {
            name: Path(path) for name, _, path in (item.partition("=") for item in options.list)
        }
        document = run(lists, options.rounds)
    except (ValueError, OSError) as error:
        print(f"benchmarks.prompts: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(document, indent=1, ensure_ascii=False))
        return 0
    for name, found in {
        **{k: document[k] for k in ("cases", "captions")},
        **document["lists"],
    }.items():
        print(
            name, *(f"{key} {value}" for key, value in found.items() if key != "missed"), sep="  "
        )
    print("slowest", *(f"{key} {value}" for key, value in document["slowest"].items()), sep="  ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
