"""DMCount-EBC: contract, the published layout, and the network written down from the authors' code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from critic_contract import ConfigContract, CriticContract, noise
from torch import Tensor
from torch.nn import functional as F

from critics.density.clip_ebc import NWPU_ANCHORS
from critics.density.dmcount_ebc import VGG19, DMCountEbcConfig, DMCountEbcNetwork, save
from critics.loading.checkpoint import CheckpointError
from critics.parts.preprocess import IMAGENET, normalise
from critics.registry import load_critic

TINY = DMCountEbcConfig((6, 8, 0, 8, 0, 8, 0, 12, 0, 16), head=(8, 6), side=64)
PLANS = {
    "plain": (TINY.plan, False, [0, 2, 5, 8, 11, 14]),
    "with batch norms": (TINY.plan, True, [0, 3, 7, 11, 15, 19]),
}
NWPU: dict[str, Any] = {"anchors": NWPU_ANCHORS, "block": 8}
"""What a published file does not say of itself."""


def network(config: DMCountEbcConfig) -> DMCountEbcNetwork:
    torch.manual_seed(0)
    made = DMCountEbcNetwork(config).eval().requires_grad_(False)
    for weight in made.parameters():
        weight.mul_(2)  # or the picture is lost on the way through a random network
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("dmcount-ebc")
    save(place, network(TINY))
    return place


class TestContract(CriticContract):
    nouns = ("person", "people", "human")

    @pytest.fixture(scope="module")
    @classmethod
    def critic(cls, folder: Path) -> Any:
        return load_critic("dmcount-ebc", folder)


class TestLoading(ConfigContract):
    @pytest.fixture
    def saved(self, folder: Path) -> tuple[str, Path]:
        return "dmcount-ebc", folder


def published_shapes() -> dict[str, tuple[int, ...]]:
    """The tensors of the authors' class with a VGG-19: the numbers of torchvision's layers."""
    numbers = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)
    widths = [width for width in VGG19 if width]
    convolutions = [
        (f"backbone.features.{number}", (b, a, 3, 3))
        for number, a, b in zip(numbers, [3, *widths], widths, strict=False)
    ]
    convolutions += [
        ("backbone.reg_layer.0", (256, 512, 3, 3)),
        ("backbone.reg_layer.2", (128, 256, 3, 3)),
        ("classifier", (5, 128, 1, 1)),
    ]
    return {f"{name}.weight": shape for name, shape in convolutions} | {
        f"{name}.bias": shape[:1] for name, shape in convolutions
    }


def test_the_tensors_are_those_of_the_authors_class() -> None:
    with torch.device("meta"):
        own = DMCountEbcNetwork(DMCountEbcConfig()).state_dict()
    assert {key: tuple(value.shape) for key, value in own.items()} == published_shapes()


@pytest.mark.parametrize(("plan", "batch_norm", "numbers"), PLANS.values(), ids=PLANS)
def test_published_files_give_the_published_network(
    plan: tuple[int, ...], batch_norm: bool, numbers: list[int], tmp_path: Path
) -> None:
    made = network(DMCountEbcConfig(plan, batch_norm, (8, 6)))
    state = made.state_dict()
    torch.save({"model_state_dict": state, "epoch": 3}, tmp_path / "last.pth")
    critic = load_critic("dmcount-ebc", tmp_path / "last.pth", allow_pickle=True, **NWPU)
    assert critic.network.config == made.config
    images = noise(2, 3, 448, 480)
    found = critic(images, [critic.prepare(["person", "people"]), critic.prepare(["human"])])
    x = normalise(images, IMAGENET)
    widths = iter(numbers)
    for width in plan:
        if not width:
            x = F.max_pool2d(x, 2)
            continue
        number = next(widths)
        x = convolve(state, f"backbone.features.{number}", x)
        if batch_norm:
            name = f"backbone.features.{number + 1}"
            parts = ("running_mean", "running_var", "weight", "bias")
            x = F.batch_norm(x, *(state[f"{name}.{part}"] for part in parts))
        x = x.relu()
    x = F.interpolate(x, scale_factor=2.0, mode="bilinear")
    x = convolve(state, "backbone.reg_layer.0", x).relu()
    x = convolve(state, "backbone.reg_layer.2", x).relu()
    shares = F.conv2d(x, state["classifier.weight"], state["classifier.bias"]).softmax(1)
    anchors = torch.tensor(critic.network.config.anchors)
    expected = torch.einsum("bnhw,n->bhw", shares, anchors)
    assert expected.std() > 1e-3
    torch.testing.assert_close(found.density[:, 0], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(found.density[0, 1], found.density[0, 0])
    assert found.soft[1, 1] == 0


def convolve(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)


def test_files_of_another_model_and_configs_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "odd.pth"
    state = network(TINY).state_dict()
    for keys, message in (
        ([], "backbone.features.0.weight is missing"),
        (["backbone.features.0.weight"], "backbone.reg_layer.0.weight is missing"),
        ([key for key in state if "features.5" not in key], "has four poolings"),
        ([key for key in state if key != "classifier.bias"], "1 missing: classifier.bias"),
    ):
        torch.save({key: state[key] for key in keys}, path)
        with pytest.raises(CheckpointError, match=message):
            load_critic("dmcount-ebc", path, allow_pickle=True, **NWPU)
    with pytest.raises(CheckpointError, match="allow_pickle=True"):
        load_critic("dmcount-ebc", path)
    with pytest.raises(CheckpointError, match="releases"):
        load_critic("dmcount-ebc")
    save(tmp_path, network(TINY))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"side": 70}))
    with pytest.raises(CheckpointError, match=r"misstates a field.*multiple of 16"):
        load_critic("dmcount-ebc", tmp_path)


def test_what_a_file_does_not_say_is_asked_for_and_compared_with_it(tmp_path: Path) -> None:
    path = tmp_path / "best.pth"
    torch.save(network(DMCountEbcConfig(head=(8, 6))).state_dict(), path)
    with pytest.raises(CheckpointError, match=r"anchors=.*block="):
        load_critic("dmcount-ebc", path, allow_pickle=True)
    for lacking in NWPU:
        with pytest.raises(CheckpointError, match=r"anchors=.*block="):
            given = {key: value for key, value in NWPU.items() if key != lacking}
            load_critic("dmcount-ebc", path, allow_pickle=True, **given)
    with pytest.raises(CheckpointError, match="5 bins, but 3 anchors"):
        load_critic("dmcount-ebc", path, allow_pickle=True, anchors=(0.0, 1.0, 2.1), block=8)


def test_half_precision_networks_count_nearly_the_same(folder: Path) -> None:
    full, half = (
        load_critic("dmcount-ebc", folder, dtype=kind) for kind in (torch.float32, torch.bfloat16)
    )
    images = noise(1, 3, 64, 64)
    soft = [c(images, [c.prepare(["person"])]).soft for c in (full, half)]
    assert half.network.classifier.weight.dtype == torch.bfloat16
    assert soft[1].dtype == torch.float32 and (soft[0] - soft[1]).abs() < 0.05 * soft[0]
