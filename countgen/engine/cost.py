"""One unit for everything: the plain render equivalent (PRE).

One PRE is the floating-point operations of one plain picture, all its sampling steps and the decoder,
measured with torch's FlopCounterMode once per module and shape. Gradients, critics, verifier and text
encoder are charged in the same unit.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from critics.base import Critic, Query
from pipelines.base import Flops, PipelineAdapter, Plan


def critic_flops(critic: Critic, query: Query, height: int, width: int, device: Any) -> Flops:
    """Operations of one picture through a critic, and of the gradient back to its pixels."""
    image = torch.full((1, 3, height, width), 0.5, device=device, requires_grad=True)
    with torch.enable_grad():
        with FlopCounterMode(display=False) as there:
            soft = critic(image, [query]).soft
        if not soft.requires_grad:  # a critic without gradient serves as verifier or judge only
            return Flops(float(there.get_total_flops()), 0.0)
        with FlopCounterMode(display=False) as back:
            torch.autograd.grad(soft.sum(), image)
    return Flops(float(there.get_total_flops()), float(back.get_total_flops()))


@dataclass(frozen=True)
class Prices:
    """What one picture's pass through each module costs, in PRE: (forward, backward) by module."""

    modules: dict[str, Flops]
    steps: int

    @classmethod
    def measure(
        cls,
        adapter: PipelineAdapter,
        plan: Plan,
        critics: dict[str, tuple[Critic, Query]],
    ) -> Prices:
        """Prices of a plan; ``critics`` are role -> (critic, a query with the prompt's nouns)."""
        raw = dict(adapter.flops(plan))
        for role, (critic, query) in critics.items():
            raw[role] = critic_flops(critic, query, plan.height, plan.width, adapter.device)
        unit = plan.steps * raw["denoiser"].forward + raw["decoder"].forward
        return cls(
            {name: Flops(f.forward / unit, f.backward / unit) for name, f in raw.items()},
            plan.steps,
        )

    def again(self, adapter: PipelineAdapter, plan: Plan) -> Prices:
        """After a change of the memory plan, by which going back may cost another forward pass."""
        raw = adapter.flops(plan)
        unit = plan.steps * raw["denoiser"].forward + raw["decoder"].forward
        own = {name: Flops(f.forward / unit, f.backward / unit) for name, f in raw.items()}
        return Prices(self.modules | own, self.steps)

    def look(self) -> float:
        """Drawing one picture without gradient and counting it with the critic."""
        return 1.0 + self.modules["critic"].forward

    def verify(self) -> float:
        return self.modules["verifier"].forward if "verifier" in self.modules else 0.0

    def improve(self) -> float:
        """Drawing one picture with gradient, counting it, and going back to its noise."""
        back = (
            self.steps * self.modules["denoiser"].backward
            + self.modules["decoder"].backward
            + self.modules["critic"].backward
        )
        return self.look() + back


@dataclass
class Cost:
    """What a run has spent.

    Attributes:
        pre: plain render equivalents, text encoder included.
        forwards, backwards: passes of single pictures by module; the denoiser counts every step.
        seconds: wall-clock time of the run.
        peak_bytes: most memory held: allocated on a CUDA device, else the process's resident set.
    """

    pre: float = 0.0
    forwards: Counter[str] = field(default_factory=Counter)
    backwards: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    peak_bytes: int = 0

    def charge(self, prices: Prices, name: str, pictures: int, backward: bool = False) -> None:
        """Add ``pictures`` forward passes of a module, and as many backward ones if asked for."""
        price = prices.modules[name]
        self.forwards[name] += pictures
        self.pre += pictures * price.forward
        if backward:
            self.backwards[name] += pictures
            self.pre += pictures * price.backward

    def charge_render(self, prices: Prices, pictures: int, backward: bool = False) -> None:
        self.charge(prices, "denoiser", pictures * prices.steps, backward)
        self.charge(prices, "decoder", pictures, backward)

    def report(self) -> dict[str, Any]:
        """JSON-ready, rounded."""
        return {
            "pre": round(self.pre, 3),
            "seconds": round(self.seconds, 3),
            "peak_bytes": self.peak_bytes,
            "forwards": dict(sorted(self.forwards.items())),
            "backwards": dict(sorted(self.backwards.items())),
        }


def peak_bytes(device: torch.device) -> int:
    """Peak memory so far: allocated on a CUDA device, else the resident set; 0 where it is unknown."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._begun = time.monotonic()

    def seconds(self) -> float:
        return time.monotonic() - self._begun
