"""Many pictures through several counters: in batches of one size, in bounded memory, each by itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from countgen.evaluation.pictures import PictureError, read_picture, to_tensor
from critics.base import (
    CountEstimate,
    Critic,
    NonFiniteCountError,
    Query,
    UnknownNounError,
)
from pipelines.devices import out_of_memory_errors

MAX_BATCH_PIXELS = 2**24
"""Most pixels of the pictures that are held at once: sixteen of 1024 x 1024."""
_MOST_QUERIES = 4096
Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels of the picture."""


@dataclass(frozen=True)
class Question:
    """A picture, and the nouns that are to be counted in it; ``key`` is the caller's own."""

    path: Path
    nouns: tuple[str, ...]
    key: int = 0


@dataclass(frozen=True)
class Seen:
    """What one counter says of one noun in one picture.

    Attributes:
        confidence: 0 at the verge of another count, 1 beyond doubt.
        boxes: around what was counted; None of counters without boxes.
        candidates: (c, 5) boxes and margins of all that the counter considered; None without boxes.
    """

    count: int
    confidence: float
    boxes: tuple[Box, ...] | None = None
    candidates: Float[np.ndarray, "c 5"] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Answer:
    """A picture's counts.

    Attributes:
        size: width and height in pixels.
        seen: counter -> noun -> what it saw; a noun that a counter cannot look for is missing.
        error: why there are none; empty where there are.
    """

    question: Question
    size: tuple[int, int] = (0, 0)
    seen: Mapping[str, Mapping[str, Seen]] = field(default_factory=dict)
    error: str = ""


class Counters:
    """Several counters that are asked about the same pictures.

    Attributes:
        critics: by name.
        aliases: noun -> what it is called by counters that do not know it.
        unseen: counter -> nouns that it cannot look for -> why.
    """

    def __init__(
        self,
        critics: Mapping[str, Critic],
        device: str | torch.device = "cpu",
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        self.critics = {name: critic.to(device) for name, critic in critics.items()}
        self.device = torch.device(device)
        self.unseen: dict[str, dict[str, str]] = {name: {} for name in critics}
        self.aliases = aliases or {}
        self._names: dict[tuple[str, str], str] = {}
        self._queries: dict[tuple[str, tuple[str, ...]], Query] = {}

    def sees(self, name: str, noun: str) -> bool:
        """Whether a counter can look for a noun; asked of it once."""
        return bool(self._called(name, noun))

    def _called(self, name: str, noun: str) -> str:
        """What a counter calls a noun; empty where it has no word for it."""
        key = (name, noun)
        if key not in self._names:
            self._names[key] = ""
            for word in filter(None, (noun, self.aliases.get(noun))):
                try:
                    self.critics[name].prepare([word])
                except UnknownNounError as error:
                    self.unseen[name].setdefault(noun, str(error))
                else:
                    self._names[key] = word
                    self.unseen[name].pop(noun, None)
                    break
        return self._names[key]

    def count(self, questions: Iterable[Question], batch_size: int = 16) -> Iterator[Answer]:
        """An answer to every question, in their order; pictures are read as they are needed.

        A picture that cannot be read or counted has an ``error`` in place of counts, and the others go on.

        Args:
            batch_size: most pictures of one size that are looked at together.
        """
        batch: list[tuple[Question, Tensor | str]] = []
        pixels = 0
        for question in questions:
            try:
                image: Tensor | str = to_tensor(read_picture(question.path))
            except PictureError as error:
                image = str(error)
            size = image[0].numel() if isinstance(image, Tensor) else 0
            if batch and (len(batch) >= batch_size or pixels + size > MAX_BATCH_PIXELS):
                yield from self._counted(batch)
                batch, pixels = [], 0
            batch.append((question, image))
            pixels += size
        if batch:
            yield from self._counted(batch)

    def _counted(self, batch: Sequence[tuple[Question, Tensor | str]]) -> list[Answer]:
        answers = [
            Answer(question, error=image if isinstance(image, str) else "")
            for question, image in batch
        ]
        by_size: dict[tuple[int, ...], list[int]] = {}
        for place, (_, image) in enumerate(batch):
            if isinstance(image, Tensor):
                by_size.setdefault(tuple(image.shape), []).append(place)
        for (_, height, width), places in by_size.items():
            images = torch.stack([batch[place][1] for place in places]).to(self.device)  # type: ignore[misc]
            seen: list[dict[str, dict[str, Seen]]] = [{} for _ in places]
            errors = ["" for _ in places]
            for name in self.critics:
                nouns = [
                    tuple(n for n in batch[place][0].nouns if self.sees(name, n))
                    for place in places
                ]
                for row, found in enumerate(self._look(name, images, nouns)):
                    if isinstance(found, str):
                        errors[row] = f"{batch[places[row]][0].path}: {found}"
                    else:
                        seen[row][name] = found
            for row, place in enumerate(places):
                answers[place] = Answer(
                    batch[place][0],
                    (width, height),
                    {} if errors[row] else seen[row],
                    errors[row],
                )
        return answers

    def _look(
        self, name: str, images: Float[Tensor, "b 3 h w"], nouns: Sequence[tuple[str, ...]]
    ) -> list[dict[str, Seen] | str]:
        """What a counter sees in each picture, or why it sees nothing; smaller batches where it must be."""
        asked = [row for row, wanted in enumerate(nouns) if wanted]
        found: list[dict[str, Seen] | str] = [{} for _ in nouns]
        if not asked:
            return found
        queries = [self._query(name, nouns[row]) for row in asked]
        try:
            with torch.no_grad(), out_of_memory_errors():
                estimate = self.critics[name](images[asked], queries)
        except NonFiniteCountError as error:
            if len(asked) == 1:
                return [str(error) if wanted else {} for wanted in nouns]
        except torch.OutOfMemoryError:
            if len(asked) == 1:
                size = f"{images.shape[-1]} x {images.shape[-2]}"
                told = f"the device's memory does not suffice for {name} and a picture of {size}"
                return [told if wanted else {} for wanted in nouns]
        else:
            for place, row in enumerate(asked):
                found[row] = _seen(estimate, place, nouns[row])
            return found
        middle = asked[len(asked) // 2]
        return self._look(name, images[:middle], nouns[:middle]) + self._look(
            name, images[middle:], nouns[middle:]
        )

    def _query(self, name: str, nouns: tuple[str, ...]) -> Query:
        key = (name, nouns)
        if key not in self._queries:
            if len(self._queries) >= _MOST_QUERIES:
                self._queries.clear()
            words = [self._called(name, noun) for noun in nouns]
            self._queries[key] = self.critics[name].prepare(words)
        return self._queries[key]


def _seen(estimate: CountEstimate, row: int, nouns: Sequence[str]) -> dict[str, Seen]:
    confidence = estimate.confidence[row].tolist()
    hard = estimate.hard[row].tolist()
    found = {}
    for k, noun in enumerate(nouns):
        boxes = candidates = None
        if estimate.candidates is not None:
            margins = estimate.candidates.margins[row, k].float()
            places = estimate.candidates.boxes[row, k].float()
            kept = places[estimate.candidates.kept[row, k]].tolist()
            boxes = tuple((x0, y0, x1, y1) for x0, y0, x1, y1 in kept)
            real = margins > -torch.inf
            candidates = torch.cat([places[real], margins[real, None]], 1).cpu().numpy()
        found[noun] = Seen(int(hard[k]), float(confidence[k]), boxes, candidates)
    return found
