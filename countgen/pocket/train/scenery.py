"""Pictures that pocket's counters are trained on: composed scenes, many of them redrawn by the generator.

A part of the scenes is redrawn by the generator from half-noised latents (SDEdit, arXiv 2108.01073), which
keeps every object where it is and gives it the generator's look, so that a counter does not trip over it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from countgen.pocket import load_generator
from countgen.pocket.captions import caption
from countgen.pocket.scenes import Scene, SceneSpec, SceneStyle, compose, sample_spec
from countgen.pocket.train import counted
from countgen.pocket.train.autoencoder import LATENT_CHANNELS, STYLE
from countgen.pocket.world import SIZE
from critics.parts.convnet import resize

JUDGE_SIZE = 96
REDRAWN_FROM = (0.35, 0.62)
"""The times from which the generator redraws scenes."""


def loose_style(rng: np.random.Generator) -> SceneStyle:
    """Scenes as the generator saw them, now and then with clutter."""
    return SceneStyle(fragments=2 if rng.random() < 0.3 else 0)


def plain_style(rng: np.random.Generator) -> SceneStyle:
    """Scenes as the generator saw them and tighter ones, some objects drawn out, now and then clutter."""
    return SceneStyle(
        max_overlap=float(rng.uniform(0.0, 0.25)),
        stretch=0.6,
        fragments=2 if rng.random() < 0.3 else 0,
    )


def judge_style(rng: np.random.Generator) -> SceneStyle:
    """Scenes of another kind: more overlap, rotation and contrast, another size, many negatives."""
    return SceneStyle(
        size=int(rng.choice((SIZE, SIZE, 80, JUDGE_SIZE))),
        max_overlap=float(rng.uniform(0.02, 0.3)),
        huddle=0.3,
        stretch=0.7,
        coverage=float(rng.uniform(0.40, 0.62)),
        rotation=25.0,
        jitter=0.25,
        contrast=0.12,
        fragments=int(rng.choice((0, 3, 6))),
    )


@dataclasses.dataclass(frozen=True)
class Renderer:
    """The generator as an image-to-image model: it redraws scenes, every object where it was."""

    pipeline: Any

    @classmethod
    def load(cls, folder: Path, device: str) -> Renderer:
        pipeline = load_generator(folder).to(device)
        for part in (pipeline.unet, pipeline.vae):
            part.to(memory_format=torch.channels_last)
        return cls(pipeline)

    @torch.no_grad()
    def reconstruct(self, images: Tensor, noise: Tensor) -> Tensor:
        """(b, 3, h, w) in [0, 1] through encoder and decoder, with this noise added to the latents."""
        vae = self.pipeline.vae
        return (vae.decode(vae.encode(images * 2 - 1).latent + noise).sample / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def redraw(
        self, images: Tensor, captions: Sequence[str], start: Tensor, noise: Tensor, steps: int
    ) -> Tensor:
        """(b, 3, h, w) in [0, 1], noised to the times ``start`` (b) and finished by the generator."""
        pipe = self.pipeline
        latents = pipe.vae.encode(images * 2 - 1).latent
        hidden, _, pooled, _ = pipe.encode_prompt(
            list(captions), device=latents.device, do_classifier_free_guidance=False
        )
        side = (SIZE, SIZE, 0, 0, SIZE, SIZE)
        added = {"text_embeds": pooled, "time_ids": pooled.new_tensor(side).expand(len(latents), 6)}
        time = start[:, None, None, None]
        latents = (1 - time) * latents + time * noise
        for step in range(steps, 0, -1):
            now, then = start * step / steps, start * (step - 1) / steps
            velocity = pipe.unet(latents, now * 1000, hidden, added_cond_kwargs=added).sample
            latents = latents + (then - now)[:, None, None, None] * velocity
        return (pipe.vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)


@dataclasses.dataclass(frozen=True)
class Scenery:
    """Training pictures of a counter with their true boxes.

    A part of the scenes is redrawn by the generator and a part passes through its decoder with noise, so
    that a counter knows the generator's smudges; others are blurred or noisy, many untouched.

    Attributes:
        overlap, huddle: most overlap of objects in the scenes that are redrawn, and the share of objects
            that are put where they overlap most.
        redrawn: share of the scenes that the generator redraws.
    """

    style: Callable[[np.random.Generator], SceneStyle]
    side: int
    renderer: Renderer | None
    device: str
    overlap: float = 0.35
    huddle: float = 0.0
    redrawn: float = 0.45

    def __call__(
        self, rng: np.random.Generator, noise: torch.Generator, batch: int
    ) -> tuple[list[SceneSpec], list[Scene], Tensor]:
        """Specs, scenes, and their pictures (b, 3, side, side) in [0, 1] on the device."""
        specs = [sample_spec(rng) for _ in range(batch)]
        fate = rng.random(batch)
        redrawn = fate < self.redrawn
        # The generator would complete fragments, and then the labels were wrong.
        styles = [
            dataclasses.replace(
                STYLE, max_overlap=float(rng.uniform(0.0, self.overlap)), huddle=self.huddle
            )
            if mine
            else self.style(rng)
            for mine in redrawn
        ]
        scenes = [
            compose(spec, int(rng.integers(2**62)), style)
            for spec, style in zip(specs, styles, strict=True)
        ]
        images = pixels(scenes, self.side)
        if self.renderer:
            rows = torch.from_numpy(np.flatnonzero(redrawn))
            start = torch.from_numpy(rng.uniform(*REDRAWN_FROM, len(rows)).astype(np.float32))
            self._pass(
                images,
                rows,
                noise,
                lambda small, epsilon, renderer: renderer.redraw(
                    small,
                    [caption(specs[i], rng) for i in rows.tolist()],
                    start.to(self.device),
                    epsilon,
                    int(rng.integers(2, 4)),
                ),
            )
            rows = torch.from_numpy(np.flatnonzero(~redrawn & (fate < self.redrawn + 0.2)))
            strength = torch.rand(len(rows), 1, 1, 1, generator=noise) * 0.5
            self._pass(
                images,
                rows,
                noise,
                lambda small, epsilon, renderer: renderer.reconstruct(
                    small, strength.to(self.device) * epsilon
                ),
            )
        for i in np.flatnonzero((fate >= 0.70) & (fate < 0.82)):
            blurred = F.avg_pool2d(F.pad(images[i][None], (1, 1, 1, 1), mode="replicate"), 3, 1)[0]
            images[i] = images[i].lerp(blurred, float(rng.uniform(0.2, 0.9)))
        for i in np.flatnonzero((fate >= 0.82) & (fate < 0.9)):
            grain = torch.randn(images[i].shape, generator=noise)
            images[i] = images[i] + float(rng.uniform(0.01, 0.06)) * grain
        images = images.clamp(0, 1).to(self.device, memory_format=torch.channels_last)
        return specs, scenes, images

    def _pass(
        self,
        images: Tensor,
        rows: Tensor,
        noise: torch.Generator,
        change: Callable[[Tensor, Tensor, Renderer], Tensor],
    ) -> None:
        """Replace rows by what the generator makes of them, at its own size."""
        if not len(rows) or self.renderer is None:
            return
        small = resize(images[rows], SIZE).to(self.device)
        shape = (len(rows), LATENT_CHANNELS, SIZE // 4, SIZE // 4)
        epsilon = torch.randn(shape, generator=noise).to(self.device)
        changed = change(small, epsilon, self.renderer).cpu()
        images[rows] = F.interpolate(
            changed, images.shape[-2:], mode="bilinear", align_corners=False
        )


@dataclasses.dataclass(frozen=True)
class CountedPictures:
    """Pictures of the generator that were counted by eye, mirrored, shifted and in other light."""

    rows: list[counted.Row]
    pictures: Tensor

    @classmethod
    def load(cls, name: str) -> CountedPictures:
        """The ``judge`` or the ``search`` ones; see ``countgen.pocket.train.counted``."""
        rows, pictures = counted.load(counted.FOLDER / name)
        return cls(rows, pictures)

    def __call__(
        self, rng: np.random.Generator, batch: int
    ) -> tuple[Tensor, list[list[str]], Tensor]:
        """Pictures (b, 3, h, w), the nouns of each, and how many of each there are (b, k), padded with 0."""
        chosen = rng.choice(len(self.rows), batch, replace=False)
        images = self.pictures[chosen].clone()
        for i in range(batch):
            if rng.random() < 0.5:
                images[i] = images[i].flip(-1)
            gain, lift = float(rng.uniform(0.85, 1.15)), float(rng.uniform(-0.05, 0.05))
            images[i] = (images[i] * gain + lift).clamp(0, 1)
            if rng.random() < 0.5:
                framed = F.pad(images[i][None], (2, 2, 2, 2), mode="replicate")[0]
                y, x = rng.integers(0, 5, 2)
                images[i] = framed[:, y : y + SIZE, x : x + SIZE]
        counts = [self.rows[i]["counts"] for i in chosen]
        wanted = torch.zeros(batch, max(map(len, counts)), dtype=torch.int64)
        for row, found in zip(wanted, counts, strict=True):
            row[: len(found)] = torch.tensor(list(found.values()))
        return images, [list(found) for found in counts], wanted


def pixels(scenes: Sequence[Scene], side: int) -> Tensor:
    """(b, 3, side, side) in [0, 1]; scenes of other sizes are resized."""
    images = [torch.from_numpy(s.image).permute(2, 0, 1)[None].float() / 255 for s in scenes]
    return torch.cat([resize(image, side) for image in images])
