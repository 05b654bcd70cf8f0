"""Which of several processes this is, as torchrun, accelerate launch or Slurm have started them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from countgen.errors import UsageError
from countgen.presets import check_device


@dataclass(frozen=True)
class Process:
    """One process of a run.

    Attributes:
        rank: its number, from 0.
        count: how many were started.
        device: that its models go to.
    """

    rank: int
    count: int
    device: str

    @property
    def is_main(self) -> bool:
        """Whether it speaks for all of them while they work."""
        return self.rank == 0


@contextmanager
def this_process(device: str) -> Iterator[Process]:
    """The process, with the processes started together found by accelerate.

    Args:
        device: cuda gives each process of a machine a card of its own.

    Raises:
        UsageError: a device that is not there, or variables of a launcher that make no sense.
    """
    place = check_device(device)
    try:
        count = int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError:
        raise UsageError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']!r}; it is set by torchrun and accelerate launch, so "
            "unset it or start through one of them"
        ) from None
    if count <= 1:
        yield Process(0, 1, place)
        return
    from accelerate import PartialState

    state = PartialState(cpu=place == "cpu")
    try:
        own = str(state.device) if place == "cuda" else place
        yield Process(state.process_index, state.num_processes, own)
    finally:
        state.destroy_process_group()
