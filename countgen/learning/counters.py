"""Counters trained as published, small: CLIP-EBC's blocks, density experts, the referring counter.

Each can be trained without what is new in it, on the same network, data and steps:

- ``clip-ebc`` (arXiv 2403.09281): blocks are classified into whole counts, and the count is the expectation.
  Without: the same expectation is regressed to the blocks' counts by squared error.
- ``hmode`` (arXiv 2208.02894): beside the maps' squared errors, the relative local counting loss orders
regions
  by their counts. Without: the maps alone.
- ``c-rex`` (arXiv 2505.22850): tokens of an expression are contrasted with all others. Without: the centroids
  alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from countgen.errors import UsageError
from countgen.learning import folder, refer
from countgen.learning.annotated import PocketPoints, Pointed, PointSource, read_points
from countgen.learning.loop import Losses, TrainConfig, fit
from critics.base import Critic, CriticCard
from critics.density import blockwise, hmode
from critics.density.base import DensityCritic
from critics.detectors import c_rex
from critics.loading import checkpoint
from critics.parts.preprocess import IMAGENET, normalise
from critics.registry import load_critic

Family = Literal["clip-ebc", "hmode", "c-rex"]
FAMILIES: tuple[Family, ...] = get_args(Family)
POCKET = "pocket"
SIDE = 64
"""Of the pictures that are learned from, in pixels."""
BINS = 4
"""Of CLIP-EBC: whole counts 0, 1, 2, and 3 and more, whose anchor is the mean of what falls into it."""
REGION, HARDEST = 2, 9
"""Of the relative local counting loss: side of a region in cells (16 pixels as published), and how many."""
CONTRAST = 0.1
"""Weight of the referring counter's contrastive loss."""
THRESHOLD = 0.4
"""Probability above which the referring counter counts a centroid."""


@dataclass(frozen=True)
class CounterSettings:
    """Which counter is trained, on what, and how.

    Attributes:
        data: "pocket" for composed scenes without end, or a folder of annotated pictures.
        new: with what is new in the family; without it for comparison.
    """

    train: TrainConfig
    family: Family
    data: str = POCKET
    new: bool = True

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise UsageError(
                f"no counter of the family {self.family!r} is trained here; there are "
                f"{', '.join(FAMILIES)}"
            )
        if self.family == "c-rex" and self.data != POCKET:
            raise UsageError(
                "c-rex learns from expressions, which COCO's and FSC-147's annotations have not; train it on "
                "pocket"
            )
        if self.train.batch < 2 or self.train.steps < 1:
            raise UsageError("a batch has two pictures at least, and a training one step")


def train(
    settings: CounterSettings, out: Path, device: str = "cpu", stop_after: int | None = None
) -> dict[str, Any]:
    """Train a counter, write it to ``out``, and score what was written on held-out pictures.

    The folder loads by the family's name: ``load_critic("hmode", out)``. A training that was interrupted goes
    on when it is started again with the same settings.

    Args:
        stop_after: end early at this step, without a result.

    Raises:
        UsageError: data without annotations, or a folder of another training.
    """
    # Before anything is written: a folder without annotations should leave none behind.
    data: PointSource | None = None
    if settings.family != "c-rex":
        data = PocketPoints()
        if settings.data != POCKET:
            data = read_points(Path(settings.data), SIDE, settings.train.seed)
    work = folder.claim(out, asdict(settings))
    torch.manual_seed(settings.train.seed)
    lesson = _referring(settings) if data is None else _LESSONS[settings.family](settings, data)
    lesson.network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def look(_: nn.Module, step: int) -> str:
        found = lesson.scores(lesson.critic(), 96)
        return ", ".join(f"{key} {value:.3f}" for key, value in found["all"].items())

    fit(
        settings.family,
        lesson.network,
        lesson.loss,
        settings.train,
        work,
        look=look,
        look_every=-(-settings.train.steps // 3),
        stop_after=stop_after,
    )
    if stop_after is not None and stop_after < settings.train.steps:
        return {}
    lesson.save(out)
    results = lesson.scores(load_critic(settings.family, out), settings.train.held_out)
    folder.note(out, asdict(settings), results)
    return results


@dataclass(frozen=True)
class Lesson:
    """A family's own part of a training.

    Attributes:
        critic: the network as it counts, sharing its weights.
        scores: of a critic on so many held-out pictures, by group; "all" is one.
    """

    network: nn.Module
    loss: Callable[[np.random.Generator, torch.Generator], Losses]
    critic: Callable[[], Critic]
    save: Callable[[Path], None]
    scores: Callable[[Critic, int], dict[str, dict[str, float]]]


def _blockwise(settings: CounterSettings, data: PointSource) -> Lesson:
    network = blockwise.BlockwiseNetwork(len(data.vocabulary), BINS)
    anchors = whole_anchors(data, settings.train)
    card = CriticCard(
        name="clip-ebc",
        family="blockwise",
        summary="expectation of blockwise whole counts; bins embedded per noun of a closed list",
        license_code="Apache-2.0",
        license_weights="as its training data",
        input_size=SIDE,
        citation="after arXiv 2403.09281",
    )

    def loss(rng: np.random.Generator, noise: torch.Generator) -> Losses:
        batch, device = data.draw(rng, settings.train.batch), network.bins.device
        counts = batch.cells(data.vocabulary, blockwise.STRIDE).to(device)
        logits = network(batch.images.to(device))
        chosen = blockwise.blockwise_loss if settings.new else regression_loss
        return {"loss": chosen(logits, counts, anchors)}

    def save(out: Path) -> None:
        stored = dataclasses.asdict(card.of(network)) | {"vocabulary": None}
        config: dict[str, Any] = {
            "kind": blockwise.KIND,
            "vocabulary": list(data.vocabulary),
            "card": stored,
        }
        config |= {"width": 96, "embedding": 48, "anchors": anchors, "temperature": 1.0}
        checkpoint.save(out, config, network)

    return Lesson(
        network,
        loss,
        lambda: blockwise.BlockwiseCounter(network, card, data.vocabulary, anchors),
        save,
        _scores_of(data),
    )


def whole_anchors(data: PointSource, config: TrainConfig, batches: int = 16) -> tuple[float, ...]:
    """What each bin stands for: 0, 1, 2 and so on, and the mean of the counts that fall into the last."""
    rng = np.random.default_rng([config.seed, 1])
    last: list[float] = []
    for _ in range(batches):
        counts = data.draw(rng, config.batch).cells(data.vocabulary, blockwise.STRIDE)
        last += counts[counts >= BINS - 1].tolist()
    return (*map(float, range(BINS - 1)), float(np.mean(last)) if last else float(BINS - 1))


def regression_loss(
    logits: Float[Tensor, "b k n h w"],
    counts: Float[Tensor, "b k h w"],
    anchors: tuple[float, ...],
) -> Float[Tensor, ""]:
    """``blockwise_loss`` with the squared error of the expectations in place of the bins' cross-entropy."""
    found = blockwise.expectation(logits, anchors)
    squared = (found - counts).square().sum() / (counts > 0).sum().clamp_min(1)
    error = (found.sum((-2, -1)) - counts.sum((-2, -1))).abs()
    present = counts.sum((-2, -1)) > 0
    for group in (present, ~present):
        squared = squared + error[group].sum() / group.sum().clamp_min(1)
    return squared


def _mixture(settings: CounterSettings, data: PointSource) -> Lesson:
    network = hmode.HmodeNetwork(len(data.vocabulary), 64)
    card = hmode.CARDS["hmode"].of(network, vocabulary=data.vocabulary, input_size=SIDE)

    def loss(rng: np.random.Generator, noise: torch.Generator) -> Losses:
        batch, device = data.draw(rng, settings.train.batch), network.gate.weight.device
        counts = batch.cells(data.vocabulary, hmode.CELL).to(device)
        maps = network(normalise(batch.images.to(device), IMAGENET))
        terms = {"maps": hmode.hmode_loss(maps, counts)}
        # Ours: of 16 nouns most are absent, and their small densities would add up to ghosts.
        total = (maps[:, -1] / hmode.SCALE).sum((-2, -1)) - counts.sum((-2, -1))
        terms["total"] = total.abs().sum(1).mean()
        value = terms["maps"] + terms["total"]
        if settings.new:
            terms["relative"] = relative_local_loss(maps, counts)
            value = value + terms["relative"]
        return {"loss": value, **terms}

    return Lesson(
        network,
        loss,
        lambda: DensityCritic(hmode.Hmode(network, data.vocabulary, SIDE), card),
        lambda out: hmode.save(out, network, data.vocabulary, SIDE),
        _scores_of(data),
    )


def relative_local_loss(
    maps: Float[Tensor, "b 7 k h w"], counts: Float[Tensor, "b k h w"]
) -> Float[Tensor, ""]:
    """The relative local counting loss of HMoDE (arXiv 2208.02894), in objects, mean over the batch.

    Of the regions of 16x16 pixels the nine with the largest error are taken, ordered by their true counts,
    and split into three triples of distant ranks (1, 4, 7 and so on). Within a triple the predicted
    differences
    must have the order of the true ones: d12 >= 0, d13 >= 0 and d13 >= d12, each by a hinge. Maps weigh
    2 ** (j // 3), as their squared errors do.

    As in the authors' code, but for what it has without gradient (the nine errors themselves), and for
    regions of equal count, between which there is no order and which are left out here. Only nouns that are
    there
    take part: regions of absent ones have no order either.
    """
    regions = F.avg_pool2d(maps.flatten(0, 2)[:, None] / hmode.SCALE, REGION)[:, 0] * REGION**2
    found = regions.flatten(1).unflatten(0, maps.shape[:3])  # (b, 7, k, r)
    true = (F.avg_pool2d(counts, REGION) * REGION**2).flatten(2)[:, None].expand_as(found)
    most = min(HARDEST, found.shape[-1] // 3 * 3)
    hard = (found - true).detach().square().topk(most, -1).indices
    found, true = found.gather(-1, hard), true.gather(-1, hard)
    order = true.argsort(-1, descending=True)
    found, true = found.gather(-1, order), true.gather(-1, order)
    # Triple s holds the ranks s, s + most / 3, s + 2 most / 3.
    found, true = (x.unflatten(-1, (3, most // 3)).transpose(-1, -2) for x in (found, true))
    wrong = found.new_zeros(found.shape[:-1])
    for larger, smaller in ((0, 1), (0, 2), (1, 2)):
        hinge = F.relu(found[..., smaller] - found[..., larger])
        wrong = wrong + torch.where(true[..., larger] > true[..., smaller], hinge, 0.0)
    weights = maps.new_tensor([2.0 ** (j // 3) for j in range(7)])
    there = (counts.sum((-2, -1)) > 0)[:, None].to(wrong)
    return ((wrong.sum(-1) * there).sum(-1) * weights).sum(1).mean()


def _referring(settings: CounterSettings) -> Lesson:
    known = refer.known_words()
    network = c_rex.ReferNetwork(len(known))
    referrer = c_rex.Referrer(network, known, SIDE)
    contrast = CONTRAST if settings.new else 0.0

    def scores(critic: Critic, count: int) -> dict[str, dict[str, float]]:
        return refer.errors(critic, refer.held_out(count), refer.said)

    return Lesson(
        network,
        refer.objective(referrer, settings.train.batch, contrast),
        lambda: c_rex.critic(network, known, SIDE, THRESHOLD),
        lambda out: c_rex.save(out, network, known, SIDE, THRESHOLD),
        scores,
    )


def _scores_of(data: PointSource) -> Callable[[Critic, int], dict[str, dict[str, float]]]:
    def scores(critic: Critic, count: int) -> dict[str, dict[str, float]]:
        return count_errors(critic, data.held_out(), count)

    return scores


def count_errors(
    critic: Critic, held: Pointed, count: int, batch: int = 64
) -> dict[str, dict[str, float]]:
    """Exact share, mean absolute and root mean square error of the nouns that pictures hold.

    Of all, and of nouns with up to ten and with more objects.
    """
    asked = [list(points) for points in held.points[:count]]
    rows = [i for i, nouns in enumerate(asked) if nouns]
    device = next(critic.network.parameters()).device
    found: list[int] = []
    true: list[int] = []
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        queries = [critic.prepare(asked[i]) for i in part]
        with torch.no_grad():
            hard = critic(held.images[part].to(device), queries).hard.cpu()
        for i, line in zip(part, hard.tolist(), strict=True):
            found += line[: len(asked[i])]
            true += [len(held.points[i][noun]) for noun in asked[i]]
    off, many = np.array(found) - np.array(true), np.array(true) > 10
    groups = {"all": many | ~many, "up_to_10": ~many, "above_10": many}
    return {
        name: {
            "mae": float(np.abs(off[chosen]).mean()),
            "rmse": math.sqrt(float((off[chosen] ** 2).mean())),
            "exact": float((off[chosen] == 0).mean()),
        }
        for name, chosen in groups.items()
        if chosen.any()
    }


_LESSONS: dict[str, Callable[[CounterSettings, PointSource], Lesson]] = {
    "clip-ebc": _blockwise,
    "hmode": _mixture,
}


def default_train(steps: int, batch: int, rate: float, seed: int) -> TrainConfig:
    """AdamW with warm-up and cosine decay; batches and rates of small networks from scratch."""
    warmup = min(100, max(1, steps // 10))
    return TrainConfig(steps, batch, rate, warmup=warmup, ema=0.99, seed=seed, held_out=320)
