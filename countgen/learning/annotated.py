"""Pictures with points to learn counting from: COCO's or FSC-147's layout, or pocket's scenes without end."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from countgen.errors import UsageError
from countgen.evaluation.pictures import PictureError, read_picture, to_tensor
from countgen.pocket.scenes import compose, sample_spec
from countgen.pocket.train.scenery import pixels, plain_style
from countgen.pocket.train.scoring import HELD_OUT, held_out_scenes
from countgen.pocket.world import NAMES, SIZE
from countgen.prompts import singularise
from critics.parts.preprocess import resize

Points = dict[str, list[tuple[float, float]]]
"""Noun -> (x, y) of each object's middle as shares of width and height, in [0, 1]."""
_LAYOUTS = (
    "COCO's instances (images, annotations with bbox, categories) or FSC-147's "
    "annotation_FSC147_384.json beside ImageClasses_FSC147.txt"
)


@dataclass(frozen=True)
class Pointed:
    """A batch of pictures, and where their objects are.

    Attributes:
        images: (b, 3, side, side) in [0, 1].
    """

    images: Float[Tensor, "b 3 side side"]
    points: list[Points]

    def cells(self, vocabulary: Sequence[str], stride: int) -> Float[Tensor, "b k h w"]:
        """How many objects of each noun have their middle in each cell of ``stride`` pixels."""
        side = self.images.shape[-1] // stride
        counts = np.zeros((len(self.points), len(vocabulary), side, side), np.float32)
        index = {noun: i for i, noun in enumerate(vocabulary)}
        for row, points in zip(counts, self.points, strict=True):
            for noun, places in points.items():
                if noun not in index:
                    continue
                at = (np.asarray(places).reshape(-1, 2) * side).astype(int).clip(0, side - 1)
                np.add.at(row[index[noun]], (at[:, 1], at[:, 0]), 1)
        return torch.from_numpy(counts)


class PointSource(Protocol):
    """Where batches come from: a function of the generator alone."""

    @property
    def vocabulary(self) -> tuple[str, ...]: ...

    def draw(self, rng: np.random.Generator, size: int) -> Pointed: ...

    def held_out(self) -> Pointed:
        """What no batch holds."""
        ...


@dataclass(frozen=True)
class PocketPoints:
    """Composed scenes; every draw is new."""

    held: int = 320

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return NAMES

    def draw(self, rng: np.random.Generator, size: int) -> Pointed:
        scenes = [
            compose(sample_spec(rng), int(rng.integers(2**62)), plain_style(rng))
            for _ in range(size)
        ]
        return Pointed(pixels(scenes, SIZE), [middles(scene) for scene in scenes])

    def held_out(self) -> Pointed:
        pairs = held_out_scenes(self.held, HELD_OUT + 2_000_000, (1, 20))
        scenes = [scene for _, scene in pairs]
        named: list[Points] = []
        for spec, scene in pairs:
            named.append({noun: [] for noun, _ in spec.counts} | middles(scene))
        return Pointed(pixels(scenes, SIZE), named)


def middles(scene: Any) -> Points:
    """The middles of a composed scene's boxes."""
    found: Points = defaultdict(list)
    side = scene.image.shape[0]
    for (x0, y0, x1, y1), label in zip(scene.boxes.tolist(), scene.labels, strict=True):
        found[NAMES[label]].append(((x0 + x1) / 2 / side, (y0 + y1) / 2 / side))
    return dict(found)


@dataclass(frozen=True)
class Annotated:
    """A picture and the middles of its objects in pixels of the file."""

    path: Path
    points: Points


@dataclass(frozen=True)
class FolderPoints:
    """Annotated pictures of a folder, squeezed to squares of ``side`` pixels; a tenth is held out."""

    vocabulary: tuple[str, ...]
    kept: Sequence[Annotated]
    apart: Sequence[Annotated]
    side: int

    def draw(self, rng: np.random.Generator, size: int) -> Pointed:
        return self._batch([self.kept[i] for i in rng.integers(len(self.kept), size=size)])

    def held_out(self) -> Pointed:
        return self._batch(self.apart)

    def _batch(self, records: Sequence[Annotated]) -> Pointed:
        images, points = [], []
        for record in records:
            image, (width, height) = _read(record.path, self.side)
            images.append(image.float() / 255)
            shares = {
                noun: [(x / width, y / height) for x, y in places]
                for noun, places in record.points.items()
            }
            points.append(shares)
        return Pointed(torch.stack(images), points)


@lru_cache(maxsize=4096)
def _read(path: Path, side: int) -> tuple[Tensor, tuple[int, int]]:
    """(3, side, side) in 8 bits, and width and height of the file.

    Raises:
        UsageError: no picture, damaged, or out of bounds.
    """
    try:
        image = read_picture(path)
    except PictureError as error:
        raise UsageError(str(error)) from None
    small = resize(to_tensor(image)[None], (side, side), "bicubic")[0]
    return (small * 255 + 0.5).clamp(0, 255).byte(), image.size


def read_points(folder: Path, side: int, seed: int) -> FolderPoints:
    """The annotated pictures of a folder; none is opened.

    Pictures lie beside the annotations, or in images/, or, of FSC-147, in images_384_VarV2/.

    Raises:
        UsageError: no folder, no annotations that are read, or none that names an object.
    """
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}")
    found: list[Annotated] = []
    for path in sorted(folder.glob("*.json")) + sorted(folder.glob("annotations/*.json")):
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, UnicodeError) as error:
            raise UsageError(f"{path} is no JSON ({error})") from None
        if isinstance(data, dict) and {"images", "annotations", "categories"} <= set(data):
            found = _coco(folder, path, data)
        elif isinstance(data, dict) and data and all(_has_points(entry) for entry in data.values()):
            found = _fsc147(folder, path, data)
        if found:
            break
    if not found:
        raise UsageError(f"{folder} has no annotations with objects; it needs {_LAYOUTS}")
    vocabulary = tuple(sorted({noun for record in found for noun in record.points}))
    order = np.random.default_rng(seed).permutation(len(found))
    held = max(1, round(0.1 * len(found)))
    if held >= len(found):
        raise UsageError(f"{folder} has a single annotated picture, and some must be held out")
    apart = [found[i] for i in order[:held]]
    return FolderPoints(vocabulary, [found[i] for i in sorted(order[held:])], apart, side)


def _has_points(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("points"), list)


def _coco(folder: Path, truth: Path, data: dict[str, Any]) -> list[Annotated]:
    """Middles of boxes; crowds, which are not counted singly, are left out with their pictures."""
    try:
        names = {entry["id"]: str(entry["name"]).lower() for entry in data["categories"]}
        points: dict[Any, Points] = defaultdict(lambda: defaultdict(list))
        crowded = {entry["image_id"] for entry in data["annotations"] if entry.get("iscrowd")}
        for entry in data["annotations"]:
            x, y, width, height = (float(value) for value in entry["bbox"])
            middle = (x + width / 2, y + height / 2)
            points[entry["image_id"]][names[entry["category_id"]]].append(middle)
        files = {entry["id"]: str(entry["file_name"]) for entry in data["images"]}
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{truth} lacks or misstates a field ({error!r})") from None
    return (
        [
            Annotated(_inside(folder, truth, name), dict(points[key]))
            for key, name in files.items()
            if key not in crowded
        ]
        if points
        else []
    )


def _fsc147(folder: Path, truth: Path, data: dict[str, Any]) -> list[Annotated]:
    """Points of the one kind that a picture's class names."""
    classes = truth.with_name("ImageClasses_FSC147.txt")
    if not classes.is_file():
        raise UsageError(
            f"{truth}: ImageClasses_FSC147.txt, which names what is counted, is missing"
        )
    lines = classes.read_text(encoding="utf-8").splitlines()
    nouns = dict(line.split("\t", 1) for line in lines if "\t" in line)
    try:
        return [
            Annotated(
                _inside(folder, truth, name),
                {
                    singularise(nouns[name].strip()): [
                        (float(x), float(y)) for x, y in entry["points"]
                    ]
                },
            )
            for name, entry in data.items()
            if name in nouns and entry["points"]
        ]
    except (TypeError, ValueError) as error:
        raise UsageError(f"{truth} has points that are no pairs ({error!r})") from None


def _inside(folder: Path, truth: Path, name: str) -> Path:
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise UsageError(f"{truth}: {name} does not lie in the folder {folder}")
    for place in (folder, folder / "images", folder / "images_384_VarV2"):
        if (place / name).is_file():
            return place / name
    return folder / name
