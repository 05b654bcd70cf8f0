"""Z-Image: the contract on a tiny random pipeline, at scale 0 and guided."""

from __future__ import annotations

import pytest
from adapter_contract import AdapterContract
from tiny_families import z_image_folder
from tiny_pipelines import tiny

from pipelines.adapter import DiffusersAdapter


class TestZImageTurbo(AdapterContract):
    steps = (1, 4)

    @pytest.fixture(scope="class")
    @classmethod
    def adapter(cls, tmp_path_factory: pytest.TempPathFactory) -> DiffusersAdapter:
        return tiny("z-image-turbo", z_image_folder(tmp_path_factory.mktemp("z-image")), steps=4)

    def test_prompts_of_different_lengths_are_padded(self, adapter: DiffusersAdapter) -> None:
        encoded = adapter.encode(["two cats", "two red cats on grass"], adapter.plan())
        assert encoded.mask is not None
        lengths = encoded.mask.sum(1).tolist()
        assert lengths[1] == lengths[0] + 3 == encoded.hidden.shape[1]
        assert (encoded.hidden[~encoded.mask] == 0).all()


class TestGuidedZImage(AdapterContract):
    """Its scale counts from 0, where the scale of others counts from 1."""

    steps = (1, 2)
    test_guidance_moves_the_count_of_a_trained_critic = None  # which the other class has shown

    @pytest.fixture(scope="class")
    @classmethod
    def adapter(cls, tmp_path_factory: pytest.TempPathFactory) -> DiffusersAdapter:
        folder = z_image_folder(tmp_path_factory.mktemp("z-image-guided"))
        return tiny("z-image-turbo", folder, steps=2, guidance_scale=0.7)
