"""Critics by name: unknown names, and what every family module has."""

from __future__ import annotations

import importlib
import inspect

import pytest

from critics import registry
from critics.registry import FAMILIES, UnknownCriticError


@pytest.mark.parametrize("find", [registry.card, registry.load_critic])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("owl2", "no critic 'owl2'; did you mean owlv2"),
        ("RT_DETRv2", "did you mean rt-detrv2"),
        ("qqqq", "there are c-rex, clip-count"),
    ],
)
def test_an_unknown_name_names_the_nearest(find: object, name: str, message: str) -> None:
    with pytest.raises(UnknownCriticError, match=message):
        find(name)  # type: ignore[operator]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_name_has_its_card_and_a_loader_that_takes_a_source(name: str) -> None:
    family = importlib.import_module(FAMILIES[name])
    assert family.CARDS[name].name == name and registry.card(name) is family.CARDS[name]
    assert list(inspect.signature(family.load).parameters)[:2] == ["name", "source"]
