"""Pipelines of no family of their own: two real ones that work in the ordinary way, and some that do not."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_contract import PROMPTS, AdapterContract, generators
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    SanaPipeline,
    SanaTransformer2DModel,
    StableDiffusionPAGPipeline,
    StableDiffusionPipeline,
)
from tiny_pipelines import (
    aura_flow_folder,
    clip_text,
    deep_decoder,
    gemma_text,
    saved,
    sd3_folder,
    sd_folder,
    unet,
    vae,
    words,
)

from pipelines import registry
from pipelines.adapter import DiffusersAdapter
from pipelines.base import PipelineCard
from pipelines.blackbox import BlackBox
from pipelines.families import generic
from pipelines.registry import load_adapter

CARD = PipelineCard(
    name="ordinary",
    family="generic",
    summary="",
    steps=4,
    guidance_scale=0.0,
    size=16,
    license_code="Apache-2.0",
    license_weights="none",
)


def sana_folder(folder: Path) -> Path:
    """Its VAE is not a KL one, its text is masked, and its prompts have a long instruction before them."""
    torch.manual_seed(0)
    tokenizer = words()
    pipeline = SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=gemma_text(tokenizer),
        vae=deep_decoder(),
        transformer=SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=1,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=16,
            sample_size=8,
        ),
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )
    return saved(pipeline, folder)


def sd_parts(kind: type[Any], **changes: Any) -> Any:
    """A pipeline of a class that takes Stable Diffusion's parts."""
    torch.manual_seed(0)
    parts = dict(
        vae=vae(),
        text_encoder=clip_text(),
        tokenizer=words(),
        unet=unet(),
        scheduler=EulerDiscreteScheduler(timestep_spacing="trailing", steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
    )
    pipeline = kind(**(parts | changes), requires_safety_checker=False)
    for module in (pipeline.unet, pipeline.text_encoder, pipeline.vae):
        module.eval()
    return pipeline


def loaded(folder: Path, **changes: Any) -> DiffusersAdapter:
    return load_adapter(replace(CARD, hub_id=str(folder), **changes))


class TestAuraFlow(AdapterContract):
    """Times from 0 to 1, text without a mask."""

    steps = (1, 3)

    @pytest.fixture(scope="class")
    @classmethod
    def adapter(cls, tmp_path_factory: pytest.TempPathFactory) -> DiffusersAdapter:
        adapter = loaded(aura_flow_folder(tmp_path_factory.mktemp("aura")))
        assert adapter.family.name == "generic"
        return adapter


class TestSana(AdapterContract):
    """Guided."""

    steps = (2, 3)
    arguments = {"use_resolution_binning": False}  # noqa: RUF012
    test_guidance_moves_the_count_of_a_trained_critic = None  # which TestAuraFlow has shown

    @pytest.fixture(scope="class")
    @classmethod
    def adapter(cls, tmp_path_factory: pytest.TempPathFactory) -> DiffusersAdapter:
        adapter = loaded(sana_folder(tmp_path_factory.mktemp("sana")), size=32, guidance_scale=3.0)
        assert adapter.family.name == "generic"
        return adapter


@pytest.mark.parametrize("make", [sd_folder, sd3_folder], ids=["unet", "pooled text"])
def test_what_known_families_do_is_found_without_them(make: Any, tmp_path: Path) -> None:
    pipeline = registry.load_adapter(make(tmp_path)).pipeline
    guesses = generic.families(pipeline)
    adapter = generic.verified(DiffusersAdapter(pipeline, guess, CARD) for guess in guesses)
    assert adapter.family is guesses[0]


@pytest.mark.parametrize("make", [aura_flow_folder, sana_folder])
def test_half_precision_is_not_taken_for_a_difference(make: Any, tmp_path: Path) -> None:
    adapter = load_adapter(make(tmp_path), dtype=torch.bfloat16)
    assert adapter.family.name == "generic"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pipeline_that_does_more_is_called_as_it_is_and_says_why(dtype: torch.dtype) -> None:
    """Perturbed attention is asked for by default, and nothing in the signatures tells what it does."""
    pipeline = sd_parts(StableDiffusionPAGPipeline).to(dtype)
    source = registry.wrap(pipeline)
    assert isinstance(source, BlackBox) and "\n" not in source.reason
    assert re.search(r"does more than what its components tell.* differ by \d", source.reason)


def test_times_that_depend_on_the_size_are_left_to_the_pipeline(tmp_path: Path) -> None:
    pipeline = load_adapter(aura_flow_folder(tmp_path)).pipeline
    pipeline.scheduler.register_to_config(use_dynamic_shifting=True)
    source = registry.wrap(pipeline)
    assert isinstance(source, BlackBox) and "depend on the size of the picture" in source.reason


def test_the_comparison_leaves_no_trace(tmp_path: Path) -> None:
    pipeline = SanaPipeline.from_pretrained(sana_folder(tmp_path))
    pipeline.tokenizer.padding_side = "left"  # which the pipeline changes whenever it encodes

    def state() -> Any:
        members = {k: v for k, v in vars(pipeline).items() if not isinstance(v, torch.nn.Module)}
        return {k: str(v) for k, v in members.items()}, vars(pipeline.scheduler).copy()

    before = state()
    adapter = registry.wrap(pipeline)
    adapter.encode(PROMPTS, adapter.plan(2, height=32, width=32))
    assert str(state()) == str(before) and pipeline.tokenizer.padding_side == "left"


@pytest.mark.parametrize("base", [StableDiffusionPipeline, LatentConsistencyModelPipeline])
def test_a_derived_class_has_the_family_of_its_base(base: type[Any]) -> None:
    changes: dict[str, Any] = {}
    if base is LatentConsistencyModelPipeline:
        changes = {"unet": unet(time_cond_proj_dim=8), "scheduler": LCMScheduler(steps_offset=1)}
    adapter = registry.wrap(sd_parts(type("Mine", (base,), {}), **changes))
    assert adapter.family.name == "sd"
    plan = adapter.plan(2, guidance_scale=3.0)
    with torch.no_grad():
        noise = adapter.noise(generators(1, 2), plan)
        found = adapter.render(noise, adapter.encode(PROMPTS, plan), plan)
    expected = AdapterContract().reference(adapter, plan, (1, 2))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
