"""Training of pocket's counters on composed scenes: detector A, the density counter, and detector B.

They are three families (peaks, blockwise expectation, dense boxes with suppression), trained on different
scenes from different seeds; detector B, the judge, at another resolution and with merged, faint and partial
objects as negatives. A part of the scenes is redrawn by the generator from half-noised latents, which
keeps every object where it is and gives it the generator's look, so that a counter does not trip over it.
In the end each also sees pictures of the generator that were counted by eye (``counted``), since objects run
together there as no composed scene shows it; the judge is trained on others than the critic and the verifier.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from countgen.guidance.objectives import soft_count_error, two_sided_margin
from countgen.pocket import load_critic, load_generator
from countgen.pocket.captions import caption
from countgen.pocket.scenes import Scene, SceneSpec, SceneStyle, compose, sample_spec
from countgen.pocket.train import counted
from countgen.pocket.train.autoencoder import LATENT_CHANNELS, STYLE
from countgen.pocket.train.loop import Losses, TrainConfig, fit
from countgen.pocket.world import NAMES, SIZE
from critics.base import CountEstimate, Critic, CriticCard, Query
from critics.density import blockwise
from critics.detectors import dense, heatmap
from critics.detectors.base import DetectionCritic
from critics.loading import checkpoint
from critics.parts.convnet import resize

DETECTOR_A = TrainConfig(steps=1000, batch=32, learning_rate=2e-3, warmup=100, ema=0.995, seed=1)
DENSITY = TrainConfig(steps=2200, batch=32, learning_rate=2e-3, warmup=100, ema=0.995, seed=2)
DETECTOR_B = TrainConfig(steps=1400, batch=32, learning_rate=2e-3, warmup=100, ema=0.995, seed=3)
SETTLING = TrainConfig(steps=600, batch=16, learning_rate=6e-4, warmup=20, ema=0.99)
"""Of the last steps, half on scenes, half on pictures counted by eye; as many of each a batch."""
JUDGE_SIZE = 96
REDRAWN_FROM = (0.35, 0.62)
"""The times from which the generator redraws scenes."""
Network = TypeVar("Network", bound=nn.Module)
Counts = Sequence[tuple[str, int]]
"""Nouns and how many of each."""
ANCHORS = (0.0, 1.0, 2.0, 3.0)
HELD_OUT = 7_000_000
"""Seeds of held-out scenes start here; training seeds are drawn from 2**62, calibration from below."""


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
class Hand:
    """The generator's hand: composed pictures redrawn by it, with their objects where they were."""

    pipeline: Any

    @classmethod
    def load(cls, folder: Path, device: str) -> Hand:
        pipeline = load_generator(folder).to(device)
        for part in (pipeline.unet, pipeline.vae):
            part.to(memory_format=torch.channels_last)
        return cls(pipeline)

    @torch.no_grad()
    def worn(self, images: Tensor, strength: Tensor) -> Tensor:
        """(b, 3, h, w) in [0, 1] through encoder and decoder, with noise of that strength on the latents."""
        vae = self.pipeline.vae
        return (vae.decode(vae.encode(images * 2 - 1).latent + strength).sample / 2 + 0.5).clamp(
            0, 1
        )

    @torch.no_grad()
    def redrawn(
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
    hand: Hand | None
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
        if self.hand:
            rows = torch.from_numpy(np.flatnonzero(redrawn))
            start = torch.from_numpy(rng.uniform(*REDRAWN_FROM, len(rows)).astype(np.float32))
            self._pass(
                images,
                rows,
                noise,
                lambda small, epsilon, hand: hand.redrawn(
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
                lambda small, epsilon, hand: hand.worn(small, strength.to(self.device) * epsilon),
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
        change: Callable[[Tensor, Tensor, Hand], Tensor],
    ) -> None:
        """Replace rows by what the generator makes of them, at its own size."""
        if not len(rows) or self.hand is None:
            return
        small = resize(images[rows], SIZE).to(self.device)
        shape = (len(rows), LATENT_CHANNELS, SIZE // 4, SIZE // 4)
        epsilon = torch.randn(shape, generator=noise).to(self.device)
        changed = change(small, epsilon, self.hand).cpu()
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


# -- targets --------------------------------------------------------------------------------------


def heatmap_targets(scenes: Sequence[Scene], side: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """Gaussian peaks (b, k, h, w), box sides and their mask at the centres, and the number of objects."""
    cells = side // heatmap.STRIDE
    peaks = np.zeros((len(scenes), len(NAMES), cells, cells), np.float32)
    sides = np.zeros((len(scenes), 4, cells, cells), np.float32)
    mask = np.zeros((len(scenes), cells, cells), bool)
    grid = np.arange(cells, dtype=np.float32)
    for b, scene in enumerate(scenes):
        boxes = scene.boxes * (side / scene.image.shape[0])
        for box, label in zip(boxes, scene.labels, strict=True):
            centre, size = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
            column, row = (centre / heatmap.STRIDE).astype(int).clip(0, cells - 1)
            spread = np.maximum(0.15 * size / heatmap.STRIDE, 0.5)
            bell_x = np.exp(-0.5 * ((grid - column) / spread[0]) ** 2)
            bell_y = np.exp(-0.5 * ((grid - row) / spread[1]) ** 2)
            np.maximum(peaks[b, label], bell_y[:, None] * bell_x, out=peaks[b, label])
            at = (np.array([column, row]) + 0.5) * heatmap.STRIDE
            sides[b, :, row, column] = np.concatenate([at - box[:2], box[2:] - at])
            mask[b, row, column] = True
    total = float(sum(len(scene.labels) for scene in scenes))
    return torch.from_numpy(peaks), torch.from_numpy(sides), torch.from_numpy(mask), total


def block_counts(scenes: Sequence[Scene], side: int) -> Tensor:
    """(b, k, h, w) number of object centres in every block."""
    blocks = side // blockwise.STRIDE
    counts = np.zeros((len(scenes), len(NAMES), blocks, blocks), np.float32)
    for b, scene in enumerate(scenes):
        boxes = scene.boxes * (side / scene.image.shape[0])
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        at = (centres / blockwise.STRIDE).astype(int).clip(0, blocks - 1)
        np.add.at(counts[b], (scene.labels, at[:, 1], at[:, 0]), 1)
    return torch.from_numpy(counts)


def dense_targets(scenes: Sequence[Scene], side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Classes (b, k, h, w) and sides (b, 4, h, w) of cells near object centres; rims to be ignored."""
    cells = side // dense.STRIDE
    classes = np.zeros((len(scenes), len(NAMES), cells, cells), np.float32)
    sides = np.zeros((len(scenes), 4, cells, cells), np.float32)
    ignore = np.zeros((len(scenes), cells, cells), bool)
    at = (np.arange(cells) + 0.5) * dense.STRIDE
    for b, scene in enumerate(scenes):
        boxes = scene.boxes * (side / scene.image.shape[0])
        area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
        for i in np.argsort(-area):  # small ones last: they win shared cells
            x0, y0, x1, y1 = boxes[i]
            cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
            reach_x = max(0.22 * (x1 - x0), 0.51 * dense.STRIDE)
            reach_y = max(0.22 * (y1 - y0), 0.51 * dense.STRIDE)
            core = (np.abs(at - cy) <= reach_y)[:, None] & (np.abs(at - cx) <= reach_x)
            inside = ((at > y0) & (at < y1))[:, None] & ((at > x0) & (at < x1))
            rim = inside & ~core & (classes[b].max(0) == 0)
            ignore[b] |= rim
            ignore[b] &= ~core
            classes[b][:, core] = 0
            classes[b, scene.labels[i]][core] = 1
            left = np.stack(
                np.broadcast_arrays(
                    at[None] - x0, at[:, None] - y0, x1 - at[None], y1 - at[:, None]
                )
            )
            sides[b][:, core] = left[:, core]
    return torch.from_numpy(classes), torch.from_numpy(sides), torch.from_numpy(ignore)


# -- scores ---------------------------------------------------------------------------------------


def held_out_scenes(
    count: int, first_seed: int, total: tuple[int, int]
) -> list[tuple[SceneSpec, Scene]]:
    """Scenes in the generator's style with ``total`` objects (lowest, highest), of one to three kinds."""
    found: list[tuple[SceneSpec, Scene]] = []
    seed = first_seed
    while len(found) < count:
        spec = sample_spec(np.random.default_rng(seed))
        if total[0] <= spec.total <= total[1]:
            found.append((spec, compose(spec, seed)))
        seed += 1
    return found


def exact_share(
    critic: Critic,
    scenes: Sequence[tuple[SceneSpec, Scene]],
    images: Tensor | None = None,
    batch: int = 64,
) -> dict[str, float]:
    """Share of scenes in which every named noun is counted exactly, mean absolute error, mean bias.

    ``images`` (n, 3, h, w) are counted instead of the scenes' own pictures, where given.
    """
    images = pixels([scene for _, scene in scenes], SIZE) if images is None else images
    return _exact_counts(critic, [spec.counts for spec, _ in scenes], images, batch)


def _exact_counts(
    critic: Critic, wanted: Sequence[Counts], images: Tensor, batch: int = 64
) -> dict[str, float]:
    right, errors = 0, []
    for start in range(0, len(wanted), batch):
        part = wanted[start : start + batch]
        queries = [critic.prepare([noun for noun, _ in counts]) for counts in part]
        hard = _count(critic, images[start : start + batch], queries)
        for i, counts in enumerate(part):
            true = np.array([count for _, count in counts])
            error = hard[i, : len(true)].numpy() - true
            right += bool((error == 0).all())
            errors += error.tolist()
    return {
        "exact": right / len(wanted),
        "mae": float(np.abs(errors).mean()),
        "bias": float(np.mean(errors)),
    }


def _count(critic: Critic, images: Tensor, queries: Sequence[Query]) -> Tensor:
    """Hard counts, on whatever device the critic's network lives."""
    network = critic.network
    device = next(network.parameters()).device
    with torch.no_grad():
        return critic(images.to(device), queries).hard.cpu()


def scores(critic: Critic, count: int, seed: int = HELD_OUT) -> dict[str, Any]:
    """Held-out scores up to 10 and up to 20 objects, and what absent nouns are counted as."""
    small = held_out_scenes(count, seed, (1, 10))
    large = held_out_scenes(count, seed + 500_000, (11, 20))
    ghosts = []
    for start in range(0, len(small), 64):
        part = small[start : start + 64]
        absent = [[n for n in NAMES if n not in dict(spec.counts)][:8] for spec, _ in part]
        images = pixels([scene for _, scene in part], SIZE)
        hard = _count(critic, images, [critic.prepare(nouns) for nouns in absent])
        ghosts.append(hard.float().mean())
    return {
        "up_to_10": exact_share(critic, small),
        "11_to_20": exact_share(critic, large),
        "absent_nouns": float(torch.stack(ghosts).mean()),
    }


def brief(result: dict[str, Any]) -> str:
    low, high = result["up_to_10"], result["11_to_20"]
    return (
        f"exact {low['exact']:.1%} up to 10, {high['exact']:.1%} up to 20; "
        f"bias {low['bias']:+.3f}, {high['bias']:+.3f}; absent {result['absent_nouns']:.3f}"
    )


# -- the three counters ---------------------------------------------------------------------------


def _card(
    name: str,
    family: str,
    summary: str,
    side: int,
    model: nn.Module,
    source: str,
    min_confidence: float = 0.4,
) -> CriticCard:
    return CriticCard(
        name=name,
        family=family,
        summary=summary,
        license_code="Apache-2.0",
        license_weights="Apache-2.0",
        input_size=side,
        vocabulary=NAMES,
        parameters=sum(p.numel() for p in model.parameters()),
        citation=source,
        min_confidence=min_confidence,
    )


def _placed(network: Network, device: str) -> Network:
    """On the device, in the memory layout in which a CPU convolves half as fast again."""
    return network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


SceneLoss = Callable[[np.random.Generator, torch.Generator, int], Losses]
"""Terms of a batch of so many scenes, as ``loop.LossFunction``."""
CountedLoss = Callable[[CountEstimate, Tensor], Tensor]
"""(b,) of the counts found and wanted."""


def _fit(
    name: str,
    critic: Any,
    scene_loss: SceneLoss,
    counted_loss: CountedLoss,
    pictures: CountedPictures,
    config: TrainConfig,
    work: Path,
) -> None:
    """Train a counter on scenes, and end on scenes and pictures counted by eye."""

    def scenes_only(rng: np.random.Generator, noise: torch.Generator) -> Losses:
        return scene_loss(rng, noise, config.batch)

    def look(_: nn.Module, __: int) -> str:
        return brief(scores(critic, 160))

    fit(name, critic.network, scenes_only, config, work, look=look)
    last = dataclasses.replace(
        SETTLING,
        steps=min(SETTLING.steps, config.steps),
        batch=max(1, config.batch // 2),
        seed=config.seed,
    )
    settle(f"{name}-settled", critic, scene_loss, counted_loss, pictures, last, work)


def settle(
    name: str,
    critic: Any,
    scene_loss: SceneLoss,
    counted_loss: CountedLoss,
    pictures: CountedPictures,
    config: TrainConfig,
    work: Path,
) -> None:
    """Train on as many scenes as pictures counted by eye, the running means of the norms held."""
    network: nn.Module = critic.network
    device = next(network.parameters()).device

    def both(rng: np.random.Generator, noise: torch.Generator) -> Losses:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        losses = dict(scene_loss(rng, noise, config.batch))
        images, nouns, wanted = pictures(rng, config.batch)
        estimate = critic(images.to(device), [critic.prepare(some) for some in nouns])
        losses["counted"] = counted_loss(estimate, wanted.to(device)).mean()
        losses["loss"] = losses["loss"] + losses["counted"]
        return losses

    fit(name, network, both, config, work)


def margin_loss(estimate: CountEstimate, wanted: Tensor) -> Tensor:
    return 0.1 * two_sided_margin(estimate, wanted, 1.0)


def count_loss(estimate: CountEstimate, wanted: Tensor) -> Tensor:
    return 0.5 * soft_count_error(estimate, wanted)


def _finish(
    folder: Path, kind: str, critic: Any, extra: dict[str, Any], held_out: int
) -> dict[str, Any]:
    """Write a trained counter, load it as users will, and score that."""
    card = dataclasses.asdict(critic.card) | {"vocabulary": None}
    config = {"kind": kind, "vocabulary": list(NAMES), "card": card} | extra
    checkpoint.save(folder, config, critic.network)
    return scores(load_critic(critic.card.name, folder), held_out)


def train_detector_a(
    work: Path,
    folder: Path,
    hand: Hand | None,
    config: TrainConfig = DETECTOR_A,
    device: str = "cpu",
) -> dict[str, Any]:
    torch.manual_seed(config.seed)
    network = _placed(heatmap.HeatmapNetwork(len(NAMES)), device)
    card = _card(
        "pocket-detector-a",
        "pocket-heatmap",
        "peaks of class heatmaps",
        SIZE,
        network,
        "arXiv 1904.07850",
    )
    critic = heatmap.critic(network, card, NAMES, _probability(-0.4))
    scenery = Scenery(plain_style, SIZE, hand, device)

    def loss(rng: np.random.Generator, noise: torch.Generator, batch: int) -> Losses:
        _, scenes, images = scenery(rng, noise, batch)
        *targets, total = heatmap_targets(scenes, SIZE)
        peaks, target, mask = (t.to(device) for t in targets)
        logits, sides = network(images)
        focal = heatmap.heatmap_loss(logits, peaks, total)
        box = ((sides - target).abs().mean(1) * mask).sum() / max(total, 1)
        return {"loss": focal + 0.2 * box, "focal": focal, "box": box}

    by_eye = CountedPictures.load("search")
    _fit("detector-a", critic, loss, margin_loss, by_eye, config, work)
    settings = {"overlap": OVERLAPS, "threshold": THRESHOLDS}
    calibrate(critic, settings, hand, by_eye, config.held_out)
    return _finish(
        folder,
        "heatmap-detector",
        critic,
        {"width": 48, **_calibrated(critic)},
        config.held_out,
    )


def train_density(
    work: Path,
    folder: Path,
    hand: Hand | None,
    config: TrainConfig = DENSITY,
    device: str = "cpu",
) -> dict[str, Any]:
    torch.manual_seed(config.seed)
    network = _placed(blockwise.BlockwiseNetwork(len(NAMES), len(ANCHORS)), device)
    card = _card(
        "pocket-density",
        "pocket-density",
        "expectation of blockwise count bins",
        SIZE,
        network,
        "arXiv 2403.09281",
        min_confidence=0.6,
    )
    critic = blockwise.BlockwiseCounter(network, card, NAMES, ANCHORS)
    # Not the detectors' tighter scenes: trained on those it counted 89% of 11 to 20 objects exactly, not 91%.
    scenery = Scenery(loose_style, SIZE, hand, device, overlap=0.1, redrawn=0.35)

    def loss(rng: np.random.Generator, noise: torch.Generator, batch: int) -> Losses:
        _, scenes, images = scenery(rng, noise, batch)
        counts = block_counts(scenes, SIZE).to(device)
        return {"loss": blockwise.blockwise_loss(network(images), counts, ANCHORS)}

    by_eye = CountedPictures.load("search")
    _fit("density", critic, loss, count_loss, by_eye, config, work)
    calibrate(critic, {"temperature": TEMPERATURES}, hand, by_eye, config.held_out)
    extra = {"width": 96, "embedding": 48, "anchors": ANCHORS, "temperature": critic.temperature}
    return _finish(folder, "blockwise-counter", critic, extra, config.held_out)


def train_detector_b(
    work: Path,
    folder: Path,
    hand: Hand | None,
    config: TrainConfig = DETECTOR_B,
    device: str = "cpu",
) -> dict[str, Any]:
    torch.manual_seed(config.seed)
    network = _placed(dense.DenseNetwork(len(NAMES)), device)
    card = _card(
        "pocket-detector-b",
        "pocket-dense",
        "dense boxes with suppression",
        JUDGE_SIZE,
        network,
        "arXiv 1904.01355",
    )
    # While it settles it must tell doubles from neighbours itself, up to an overlap of 0.4. With the tighter
    # suppression of the composed scenes, 0.2, it could not learn to count a pair that overlaps more, and
    # these were most of what it got wrong in generated pictures.
    critic = dense.critic(network, card, NAMES, _probability(-0.4), overlap=0.4)
    scenery = Scenery(judge_style, JUDGE_SIZE, hand, device, overlap=0.4, huddle=0.3)

    def loss(rng: np.random.Generator, noise: torch.Generator, batch: int) -> Losses:
        _, scenes, images = scenery(rng, noise, batch)
        classes, target, ignore = (t.to(device) for t in dense_targets(scenes, JUDGE_SIZE))
        logits, sides = network(images)
        focal, box = dense.dense_loss(logits, sides, classes, target, ignore)
        return {"loss": focal + box, "focal": focal, "box": box}

    by_eye = CountedPictures.load("judge")
    _fit("detector-b", critic, loss, margin_loss, by_eye, config, work)
    settings = {"overlap": (0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5), "threshold": THRESHOLDS}
    # Calibrated on pictures that it was not trained on: its own it knows by heart by now.
    calibrate(critic, settings, hand, CountedPictures.load("search"), config.held_out)
    extra = {"width": 64, **_calibrated(critic)}
    return _finish(folder, "dense-detector", critic, extra, config.held_out)


def _probability(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


THRESHOLDS = tuple(_probability(round(-1.6 + 0.2 * i, 2)) for i in range(17))
TEMPERATURES = tuple(round(0.4 + 0.05 * i, 2) for i in range(19))
OVERLAPS = (0.2, 0.3, 0.4, 0.5)


def calibrate(
    critic: Any,
    settings: Mapping[str, Sequence[float]],
    hand: Hand | None,
    pictures: CountedPictures,
    held_out: int,
) -> None:
    """Set a critic's settings to what counts most calibration pictures exactly; the middle of equals.

    They are of three sorts that weigh alike: scenes as composed, scenes redrawn by the generator with up to
    a fifth of overlap (two fifths of ``held_out`` each), and pictures counted by eye.
    """
    count = max(1, held_out * 2 // 5)
    plain = held_out_scenes(count, 5_000_000, (1, 20))
    scenes = [(plain, pixels([scene for _, scene in plain], SIZE))]
    if hand:
        scenes.append(_redrawn_scenes(hand, count))
    sets = [([spec.counts for spec, _ in part], images) for part, images in scenes]
    by_eye = [tuple(row["counts"].items()) for row in pictures.rows[:held_out]]
    sets.append((by_eye, pictures.pictures[:held_out]))
    # The settings are of the read-out alone, so the network answers once and its answers are read again.
    holder: Any = critic.detector if isinstance(critic, DetectionCritic) else critic
    network, holder.network = holder.network, _Replay(holder.network)
    grid = list(itertools.product(*settings.values()))
    shares = []
    for values in grid:
        _set(critic, dict(zip(settings, values, strict=True)))
        holder.network.rewind()
        shares.append(sum(_exact_counts(critic, *part)["exact"] for part in sets) / len(sets))
    best = [
        values for values, share in zip(grid, shares, strict=True) if share >= max(shares) - 0.002
    ]
    _set(critic, dict(zip(settings, map(float, best[len(best) // 2]), strict=True)))
    holder.network = network


def _set(critic: Any, settings: Mapping[str, float]) -> None:
    if isinstance(critic, DetectionCritic):
        critic.read_out = critic.read_out.changed(**settings)
        return
    for name, value in settings.items():
        setattr(critic, name, value)


def _calibrated(critic: DetectionCritic) -> dict[str, Any]:
    """What ``calibrate`` sets, as a detector's config.json has it."""
    return {"threshold": critic.read_out.threshold, "overlap": critic.read_out.overlap}


class _Replay(nn.Module):
    """A network that, once rewound, gives the same answers in the same order without computing."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._answers: list[Any] = []
        self._next = 0

    def rewind(self) -> None:
        self._next = 0

    def forward(self, images: Tensor) -> Any:
        if self._next == len(self._answers):
            self._answers.append(self.network(images))
        self._next += 1
        return self._answers[self._next - 1]


def _redrawn_scenes(hand: Hand, count: int) -> tuple[list[tuple[SceneSpec, Scene]], Tensor]:
    rng, noise = np.random.default_rng(5_500_000), torch.Generator().manual_seed(5_500_000)
    device = hand.pipeline.unet.device
    scenes, images = [], []
    for start in range(0, count, 32):
        specs = [sample_spec(rng) for _ in range(min(32, count - start))]
        part = [
            compose(
                spec,
                int(rng.integers(2**62)),
                dataclasses.replace(STYLE, max_overlap=float(rng.uniform(0.0, 0.2))),
            )
            for spec in specs
        ]
        begin = torch.from_numpy(rng.uniform(*REDRAWN_FROM, len(specs)).astype(np.float32))
        epsilon = torch.randn(len(specs), LATENT_CHANNELS, SIZE // 4, SIZE // 4, generator=noise)
        texts = [caption(spec, rng) for spec in specs]
        small = pixels(part, SIZE).to(device)
        images.append(hand.redrawn(small, texts, begin.to(device), epsilon.to(device), 3).cpu())
        scenes += list(zip(specs, part, strict=True))
    return scenes, torch.cat(images)
