"""Stable Diffusion XL: the contract on pocket and on tiny random pipelines of the real classes."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from adapter_contract import PROMPTS, AdapterContract, generators
from diffusers import (
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
)
from safetensors.torch import save_file
from tiny_families import sdxl_folder, sdxl_unet
from tiny_pipelines import tiny

from countgen import pocket
from pipelines.adapter import DiffusersAdapter
from pipelines.base import ComponentOverride
from pipelines.loading import LoadError
from pipelines.registry import find_card


class TestPocket(AdapterContract):
    @pytest.fixture(scope="class")
    @classmethod
    def adapter(cls) -> DiffusersAdapter:
        return pocket.load_adapter()


class TestSDXLTurbo(AdapterContract):
    """Its scheduler adds noise at every step."""

    @pytest.fixture(scope="class")
    @classmethod
    def adapter(cls, tmp_path_factory: pytest.TempPathFactory) -> DiffusersAdapter:
        return tiny("sdxl-turbo", sdxl_folder(tmp_path_factory.mktemp("sdxl")))


class TestGuidedSDXL(AdapterContract):
    @pytest.fixture(scope="class")
    @classmethod
    def adapter(cls, tmp_path_factory: pytest.TempPathFactory) -> DiffusersAdapter:
        folder = sdxl_folder(tmp_path_factory.mktemp("guided"), EulerDiscreteScheduler)
        return tiny("sdxl-turbo", folder, guidance_scale=3.0)


def with_unet(name: str, folder: Path, base: Path) -> DiffusersAdapter:
    """A preset whose UNet is a random one in a file, on a base that has another."""
    card = find_card(name)
    (part,) = card.overrides
    state = sdxl_unet(seed=1).state_dict()
    save_file(state, folder / part.filename)
    adapter = tiny(name, base, overrides=(replace(part, hub_id=str(folder)),))
    found = adapter.pipeline.unet.state_dict()
    assert all(torch.equal(found[key], state[key]) for key in state)
    return adapter


class TestLightning(AdapterContract):
    """Four steps of a UNet from another place, with trailing times on a base with leading ones."""

    steps = (4,)
    test_guidance_moves_the_count_of_a_trained_critic = None  # which TestSDXLTurbo has shown

    @pytest.fixture(scope="class")
    @classmethod
    def adapter(cls, tmp_path_factory: pytest.TempPathFactory) -> DiffusersAdapter:
        folder = tmp_path_factory.mktemp("lightning")
        base = sdxl_folder(folder / "base", EulerDiscreteScheduler, timestep_spacing="leading")
        adapter = with_unet("sdxl-lightning", folder, base)
        assert adapter.pipeline.scheduler.config.timestep_spacing == "trailing"
        return adapter


class TestHyper(AdapterContract):
    """One step at a time of its own."""

    steps = (1,)
    arguments = {"timesteps": [800]}  # noqa: RUF012
    test_guidance_moves_the_count_of_a_trained_critic = None  # which TestSDXLTurbo has shown

    @pytest.fixture(scope="class")
    @classmethod
    def adapter(cls, tmp_path_factory: pytest.TempPathFactory) -> DiffusersAdapter:
        folder = tmp_path_factory.mktemp("hyper")
        return with_unet("hyper-sdxl", folder, sdxl_folder(folder / "base", EulerDiscreteScheduler))

    def test_other_numbers_of_steps_are_refused(self, adapter: DiffusersAdapter) -> None:
        with pytest.raises(
            ValueError, match="distilled for num_inference_steps=1, and takes no other"
        ):
            adapter.plan(2)


def test_lightning_in_one_step_predicts_the_picture(tmp_path: Path) -> None:
    base = sdxl_folder(tmp_path / "base", EulerDiscreteScheduler)
    adapter = with_unet("sdxl-lightning-1step", tmp_path, base)
    contract, plan = AdapterContract(), adapter.plan()
    expected = contract.reference(adapter, plan, (3, 4))
    with torch.no_grad():
        noise = adapter.noise(generators(3, 4), plan)
        encoded = adapter.encode(PROMPTS, plan)
        found = adapter.render(noise, encoded, plan)
        ((_, last, clean, *_),) = adapter.trajectory(noise, encoded, plan)
        start = (
            torch.cat([noise.latents, noise.latents])[:2]
            * adapter.pipeline.scheduler.init_noise_sigma
        )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(last, clean, atol=1e-4, rtol=1e-4)
    assert clean.norm() < 0.2 * start.norm()  # the output itself, and not what is left of the noise


def test_a_whole_component_is_taken_from_another_place(tmp_path: Path) -> None:
    """As a folder in the hub's layout."""
    other = sdxl_unet(seed=1)
    other.save_pretrained(tmp_path / "parts" / "unet")
    part = ComponentOverride("unet", str(tmp_path / "parts"), "folder", subfolder="unet")
    adapter = tiny("sdxl-turbo", sdxl_folder(tmp_path / "base"), overrides=(part,))
    found, state = adapter.pipeline.unet.state_dict(), other.state_dict()
    assert all(torch.equal(found[key], state[key]) for key in state)
    assert not adapter.pipeline.unet.training


def test_weights_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    (part,) = find_card("hyper-sdxl").overrides
    part = replace(part, hub_id=str(tmp_path))
    base = sdxl_folder(tmp_path / "base")
    state = sdxl_unet(seed=1).state_dict()
    state["conv_in.more"] = state.pop("conv_in.bias")
    state["conv_out.bias"] = torch.zeros(5)
    save_file(state, tmp_path / part.filename)
    with pytest.raises(LoadError) as error:
        tiny("hyper-sdxl", base, overrides=(part,))
    for words_of_it in (
        "do not fit UNet2DConditionModel",
        "conv_in.bias is missing",
        "conv_in.more is not known",
        "conv_out.bias has the wrong shape",
    ):
        assert words_of_it in str(error.value)
    (tmp_path / part.filename).unlink()
    with pytest.raises(LoadError, match=rf"{part.filename} is missing"):
        tiny("hyper-sdxl", base, overrides=(part,))


@pytest.mark.skipif(find_spec("peft") is not None, reason="peft is installed")
def test_low_rank_changes_need_an_extra(tmp_path: Path) -> None:
    part = ComponentOverride("unet", "someone/lora", "lora", filename="lora.safetensors")
    with pytest.raises(LoadError, match=r"someone/lora .* pip install 'countgen\[learn\]'"):
        tiny("sdxl-turbo", sdxl_folder(tmp_path), overrides=(part,))


def test_low_rank_changes_are_added_to_the_weights(tmp_path: Path) -> None:
    """A file as trainers write it, with what it adds worked out by hand."""
    peft = pytest.importorskip("peft")
    changed = sdxl_unet(seed=0)
    settings = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["to_q"], init_lora_weights=False)
    changed.add_adapter(settings)
    changes = peft.get_peft_model_state_dict(changed)
    StableDiffusionXLPipeline.save_lora_weights(tmp_path, unet_lora_layers=changes)
    part = ComponentOverride(
        "unet", str(tmp_path), "lora", filename="pytorch_lora_weights.safetensors"
    )
    folder = sdxl_folder(tmp_path / "base")
    plain, adapter = tiny("sdxl-turbo", folder), tiny("sdxl-turbo", folder, overrides=(part,))
    before, after = (a.pipeline.unet.state_dict() for a in (plain, adapter))
    assert before.keys() == after.keys()
    touched = {key for key in before if not torch.equal(before[key], after[key])}
    assert touched == {key for key in before if key.endswith("to_q.weight")}
    for key in touched:
        down, up = (changes[key.replace("weight", f"lora_{side}.weight")] for side in "AB")
        added = (after[key] - before[key]).float()
        # The file keeps no alpha, so that it is read as the rank: B A once.
        torch.testing.assert_close(added, up @ down, atol=1e-6, rtol=1e-4)


def test_the_base_of_a_preset_is_not_that_preset() -> None:
    with pytest.raises(ValueError, match="there is no model"):
        find_card("stabilityai/stable-diffusion-xl-base-1.0")
    assert find_card("stabilityai/sdxl-turbo").name == "sdxl-turbo"
