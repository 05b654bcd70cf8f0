"""Runs the examples in docstrings. Only modules that hold one are imported."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for package in ("countgen", "pipelines", "critics")
    for path in sorted((ROOT / package).rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]

if MODULES:

    @pytest.mark.parametrize("name", MODULES)
    def test_examples_in_docstrings(name: str) -> None:
        assert doctest.testmod(import_module(name)).failed == 0
