"""What the tests of countgen share: pocket, and a tiny Stable Diffusion with random weights, loaded once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tiny_pipelines import sd_folder, tiny

from countgen import CountGuidedPipeline
from pipelines.adapter import DiffusersAdapter


@pytest.fixture(scope="session")
def loaded_pocket() -> CountGuidedPipeline:
    return CountGuidedPipeline.from_pretrained("pocket")


@pytest.fixture
def pocket(loaded_pocket: CountGuidedPipeline) -> Iterator[CountGuidedPipeline]:
    """Generator and counters of the embedded default; a test leaves its weights' flags as they were."""

    def flags() -> list[bool]:
        modules = loaded_pocket.adapter.modules()
        return [p.requires_grad for module in modules for p in module.parameters()]

    before = flags()
    yield loaded_pocket
    assert flags() == before and any(before), "a run left the generator's weights changed"


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> DiffusersAdapter:
    return tiny("sd-turbo", sd_folder(tmp_path_factory.mktemp("sd")))
