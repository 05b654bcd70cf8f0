"""The mixture of density experts: contract, gates, files, and that it counts once trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from counting_scenes import NOUNS, Scenes, draw, errors, train
from critic_contract import ConfigContract, CriticContract, TrainedCounterContract, noise
from torch import Tensor

from critics.density.hmode import HmodeNetwork, blend, hmode_loss, save
from critics.loading.checkpoint import CheckpointError
from critics.parts.preprocess import IMAGENET, normalise
from critics.registry import load_critic


def tiny() -> HmodeNetwork:
    torch.manual_seed(0)
    return HmodeNetwork(len(NOUNS), 32)


class TestContract(CriticContract):
    nouns = NOUNS

    @pytest.fixture(scope="module")
    @classmethod
    def critic(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        folder = tmp_path_factory.mktemp("hmode")
        save(folder, tiny(), NOUNS, 64)
        return load_critic("hmode", folder)

    def test_the_count_is_the_last_map_over_a_hundred(self, critic: Any) -> None:
        images = noise(1, 3, 64, 64)
        maps = critic.network(normalise(images, IMAGENET))
        found = critic(images, [critic.prepare(["dog", "red apple"])])
        torch.testing.assert_close(found.density, maps[:, -1, [1, 0]] / 100)

    def test_windows_of_a_picture_add_up(self, critic: Any) -> None:
        images = noise(1, 3, 128, 64)
        query = critic.prepare(["cat"])
        parts = [critic(images[..., y : y + 64, :], [query]).soft for y in (0, 64)]
        torch.testing.assert_close(critic(images, [query]).soft, sum(parts))


class TestLoading(ConfigContract):
    @pytest.fixture(scope="module")
    @classmethod
    def saved(cls, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
        folder = tmp_path_factory.mktemp("hmode")
        save(folder, tiny(), NOUNS, 64)
        return "hmode", folder


def test_every_blend_lies_between_its_parts() -> None:
    maps = tiny().eval()(noise(2, 3, 64, 64))
    assert maps.shape == (2, 7, len(NOUNS), 8, 8) and (maps > 0).all()
    for blended, parts in ((3, (0, 1)), (4, (0, 2)), (5, (1, 2)), (6, (3, 4, 5))):
        low, high = maps[:, list(parts)].aminmax(dim=1)
        assert (maps[:, blended] >= low - 1e-6).all() and (maps[:, blended] <= high + 1e-6).all()


def test_the_blend_passes_gradcheck_and_follows_its_gates() -> None:
    torch.manual_seed(0)
    gates = torch.randn(1, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    one, two = (torch.randn(1, 2, 2, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda g, a, b: blend(g, [a, b]), (gates, one, two))
    sure = (
        torch.tensor([50.0, 50.0, 0.0, 0.0], dtype=torch.float64)
        .reshape(1, 4, 1, 1)
        .expand_as(gates)
    )
    torch.testing.assert_close(blend(sure, [one, two]), one)


def test_the_loss_weighs_the_levels_one_two_and_four() -> None:
    counts = torch.ones(1, 1, 2, 2)
    right = torch.full((1, 7, 1, 2, 2), 100.0)
    assert hmode_loss(right, counts) == 0
    for level, weight in ((0, 1), (2, 1), (3, 2), (5, 2), (6, 4)):
        maps = right.clone()
        maps[:, level] = 0
        assert hmode_loss(maps, counts).item() == pytest.approx(4 * weight)


def test_configs_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no published weights"):
        load_critic("hmode")
    with pytest.raises(CheckpointError, match=r"config.json is missing"):
        load_critic("hmode", tmp_path)
    save(tmp_path, tiny(), NOUNS, 64)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in config.items() if k != "window"}))
    with pytest.raises(CheckpointError, match=r"config\.json .* field \(window is missing\)"):
        load_critic("hmode", tmp_path)
    path.write_text(json.dumps(config | {"window": 60}))
    with pytest.raises(CheckpointError, match="60 pixels has no whole cells of 8"):
        load_critic("hmode", tmp_path)
    path.write_text(json.dumps(config | {"vocabulary": ["cat"]}))
    with pytest.raises(CheckpointError, match=r"of wrong shape: experts\.0\.bias"):
        load_critic("hmode", tmp_path)


@pytest.mark.slow
class TestTrained(TrainedCounterContract):
    nouns = NOUNS

    @pytest.fixture(scope="class")
    @classmethod
    def critic(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        network = tiny()

        def loss(scenes: Scenes) -> Tensor:
            maps = network(normalise(scenes.images, IMAGENET))
            truth = scenes.centres(8)
            total = (maps[:, -1] / 100).sum((2, 3)) - truth.sum((2, 3))
            return hmode_loss(maps, truth) + total.abs().sum(1).mean()

        train(network, loss, steps=150, rate=4e-3)
        folder = tmp_path_factory.mktemp("trained")
        save(folder, network, NOUNS, 64)
        return load_critic("hmode", folder)

    def test_it_counts(self, critic: Any) -> None:
        held_out = draw(128, seed=7)
        found = critic(held_out.images, [critic.prepare([NOUNS[i]]) for i in held_out.nouns])
        mine, constant = errors(found.soft[:, 0], held_out.counts)
        assert mine < 0.5 * constant, (mine, constant)
