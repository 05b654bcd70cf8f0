"""Edited and guided pictures looked at: counts by eye against the judge, and what is wrong in them.

    python -m benchmarks.looked_at --make DIR           draw the pictures, and sheets to look at them on
    python -m benchmarks.looked_at --json --run DIR     the table of what was seen, beside the counters' words

Only pictures that were really edited, or really moved by a gradient, are taken, whether they came to be
verified or not, and plain ones of the same prompts are mixed in among them. The sheets name the kinds, but
neither the counts asked for nor the method, and are read before any counter is asked. The committed reading,
``labels/looked_at.jsonl``, is by a vision-language model, not by a person. A line has the name of the
``picture``, ``eye`` (noun to number; null: cannot say), ``marks`` out of ``MARKS``, and a ``remark``.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from countgen import CountGuidedPipeline
from countgen.engine.job import Job
from countgen.evaluation.runs import Row, picture_path
from countgen.evaluation.statistics import wilson
from countgen.pipeline import to_pil
from countgen.pocket import ROLES, load_critic
from countgen.pocket.suites import SuitePrompt, suite
from countgen.pocket.world import NAMES, NOUNS, SIZE

LABELS = Path(__file__).parent / "labels" / "looked_at.jsonl"
WANTED = {"edit": 60, "noise": 15, "reno": 15, "d2d": 15, "count-token": 15, "none": 30}
"""Pictures of each method."""
MARKS = ("seam", "half", "merged", "chimera", "blurred")
"""Edges that belong to no object; parts of an object; two run into one; one made of two kinds; no shape."""
SHEET, ZOOM = (3, 2), 8
SEED = 2_711


def prompts() -> list[SuitePrompt]:
    """Prompts of pocket-dev and pocket-small that ask for three objects or more, shuffled."""
    found = [
        prompt
        for name in ("pocket-dev", "pocket-small")
        for prompt in suite(name)
        if 3 <= sum(count for _, count in prompt.targets) <= 16
    ]
    return [found[i] for i in np.random.default_rng(SEED).permutation(len(found))]


def is_changed(job: Job, method: str) -> bool:
    """Whether what is kept was made by the method and is not one of its plain draws."""
    assert job.best is not None
    seen = job.best.record
    return method == "none" or seen.move == ("edit" if method == "edit" else "improve")


def drawn(
    pipeline: CountGuidedPipeline, method: str, wanted: int, budget: float
) -> Iterator[tuple[SuitePrompt, int, Job]]:
    """The first pictures that the method changed, over the prompts again and again."""
    several, found, image = prompts(), 0, 0
    while found < wanted:
        for start in range(0, len(several), 16):
            part = several[start : start + 16]
            run = pipeline.stream(
                [prompt.prompt for prompt in part],
                targets=[prompt.targets for prompt in part],
                prompt_ids=[f"{prompt.id}/{image}" for prompt in part],
                seed=SEED,
                guidance=method,
                budget=budget,
            )
            for _ in run:
                pass
            for prompt, job in zip(part, run.jobs, strict=True):
                if found < wanted and job.best is not None and is_changed(job, method):
                    found += 1
                    yield prompt, image, job
            if found == wanted:
                return
        image += 1


def make(folder: Path, budget: float) -> None:
    """Draw all pictures, and sheets of them in a random order."""
    folder.mkdir(parents=True, exist_ok=True)
    pipeline = CountGuidedPipeline.from_pretrained("pocket")
    for method, wanted in WANTED.items():
        for prompt, image, job in drawn(pipeline, method, wanted, budget):
            assert job.best is not None
            to_pil(job.best.image).save(picture_path(folder, method, prompt.id, image))
    sheets(
        pictures(folder),
        lambda row: picture_path(folder, row["method"], row["id"], row["image"]),
        folder,
    )


def pictures(folder: Path) -> list[Row]:
    """What was drawn, in the order of the sheets."""
    known = {prompt.id: prompt for prompt in prompts()}
    rows: list[Row] = []
    for path in sorted(folder.glob("*-pocket-*.png")):
        method, _, rest = path.stem.partition("-pocket-")
        name, _, image = f"pocket-{rest}".rpartition("-")
        rows.append(
            {
                "picture": path.stem,
                "method": method,
                "id": name,
                "image": int(image),
                "prompt": known[name].prompt,
                "nouns": [noun for noun, _ in known[name].targets],
                "wanted": [count for _, count in known[name].targets],
            }
        )
    order = np.random.default_rng(SEED + 1).permutation(len(rows))
    return [rows[i] | {"number": number} for number, i in enumerate(order)]


def sheets(
    rows: Sequence[Row], picture_of: Callable[[Row], Path], folder: Path, zoom: int = ZOOM
) -> None:
    """Sheets to look at: enlarged pictures with their numbers and the kinds in them, and nothing else."""
    across, down = SHEET
    side = SIZE * zoom
    for start in range(0, len(rows), across * down):
        sheet = Image.new("RGB", (across * (side + 8), down * (side + 24)), "white")
        pen = ImageDraw.Draw(sheet)
        for place, row in enumerate(rows[start : start + across * down]):
            x, y = place % across * (side + 8), place // across * (side + 24)
            with Image.open(picture_of(row)) as file:
                sheet.paste(file.resize((side, side), Image.Resampling.BICUBIC), (x, y + 20))
            kinds = ", ".join(NOUNS[NAMES.index(noun)].plural for noun in row["nouns"])
            pen.text((x + 4, y + 4), f"#{row['number']}: {kinds}", fill="black")
        sheet.save(folder / f"sheet-{start // (across * down):02d}.png")


def counted(rows: Sequence[Row], folder: Path) -> list[Row]:
    """The pictures with what every counter says of the saved file, and whether it is verified."""
    out = [dict(row) for row in rows]
    roles = {role: load_critic(name) for role, name in ROLES.items()}
    for start in range(0, len(out), 48):
        part = out[start : start + 48]
        images = torch.stack([_pixels(folder / f"{row['picture']}.png") for row in part])
        clear = torch.ones(len(part), dtype=torch.bool)
        for role, critic in roles.items():
            with torch.no_grad():
                found = critic(images, [critic.prepare(row["nouns"]) for row in part])
            if role != "judge":
                clear &= found.confidence.amin(-1) >= critic.card.min_confidence
            for row, hard in zip(part, found.hard.tolist(), strict=True):
                row[role] = hard[: len(row["nouns"])]
        for row, sure in zip(part, clear.tolist(), strict=True):
            row["verified"] = sure and row["critic"] == row["wanted"] == row["verifier"]
    return out


def _pixels(path: Path) -> torch.Tensor:
    with Image.open(path) as file:
        pixels = torch.from_numpy(np.asarray(file.convert("RGB")).copy())
    return pixels.permute(2, 0, 1).float() / 255


def share(values: Sequence[bool]) -> dict[str, Any]:
    low, high = wilson(sum(values), len(values))
    return {
        "share": round(sum(values) / len(values), 4) if values else None,
        "ci95": [round(low, 4), round(high, 4)],
        "of": len(values),
    }


def summary(table: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How often the eye can count, agrees with the judge, and finds what was asked for; and the marks."""
    sayable = [row for row in table if None not in row["eye"]]
    verified = [row for row in sayable if row["verified"]]
    marks = Counter(mark for row in table for mark in row["marks"])
    return {
        "pictures": len(table),
        "eye_can_count": share([None not in row["eye"] for row in table]),
        "judge_agrees_with_eye": share([row["judge"] == row["eye"] for row in sayable]),
        "exact_by_eye": share([row["eye"] == row["wanted"] for row in sayable]),
        "verified": sum(row["verified"] for row in table),
        "exact_by_eye_among_verified": share([row["eye"] == row["wanted"] for row in verified]),
        "judge_exact_among_verified": share(
            [row["judge"] == row["wanted"] for row in table if row["verified"]]
        ),
        "marks": {mark: marks[mark] for mark in MARKS},
        "without_marks": share([not row["marks"] for row in table]),
    }


def joined(rows: Sequence[Row], labels: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pictures with the judge's counts beside what was seen.

    Raises:
        ValueError: a label without its picture, a kind that the picture was not asked for, or a mark that is
            none.
    """
    by_name = {row["picture"]: row for row in rows}
    table: list[dict[str, Any]] = []
    for label in labels:
        row = by_name.get(label["picture"])
        if row is None or set(label["eye"]) != set(row["nouns"]):
            raise ValueError(f"label {label['picture']} does not fit the pictures drawn")
        if wrong := set(label["marks"]) - set(MARKS):
            raise ValueError(f"label {label['picture']} has the marks {wrong}, which are none")
        keys = ("picture", "method", "prompt", "nouns", "wanted", "critic", "verifier", "judge")
        table.append(
            {key: row.get(key) for key in keys}
            | {
                "eye": [label["eye"][noun] for noun in row["nouns"]],
                "verified": row["verified"],
                "marks": label["marks"],
                "remark": label["remark"],
            }
        )
    return table


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--make", type=Path, metavar="DIR", help="draw the pictures into a folder")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--run", type=Path, default=Path("runs/looked_at"), help="what was drawn")
    parser.add_argument("--budget", type=float, default=64.0, help="cap in plain renders a picture")
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    if options.make:
        make(options.make, options.budget)
        print(os.path.relpath(options.make))
        return 0
    rows = pictures(options.run)
    if not rows:
        parser.error(f"{options.run} holds no pictures; draw them with --make {options.run}")
    labels = [json.loads(line) for line in LABELS.read_text(encoding="utf-8").splitlines()]
    table = joined(counted(rows, options.run), labels)
    parts = {
        "edited": [row for row in table if row["method"] == "edit"],
        "guided": [row for row in table if row["method"] not in ("edit", "none")],
        "plain": [row for row in table if row["method"] == "none"],
    }
    report = {
        "command": f"python -m benchmarks.looked_at --make DIR --budget {options.budget:g} && "
        "python -m benchmarks.looked_at --json --run DIR",
        "reader": "a vision-language model, not a person; one reading",
        "summary": {name: summary(part) for name, part in parts.items() if part},
        "pictures": table,
    }
    print(json.dumps(report, indent=None if options.json else 1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
