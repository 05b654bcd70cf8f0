"""Amortised guidance: a network that changes a noise, learnt from a critic or from successes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_pipelines import sd3_folder, sd_folder, tiny
from torch import nn

from countgen import CountGuidedPipeline
from countgen.errors import UsageError
from countgen.learning.adapting import lora_layers
from countgen.learning.draws import noise_of, pocket_prompt
from countgen.learning.loop import TrainConfig
from countgen.learning.lora import unguided_plan
from countgen.learning.noise import (
    PRESETS,
    Amortised,
    NoiseConfig,
    NoiseNetwork,
    Successes,
    gather_successes,
    train_noise,
)
from countgen.pocket import load_adapter, load_critic
from countgen.prompts import CountPrompt, CountTarget

TRAIN = TrainConfig(steps=4, batch=2, learning_rate=1e-2, warmup=1, ema=0.5)
CONFIG = NoiseConfig(TRAIN, rank=2, objective="soft")
CATS = CountPrompt("three cats", (CountTarget("cat", 3),))


@pytest.fixture(scope="module")
def critic() -> object:
    return load_critic("pocket-detector-a")


@pytest.mark.parametrize("family", ["sd-turbo", "sd3.5-large-turbo"])
def test_the_change_begins_at_nothing_and_shares_the_weights(tmp_path: Path, family: str) -> None:
    folder = (sd_folder if family == "sd-turbo" else sd3_folder)(tmp_path)
    adapter = tiny(family, folder)
    denoiser = adapter.networks.denoiser
    own = {id(weight) for weight in denoiser.parameters()}
    network, plan = NoiseNetwork(adapter, 2, "attention"), unguided_plan(adapter)
    noise = noise_of(adapter, plan, [1, 2])
    told = adapter.encode(["two cats"] * 2, plan)
    change = network(adapter, noise, told, plan)
    assert change.shape == noise.latents.shape and not change.any()
    # Only the LoRA and the emptied base of the last layer are new.
    new = [(n, w) for n, w in network.named_parameters() if id(w) not in own]
    assert all("lora_" in name or "base_layer" in name for name, _ in new)
    assert not any("lora_" in name for name, _ in denoiser.named_parameters())
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    (change + noise.latents).square().sum().backward()
    assert any(w.grad is not None and w.grad.abs().sum() > 0 for w in trained)


def test_it_learns_from_a_critic_resumes_and_is_read_again(tmp_path: Path, critic: object) -> None:
    sd_folder(tmp_path / "model")

    def train(out: str, config: NoiseConfig = CONFIG, **options: object) -> Amortised:
        adapter, prompts = tiny("sd-turbo", tmp_path / "model"), partial(pocket_prompt, 0)
        return train_noise(adapter, critic, prompts, config, tmp_path / out, **options)

    whole = train("whole")
    train("cut", stop_after=2)
    again = train("cut")
    assert all(torch.equal(whole.state[name], again.state[name]) for name in whole.state)
    path = tmp_path / "cut" / "noise.safetensors"
    read = Amortised.load(path)
    assert all(torch.equal(whole.state[name], read.state[name]) for name in whole.state)
    with pytest.raises(UsageError, match=r"keep 0\.5, now 0\.1"):
        train("cut", replace(CONFIG, keep=0.1))

    pipeline = CountGuidedPipeline(tiny("sd-turbo", tmp_path / "model"), critic)
    options = {"budget": 0.0, "seed": 4}
    plain = pipeline([CATS], guidance="none", **options)
    found = pipeline([CATS], guidance=f"amortised={path}", **options)
    assert not torch.equal(found.noise.latents, plain.noise.latents)
    # A pass costs what a step does, and a little for the LoRA.
    plan = pipeline.adapter.plan()
    step = pipeline.adapter.flops(plan)["denoiser"].forward
    assert step < read.flops(pipeline.adapter, plan, 1) < 1.5 * step
    assert found.cost.forwards["first"] == 1 and found.cost.pre > plain.cost.pre
    # The engine begins with it too, and the pipeline's own weights stay as they were.
    engine = pipeline([CATS], guidance=f"engine+amortised={path}", **options)
    assert torch.equal(engine.noise.latents, found.noise.latents)
    again_plain = pipeline([CATS], guidance="none", **options)
    assert torch.equal(again_plain.noise.latents, plain.noise.latents)


def test_it_learns_the_changes_of_successes(tmp_path: Path, critic: object) -> None:
    """A change that is always the same is learnt."""
    adapter = tiny("sd-turbo", sd_folder(tmp_path / "model"))
    plan = adapter.plan()
    dogs = CountPrompt("two dogs", (CountTarget("dog", 2),))
    pattern = torch.zeros(1, *plan.latent_shape)
    pattern[:, 0] = 1.0
    found = Successes((CATS, dogs), (1, 2), torch.cat([pattern, pattern]))
    train = replace(TRAIN, steps=60, batch=2, learning_rate=3e-2)
    config = NoiseConfig(train, rank=4, where="all", source="successes")
    prompts = partial(pocket_prompt, 0)
    learnt = train_noise(adapter, critic, prompts, config, tmp_path / "out", successes=found)
    with torch.no_grad():
        noise = noise_of(adapter, plan, [1, 2])
        told = adapter.encode([CATS.text, dogs.text], plan)
        change = learnt._on(adapter)(adapter, noise, told, unguided_plan(adapter))
    missed = (change - found.changes).square().mean() / found.changes.square().mean()
    assert float(missed) < 0.5
    nothing = Successes((), (), torch.zeros(0, *plan.latent_shape))
    with pytest.raises(UsageError, match="no successes"):
        train_noise(adapter, critic, prompts, config, tmp_path / "o", successes=nothing)


def test_successes_are_first_and_last_noises() -> None:
    pipeline = CountGuidedPipeline.from_pretrained("pocket", guidance="best-of-n")
    dogs = CountPrompt("two dogs", (CountTarget("dog", 2),))
    found = gather_successes(pipeline, lambda i: dogs, 2, budget=12.0, seed=1)
    assert len(found.seeds) == len(found.changes) == len(found.prompts) >= 1
    # A picture that was drawn exact has not changed, and comes again from the seed.
    assert not found.changes.any()
    first = noise_of(pipeline.adapter, pipeline.adapter.plan(), found.seeds[:1])
    again = pipeline(dogs, guidance="none", latents=first, budget=0.0)
    assert again.verified == [True]


def test_what_cannot_be_learnt_is_refused(tmp_path: Path, critic: object) -> None:
    adapter = tiny("sd-turbo", sd_folder(tmp_path / "sd"))
    own = lora_layers(NoiseNetwork(load_adapter(), 2, "attention").denoiser)
    with pytest.raises(UsageError, match="learnt for pocket, and the denoiser of sd-turbo"):
        Amortised("pocket", own, 2, "attention")._on(adapter)
    with pytest.raises(UsageError, match="ends in conv_out or proj_out"):
        adapter.pipeline.unet = nn.Linear(1, 1)
        NoiseNetwork(adapter, 2, "attention")
    with pytest.raises(UsageError, match="no counting loss"):
        replace(PRESETS["pocket"], objective="none")
