"""Plain pocket pictures for the benchmarks: no critic, no selection."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from countgen.pocket import load_adapter


class Plain:
    """The pocket generator, loaded once."""

    def __init__(self) -> None:
        self.adapter = load_adapter()
        self.plan = self.adapter.plan()

    def render(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """(b, 3, h, w) in [0, 1], each from its own CPU generator."""
        with torch.no_grad():
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            noise = self.adapter.noise(generators, self.plan)
            conditioning = self.adapter.encode(prompts, self.plan)
            return self.adapter.render(noise, conditioning, self.plan)
