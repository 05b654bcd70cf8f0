"""The template of a new family is run as it stands in the guide."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from adapter_contract import AdapterContract
from diffusers import AuraFlowPipeline
from tiny_pipelines import aura_flow_folder

from pipelines.adapter import DiffusersAdapter

GUIDE = Path(__file__).parents[2] / "docs" / "contributing" / "add-a-pipeline-family.md"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    (code,) = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.M | re.S)
    path = tmp_path_factory.mktemp("family") / "aura_flow.py"
    path.write_text(code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestTemplate(AdapterContract):
    """With classifier-free guidance, as its card says."""

    steps = (1, 3)
    test_guidance_moves_the_count_of_a_trained_critic = None  # which other families have shown
    test_it_can_be_pickled = None  # a module that is no file of the package cannot be found again

    @pytest.fixture(scope="class")
    @classmethod
    def adapter(
        cls, template: ModuleType, tmp_path_factory: pytest.TempPathFactory
    ) -> DiffusersAdapter:
        folder = aura_flow_folder(tmp_path_factory.mktemp("aura"))
        pipeline = AuraFlowPipeline.from_pretrained(folder)
        (card,) = template.CARDS
        return DiffusersAdapter(pipeline, template.FAMILY, replace(card, size=16))
