"""Pictures with the prompts that they show, counts and boxes: pocket scenes without end, or a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from countgen.errors import UsageError
from countgen.evaluation.pictures import PictureError, read_picture, to_tensor
from countgen.learning.caption_files import captioned_files
from countgen.prompts import CountPrompt, parse_prompt
from countgen.prompts.targets import explicit_targets


@dataclass(frozen=True)
class Captioned:
    """A picture in [0, 1], and what it shows.

    Attributes:
        boxes: of its objects, x0 y0 x1 y1 in shares of the sides; empty where they are not known.
    """

    image: Float[Tensor, "3 h w"]
    prompt: CountPrompt
    boxes: Float[Tensor, "n 4"]


Pictures = Callable[[np.random.Generator, int], list[Captioned]]
"""Draws so many pictures; the same generator gives the same ones."""


def pocket_scenes(rng: np.random.Generator, number: int) -> list[Captioned]:
    """Composed scenes with captions that are right, as the pocket generator was trained on."""
    from countgen.pocket.captions import caption
    from countgen.pocket.scenes import compose, sample_spec
    from countgen.pocket.train.autoencoder import STYLE
    from countgen.prompts import CountTarget

    drawn = []
    for _ in range(number):
        spec = sample_spec(rng)
        targets = tuple(CountTarget(noun, count) for noun, count in spec.counts)
        prompt = CountPrompt(caption(spec, rng), targets)
        scene = compose(spec, int(rng.integers(2**62)), STYLE)
        image = torch.from_numpy(scene.image).permute(2, 0, 1).float() / 255
        boxes = torch.from_numpy(scene.boxes).reshape(-1, 4) / len(scene.image)
        drawn.append(Captioned(image, prompt, boxes))
    return drawn


@dataclass(frozen=True)
class CaptionedFile:
    """One file of a folder; ``boxes`` as of ``Captioned``."""

    path: Path
    prompt: CountPrompt
    boxes: tuple[tuple[float, ...], ...] = ()


def read_folder(folder: Path) -> list[CaptionedFile]:
    """The captioned pictures of a folder (``captioned_files``), with their prompts.

    A row may have ``targets`` (noun and count of each) and ``objects`` (``bbox``: x y width height in pixels,
    beside the picture's ``width`` and ``height``) as ``countgen dataset`` writes them; without targets the
    caption's own numbers are read.

    Raises:
        UsageError: no folder, no captions in it, or a row that cannot be read.
    """
    found = []
    for file in captioned_files(folder):
        try:
            prompt = _prompt(file.text, file.told.get("targets"))
            found.append(CaptionedFile(file.path, prompt, _boxes(file.told)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            where = file.place or file.path
            raise UsageError(f"{where}: its targets or objects cannot be read ({error})") from None
    return found


def check_counts(files: list[CaptionedFile], folder: Path) -> None:
    """Refuse captions of which none has a number, where numbers are to be learnt.

    Raises:
        UsageError: none has.
    """
    if not any(file.prompt.targets for file in files):
        raise UsageError(
            f"no caption of {folder} has a number, so there is nothing to count; the first is "
            f'"{files[0].prompt.text[:60]}"'
        )


def folder_pictures(files: list[CaptionedFile], height: int, width: int) -> Pictures:
    """Random pictures of these files, squeezed to a size: cutting would change their counts."""

    def draw(rng: np.random.Generator, number: int) -> list[Captioned]:
        drawn = []
        for index in rng.integers(len(files), size=number):
            file = files[int(index)]
            try:
                image = read_picture(file.path)
            except PictureError as error:
                raise UsageError(str(error)) from None
            if image.size != (width, height):
                image = image.resize((width, height), Image.Resampling.LANCZOS)
            boxes = torch.tensor(file.boxes).reshape(-1, 4)
            drawn.append(Captioned(to_tensor(image), file.prompt, boxes))
        return drawn

    return draw


def _prompt(caption: str, targets: Any) -> CountPrompt:
    if targets is None:
        return parse_prompt(caption)
    if not isinstance(targets, Mapping):
        targets = {str(target["noun"]): int(target["count"]) for target in targets}
    return CountPrompt(caption, explicit_targets(targets))


def _boxes(row: Mapping[str, Any]) -> tuple[tuple[float, ...], ...]:
    found = row.get("objects")
    if not isinstance(found, Mapping) or "bbox" not in found or not row.get("width"):
        return ()
    w, h = float(row["width"]), float(row["height"])
    return tuple(
        (x / w, y / h, (x + across) / w, (y + down) / h) for x, y, across, down in found["bbox"]
    )
