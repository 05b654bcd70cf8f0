"""Pipelines of no family of their own: two real ones that work in the ordinary way, and some that do not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_contract import PROMPTS, AdapterContract
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderDC,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SanaPipeline,
    SanaTransformer2DModel,
    StableDiffusionPAGPipeline,
    StableDiffusionPipeline,
)
from test_pipeline_flux import t5_words
from tiny_pipelines import clip_text, saved, unet, vae, words
from transformers import Gemma2Config, Gemma2Model, UMT5Config, UMT5EncoderModel

from pipelines import generic, registry
from pipelines.adapter import DiffusersAdapter
from pipelines.base import PipelineCard
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


def aura_flow_folder(folder: Path) -> Path:
    torch.manual_seed(0)
    pipeline = AuraFlowPipeline(
        tokenizer=t5_words(),
        text_encoder=UMT5EncoderModel(
            UMT5Config(
                vocab_size=len(t5_words()),
                d_model=16,
                d_kv=8,
                d_ff=16,
                num_layers=1,
                num_heads=2,
                initializer_factor=0.1,
            )
        ),
        vae=vae(),
        transformer=AuraFlowTransformer2DModel(
            sample_size=8,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            caption_projection_dim=16,
            pos_embed_max_size=256,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
    )
    return saved(pipeline, folder)


def sana_folder(folder: Path) -> Path:
    """Its VAE is not a KL one, its text is masked, and its prompts have a long instruction before them."""
    torch.manual_seed(0)
    tokenizer = words()
    pipeline = SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=Gemma2Model(
            Gemma2Config(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=8,
            )
        ),
        vae=AutoencoderDC(
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_types=("ResBlock", "ResBlock"),
            decoder_block_types=("ResBlock", "ResBlock"),
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            encoder_qkv_multiscales=((), ()),
            decoder_qkv_multiscales=((), ()),
            upsample_block_type="interpolate",
            downsample_block_type="stride_conv",
            scaling_factor=0.41,
        ),
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


def sd_parts(kind: type[Any]) -> Any:
    """A pipeline of a class that takes Stable Diffusion's parts."""
    torch.manual_seed(0)
    return kind(
        vae=vae(),
        text_encoder=clip_text().eval(),
        tokenizer=words(),
        unet=unet().eval(),
        scheduler=EulerDiscreteScheduler(timestep_spacing="trailing"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def loaded(folder: Path, **changes: Any) -> DiffusersAdapter:
    return load_adapter(replace(CARD, hub_id=str(folder), **changes))


class TestAuraFlow(AdapterContract):
    """Times from 0 to 1, text without a mask."""

    steps = (1, 3)

    @pytest.fixture(scope="class")
    @classmethod
    def adapter(cls, tmp_path_factory: pytest.TempPathFactory) -> DiffusersAdapter:
        adapter = loaded(aura_flow_folder(tmp_path_factory.mktemp("aura")))
        assert isinstance(adapter.family, generic.Generic)
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
        assert isinstance(adapter.family, generic.Generic)
        return adapter


def test_a_pipeline_that_does_more_is_refused_with_its_difference() -> None:
    """Perturbed attention is asked for by default, and nothing in the signatures tells what it does."""
    with pytest.raises(ValueError, match=r"PAGPipeline are not supported.* differ by 0?\.?\d"):
        registry.wrap(sd_parts(StableDiffusionPAGPipeline))


def test_a_derived_class_has_the_family_of_its_base() -> None:
    class Mine(StableDiffusionPipeline):
        pass

    adapter = registry.wrap(sd_parts(Mine))
    assert adapter.family.name == "sd"
    plan = adapter.plan(2, height=16, width=16)
    generator = torch.Generator()
    with torch.no_grad():
        noise = adapter.noise([generator.manual_seed(1)], plan)
        found = adapter.render(noise, adapter.encode(PROMPTS[:1], plan), plan)
    expected = adapter.pipeline(
        PROMPTS[:1],
        height=16,
        width=16,
        num_inference_steps=2,
        guidance_scale=0.0,
        generator=generator.manual_seed(1),
        output_type="pt",
    ).images
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
