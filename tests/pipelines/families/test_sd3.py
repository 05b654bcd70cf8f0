"""Stable Diffusion 3.5: the contract on tiny random pipelines, with three text encoders and with two."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from adapter_contract import PROMPTS, AdapterContract
from diffusers import (
    StableDiffusion3Pipeline,
)
from tiny_pipelines import sd3_folder, tiny

from pipelines.adapter import DiffusersAdapter
from pipelines.registry import find_card, wrap
from pipelines.tokens import widths


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
