"""While much is imported and loaded, Python looks for no garbage; afterwards it does as before."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from countgen._collector import paused_collector
from countgen.presets import load_critic


class Knot:
    def __init__(self) -> None:
        self.self = self


@pytest.fixture
def collections() -> Iterator[list[int]]:
    """Generations of the collections that happen."""
    seen: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            seen.append(info["generation"])

    gc.callbacks.append(note)
    yield seen
    gc.callbacks.remove(note)


def test_nothing_is_collected_inside_and_garbage_is_found_afterwards(
    collections: list[int],
) -> None:
    with paused_collector():
        knot = weakref.ref(Knot())
        kept = [[] for _ in range(10_000)]
        with paused_collector():
            pass
        assert not gc.isenabled(), "the end of an inner pause is not the end of the outer one"
    assert not collections and len(kept) == 10_000
    assert gc.isenabled() and gc.get_freeze_count() == 0 and knot() is not None
    gc.collect()
    assert knot() is None


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with paused_collector():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_it_is_on_again_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), paused_collector():
        raise ZeroDivisionError
    assert gc.isenabled()


def test_loading_a_counter_pauses_it(collections: list[int]) -> None:
    load_critic("pocket-density")
    assert not collections
