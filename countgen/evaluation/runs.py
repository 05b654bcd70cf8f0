"""A run folder: a row and a picture for everything that was drawn, and what the judge counts in them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image

from countgen.engine.job import Job
from countgen.engine.run import counts_of
from critics.base import Critic

T = TypeVar("T")
Row = dict[str, Any]
"""One picture: method, prompt's id and text, image index, nouns and counts wanted, counts by role, outcome,
cost; ``confidence`` of the critic and the verifier in their counts (``CountEstimate.confidence``), ``tries``,
looks that were taken at the picture, and ``boxes`` of what the critic counted: noun -> x0, y0, x1, y1."""


def read_rows(path: Path) -> list[Row]:
    """Rows written so far; a last line that was cut off is dropped from the file first."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    return [json.loads(line) for line in whole.splitlines()]


def picture_path(run: Path, method: str, prompt: str, image: int) -> Path:
    """Where the picture of a row lies."""
    return run / f"{method}-{prompt}-{image}.png"


def load_picture(run: Path, row: Row) -> Float[torch.Tensor, "3 h w"]:
    """The saved picture of a row, in [0, 1].

    Raises:
        OSError: it is missing or cannot be read.
    """
    path = run / row["picture"] if "picture" in row else None
    with Image.open(path or picture_path(run, row["method"], row["id"], row["image"])) as file:
        pixels = torch.from_numpy(np.asarray(file.convert("RGB")).copy())
    return pixels.permute(2, 0, 1).float() / 255


def group(items: Iterable[T], names: Iterable[str]) -> dict[str, list[T]]:
    """Items by name, in order."""
    out: dict[str, list[T]] = {}
    for name, item in zip(names, items, strict=True):
        out.setdefault(name, []).append(item)
    return out


def record(
    job: Job, prompt: str, targets: Sequence[tuple[str, int]], image: int, method: str
) -> Row:
    """What a picture came to.

    Args:
        prompt: its id.
        image: which one of the prompt's pictures.
    """
    roles = {role: list(values.values()) for role, values in counts_of(job).items()}
    return {
        "method": method,
        "id": prompt,
        "image": image,
        "nouns": [noun for noun, _ in targets],
        "wanted": [count for _, count in targets],
        **roles,
        "verified": job.verified,
        "outcome": job.outcome,
        "pre": round(job.spent, 3),
        "steps": sum(record.gradient for record in job.records),
        "prompt": job.prompt.text,
        "tries": len(job.records),
        **_seen(job),
    }


def _seen(job: Job) -> Row:
    """How sure the counters were of the kept picture, and where the critic saw what it counted."""
    best = job.best
    if best is None or not best.record.finite:
        return {}
    sure = {"critic": best.record.confidence}
    if best.record.verifier is not None:
        sure["verifier"] = best.record.verifier_confidence
    row: Row = {"confidence": {role: round(x, 4) for role, x in sure.items()}}
    if best.boxes is not None:
        row["boxes"] = {
            noun: [[round(x, 1) for x in box] for box in found.tolist()]
            for noun, found in zip(job.request.nouns, best.boxes, strict=True)
        }
    return row


def judged(rows: list[Row], judge: Critic, run: Path, batch: int = 64) -> list[Row]:
    """The rows with the judge's counts of their saved pictures."""
    out: list[Row] = []
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        images = torch.stack([load_picture(run, row) for row in part])
        with torch.no_grad():
            hard = judge(images, [judge.prepare(row["nouns"]) for row in part]).hard.tolist()
        out += [
            row | {"judge": found[: len(row["wanted"])]}
            for row, found in zip(part, hard, strict=True)
        ]
    return out
