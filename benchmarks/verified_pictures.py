"""What a user trusts, looked at: verified pictures of a run, counted by eye in two blind readings.

    python -m benchmarks.verified_pictures --make DIR --run RUNS    sheets of pictures of a run
    python -m benchmarks.verified_pictures --json --run RUNS        what was seen, beside the counters' words
    python -m benchmarks.verified_pictures --doubted FILE --run RUNS   verified pictures that the judge doubts

RUNS is the folder of ``benchmarks.pocket_suites``. Verified pictures of the engine are taken at random from
the hard third, and pictures of it that are not verified are mixed in among them, so that who reads cannot
take any for right. The sheets name the kinds, but neither the counts asked for, the method, nor which is
which. The two readings are by a vision-language model, not by a person, and were made apart from each
other, before any counter was asked. A line of ``labels/verified_pictures.N.jsonl`` has the ``number`` of a
picture and ``eye``, noun to number, null where the reader cannot say. A picture is *what it says* where
both readings count what was asked for, *wrong* where both count something else or differ from it, and
*open* where the readings differ or cannot say.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.looked_at import share, sheets
from countgen.evaluation.reading import read_run
from countgen.evaluation.runs import Row, picture_file
from countgen.pocket.suites import hard_ids
from countgen.pocket.world import SIZE

LABELS = Path(__file__).parent / "labels"
READINGS = (1, 2)
VERIFIED, OTHERS = 200, 40
ZOOM = 6
SEED = 2_811


def pictures(runs: Path) -> list[Row]:
    """The rows that are looked at, numbered in the order of the sheets: a random draw, the same each time."""
    hard = set(hard_ids())
    rows = [
        row | {"run": run.name}
        for run in sorted(path for path in runs.glob("pocket-*") if path.is_dir())
        for row in read_run(run).rows
        if row["method"] == "engine" and row["id"] in hard
    ]
    rows.sort(key=lambda row: (row["id"], row["image"]))
    rng = np.random.default_rng(SEED)
    chosen: list[Row] = []
    for verified, most in ((True, VERIFIED), (False, OTHERS)):
        of_kind = [row for row in rows if bool(row["verified"]) == verified]
        chosen += [of_kind[i] for i in rng.permutation(len(of_kind))[:most]]
    return [chosen[i] | {"number": number} for number, i in enumerate(rng.permutation(len(chosen)))]


def doubted(runs: Path) -> Image.Image:
    """Verified pictures of the engine that the judge counts otherwise, those of the hard third and others."""
    rows = [
        row | {"run": run.name}
        for run in sorted(path for path in runs.glob("pocket-*") if path.is_dir())
        for row in read_run(run).rows
        if row["method"] == "engine" and row["verified"] and row["judge"] != row["wanted"]
    ]
    across, side, line = 5, 3 * SIZE, 18
    down = -(-len(rows) // across)
    sheet = Image.new("RGB", (across * (side + 8), down * (side + 2 * line + 10)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for place, row in enumerate(rows):
        x, y = place % across * (side + 8), place // across * (side + 2 * line + 10)
        with Image.open(picture_file(runs / row["run"], row)) as file:
            sheet.paste(file.resize((side, side), Image.Resampling.BICUBIC), (x, y))
        for number, (noun, wanted, judge) in enumerate(
            (n, w, j)
            for n, w, j in zip(row["nouns"], row["wanted"], row["judge"], strict=True)
            if w != j
        ):
            told = f"{wanted} {noun}; judge: {judge}"
            pen.text((x, y + side + 2 + number * line), told, fill="black", font=font)
    return sheet


def read(rows: Sequence[Row], reading: int) -> list[list[int | None]]:
    """What one reading counts in every picture, in the order of its nouns.

    Raises:
        ValueError: a picture without a line, a line without a picture, or other kinds than were asked for.
    """
    text = (LABELS / f"verified_pictures.{reading}.jsonl").read_text(encoding="utf-8")
    lines = {line["number"]: line["eye"] for line in map(json.loads, text.splitlines())}
    if set(lines) != {row["number"] for row in rows}:
        raise ValueError(f"reading {reading} is not of these {len(rows)} pictures")
    found = []
    for row in rows:
        eye = lines[row["number"]]
        if set(eye) != set(row["nouns"]):
            raise ValueError(f"reading {reading} of picture {row['number']} has other kinds")
        found.append([eye[noun] for noun in row["nouns"]])
    return found


def verdict(
    wanted: Sequence[int], first: Sequence[int | None], second: Sequence[int | None]
) -> str:
    """What two readings make of a picture."""
    if list(first) == list(second) == list(wanted):
        return "right"
    if None in first or None in second or list(first) != list(second):
        return "open"
    return "wrong"


def summary(table: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Shares of verdicts; of the open ones apart, and how the judge stands to the eye."""
    clear = [row for row in table if row["verdict"] != "open"]
    return {
        "pictures": len(table),
        "right": share([row["verdict"] == "right" for row in table]),
        "right_of_clear": share([row["verdict"] == "right" for row in clear]),
        "either_reading_right": share(
            [row["wanted"] in (row["first"], row["second"]) for row in table]
        ),
        "each_reading_right": [
            share([row[reading] == row["wanted"] for row in table if None not in row[reading]])
            for reading in ("first", "second")
        ],
        "open": sum(row["verdict"] == "open" for row in table),
        "wrong": sum(row["verdict"] == "wrong" for row in table),
        "judge_right": share([row["judge"] == row["wanted"] for row in table]),
        "judge_agrees_with_clear_eye": share([row["judge"] == row["first"] for row in clear]),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--make", type=Path, metavar="DIR", help="draw the sheets into a folder")
    parser.add_argument("--doubted", type=Path, metavar="FILE", help="draw what the judge doubts")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--run", type=Path, required=True, help="of benchmarks.pocket_suites")
    options = parser.parse_args()
    rows = pictures(options.run)
    if not rows:
        parser.error(f"{options.run} holds no pictures of the engine")
    if options.doubted:
        doubted(options.run).save(options.doubted, optimize=True)
        return 0
    if options.make:
        options.make.mkdir(parents=True, exist_ok=True)
        sheets(rows, lambda row: picture_file(options.run / row["run"], row), options.make, ZOOM)
        print(options.make)
        return 0
    readings = [read(rows, reading) for reading in READINGS]
    table = [
        {key: row.get(key) for key in ("number", "id", "image", "prompt", "nouns", "wanted")}
        | {key: row.get(key) for key in ("critic", "verifier", "judge", "verified", "tries")}
        | {"first": first, "second": second, "verdict": verdict(row["wanted"], first, second)}
        for row, first, second in zip(rows, *readings, strict=True)
    ]
    report = {
        "command": "python -m benchmarks.verified_pictures --json --run RUNS",
        "reader": "a vision-language model, not a person; two readings apart from each other",
        "verified": summary([row for row in table if row["verified"]]),
        "not_verified": summary([row for row in table if not row["verified"]]),
        "pictures": table,
    }
    print(json.dumps(report, indent=None if options.json else 1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
