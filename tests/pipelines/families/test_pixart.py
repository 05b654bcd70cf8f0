"""PixArt-alpha, its DMD and LCM students, and PixArt-sigma: the contract on tiny random pipelines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from adapter_contract import PROMPTS, AdapterContract, generators
from diffusers import (
    DDPMScheduler,
    LCMScheduler,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
)
from tiny_families import pixart_folder, pixart_transformer
from tiny_pipelines import tiny

from pipelines.adapter import DiffusersAdapter
from pipelines.registry import find_card, wrap

EXACT_SIZES = {"use_resolution_binning": False, "clean_caption": False}


def under_its_old_name(folder: Path) -> None:
    """As on the hub, whose transformers are older than the class that they are loaded into."""
    config = folder / "transformer" / "config.json"
    config.write_text(config.read_text().replace("PixArtTransformer2DModel", "Transformer2DModel"))
    index = folder / "model_index.json"
    if index.exists():
        index.write_text(
            index.read_text().replace("PixArtTransformer2DModel", "Transformer2DModel")
        )


class TestPixArtDMD(AdapterContract):
    """One step from a given time, with a transformer from another repository than the rest."""

    steps = (1,)
    arguments: ClassVar[dict[str, Any]] = {"timesteps": [400], **EXACT_SIZES}

    @pytest.fixture(scope="class")
    @classmethod
    def student(cls) -> PixArtTransformer2DModel:
        torch.manual_seed(1)
        return pixart_transformer().eval()

    @pytest.fixture(scope="class")
    @classmethod
    def adapter(
        cls, student: PixArtTransformer2DModel, tmp_path_factory: pytest.TempPathFactory
    ) -> DiffusersAdapter:
        base = pixart_folder(tmp_path_factory.mktemp("pixart"))
        other = tmp_path_factory.mktemp("dmd")
        student.save_pretrained(other / "transformer")
        for folder in (base, other):
            under_its_old_name(folder)
        part = replace(find_card("pixart-dmd").overrides[0], hub_id=str(other))
        return tiny("pixart-dmd", base, overrides=(part,))

    def test_the_student_took_the_place_of_its_teacher(
        self, adapter: DiffusersAdapter, student: PixArtTransformer2DModel
    ) -> None:
        # Other tests may have rounded the weights to bfloat16.
        found = adapter.pipeline.transformer.state_dict()
        for key, value in student.state_dict().items():
            torch.testing.assert_close(found[key], value, rtol=1e-2, atol=1e-4)

    def test_latents_beyond_one_are_not_cut_off(self, adapter: DiffusersAdapter) -> None:
        scheduler = adapter.pipeline.scheduler
        assert isinstance(scheduler, DDPMScheduler)
        plan = adapter.plan()
        with torch.no_grad():
            noise = adapter.noise(generators(1), plan)
            (step,) = adapter.trajectory(noise, adapter.encode(PROMPTS[:1], plan), plan)
        assert step.latents.abs().max() > 1.5


class TestPixArtLCM(AdapterContract):
    """The size of the picture conditions transformers of 1024 pixels too."""

    arguments = EXACT_SIZES

    @pytest.fixture(scope="class")
    @classmethod
    def adapter(cls, tmp_path_factory: pytest.TempPathFactory) -> DiffusersAdapter:
        folder = tmp_path_factory.mktemp("lcm")
        made = pixart_folder(folder, scheduler=LCMScheduler, sample_size=128)
        return tiny("pixart-lcm", made, arguments={"use_resolution_binning": False})

    def test_guidance_takes_the_size_too(self, adapter: DiffusersAdapter) -> None:
        plan = adapter.plan(2, guidance_scale=3.0)
        expected = self.reference(adapter, plan, (3, 4))
        with torch.no_grad():
            found = self.rendered(adapter, adapter.noise(generators(3, 4), plan), PROMPTS, plan)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


class TestPixArtSigma(AdapterContract):
    """With guidance, and a solver that remembers the step before."""

    steps = (1, 4)
    arguments = EXACT_SIZES

    @pytest.fixture(scope="class")
    @classmethod
    def adapter(cls, tmp_path_factory: pytest.TempPathFactory) -> DiffusersAdapter:
        folder = tmp_path_factory.mktemp("sigma")
        return tiny("pixart-sigma", pixart_folder(folder, PixArtSigmaPipeline))

    def test_a_wrapped_pipeline_has_the_size_that_it_was_trained_on(
        self, adapter: DiffusersAdapter
    ) -> None:
        assert wrap(adapter.pipeline).card.size == 16

    def test_upper_case_is_all_that_is_cleaned_away(self, adapter: DiffusersAdapter) -> None:
        plan = adapter.plan()
        found = adapter.encode([" TWO Cats "], plan)
        torch.testing.assert_close(found.hidden, adapter.encode(["two cats"], plan).hidden)
