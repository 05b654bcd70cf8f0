"""LoRAs by a counting reward: what is trained, what Diffusers loads of it, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from tiny_families import pixart_folder
from tiny_pipelines import sd3_folder, sd_folder, tiny
from torch import Tensor, nn

from countgen.errors import MemoryShortage, UsageError
from countgen.guidance.objectives import OBJECTIVES
from countgen.learning.adapting import WEIGHTS, add_lora
from countgen.learning.loop import TrainConfig
from countgen.learning.lora import (
    PRESETS,
    LoraConfig,
    Session,
    bounded_rows,
    check_memory,
    counting_loss,
    train_lora,
)
from countgen.learning.prompted import Captioned, pocket_scenes, read_folder
from countgen.pocket import load_adapter, load_critic
from countgen.prompts import CountTarget
from critics import rewards
from critics.base import CountEstimate, Query
from pipelines.adapter import DiffusersAdapter
from pipelines.registry import wrap

TRAIN = TrainConfig(steps=4, batch=2, learning_rate=1e-2, warmup=1, ema=0.5)
TINY = LoraConfig(TRAIN, rank=2, objective="soft", count_batch=2, grad_steps=1)


def small_scenes(rng: np.random.Generator, number: int) -> list[Captioned]:
    """Pocket scenes at the size of the tiny pipelines, 16 x 16."""
    return [replace(one, image=one.image[:, ::4, ::4]) for one in pocket_scenes(rng, number)]


def sd(folder: Path) -> DiffusersAdapter:
    return tiny("sd-turbo", sd_folder(folder))


@pytest.fixture(scope="module")
def critic() -> object:
    return load_critic("pocket-detector-a")


@pytest.mark.parametrize("family", ["sd-turbo", "sd3.5-large-turbo"])
def test_plain_diffusers_loads_what_was_trained(
    tmp_path: Path, critic: object, family: str
) -> None:
    """A UNet and a transformer: the file alone, in a fresh pipeline, draws the trained pictures."""
    folder = (sd_folder if family == "sd-turbo" else sd3_folder)(tmp_path / "model")
    adapter = tiny(family, folder)
    plain = adapter.pipeline("two cats", num_inference_steps=2, height=16, width=16, **_seeded())
    result = train_lora(adapter, critic, small_scenes, TINY, tmp_path / "out", samples=2)
    assert result.path == tmp_path / "out" / WEIGHTS
    assert list((tmp_path / "out").glob("samples-*.png"))

    fresh = DiffusionPipeline.from_pretrained(folder)
    fresh.load_lora_weights(tmp_path / "out")
    draw = {"num_inference_steps": 2, "height": 16, "width": 16}
    again = fresh("two cats", **draw, **_seeded()).images
    trained = adapter.pipeline("two cats", **draw, **_seeded()).images
    np.testing.assert_allclose(again, trained, atol=1e-5)
    assert np.abs(again - plain.images).max() > 1e-3


def _seeded() -> dict[str, object]:
    return {
        "generator": torch.Generator().manual_seed(3),
        "output_type": "np",
        "guidance_scale": 1.0,
    }


def test_an_interrupted_training_goes_on_to_the_same_file(tmp_path: Path, critic: object) -> None:
    """The counting loss begins in the middle, behind the interruption."""
    config = replace(TINY, count_from=3)
    sd_folder(tmp_path / "model")

    def train(out: str, **options: object) -> dict[str, Tensor]:
        adapter = tiny("sd-turbo", tmp_path / "model")
        done = train_lora(
            adapter, critic, small_scenes, config, tmp_path / out, samples=0, **options
        )
        return load_file(done.path)

    whole = train("whole")
    train("cut", stop_after=2)
    again = train("cut")
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    kept = (tmp_path / "cut" / "lora.checkpoint").read_bytes()
    adapter = tiny("sd-turbo", tmp_path / "model")
    other = replace(config, objective=None)
    with pytest.raises(UsageError, match="objective soft, now None"):
        train_lora(adapter, critic, small_scenes, other, tmp_path / "cut", samples=0)
    assert (tmp_path / "cut" / "lora.checkpoint").read_bytes() == kept


def test_losses_are_what_they_say(critic: object) -> None:
    """The diffusion loss of data and of the generator itself, and the counting loss per object."""
    config = replace(PRESETS["pocket"], objective=None, keep="data")
    config = replace(config, train=replace(config.train, batch=4), count_batch=1)
    session = Session(load_adapter(), critic, pocket_scenes, config)

    def losses(config: LoraConfig) -> dict[str, Tensor]:
        session.config = config
        return dict(session.losses(np.random.default_rng(0), torch.manual_seed(0)))

    data = losses(config)
    assert data.keys() == {"loss", "diffusion"} and float(data["loss"]) > 0.05
    # A LoRA begins as nothing, so the generator is itself.
    assert float(losses(replace(config, keep="own"))["loss"]) < 1e-9
    counted = replace(config, objective="hinge", weight=0.5, count_batch=3)
    for steps in (0, 2):
        found = losses(replace(counted, grad_steps=steps))
        assert float(found["loss"]) == pytest.approx(
            float(found["diffusion"]) + 0.5 * float(found["counting"])
        )
        grads = torch.autograd.grad(
            found["counting"], [w for w in session.denoiser.parameters() if w.requires_grad],
            allow_unused=True,
        )  # fmt: skip
        assert sum(float(g.norm()) for g in grads if g is not None) > 0
    late = losses(replace(counted, count_from=5))
    assert "counting" not in late


def test_one_sided_and_two_sided_losses_on_scenes(critic: object) -> None:
    drawn = pocket_scenes(np.random.default_rng(3), 6)
    images, prompts = torch.stack([one.image for one in drawn]), [one.prompt for one in drawn]
    wanted = torch.tensor([sum(t.count for t in p.targets) for p in prompts])
    queries = [critic.prepare([t.noun for t in p.targets]) for p in prompts]
    estimate = critic(images, queries)
    counts = torch.zeros_like(estimate.hard)
    for row, prompt in enumerate(prompts):
        for k, target in enumerate(prompt.targets):
            counts[row, k] = target.count
    two_sided = counting_loss(OBJECTIVES["hinge"], critic, images, prompts)
    torch.testing.assert_close(
        two_sided, OBJECTIVES["hinge"](estimate, counts) / wanted.clamp_min(1)
    )
    published = counting_loss(OBJECTIVES["counting-reward"], critic, images, prompts)
    scores = rewards.probabilities(estimate, 0.5)
    torch.testing.assert_close(published, rewards.missing_hinge(scores, counts, estimate.mask))
    # Scenes hold what their captions say: nothing is missing at a probability of 0.1.
    assert float(published.max()) < 0.02


def test_rows_are_bounded_one_by_one() -> None:
    gradient = torch.tensor([[3.0, 4.0], [0.3, 0.4], [torch.inf, 0.0]])
    found = bounded_rows(gradient, 1.0)
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]))


class Blind:
    """A critic whose counts come without a gradient."""

    def __init__(self, critic: object) -> None:
        self.inner = critic
        self.card, self.network, self.gives = critic.card, critic.network, critic.gives

    def prepare(self, nouns: list[str]) -> Query:
        return self.inner.prepare(nouns)

    def __call__(self, images: Tensor, queries: list[Query]) -> CountEstimate:
        with torch.no_grad():
            return self.inner(images, queries)


def test_what_cannot_be_trained_is_refused_in_a_sentence(tmp_path: Path, critic: object) -> None:
    adapter = sd(tmp_path / "sd")
    with pytest.raises(UsageError, match="gives no gradient"):
        train_lora(adapter, Blind(critic), small_scenes, TINY, tmp_path / "out")
    with pytest.raises(UsageError, match="reads candidates, and pocket-density gives density"):
        density = load_critic("pocket-density")
        train_lora(adapter, density, small_scenes, replace(TINY, objective="hinge"), tmp_path / "o")
    with pytest.raises(UsageError, match="cannot go through 9"):
        train_lora(adapter, critic, small_scenes, replace(TINY, grad_steps=9), tmp_path / "out")
    with pytest.raises(UsageError, match="load a LoRA into a PixArtAlphaPipeline"):
        pixart = DiffusionPipeline.from_pretrained(pixart_folder(tmp_path / "pixart"))
        add_lora(wrap(pixart), 2, "attention", 0)
    adapter.set_memory_plan("low")
    with pytest.raises(UsageError, match="memory plan low"):
        add_lora(adapter, 2, "attention", 0)
    adapter.set_memory_plan("fast")
    adapter.pipeline.unet = nn.Module()
    adapter.pipeline.unet.weight = nn.Parameter(torch.zeros(1))
    with pytest.raises(UsageError, match="LoRA"):
        add_lora(adapter, 2, "attention", 0)
    with pytest.raises(UsageError, match="no counting loss 'two'"):
        replace(TINY, objective="two")
    with pytest.raises(UsageError, match="3 pictures of a batch of 2"):
        replace(TINY, count_batch=3)
    assert not (tmp_path / "out").exists()


def test_too_little_memory_says_what_would_fit() -> None:
    adapter, config = load_adapter(), PRESETS["pocket"]
    add_lora(adapter, config.rank, config.where, 0)
    plan = adapter.plan()
    check_memory(adapter, plan, config)
    one = adapter.estimate_bytes(plan, 1, 8) - adapter.estimate_bytes(plan, 0)
    with pytest.raises(MemoryShortage, match=r"a batch of 2 with 2 counted .* would fit"):
        check_memory(adapter, plan, config, free=4 * one)
    with pytest.raises(MemoryShortage, match="one picture does not fit either"):
        check_memory(adapter, plan, config, free=1000)


def test_folders_without_captions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no folder"):
        read_folder(tmp_path / "none")
    with pytest.raises(UsageError, match="has no captions"):
        read_folder(tmp_path)
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "a.png", "text": "two cats"}\n{"text": 3}\n'
    )
    with pytest.raises(UsageError, match=r"metadata\.jsonl, line 2: it names no picture"):
        read_folder(tmp_path)
    row = {"file_name": "a.png", "text": "two cats", "targets": [{"noun": "cat"}]}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UsageError, match=r"line 1: its targets or objects cannot be read"):
        read_folder(tmp_path)


def test_other_tables_and_texts_beside_pictures_are_read_too(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("file_name,caption\na.png,two cats\n")
    (file,) = read_folder(tmp_path)
    assert (file.path, file.prompt.targets) == (tmp_path / "a.png", (CountTarget("cat", 2),))
    (tmp_path / "metadata.csv").unlink()
    (tmp_path / "b.png").touch()
    (tmp_path / "b.txt").write_text("three  dogs\n")
    (file,) = read_folder(tmp_path)
    assert (file.prompt.text, file.prompt.targets) == ("three dogs", (CountTarget("dog", 3),))
