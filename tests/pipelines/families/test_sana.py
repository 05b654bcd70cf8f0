"""SANA-Sprint: the contract on a tiny random pipeline of the real classes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from adapter_contract import PROMPTS, AdapterContract, generators, in_memory, saved_bytes
from tiny_families import sana_folder
from tiny_pipelines import tiny
from torch import Tensor

from countgen.engine.sharing import frozen
from pipelines.adapter import DiffusersAdapter
from pipelines.base import Plan


class TestSanaSprint(AdapterContract):
    nudge = 1e-4  # its linear attention is made of ReLUs, which have kinks

    @pytest.fixture(scope="class")
    @classmethod
    def adapter(cls, tmp_path_factory: pytest.TempPathFactory) -> DiffusersAdapter:
        return tiny("sana-sprint", sana_folder(tmp_path_factory.mktemp("sana")), size=32)

    def reference(self, adapter: DiffusersAdapter, plan: Plan, seeds: Sequence[int]) -> Tensor:
        """The pipeline has an intermediate time for two steps, and must be told so for all others."""
        self.arguments = {"use_resolution_binning": False}
        if plan.steps != 2:
            self.arguments["intermediate_timesteps"] = None
        return super().reference(adapter, plan, seeds)

    def test_the_transformer_is_told_the_guidance_scale(self, adapter: DiffusersAdapter) -> None:
        images = []
        for scale in (1.0, 4.5):
            plan = adapter.plan(guidance_scale=scale)
            expected = self.reference(adapter, plan, (3, 4))
            with torch.no_grad():
                noise = adapter.noise(generators(3, 4), plan)
                images.append(self.rendered(adapter, noise, PROMPTS, plan))
            torch.testing.assert_close(images[-1], expected, atol=1e-5, rtol=0)
        assert (images[0] - images[1]).abs().max() > 1e-4

    def test_a_decoder_without_a_switch_is_recomputed_too(self, adapter: DiffusersAdapter) -> None:
        plan = adapter.plan()
        kept, grads = {}, {}
        with frozen(adapter.modules()):
            for name in ("fast", "balanced"):
                latents = adapter.noise(generators(1), plan).latents.requires_grad_()
                with in_memory(adapter, name):
                    images, kept[name] = saved_bytes(adapter, lambda x=latents: adapter.decode(x))
                (grads[name],) = torch.autograd.grad(images.square().sum(), latents)
        assert kept["balanced"] < 0.7 * kept["fast"]
        torch.testing.assert_close(grads["balanced"], grads["fast"])
        assert not any("forward" in m.__dict__ for m in adapter.pipeline.vae.modules())

    def test_the_tokenizer_keeps_its_side(self, adapter: DiffusersAdapter) -> None:
        adapter.pipeline.tokenizer.padding_side = "left"
        adapter.encode(PROMPTS, adapter.plan())
        assert adapter.pipeline.tokenizer.padding_side == "left"
