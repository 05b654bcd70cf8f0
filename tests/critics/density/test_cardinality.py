"""YOLO-Count's read-out and target, around a small network of our own that is trained to count."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from counting_scenes import NOUNS, Scenes, draw, errors, train
from critic_contract import CriticContract, LoadingContract, TrainedCounterContract, noise
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from critics.density.cardinality import cardinality_target, inside, letterbox, read_out
from critics.loading import checkpoint
from critics.parts.convnet import Pyramid
from critics.registry import load_critic


class TinyNetwork(nn.Module):
    """A pyramid whose features are compared with one learned vector a noun; cells of 8 pixels."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.body = Pyramid((16, 32, 48, 48), (0, 1, 1, 1), width, first=2, stop=2)
        self.maps, self.logits = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.words = nn.Embedding(len(NOUNS), width)
        self.bias = nn.Parameter(torch.tensor([0.1, 0.0]))

    def encode(self, nouns: Sequence[str]) -> Tensor:
        return self.words(torch.tensor([NOUNS.index(noun) for noun in nouns]))

    def cardinality(self, pixels: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        seen = self.body(pixels)
        maps, logits = (
            torch.einsum("pdhw,pd->phw", head(seen), text) for head in (self.maps, self.logits)
        )
        return maps * 0.1 + self.bias[0], logits + self.bias[1]


def tiny() -> TinyNetwork:
    torch.manual_seed(0)
    return TinyNetwork()


class TestContract(CriticContract):
    nouns = NOUNS

    @pytest.fixture(scope="module")
    @classmethod
    def critic(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        folder = tmp_path_factory.mktemp("yolo-count")
        checkpoint.save(folder, {}, tiny())
        return load_critic("yolo-count", folder, network=TinyNetwork(), side=64)

    def test_the_map_is_the_read_out_of_the_networks(self, critic: Any) -> None:
        images, query = noise(1, 3, 64, 64), critic.prepare(["dog"])
        maps, logits = critic.network.cardinality(images, query.text["nouns"])
        found = critic(images, [query])
        torch.testing.assert_close(found.density[:, 0], maps.relu())
        threshold = logits.sigmoid().median().item()
        masking = load_critic("yolo-count", network=critic.network, side=64, threshold=threshold)
        masked = masking(images, [query])
        torch.testing.assert_close(
            masked.density[:, 0], maps.relu() * (logits.sigmoid() > threshold)
        )
        assert 0 < masked.soft < found.soft


class TestLoading(LoadingContract):
    @pytest.fixture(scope="module")
    @classmethod
    def saved(cls, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
        folder = tmp_path_factory.mktemp("yolo-count")
        checkpoint.save(folder, {}, tiny())
        return "yolo-count", folder

    def options(self) -> dict[str, Any]:
        return {"network": TinyNetwork()}


def test_the_read_out_passes_gradcheck() -> None:
    torch.manual_seed(0)
    maps = torch.randn(2, 4, 4, dtype=torch.float64, requires_grad=True)
    logits = torch.randn(2, 4, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda m: read_out(m, logits, 0.4), (maps,))
    assert torch.equal(read_out(maps, logits), maps.relu())


@pytest.mark.parametrize("cell", [1, 4, 8])
def test_a_target_holds_one_for_each_mask_whatever_its_size(cell: int) -> None:
    masks = torch.zeros(3, 32, 40, dtype=torch.bool)
    masks[0, 5, 7] = True
    masks[1, 2:30, 3:38] = True
    masks[2, 8:16, 16:24] = True
    target = cardinality_target(masks, cell)
    assert target.shape == (32 // cell, 40 // cell)
    torch.testing.assert_close(target.sum(), torch.tensor(3.0))
    alone = cardinality_target(masks[2:], cell)
    torch.testing.assert_close(
        alone[8 // cell : 16 // cell, 16 // cell : 24 // cell].sum(), alone.sum()
    )
    assert alone.max() == pytest.approx(cell**2 / 64)
    assert cardinality_target(masks[:0], cell).sum() == 0


def test_masks_that_cannot_be_counted_are_refused() -> None:
    masks = torch.ones(2, 16, 16, dtype=torch.bool)
    masks[1] = False
    with pytest.raises(ValueError, match=r"masks \[1\] are empty"):
        cardinality_target(masks, 4)
    with pytest.raises(ValueError, match="no whole cells of 5 pixels"):
        cardinality_target(masks[:1], 5)


@pytest.mark.parametrize("size", [(60, 100), (100, 62), (40, 20), (64, 64), (1, 200)])
def test_letterboxing_is_pils_resize_on_black(size: tuple[int, int]) -> None:
    """PIL's own resize in floating point (mode "F"), so no rounding to 8 bits lies between."""
    images = noise(1, 3, *size)
    boxed = letterbox(images, 64)
    scale = 64 / max(size)
    height, width = (max(1, math.floor(side * scale)) for side in size)
    top, left = (64 - height) // 2, (64 - width) // 2
    expected = torch.zeros(1, 3, 64, 64)
    for channel in range(3):
        plane = Image.fromarray(images[0, channel].numpy(), "F")
        small = plane.resize((width, height), Image.Resampling.BILINEAR)
        expected[0, channel, top : top + height, left : left + width] = torch.from_numpy(
            np.array(small)
        )
    torch.testing.assert_close(boxed, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "rows", "columns"),
    [((48, 64), (10, 70), (0, 80)), ((64, 33), (0, 80), (19, 61)), ((9, 9), (0, 80), (0, 80))],
)
def test_what_the_map_says_of_the_padding_is_left_out(
    size: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    """Rows and columns by hand, from the authors' mask on their 80 x 80 cells."""
    expected = torch.zeros(80, 80)
    expected[slice(*rows), slice(*columns)] = 1
    assert torch.equal(inside(torch.ones(2, 80, 80), *size)[1], expected)


def test_a_critic_counts_nothing_beside_the_picture() -> None:
    critic = load_critic("yolo-count", network=tiny(), side=64)
    images = noise(1, 3, 32, 64)
    found = critic(images, [critic.prepare(["dog"])])
    maps, _ = critic.network.cardinality(
        letterbox(images, 64), critic.prepare(["dog"]).text["nouns"]
    )
    assert maps[0, :2].relu().sum() > 0 and found.density[0, 0, :2].sum() == 0
    torch.testing.assert_close(found.density[0, 0, 2:6], maps[0, 2:6].relu())


def test_networks_and_options_that_do_not_fit_are_refused() -> None:
    with pytest.raises(TypeError, match=r"a network of your own, network=.*none was given"):
        load_critic("yolo-count")
    with pytest.raises(TypeError, match="CardinalityNetwork; Linear is none"):
        load_critic("yolo-count", network=nn.Linear(1, 1))
    for options in ({"threshold": 1.0}, {"threshold": -0.1}, {"side": 0}):
        with pytest.raises(ValueError, match="a probability from 0 to below 1"):
            load_critic("yolo-count", network=tiny(), **options)


@pytest.mark.slow
class TestTrained(TrainedCounterContract):
    """A network trained on cardinality targets, asked for absent nouns as often as for present ones."""

    nouns = NOUNS

    @pytest.fixture(scope="class")
    @classmethod
    def critic(cls) -> Any:
        network = tiny()

        def target(boxes: Tensor) -> Tensor:
            masks = torch.zeros(len(boxes), 64, 64, dtype=torch.bool)
            for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
                mask[y0:y1, x0:x1] = True
            return cardinality_target(masks, 8)

        def loss(scenes: Scenes) -> Tensor:
            nouns, there = scenes.asked
            truth = torch.stack([target(boxes) for boxes in scenes.boxes]) * there[:, None, None]
            maps, logits = network.cardinality(
                scenes.images, network.encode([NOUNS[i] for i in nouns])
            )
            found = read_out(maps, logits)
            present = (truth > 0).float()
            return (
                (found.sum((1, 2)) - truth.sum((1, 2))).abs().mean()
                + 20 * (maps - truth).abs().mean()
                + 0.1 * F.binary_cross_entropy_with_logits(logits, present)
            )

        train(network, loss, steps=250, rate=4e-3)
        return load_critic("yolo-count", network=network, side=64)

    def test_it_counts(self, critic: Any) -> None:
        held_out = draw(128, seed=7)
        found = critic(held_out.images, [critic.prepare([NOUNS[i]]) for i in held_out.nouns])
        mine, constant = errors(found.soft[:, 0], held_out.counts)
        assert mine < 0.5 * constant, (mine, constant)
