"""Stable Diffusion, SD-Turbo and LCM: the contract on tiny random pipelines of their classes."""

from __future__ import annotations

import pytest
from adapter_contract import AdapterContract
from tiny_families import lcm_folder
from tiny_pipelines import sd_folder, tiny

from pipelines.adapter import DiffusersAdapter


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
