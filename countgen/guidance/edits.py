"""Edits of the noise: changes without gradient, where the critic's boxes say that something is wrong.

The initial noise decides where objects stand: blocks of it that are moved move what is drawn (arXiv
2305.03382), and patches of it that are transplanted draw an object elsewhere (2406.01970). So fresh noise
under the box of a surplus object takes it away, and the noise under an object, copied to a free spot, adds
another. An edit needs no gradient, and serves every pipeline whose latents have places.

The other changes here are what black-box searches make of the whole noise, without looking at boxes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from countgen.engine.actions import Change
from countgen.engine.job import Observation
from countgen.errors import UsageError
from pipelines.base import Noise

KINDS: Final = (
    "redraw",
    "clear",
    "copy",
    "fresh",
    "splice",
    "graft",
    "perturb",
    "resample",
    "mix",
)
Cells = tuple[int, int, int, int]
"""Top, left, bottom and right of a rectangle of latent places; bottom and right lie outside."""


class Editor(Protocol):
    """What makes the changes that a policy asks for: a frozen dataclass with its own settings."""

    def __call__(
        self,
        change: Change,
        noise: Noise,
        base: Observation,
        others: Mapping[int, Observation],
        seed: int,
    ) -> Noise:
        """The noise of one picture with one change.

        Args:
            noise: (1, c, h, w), of the base or of a change before this one.
            base: the picture in which the boxes were seen.
            others: of the job, by the number of their records, for "mix", "splice" and "graft".
            seed: of all chance in it.

        Raises:
            UsageError: a kind of change that it cannot make.
        """
        ...


@dataclass(frozen=True)
class Edits:
    """Fresh and copied noise under boxes and on free spots, and changes of the whole noise.

    Attributes:
        edges: "hard" replaces the noise under a box and leaves the rest untouched; "soft" lets it fade into
            the old one over a cell, entry by entry with unit variance.
        spots: how many random places are looked at for a new object; the least covered is taken.
        fresh: least and greatest side, in latent places, of fresh noise on a free spot.
    """

    edges: Literal["hard", "soft"] = "hard"
    spots: int = 12
    fresh: tuple[int, int] = (3, 5)

    def __post_init__(self) -> None:
        if self.edges not in ("hard", "soft"):
            raise UsageError(f"the edges of edits are hard or soft, not {self.edges!r}")
        if self.spots < 1 or not 1 <= self.fresh[0] <= self.fresh[1]:
            raise UsageError(
                "edits need at least one spot, and sides of fresh noise from 1 on, in order"
            )

    def __call__(
        self,
        change: Change,
        noise: Noise,
        base: Observation,
        others: Mapping[int, Observation],
        seed: int,
    ) -> Noise:
        """The noise of one picture with one change, see ``Editor``."""
        if change.kind not in KINDS:
            raise UsageError(f"there is no edit {change.kind!r}; there are {', '.join(KINDS)}")
        generator = torch.Generator().manual_seed(seed)
        if change.kind in ("perturb", "resample", "mix"):
            return _of_the_whole(change, noise, others, generator)
        if change.kind in ("splice", "graft"):
            if len(change.bases) != 1 or change.bases[0] not in others:
                raise UsageError(
                    f"a {change.kind} needs one record that there is, not records {change.bases}"
                )
            other = others[change.bases[0]]
            if change.kind == "splice":
                return self._spliced(change, noise, other.noise)
            return self._put(noise, self._cells(other, change, noise), other.noise)
        chance = random.Random(seed)
        height, width = noise.latents.shape[-2:]
        if change.kind == "fresh":
            side = [chance.randint(*self.fresh) for _ in range(2)]
            to = self._spot(min(side[0], height), min(side[1], width), base, noise, chance)
            return self._put(noise, to, _fresh(noise, generator))
        cells = self._cells(base, change, noise)
        if change.kind == "redraw":
            return self._put(noise, cells, _fresh(noise, generator))
        top, left, bottom, right = cells
        to = self._spot(bottom - top, right - left, base, noise, chance)
        if change.kind == "clear":
            return self._put(noise, cells, _moved(noise, top - to[0], left - to[1]))
        return self._put(noise, to, _moved(noise, to[0] - top, to[1] - left))

    def _spliced(self, change: Change, noise: Noise, other: Noise) -> Noise:
        height, width = noise.latents.shape[-2:]
        top, left, bottom, right = change.part
        cells = (
            round(top * height),
            round(left * width),
            round(bottom * height),
            round(right * width),
        )
        return self._put(noise, cells, other)

    def _cells(self, base: Observation, change: Change, noise: Noise) -> Cells:
        if base.candidates is None:
            raise UsageError("an edit needs a critic that says where objects are, a detector")
        boxes = base.candidates[change.noun].boxes if change.noun < len(base.candidates) else ()
        if not 0 <= change.candidate < len(boxes) or change.noun < 0:
            raise UsageError(
                f"there is no candidate {change.candidate} of noun {change.noun} to {change.kind}; "
                "a record's nouns number those that can be named"
            )
        return cells_under(boxes[change.candidate], base.size, noise.latents.shape[-2:])

    def _spot(
        self, rows: int, columns: int, base: Observation, noise: Noise, chance: random.Random
    ) -> Cells:
        """The least covered of some random places."""
        height, width = noise.latents.shape[-2:]
        taken = torch.zeros(height, width)
        for boxes in base.boxes or ():
            for box in boxes:
                top, left, bottom, right = cells_under(box, base.size, (height, width))
                taken[top:bottom, left:right] += 1
        found: list[tuple[float, Cells]] = []
        for _ in range(self.spots):
            top, left = chance.randint(0, height - rows), chance.randint(0, width - columns)
            cells = (top, left, top + rows, left + columns)
            found.append((float(taken[top : cells[2], left : cells[3]].sum()), cells))
        return min(found, key=lambda spot: spot[0])[1]

    def _put(self, noise: Noise, cells: Cells, other: Noise) -> Noise:
        """The other noise in these cells, and the old one elsewhere."""
        share = _mask(noise.latents, cells, soft=self.edges == "soft")
        steps = noise.step_noise
        if steps is not None and other.step_noise is not None:
            steps = _blend(steps, other.step_noise, share)
        return Noise(_blend(noise.latents, other.latents, share), steps, noise.states)


def cells_under(box: Float[Tensor, " 4"], size: tuple[int, int], grid: tuple[int, ...]) -> Cells:
    """The latent places that a box in pixels of a picture (height, width) touches; at least one."""
    x0, y0, x1, y1 = box.tolist()
    down, across = grid[-2] / size[0], grid[-1] / size[1]
    top = min(max(math.floor(y0 * down), 0), grid[-2] - 1)
    left = min(max(math.floor(x0 * across), 0), grid[-1] - 1)
    bottom = min(max(math.ceil(y1 * down), top + 1), grid[-2])
    right = min(max(math.ceil(x1 * across), left + 1), grid[-1])
    return top, left, bottom, right


def _mask(like: Tensor, cells: Cells, soft: bool) -> Float[Tensor, "h w"]:
    top, left, bottom, right = cells
    mask = torch.zeros(like.shape[-2:])
    mask[top:bottom, left:right] = 1
    if soft:  # half over the rim, on either side of it
        padded = torch.nn.functional.pad(mask[None, None], (1, 1, 1, 1), mode="replicate")
        mask = torch.nn.functional.avg_pool2d(padded, 3, stride=1)[0, 0]
    return mask.to(like.device)


def _blend(old: Tensor, new: Tensor, share: Tensor) -> Tensor:
    """Independent noises mixed so that every entry keeps its variance; exact where the share is 0 or 1."""
    mixed = share * new + (1 - share) * old
    return mixed / (share.square() + (1 - share).square()).sqrt()


def _fresh(noise: Noise, generator: torch.Generator) -> Noise:
    latents = torch.randn(noise.latents.shape, generator=generator).to(noise.latents)
    steps = noise.step_noise
    if steps is not None:
        steps = torch.randn(steps.shape, generator=generator).to(steps)
    return Noise(latents, steps)


def _moved(noise: Noise, down: int, across: int) -> Noise:
    def roll(tensor: Tensor) -> Tensor:
        return tensor.roll((down, across), (-2, -1))

    return Noise(roll(noise.latents), None if noise.step_noise is None else roll(noise.step_noise))


def _within(latents: Tensor, fresh: Tensor, length: float) -> Tensor:
    """Each entry moved within a region of this length around it, in the unit cube of a normal's quantiles.

    A step is normal with half the length as its deviation and at most half the length; what would leave the
    cube is reflected at its sides, so that a uniform entry stays uniform, and the noise a noise.
    """
    half = length / 2
    place = torch.special.ndtr(latents.double()) + (half * fresh.double()).clamp(-half, half)
    folded = 1 - (place.remainder(2) - 1).abs()
    # No farther out than float32 tells from the side of the cube.
    return torch.special.ndtri(folded.clamp(1e-7, 1 - 1e-7)).to(latents)


def _of_the_whole(
    change: Change,
    noise: Noise,
    others: Mapping[int, Observation],
    generator: torch.Generator,
) -> Noise:
    latents = noise.latents
    if not (math.isfinite(change.scale) and change.scale >= 0):
        raise UsageError(f"the scale of a change must be a number from 0 on, not {change.scale}")
    if change.kind == "mix":
        known = set(change.bases) <= set(others)
        if not change.bases or len(change.bases) != len(change.weights) or not known:
            raise UsageError(
                "a mixture needs records that there are, at least one, and a weight for each of them, not "
                f"records {change.bases} and weights {change.weights}"
            )
        weights = zip(change.bases, change.weights, strict=True)
        mixed = torch.stack([w * others[n].noise.latents for n, w in weights]).sum(0)
        # Back to unit variance, so that means of noises stay noises.
        latents = mixed * (latents.norm() / mixed.norm().clamp_min(1e-12))
        if not change.scale:
            return replace(noise, latents=latents)
    fresh = torch.randn(latents.shape, generator=generator).to(latents)
    if change.kind == "resample":
        chosen = torch.rand(latents.shape, generator=generator).to(latents) < change.share
        return replace(
            noise, latents=torch.where(chosen, _within(latents, fresh, change.scale), latents)
        )
    # A step of the Ornstein-Uhlenbeck process, which leaves noises noises.
    kept = math.sqrt(max(1 - change.scale**2, 0.0))
    return replace(noise, latents=kept * latents + change.scale * fresh)
