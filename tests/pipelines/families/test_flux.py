"""FLUX.1: the contract on tiny random pipelines, with and without a scale that the transformer is told."""

from __future__ import annotations

import copy

import pytest
import torch
from adapter_contract import PROMPTS, AdapterContract
from tiny_families import flux_folder
from tiny_pipelines import tiny

from pipelines.adapter import DiffusersAdapter


class TestSchnell(AdapterContract):
    arguments = {"max_sequence_length": 256}  # noqa: RUF012  (which its own example says)

    @pytest.fixture(scope="class")
    @classmethod
    def adapter(cls, tmp_path_factory: pytest.TempPathFactory) -> DiffusersAdapter:
        return tiny("flux-schnell", flux_folder(tmp_path_factory.mktemp("flux"), told=False))


class TestToldTheScale(AdapterContract):
    """As FLUX.1-dev: the scale is embedded, and the sigmas are shifted by the size of the picture."""

    steps = (1, 3)
    test_guidance_moves_the_count_of_a_trained_critic = None  # which TestSchnell has shown

    @pytest.fixture(scope="class")
    @classmethod
    def adapter(cls, tmp_path_factory: pytest.TempPathFactory) -> DiffusersAdapter:
        folder = flux_folder(
            tmp_path_factory.mktemp("flux-told"), told=True, shift=3.0, use_dynamic_shifting=True
        )
        return tiny("flux-schnell", folder, guidance_scale=3.5, arguments={})

    def test_the_scale_is_heard(self, adapter: DiffusersAdapter) -> None:
        """Of the very same noise and text."""
        plans = [adapter.plan(guidance_scale=scale) for scale in (1.0, 3.5)]
        with torch.no_grad():
            noise = adapter.noise([torch.Generator().manual_seed(0)], plans[0])
            encoded = adapter.encode(PROMPTS[:1], plans[0])
            one, other = (adapter.render(noise, encoded, plan) for plan in plans)
        assert (one - other).abs().max() > 1e-4

    def test_small_and_large_pictures_are_shifted_apart(self, adapter: DiffusersAdapter) -> None:
        """More patches, later times; they are what the wrapped pipeline's own run leaves in its scheduler."""
        times = []
        for side in (16, 32):
            plan = adapter.plan(3, height=side, width=side)
            self.reference(adapter, plan, (3, 4))
            scheduler = copy.deepcopy(adapter.pipeline.scheduler)
            adapter.family.set_timesteps(adapter.pipeline, scheduler, plan, adapter.device)
            assert torch.equal(scheduler.timesteps, adapter.pipeline.scheduler.timesteps)
            times.append(scheduler.timesteps)
        assert (times[1][1:] > times[0][1:]).all()
