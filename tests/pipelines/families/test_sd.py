"""Stable Diffusion, SD-Turbo and LCM: the contract on tiny random pipelines of their classes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from adapter_contract import AdapterContract
from diffusers import (
    LatentConsistencyModelPipeline,
    LCMScheduler,
)
from tiny_pipelines import clip_text, saved, sd_folder, tiny, unet, vae, words

from pipelines.adapter import DiffusersAdapter


def lcm_folder(folder: Path) -> Path:
    torch.manual_seed(0)
    pipeline = LatentConsistencyModelPipeline(
        vae=vae(),
        text_encoder=clip_text(),
        tokenizer=words(),
        unet=unet(time_cond_proj_dim=8),
        scheduler=LCMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return saved(pipeline, folder)


class TestSDTurbo(AdapterContract):
    @pytest.fixture(scope="class")
    @classmethod
    def adapter(cls, tmp_path_factory: pytest.TempPathFactory) -> DiffusersAdapter:
        return tiny("sd-turbo", sd_folder(tmp_path_factory.mktemp("sd")))


class TestGuidedSD(AdapterContract):
    @pytest.fixture(scope="class")
    @classmethod
    def adapter(cls, tmp_path_factory: pytest.TempPathFactory) -> DiffusersAdapter:
        folder = sd_folder(tmp_path_factory.mktemp("sd-guided"))
        return tiny("sd-turbo", folder, guidance_scale=4.0)


class TestLCM(AdapterContract):
    @pytest.fixture(scope="class")
    @classmethod
    def adapter(cls, tmp_path_factory: pytest.TempPathFactory) -> DiffusersAdapter:
        return tiny("lcm-dreamshaper", lcm_folder(tmp_path_factory.mktemp("lcm")))
