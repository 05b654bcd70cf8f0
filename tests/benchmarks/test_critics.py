"""The benchmark of the critics' own cost, at a size at which its figures mean nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import pytest
import torch

from benchmarks.critics import main

# Pocket's files, folders of the hub with and without gradient, a network that is brought.
SOME = (
    "pocket-density",
    "pocket-detector-b",
    "owlv2",
    "clip-count",
    "mask2former",
    "rt-detrv2",
    "countgd",
    "dmcount-ebc",
)


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """The benchmark changes settings of its own process; and models this small need one thread."""
    from transformers.utils import logging

    threads, verbosity = torch.get_num_threads(), logging.get_verbosity()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


def test_it_prints_what_each_critic_costs_above_its_bare_network(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--json", "--size", "tiny", "--repeats", "2", "--critics", *SOME]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["critics"].keys() == set(SOME) and all(name in printed.err for name in SOME)
    for name, entry in found["critics"].items():
        for key in ("ratio_to_bare", "seconds", "bare_seconds", "peak_bytes"):
            assert math.isfinite(entry[key]) and entry[key] > 0, (name, key)
        assert entry["ratio_min"] <= entry["ratio_to_bare"] <= entry["ratio_max"]
        assert entry["overhead_min"] <= entry["overhead_seconds"] <= entry["overhead_max"]
        assert entry["backward"] == (name != "mask2former")


def test_a_critic_that_there_is_not_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--critics", "oracle"])
    assert "invalid choice: 'oracle'" in capsys.readouterr().err
