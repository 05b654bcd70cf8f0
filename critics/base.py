"""What every critic is: images in, differentiable counts out.

A critic knows nothing of diffusion. It is prepared once for the nouns of a prompt, and then called on
batches in which every image may have another prompt.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from critics.synonyms import by_meaning


class UnknownNounError(ValueError):
    """A noun that a critic cannot look for: outside its closed vocabulary, empty or unreadable."""


@dataclass(frozen=True)
class CriticCard:
    """What a user must know before trusting or shipping a critic.

    Attributes:
        family: counters of one family share blind spots; critic, verifier and judge must differ in it.
        vocabulary: the closed list of nouns, or None for an open vocabulary.
        input_size: side in pixels that images are resized to before the network sees them.
        published: True when the read-out is as published, False when it is a reconstruction or ours.
    """

    name: str
    family: str
    summary: str
    license_code: str
    license_weights: str
    input_size: int
    vocabulary: tuple[str, ...] | None = None
    hub_id: str = ""
    revision: str = ""
    parameters: int = 0
    citation: str = ""
    published: bool = False

    def of(self, network: nn.Module, **changes: Any) -> CriticCard:
        """The card of a loaded network: with its number of parameters, and other changes."""
        return replace(self, parameters=sum(p.numel() for p in network.parameters()), **changes)

    @property
    def families(self) -> frozenset[str]:
        """The families in it: one, or those of an ensemble's members, which its family joins by "+"."""
        return frozenset(self.family.split("+"))


@dataclass(frozen=True)
class Query:
    """What a critic needs to know of one prompt's nouns, computed once and reusable.

    Attributes:
        nouns: as the caller gave them, in order.
        classes: (k,) index of each noun in a closed vocabulary; empty for an open one.
        text: what an open-vocabulary critic's tokenizer and text encoder made of the nouns, by name.
        members: of an ensemble, its members' own queries, in their order; of a critic that looks for one noun
            at a time, a query each.
        seed: of the draws of a critic that looks at random views; ``dataclasses.replace(query, seed=...)``
            gives an image draws of its own, wherever in a batch it stands.
    """

    nouns: tuple[str, ...]
    classes: Int64[Tensor, " n"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    text: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    members: tuple[Query, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Candidates:
    """Where a detector thinks an object may be, per image and noun.

    Attributes:
        margins: (b, k, c) logit minus threshold, with gradient; strongest first; -inf pads.
        boxes: (b, k, c, 4) x0 y0 x1 y1 in pixels of the image given, without gradient.
        kept: (b, k, c) True for what the hard count counts: above threshold and no duplicate.
        distinct: (b, k, c) True for what is no duplicate of a stronger candidate, whatever its margin:
            where an object could still be added.
    """

    margins: Float[Tensor, "b k c"]
    boxes: Float[Tensor, "b k c 4"]
    kept: Bool[Tensor, "b k c"]
    distinct: Bool[Tensor, "b k c"]


@dataclass(frozen=True)
class CountEstimate:
    """Counts of a batch: one differentiable, for guidance, and one exact, for reporting.

    Attributes:
        soft: (b, k) float32 with gradient to the images.
        hard: (b, k) integers, thresholded and de-duplicated, without gradient.
        mask: (b, k) True where an image's query really has a k-th noun.
        candidates: of detectors.
        density: (b, k, h, w) of density counters; sums to ``soft``.
        disagreement: (b, k) of ensembles: how far apart its members' hard counts are where that is more than
            it tolerates, else 0.
    """

    soft: Float[Tensor, "b k"]
    hard: Int64[Tensor, "b k"]
    mask: Bool[Tensor, "b k"]
    candidates: Candidates | None = None
    density: Float[Tensor, "b k h w"] | None = field(default=None, repr=False)
    disagreement: Int64[Tensor, "b k"] | None = None

    @property
    def clearance(self) -> Float[Tensor, "b k"]:
        """How far each hard count is from another one: 0 at the verge, towards 1 beyond doubt.

        For detectors the confidence 2 sigmoid(|margin|) - 1 in the candidate nearest to the threshold, the
        counted and the others alike; else 1 - 2 |soft - hard|. 0 where an ensemble's members disagree. No
        gradient; 1 where ``mask`` is False.
        """
        if self.candidates is None:
            clear = 1 - 2 * (self.soft.detach() - self.hard).abs()
        else:
            margins = self.candidates.margins.detach().float().abs()
            nearest = torch.where(self.candidates.distinct, margins, torch.inf).amin(-1)
            clear = 2 * torch.sigmoid(nearest) - 1
        if self.disagreement is not None:
            clear = torch.where(self.disagreement > 0, 0.0, clear)
        return torch.where(self.mask, clear.clamp(0, 1), 1.0)


@runtime_checkable
class Critic(Protocol):
    """A counter that can be asked for nouns."""

    card: CriticCard

    def prepare(self, nouns: Sequence[str]) -> Query:
        """Look the nouns up once.

        Raises:
            UnknownNounError: for an empty noun, and for one outside a closed vocabulary, naming the nearest.
        """
        ...

    def __call__(
        self, images: Float[Tensor, "b 3 height width"], queries: Sequence[Query]
    ) -> CountEstimate:
        """Count in a batch of RGB images in [0, 1], one query per image."""
        ...


def check_images(images: Tensor, queries: Sequence[Query]) -> None:
    """Refuse, with one sentence, a batch that would be counted wrongly.

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: wrong shape, values clearly outside [0, 1], or not one query per image.
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = getattr(images, "dtype", type(images).__name__)
        raise TypeError(
            f"images must be a floating-point tensor of RGB values in [0, 1], not {kind}"
        )
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"images must have the shape (batch, 3, height, width), not {tuple(images.shape)}"
        )
    if len(queries) != len(images):
        raise ValueError(
            f"one query per image is needed, but there are {len(images)} images and {len(queries)} queries"
        )
    low, high = images.detach().aminmax() if images.numel() else (torch.zeros(()), torch.zeros(()))
    if low < -0.05 or high > 1.05:
        raise ValueError(
            f"images must lie in [0, 1], but values run from {low.item():.2f} to {high.item():.2f}; "
            "divide 8-bit images by 255, map [-1, 1] through (x + 1) / 2"
        )


def check_nouns(nouns: Sequence[str]) -> None:
    """Refuse, before it is encoded, what is no noun at all.

    Raises:
        UnknownNounError: an empty noun.
    """
    if not all(noun.strip() for noun in nouns):
        raise UnknownNounError("a noun is empty; name what is to be counted")


def look_up(nouns: Sequence[str], vocabulary: Sequence[str], critic: str) -> Query:
    """A query by position in a closed vocabulary.

    Raises:
        UnknownNounError: naming the nearest nouns that the critic knows.
    """
    check_nouns(nouns)
    index = {name: i for i, name in enumerate(vocabulary)}
    classes = []
    for noun in nouns:
        key = " ".join(noun.lower().split())
        if key not in index:
            raise UnknownNounError(f"{critic} cannot see {noun!r}; {_hint(key, vocabulary)}")
        classes.append(index[key])
    return Query(tuple(nouns), torch.tensor(classes, dtype=torch.int64))


def _hint(noun: str, vocabulary: Sequence[str]) -> str:
    """What to ask for instead: names that mean the same, share a word, or are spelt alike."""
    words = set(noun.split())
    near = by_meaning(noun, vocabulary)
    if not near:
        near = [name for name in vocabulary if words & set(name.split())]
        near += difflib.get_close_matches(noun, vocabulary, n=3, cutoff=0.5)
    near = list(dict.fromkeys(near))[:3]
    if near:
        return f"the nearest are {', '.join(near)}"
    return f"it sees {', '.join(vocabulary)}"


def stack_classes(
    queries: Sequence[Query], device: torch.device
) -> tuple[Int64[Tensor, "b k"], Bool[Tensor, "b k"]]:
    """Class indices of a batch of queries, padded with 0 to the longest, and where they are real."""
    width = max((len(query.nouns) for query in queries), default=0)
    classes = torch.zeros(len(queries), width, dtype=torch.int64)
    mask = torch.zeros(len(queries), width, dtype=torch.bool)
    for row, query in enumerate(queries):
        classes[row, : len(query.nouns)] = query.classes
        mask[row, : len(query.nouns)] = True
    return classes.to(device), mask.to(device)
