"""The template in docs/contributing/add-a-critic.md keeps what all critics promise."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from critic_contract import ConfigContract, CriticContract

import critics.registry

PAGE = Path(critics.__file__).parents[1] / "docs" / "contributing" / "add-a-critic.md"


@pytest.fixture(scope="module", autouse=True)
def module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The page's one file of Python, in the registry under its name."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    path = tmp_path_factory.mktemp("template") / "colour_template.py"
    path.write_text(code)
    spec = importlib.util.spec_from_file_location("colour_template", path)
    made = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "colour_template", made)
        patch.setitem(critics.registry.FAMILIES, "colour", "colour_template")
        spec.loader.exec_module(made)
        yield made


@pytest.fixture(scope="module")
def folder(module: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("colour")
    module.save(place, module.ColourNetwork(48), 48)
    return place


class TestContract(CriticContract):
    nouns = ("red thing", "green thing", "blue thing")

    @pytest.fixture(scope="module")
    @classmethod
    def critic(cls, folder: Path) -> Any:
        return critics.registry.load_critic("colour", folder)


class TestLoading(ConfigContract):
    @pytest.fixture
    def saved(self, folder: Path) -> tuple[str, Path]:
        return "colour", folder


def test_it_counts_as_it_says(folder: Path) -> None:
    critic = critics.registry.load_critic("colour", folder)
    images = torch.zeros(1, 3, 32, 32)
    images[0, 0, :8, :8] = 1  # 64 red pixels, of which 48 are an object
    found = critic(images, [critic.prepare(["red thing", "blue thing"])])
    assert found.soft.tolist() == [[pytest.approx(64 / 48), 0]]
