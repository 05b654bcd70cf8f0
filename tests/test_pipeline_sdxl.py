"""Stable Diffusion XL: the contract on pocket and on tiny random pipelines of the real classes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from adapter_contract import AdapterContract
from diffusers import (
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
)
from test_pipeline_sd import tiny
from tiny_pipelines import clip_text, saved, unet, vae, words

from countgen import pocket
from pipelines.adapter import DiffusersAdapter


def sdxl_folder(folder: Path, scheduler: type = EulerAncestralDiscreteScheduler) -> Path:
    """Both text encoders."""
    torch.manual_seed(0)
    pipeline = StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=clip_text(),
        text_encoder_2=clip_text(projection=True),
        tokenizer=words(),
        tokenizer_2=words(),
        unet=unet(
            cross_attention_dim=32,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=16 + 6 * 4,
        ),
        scheduler=scheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            timestep_spacing="trailing",
        ),
        add_watermarker=False,
    )
    return saved(pipeline, folder)


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
