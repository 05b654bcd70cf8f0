"""Generated pictures that were counted by eye: folders of atlases with a line of labels a picture.

The training of the counters ends on those in ``pictures`` beside this file. Detector B learns from ``judge``,
critic and verifier from ``search``, so that no picture has trained both a judge and what it judges; the
threshold of detector B is set on ``search``, which it has not learned. The pictures that measure the counters
are others again (``benchmarks/labels``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from countgen.pocket.world import SIZE

FOLDER = Path(__file__).parent / "pictures"
ATLAS = (8, 5)
"""Columns and rows of pictures in one atlas file."""
Row = dict[str, Any]
"""``prompt``, ``seed``, and ``counts``: noun to number, or to None where nobody can say."""


def write_atlases(folder: Path, pictures: Sequence[Image.Image]) -> None:
    """Put pictures of the generator, in order, on ``atlas-0.webp`` and so on, without loss."""
    folder.mkdir(parents=True, exist_ok=True)
    across, down = ATLAS
    for start in range(0, len(pictures), across * down):
        part = pictures[start : start + across * down]
        atlas = Image.new("RGB", (across * SIZE, -(-len(part) // across) * SIZE))
        for i, picture in enumerate(part):
            atlas.paste(picture, (i % across * SIZE, i // across * SIZE))
        atlas.save(folder / f"atlas-{start // (across * down)}.webp", lossless=True, quality=100)


def load(folder: Path) -> tuple[list[Row], Float[Tensor, "n 3 h w"]]:
    """The rows of ``labels.jsonl`` and the picture of each, in [0, 1].

    Raises:
        FileNotFoundError: nothing has been labelled yet, or an atlas is missing.
    """
    rows = [json.loads(line) for line in (folder / "labels.jsonl").read_text().splitlines()]
    across, down = ATLAS
    pictures = []
    for start in range(0, len(rows), across * down):
        with Image.open(folder / f"atlas-{start // (across * down)}.webp") as atlas:
            pixels = np.asarray(atlas.convert("RGB"))
        for i in range(min(across * down, len(rows) - start)):
            x, y = i % across * SIZE, i // across * SIZE
            pictures.append(pixels[y : y + SIZE, x : x + SIZE])
    stack = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    return rows, stack.float() / 255


def sayable(rows: Sequence[Row]) -> list[int]:
    """Positions of the rows in which every kind could be counted."""
    return [i for i, row in enumerate(rows) if None not in row["counts"].values()]
