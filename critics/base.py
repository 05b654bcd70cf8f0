"""What every critic is: images in, differentiable counts out.

A critic knows nothing of diffusion. It is prepared once for the nouns of a prompt, and then called on
batches in which every image may have another prompt.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, Self, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from critics.parts.synonyms import by_meaning


class UnknownNounError(ValueError):
    """A noun that a critic cannot look for: outside its closed vocabulary, empty or unreadable."""


class NonFiniteImageError(ValueError):
    """Pictures with values that are not finite, which no critic counts.

    Attributes:
        rows: of the batch, that hold such pictures.
    """

    def __init__(self, rows: Sequence[int]) -> None:
        self.rows = tuple(rows)
        super().__init__(
            f"values are not finite in {_rows(self.rows, 'image')} of the batch, which cannot be counted; a "
            "decoder in half precision or an extreme guidance scale may be the cause"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.rows,)


class NonFiniteCountError(ValueError):
    """Pictures for which a network answers with what is no number.

    Attributes:
        rows: of the batch, that hold such pictures.
    """

    def __init__(self, rows: Sequence[int], critic: str) -> None:
        self.rows, self.critic = tuple(rows), critic
        super().__init__(
            f"{critic} has no finite answer for {_rows(self.rows, 'image')} of the batch; half precision may "
            "be the cause: load the critic with dtype=torch.float32, or in bfloat16"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.rows, self.critic)


def _rows(rows: Sequence[int], what: str) -> str:
    shown = ", ".join(map(str, rows[:8])) + (" and others" if len(rows) > 8 else "")
    return f"{what} {shown}" if len(rows) == 1 else f"{what}s {shown}"


@dataclass(frozen=True)
class CriticCard:
    """What a user must know before trusting or shipping a critic.

    Attributes:
        family: counters of one family share blind spots; critic, verifier and judge must differ in it.
        vocabulary: the closed list of nouns, or None for an open vocabulary.
        input_size: side in pixels that images are resized to before the network sees them.
        published: True when the read-out is as published, False when it is a reconstruction or ours.
        min_confidence: in [0, 1); a count below it (``CountEstimate.confidence``) is too narrow to verify a
            picture. One for all methods, so that none can buy its result.
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
    min_confidence: float = 0.4

    def __post_init__(self) -> None:
        if not 0 <= self.min_confidence < 1:
            raise ValueError(
                f"min_confidence of {self.name} must lie in [0, 1), not {self.min_confidence}"
            )
        if self.input_size < 1:
            raise ValueError(
                f"input_size of {self.name} must be a number of pixels, not {self.input_size}"
            )

    def of(self, network: nn.Module, **changes: Any) -> CriticCard:
        """The card of a loaded network: with its number of parameters, and other changes."""
        return replace(self, parameters=sum(p.numel() for p in network.parameters()), **changes)

    @property
    def families(self) -> frozenset[str]:
        """The families in it: one, or of a critic around others all of theirs, which "+" joins."""
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
    def confidence(self) -> Float[Tensor, "b k"]:
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


Gives = Literal["candidates", "density", "soft"]


@runtime_checkable
class Critic(Protocol):
    """A counter that can be asked for nouns."""

    @property
    def card(self) -> CriticCard: ...

    @property
    def network(self) -> nn.Module:
        """All networks that it counts with, in evaluation and frozen."""
        ...

    @property
    def gives(self) -> Gives:
        """What its estimates hold beside the soft and hard counts; "soft" for nothing."""
        ...

    def to(self, device: str | torch.device) -> Self:
        """Move the networks; the critic itself is returned."""
        ...

    def prepare(self, nouns: Sequence[str]) -> Query:
        """Look the nouns up once.

        Raises:
            UnknownNounError: for an empty noun, and for one outside a closed vocabulary, naming the nearest.
        """
        ...

    def __call__(
        self, images: Float[Tensor, "b 3 height width"], queries: Sequence[Query]
    ) -> CountEstimate:
        """Count in a batch of RGB images in [0, 1], one query per image.

        Raises:
            TypeError, ValueError: a batch that ``check_images`` refuses.
            NonFiniteCountError: a network that answers with what is no number.
        """
        ...


def check_images(images: Tensor, queries: Sequence[Query]) -> None:
    """Refuse, with one sentence, a batch that would be counted wrongly.

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: wrong shape, no values (the device "meta"), values clearly outside [0, 1], or not one
            query per image.
        NonFiniteImageError: values that are not finite.
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
    if images.is_meta:
        raise ValueError("images on the device 'meta' have no values that could be counted")
    if not images.numel():
        return
    low, high = (bound.item() for bound in images.detach().aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        finite = images.detach().isfinite().flatten(1).all(1)
        raise NonFiniteImageError((~finite).nonzero()[:, 0].tolist())
    if low < -0.05 or high > 1.05:
        raise ValueError(
            f"images must lie in [0, 1], but values run from {low:.2f} to {high:.2f}; "
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
