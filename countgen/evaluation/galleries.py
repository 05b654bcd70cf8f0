"""Sample pictures for a report: which ones, and each as data that a page can hold."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

from countgen.drawing import outlined
from countgen.errors import UsageError
from countgen.evaluation.metrics import ROLES, counted, is_exact, is_success
from countgen.evaluation.runs import Row, group, picture_file
from countgen.evaluation.trust import told as told_trust

SIDE = 224
"""Pixels of a sample."""
LARGEST = 64_000_000
"""Pixels of a picture that is still decoded."""


@dataclass(frozen=True)
class Sample:
    """A picture with boxes around what the critic counted.

    Attributes:
        source: a data URI.
        counts: role and what it counted.
    """

    source: str
    prompt: str
    label: str
    wanted: str
    counts: tuple[tuple[str, str], ...]
    note: str


def sure(row: Row) -> float:
    """Confidence of the counter that is least sure."""
    return min((row.get("confidence") or {"": 0.0}).values())


def distance(row: Row) -> int:
    """Objects too many or too few for the judge, over all nouns."""
    found = counted(row, "judge")
    return sum(abs(a - b) for a, b in zip(found or (), row["wanted"], strict=False))


def best(rows: Sequence[Row]) -> list[Row]:
    """Verified and exact for the judge, with most objects first, then the surest."""
    return sorted(
        (row for row in rows if is_success(row)), key=lambda row: (-sum(row["wanted"]), -sure(row))
    )


def worst(rows: Sequence[Row]) -> list[Row]:
    """What the judge finds farthest from what was wanted."""
    return sorted((row for row in rows if distance(row)), key=distance, reverse=True)


def disputed(rows: Sequence[Row]) -> list[Row]:
    """Verified, but not exact for the judge; then those on which critic and verifier disagree."""
    told_wrong = [row for row in rows if row["verified"] and not is_exact(row)]
    split = [
        row
        for row in rows
        if not row["verified"]
        and len({str(counted(row, role)) for role in ROLES if counted(row, role) is not None}) > 1
        and any(is_exact(row, role) for role in ROLES)
    ]
    return told_wrong + split


GALLERIES = (
    ("Best", "verified and exact for the judge; most objects first", best),
    ("Worst", "farthest from what was wanted, by the judge", worst),
    (
        "Disputed",
        "verified but not exact for the judge first, then counters that disagree",
        disputed,
    ),
)


def samples(rows: Sequence[Row], runs: dict[str, Path], most: int) -> list[Sample]:
    """The first pictures of a list that can be read, from different prompts, the methods taking turns.

    Args:
        runs: folder of each run, by the row's "run".
    """
    out: list[Sample] = []
    seen: set[str] = set()
    queues = group(rows, [row["label"] for row in rows]).values()
    turns = (row for several in itertools.zip_longest(*queues) for row in several if row)
    for row in turns:
        if len(out) == most:
            break
        if row["id"] in seen:
            continue
        source = picture(runs[row["run"]], row)
        if source:
            seen.add(row["id"])
            out.append(_sample(row, source))
    return out


def picture(run: Path, row: Row) -> str | None:
    """The row's picture with its boxes as a data URI; None where it is missing or cannot be read."""
    try:
        with Image.open(picture_file(run, row)) as file:
            if file.width * file.height > LARGEST:
                return None
            image = file.convert("RGB")
    except (OSError, UsageError, SyntaxError):
        return None
    boxes = [row.get("boxes", {}).get(noun, []) for noun in row["nouns"]]
    buffer = BytesIO()
    outlined(image, boxes, SIDE).save(buffer, "WEBP", quality=82)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _sample(row: Row, source: str) -> Sample:
    def told(counts: Sequence[int]) -> str:
        return ", ".join(f"{noun} {n}" for noun, n in zip(row["nouns"], counts, strict=False))

    roles = [*ROLES, *(name for name in row.get("judges", {}) if name not in ROLES)]
    counts = [(role, told(found)) for role in roles if (found := counted(row, role)) is not None]
    trust = f", {told_trust(row['trust'])}" if row.get("trust") is not None else ""
    note = f"{row['outcome']}{trust}; {row['pre']:.1f} renders"
    return Sample(
        source,
        str(row.get("prompt", row["id"])),
        row["label"],
        told(row["wanted"]),
        tuple(counts),
        note,
    )
