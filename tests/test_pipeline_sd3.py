"""Stable Diffusion 3.5: the contract on tiny random pipelines, with three text encoders and with two."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_contract import PROMPTS, AdapterContract
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from test_pipeline_sd import tiny
from tiny_pipelines import clip_text, saved, t5_pieces, t5_text, vae, words

from pipelines.adapter import DiffusersAdapter
from pipelines.registry import find_card, wrap
from pipelines.tokens import widths


def sd3_folder(folder: Path, *, dual: tuple[int, ...] = (), **scheduler: Any) -> Path:
    torch.manual_seed(0)
    pipeline = StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=40,
            caption_projection_dim=16,
            pooled_projection_dim=32,
            pos_embed_max_size=32,
            dual_attention_layers=dual,
            qk_norm="rms_norm",
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(**scheduler),
        vae=vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06),
        text_encoder=clip_text(projection=True),
        tokenizer=words(),
        text_encoder_2=clip_text(projection=True),
        tokenizer_2=words(),
        text_encoder_3=t5_text(40),
        tokenizer_3=t5_pieces(),
    )
    return saved(pipeline, folder)


class TestSD35LargeTurbo(AdapterContract):
    @pytest.fixture(scope="class")
    @classmethod
    def adapter(cls, tmp_path_factory: pytest.TempPathFactory) -> DiffusersAdapter:
        folder = tmp_path_factory.mktemp("sd3")
        return tiny("sd3.5-large-turbo", sd3_folder(folder, shift=3.0))

    def test_all_three_encoders_have_a_say(self, adapter: DiffusersAdapter) -> None:
        assert widths(adapter.pipeline) == [16, 16, 40]
        one, other = adapter.encode(PROMPTS, adapter.plan()).hidden
        clip = adapter.pipeline.tokenizer_max_length
        for part in (one - other)[:clip, :16], (one - other)[:clip, 16:32], (one - other)[clip:]:
            assert part.abs().max() > 1e-3

    def test_a_wrapped_pipeline_has_the_size_that_it_was_trained_on(
        self, adapter: DiffusersAdapter
    ) -> None:
        assert wrap(adapter.pipeline).card.size == 16


class TestSD35Medium(AdapterContract):
    """With guidance and without T5, and with times that depend on the size."""

    steps = (1, 4)

    @pytest.fixture(scope="class")
    @classmethod
    def adapter(cls, tmp_path_factory: pytest.TempPathFactory) -> DiffusersAdapter:
        folder = sd3_folder(
            tmp_path_factory.mktemp("sd3-medium"),
            dual=(0,),
            # Shifts that differ much between the few patches of tiny pictures.
            use_dynamic_shifting=True,
            base_image_seq_len=8,
            max_image_seq_len=64,
        )
        # As users leave it out, to spare its memory.
        without = {"text_encoder_3": None, "tokenizer_3": None}
        pipeline = StableDiffusion3Pipeline.from_pretrained(folder, **without)
        return wrap(pipeline, replace(find_card("sd3.5-medium"), size=16))

    def test_larger_pictures_are_sampled_at_noisier_times(self, adapter: DiffusersAdapter) -> None:
        times = []
        for width in (16, 32):
            plan = adapter.plan(4, width=width)
            self.reference(adapter, plan, (3, 4))
            expected = adapter.pipeline.scheduler.timesteps
            scheduler = type(adapter.pipeline.scheduler).from_config(
                adapter.pipeline.scheduler.config
            )
            adapter.family.set_timesteps(adapter.pipeline, scheduler, plan, adapter.device)
            torch.testing.assert_close(scheduler.timesteps, expected)
            times.append(expected)
        assert (times[1] > times[0])[1:].all()
