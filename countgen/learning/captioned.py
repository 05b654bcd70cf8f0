"""Pictures with captions to learn from: a folder, CountBench, or pocket's scenes without end."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from countgen.errors import UsageError
from countgen.evaluation.pictures import PictureError, read_picture, to_tensor
from countgen.files import write
from countgen.learning.caption_files import captioned_files
from countgen.learning.count_captions import CountCaption, count_caption
from countgen.pocket.captions import caption
from countgen.pocket.scenes import SceneSpec, compose, sample_spec
from countgen.pocket.train.clip import kinds_only
from countgen.pocket.train.scenery import loose_style, pixels
from countgen.pocket.world import NAMES, SIZE
from critics.parts.preprocess import resize

if TYPE_CHECKING:
    from critics.base import Critic


@dataclass(frozen=True)
class CaptionBatch:
    """A batch of pictures with captions; the first ``len(counted)`` captions count one thing.

    Attributes:
        images: (b, 3, h, w) in [0, 1].
    """

    images: Float[Tensor, "b 3 h w"]
    texts: list[str]
    counted: list[CountCaption]


class Captions(Protocol):
    """Where batches come from: a function of the generator alone."""

    def draw(self, rng: np.random.Generator, size: int, counting: int) -> CaptionBatch:
        """``size`` pictures, ``counting`` of which have a caption that counts."""
        ...


@dataclass(frozen=True)
class PocketCaptions:
    """Composed scenes; every draw is new.

    Counting captions name one kind of which there are ``numbers``; where there is none of it, some other
    kind is there mostly. The others say what there is without how many.
    """

    numbers: range

    def draw(self, rng: np.random.Generator, size: int, counting: int) -> CaptionBatch:
        specs: list[SceneSpec] = []
        texts: list[str] = []
        counted: list[CountCaption] = []
        while len(counted) < counting:
            noun, other = (NAMES[i] for i in rng.permutation(len(NAMES))[:2])
            number = int(rng.integers(self.numbers[0], self.numbers[-1] + 1))
            place = sample_spec(rng).background
            text = caption(SceneSpec(((noun, number),), place), rng)
            found = count_caption(text)
            if found is None or found.number != number:  # "a cat" counts nothing
                continue
            crowd = int(rng.integers(1, 11)) if number == 0 and rng.random() < 0.8 else 0
            specs.append(SceneSpec(((noun, number), (other, crowd)), place))
            texts.append(text)
            counted.append(found)
        while len(specs) < size:
            spec = sample_spec(rng)
            if spec.total:
                specs.append(spec)
                texts.append(kinds_only(spec))
        scenes = [compose(spec, int(rng.integers(2**62)), loose_style(rng)) for spec in specs]
        return CaptionBatch(pixels(scenes, SIZE), texts, counted)


@dataclass(frozen=True)
class Record:
    """A picture and its caption; ``counts`` is None where that does not count, or not what is learned."""

    path: Path
    text: str
    counts: CountCaption | None


@dataclass(frozen=True)
class FolderCaptions:
    """Pictures of a folder, squeezed to squares of ``side`` pixels.

    Attributes:
        notes: what was left out, and why.
    """

    counting: Sequence[Record]
    others: Sequence[Record]
    side: int
    notes: tuple[str, ...] = field(default=())

    def draw(self, rng: np.random.Generator, size: int, counting: int) -> CaptionBatch:
        chosen = [self.counting[i] for i in rng.integers(len(self.counting), size=counting)]
        pool = self.others or self.counting
        chosen += [pool[i] for i in rng.integers(len(pool), size=size - counting)]
        images = torch.stack([_pixels(record.path, self.side) for record in chosen]).float() / 255
        counted = [record.counts for record in chosen[:counting] if record.counts is not None]
        return CaptionBatch(images, [record.text for record in chosen], counted)

    def split(self, share: float, seed: int) -> tuple[FolderCaptions, Sequence[Record]]:
        """The rest, and the share of the counting records (one at least) that is held out."""
        order = np.random.default_rng(seed).permutation(len(self.counting))
        held = max(1, round(share * len(order)))
        if held >= len(order):
            raise UsageError(
                f"{len(order)} counting caption is too few to hold one out for scores; add captions"
            )
        apart = [self.counting[i] for i in order[:held]]
        kept = [self.counting[i] for i in sorted(order[held:])]
        return replace(self, counting=kept), apart


@lru_cache(maxsize=4096)
def _pixels(path: Path, side: int) -> Tensor:
    """(3, side, side), 8 bit: a fraction of what the picture itself takes.

    Raises:
        UsageError: no picture, damaged, or out of bounds.
    """
    try:
        image = to_tensor(read_picture(path))
    except PictureError as error:
        raise UsageError(str(error)) from None
    return (resize(image[None], (side, side), "bicubic")[0] * 255 + 0.5).clamp(0, 255).byte()


def picture(record: Record, side: int) -> Float[Tensor, "3 side side"]:
    """In [0, 1], squeezed to a square."""
    return _pixels(record.path, side).float() / 255


def read_captions(folder: Path, numbers: range, side: int) -> FolderCaptions:
    """The captioned pictures of a folder; none is opened.

    Args:
        numbers: that are learned; captions with others are used as captions that count nothing.
        side: of the pictures that the network sees.

    Raises:
        UsageError: no folder, no captions, or none with a number.
    """
    files = captioned_files(folder)
    counting: list[Record] = []
    others: list[Record] = []
    for file in files:
        found = count_caption(file.text)
        learned = found if found and _sayable(found, numbers) else None
        (others if learned is None else counting).append(Record(file.path, file.text, learned))
    if not counting:
        raise UsageError(
            f"of the {len(files)} captions in {folder} none counts one thing from {numbers[0]} to "
            f'{numbers[-1]}, as "five dogs in the snow" does; add some, or change the numbers'
        )
    notes = (f"{len(counting)} of {len(files)} captions count",)
    return FolderCaptions(counting, others, side, notes)


def _sayable(found: CountCaption, numbers: range) -> bool:
    return found.number in numbers and (found.inflects or numbers[0] > 1)


# -- what a detector says to it -------------------------------------------------------------------


def agreed(
    captions: FolderCaptions,
    critic: Critic,
    cache: Path,
    progress: Callable[[int, int], Any] = lambda done, total: None,
    batch: int = 16,
) -> FolderCaptions:
    """Only those counting captions whose number a critic counts too; the others count nothing any more.

    Of arXiv 2302.12066, whose detector is any critic here. What it said is kept in ``cache``, so that a
    resumed training asks nothing twice. A noun that the critic does not know is not agreed upon.

    Raises:
        UsageError: it agrees with none.
    """
    from critics.base import UnknownNounError

    known: dict[str, int | None] = {}
    if cache.is_file():
        noted = json.loads(cache.read_text(encoding="utf-8"))
        known = noted["counts"] if noted.get("critic") == critic.card.name else {}
    asked: list[tuple[str, Record, Any]] = []
    for record in captions.counting:
        assert record.counts is not None
        key = f"{record.path}: {record.counts.noun}"
        if key in known:
            continue
        try:
            asked.append((key, record, critic.prepare([record.counts.noun])))
        except UnknownNounError:
            known[key] = None
    side = max(captions.side, critic.card.input_size)
    device = next(critic.network.parameters()).device
    for start in range(0, len(asked), batch):
        part = asked[start : start + batch]
        images = torch.stack([picture(record, side) for _, record, _ in part]).to(device)
        with torch.no_grad():
            hard = critic(images, [query for _, _, query in part]).hard[:, 0].tolist()
        known |= {key: int(count) for (key, _, _), count in zip(part, hard, strict=True)}
        progress(start + len(part), len(asked))
    document = {"critic": critic.card.name, "counts": known}
    write(cache, json.dumps(document).encode(), replace=True)
    keep: list[Record] = []
    drop: list[Record] = []
    for record in captions.counting:
        assert record.counts is not None
        same = known[f"{record.path}: {record.counts.noun}"] == record.counts.number
        (keep if same else drop).append(record if same else replace(record, counts=None))
    if not keep:
        raise UsageError(
            f"{critic.card.name} agrees with none of the {len(captions.counting)} counting captions; take "
            "another critic to filter with, or none"
        )
    note = f"{critic.card.name} agrees with {len(keep)} of {len(captions.counting)} of these"
    return replace(
        captions, counting=keep, others=[*captions.others, *drop], notes=(*captions.notes, note)
    )
