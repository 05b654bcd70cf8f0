"""Generated pictures counted by eye, and how far every pocket counter agrees with the eye.

    python -m benchmarks.pocket_labels --make DIR   draw the pictures and sheets to count them on
    python -m benchmarks.pocket_labels --json       score the counters against the committed labels

The pictures are plain draws of the pocket generator, stratified by count and number of kinds. They are to be
counted on enlarged sheets that name the kinds but not the counts asked for, before any counter sees them, in
two independent readings; the committed ones are by a vision-language model. A kind that either reading cannot
count (objects run together, or are not recognisable) is null, "cannot say"; where two numbers differ, a third
look decides. Labels are lines of ``labels/labels.jsonl``: the rows of ``plan()`` with ``counts``, noun to
number or null.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from benchmarks.plain import Plain
from countgen.evaluation.statistics import wilson
from countgen.pipeline import to_pil
from countgen.pocket import ROLES, load_critic
from countgen.pocket.captions import caption
from countgen.pocket.scenes import SceneSpec
from countgen.pocket.train import counted
from countgen.pocket.world import BACKGROUNDS, NAMES, NOUNS, SIZE
from countgen.seeds import image_seed

FOLDER = Path(__file__).parent / "labels"
SEED = 80
"""Of the labelled pictures; other seeds give other pictures of the same plan."""
SHEET = (3, 2)
ZOOM = 8


def plan(seed: int = SEED) -> list[dict[str, Any]]:
    """320 prompts: every count from 1 to 20 ten times for one kind, 70 of two kinds, 50 of three."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []

    def add(targets: Iterable[tuple[str, int]]) -> None:
        ground = str(rng.choice(list(BACKGROUNDS))) if rng.random() < 0.7 else None
        spec = SceneSpec(tuple(targets), ground)
        number = len(rows)
        rows.append(
            {
                "id": f"label-{number:03d}",
                "prompt": caption(spec, rng),
                "asked": dict(spec.counts),
                "seed": image_seed(seed, f"label-{number:03d}"),
                "kinds": len(spec.counts),
            }
        )

    for i in range(200):
        add([(NAMES[(i * 7 + i // 16) % len(NAMES)], 1 + i % 20)])
    for kinds, number in ((2, 70), (3, 50)):
        for _ in range(number):
            total = int(rng.integers(kinds, 19))
            cuts = np.sort(rng.choice(np.arange(1, total), size=kinds - 1, replace=False))
            counts = np.diff(np.concatenate([[0], cuts, [total]]))
            nouns = rng.permutation(NAMES)[:kinds]
            add([(str(n), int(c)) for n, c in zip(nouns, counts, strict=True)])
    return rows


def make(folder: Path, seed: int = SEED) -> None:
    """Draw the pictures into atlases, and the sheets to count them on."""
    folder.mkdir(parents=True, exist_ok=True)
    plain, rows = Plain(), plan(seed)
    pictures = []
    for start in range(0, len(rows), 16):
        part = rows[start : start + 16]
        drawn = plain.render([row["prompt"] for row in part], [row["seed"] for row in part])
        pictures += [to_pil(picture) for picture in drawn]
    counted.write_atlases(folder, pictures)
    order = np.random.default_rng(seed + 1).permutation(len(rows))
    across, down = SHEET
    side = SIZE * ZOOM
    for start in range(0, len(order), across * down):
        sheet = Image.new("RGB", (across * (side + 8), down * (side + 24)), "white")
        pen = ImageDraw.Draw(sheet)
        for i, index in enumerate(order[start : start + across * down]):
            x, y = i % across * (side + 8), i // across * (side + 24)
            tile = pictures[index].resize((side, side), Image.Resampling.BICUBIC)
            sheet.paste(tile, (x, y + 20))
            kinds = ", ".join(NOUNS[NAMES.index(noun)].plural for noun in rows[index]["asked"])
            pen.text((x + 4, y + 4), f"#{index}: {kinds}", fill="black")
        sheet.save(folder / f"sheet-{start // (across * down):02d}.png")


def load() -> tuple[list[dict[str, Any]], torch.Tensor]:
    """The committed labels and their pictures, (n, 3, h, w) in [0, 1].

    Raises:
        FileNotFoundError: nothing has been labelled yet.
    """
    if not (FOLDER / "labels.jsonl").exists():
        raise FileNotFoundError(
            f"{FOLDER.name}/labels.jsonl is missing: draw the pictures with --make {FOLDER.name} "
            "and count them"
        )
    return counted.load(FOLDER)


def score() -> dict[str, Any]:
    """Agreement of every counter with the labels, by picture and by kind."""
    rows, pictures = load()
    sayable = counted.sayable(rows)
    truly = [rows[i]["counts"] == rows[i]["asked"] for i in sayable]
    report: dict[str, Any] = {
        "command": "python -m benchmarks.pocket_labels --json",
        "pictures": len(rows),
        "sayable": len(sayable),
        "exact_by_eye": sum(truly),
        "counters": {},
    }
    for role, name in ROLES.items():
        critic = load_critic(name)
        says: list[dict[str, int]] = []
        for start in range(0, len(rows), 64):
            part = rows[start : start + 64]
            queries = [critic.prepare(list(row["asked"])) for row in part]
            with torch.no_grad():
                hard = critic(pictures[start : start + 64], queries).hard
            for row, counts in zip(part, hard.tolist(), strict=True):
                says.append(dict(zip(row["asked"], counts, strict=False)))
        same = [says[i] == rows[i]["counts"] for i in sayable]
        exact = [says[i] == rows[i]["asked"] for i in sayable]
        hits = sum(e and t for e, t in zip(exact, truly, strict=True))
        rejected = sum(not e and not t for e, t in zip(exact, truly, strict=True))
        small = [
            s for s, i in zip(same, sayable, strict=True) if sum(rows[i]["asked"].values()) <= 10
        ]
        errors = [
            says[i][noun] - count
            for i, row in enumerate(rows)
            for noun, count in row["counts"].items()
            if count is not None
        ]
        report["counters"][name] = {
            "role": role,
            "agrees": share(sum(same), len(same)),
            "agrees_up_to_10_asked": share(sum(small), len(small)),
            "agrees_per_kind": share(sum(e == 0 for e in errors), len(errors)),
            "mae_per_kind": round(float(np.abs(errors).mean()), 3),
            "bias_per_kind": round(float(np.mean(errors)), 3),
            "sensitivity": share(hits, sum(truly)),
            "specificity": share(rejected, len(truly) - sum(truly)),
        }
    return report


def share(successes: int, trials: int) -> dict[str, Any]:
    low, high = wilson(successes, trials)
    return {
        "share": round(successes / max(trials, 1), 4),
        "ci95": [round(low, 4), round(high, 4)],
        "of": trials,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--make", type=Path, metavar="DIR", help="draw the pictures into a folder")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    if options.make:
        make(options.make)
        print(os.path.relpath(options.make))
        return 0
    try:
        print(json.dumps(score(), indent=None if options.json else 1))
    except FileNotFoundError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
