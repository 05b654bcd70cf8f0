"""One unit for everything: the plain render equivalent (PRE).

One PRE is the floating-point operations of one plain picture, all its sampling steps and the decoder,
measured by torch's own formulas once per module and shape. Gradients, critics, verifier and text
encoder are charged in the same unit. Of a pipeline that is called as it is, one call for one picture is one
PRE; where its operations cannot be counted, counters are priced by the time that they take beside it.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from critics.base import Critic, Query
from pipelines.base import Flops, ImageSource, Plan
from pipelines.flops import CountedFlops

PricedBy = Literal["operations", "time"]


def seconds_of(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one run, the second of two: the first may compile or load something."""
    found = 0.0
    for _ in range(2):
        clock = Clock()
        with torch.inference_mode(False), torch.no_grad():
            work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found = clock.seconds()
    return found


def flops_of(work: Callable[[], Any]) -> float:
    """Operations of one run, without a gradient."""
    with torch.inference_mode(False), torch.no_grad(), CountedFlops() as counted:
        work()
    return float(counted.total)


def passes_of(work: Callable[[Tensor], Tensor], plan: Plan, device: Any) -> Flops:
    """Operations of one picture of a plan's size through a network, and of the gradient to its pixels."""
    image = torch.full((1, 3, plan.height, plan.width), 0.5, device=device, requires_grad=True)
    with torch.inference_mode(False), torch.enable_grad():
        with CountedFlops() as there:
            found = work(image)
        if not found.requires_grad:  # a critic without gradient serves as verifier or judge only
            return Flops(there.total, 0.0)
        with CountedFlops() as back:
            torch.autograd.grad(found.sum(), image)
    return Flops(there.total, back.total)


@dataclass(frozen=True)
class Prices:
    """What one picture's pass through each module costs for one prompt, in PRE: (forward, backward)."""

    modules: dict[str, Flops]

    def verify(self) -> float:
        """Of what critic and verifier look at where the critic counts exactly (``Verification``)."""
        asked = (self.modules.get(role) for role in ("critic", "verifier"))
        return sum(flops.forward for flops in asked if flops is not None)

    def of(self, passes: Passes) -> float:
        """The price of so many passes through each module."""
        forwards = sum(n * self.modules[name].forward for name, n in passes.forwards.items())
        return forwards + sum(
            n * self.modules[name].backward for name, n in passes.backwards.items()
        )


@dataclass(frozen=True)
class Passes:
    """How often one picture went through each module, and back."""

    forwards: Counter[str] = field(default_factory=Counter)
    backwards: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: Passes) -> Passes:
        return Passes(self.forwards + other.forwards, self.backwards + other.backwards)


def drawn(steps: int) -> Counter[str]:
    """What one plain picture goes through; without known steps the pipeline is called as a whole."""
    return Counter({"denoiser": steps, "decoder": 1} if steps else {"pipeline": 1})


def plain_look(steps: int, beside: Sequence[str] = ()) -> Passes:
    """One picture drawn and counted by the critic."""
    return Passes(drawn(steps) + Counter({"critic": 1}) + Counter(beside))


def gradient_step(steps: int, beside: Sequence[str] = (), grad_steps: int | None = None) -> Passes:
    """The same with the way back, through the last ``grad_steps`` steps alone if that is given."""
    forwards = plain_look(steps, beside).forwards
    backwards = Counter(forwards)
    if grad_steps is not None:
        backwards["denoiser"] = min(grad_steps, steps)
    return Passes(forwards, backwards)


class PriceList:
    """Prices by prompt, measured once for every shape of a query."""

    def __init__(
        self,
        adapter: ImageSource,
        plan: Plan,
        counters: Mapping[str, Critic],
        score: Callable[..., Tensor] | None = None,
        texts: Sequence[Tensor] = (),
        first: Callable[[int], float] | None = None,
    ) -> None:
        """Prices of one run.

        Args:
            counters: role -> critic or verifier.
            score: of picture and text, with one text of it.
            first: number of nouns -> operations of what makes a first noise better.
        """
        self._adapter, self._plan, self._counters = adapter, plan, counters
        self._first = first
        self._score = None
        if score is not None:
            self._score = self._measured(lambda image: score(image, texts))
        self._raw: dict[Hashable, Flops] = {}
        self.refresh()

    @property
    def by(self) -> PricedBy:
        """How what runs is compared with a plain picture."""
        return "operations" if self._adapter.flops(self._plan) is not None else "time"

    def _measured(self, work: Callable[[Tensor], Tensor]) -> Flops:
        """Operations of one picture through a network, or seconds."""
        plan, device = self._plan, self._adapter.device
        if self.by == "operations":
            return passes_of(work, plan, device)
        image = torch.full((1, 3, plan.height, plan.width), 0.5, device=device)
        return Flops(seconds_of(lambda: work(image), device), 0.0)

    def _drawing(self) -> dict[str, Flops]:
        """Of the generator by module: operations of a step or a call, or seconds of a call."""
        source, plan = self._adapter, self._plan
        found = source.flops(plan)
        if found is not None:
            return found
        noise = source.noise([torch.Generator().manual_seed(0)], plan)
        seconds = seconds_of(lambda: source.images(noise, ["a picture"], plan), source.device)
        return {"pipeline": Flops(seconds, 0.0)}

    def refresh(self) -> None:
        """After a change of the memory plan, by which going back may cost another forward pass."""
        base = self._drawing()
        passes = drawn(self._plan.evaluations)
        self._unit = sum(times * base[name].forward for name, times in passes.items())
        self._base = {name: self._in_pre(flops) for name, flops in base.items()}
        if self._score is not None:
            self._base["score"] = self._in_pre(self._score)

    def of(self, queries: Mapping[str, Query]) -> Prices:
        """Prices of pictures of a prompt: role -> its query; of the counters without one nothing."""
        modules = dict(self._base)
        for role, critic in self._counters.items():
            if role not in queries:
                continue
            key = (role, shape_of(queries[role]))
            if key not in self._raw:
                query = queries[role]
                self._raw[key] = self._measured(
                    lambda image, critic=critic, query=query: critic(image, [query]).soft  # type: ignore[misc]
                )
            modules[role] = self._in_pre(self._raw[key])
        if self._first is not None and queries:
            kinds = max(len(query.nouns) for query in queries.values())
            if ("first", kinds) not in self._raw:
                self._raw["first", kinds] = Flops(self._first(kinds), 0.0)
            modules["first"] = self._in_pre(self._raw["first", kinds])
        return Prices(modules)

    def _in_pre(self, flops: Flops) -> Flops:
        return Flops(flops.forward / self._unit, flops.backward / self._unit)


def shape_of(query: Query) -> Hashable:
    """What of a query decides how many operations a critic needs for it."""
    text = tuple(sorted((name, tuple(tensor.shape)) for name, tensor in query.text.items()))
    return len(query.nouns), text, tuple(shape_of(member) for member in query.members)


@dataclass
class Cost:
    """What a run has spent.

    Attributes:
        pre: plain render equivalents, text encoder included.
        forwards, backwards: passes of single pictures by module; the denoiser counts every step.
        seconds: wall-clock time of the run.
        peak_bytes: most memory held: allocated on a CUDA device, else the process's resident set.
        priced_by: "operations", or "time" where those of the pipeline cannot be counted; then ``pre`` of
            anything but calls depends on the machine.
    """

    pre: float = 0.0
    forwards: Counter[str] = field(default_factory=Counter)
    backwards: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    peak_bytes: int = 0
    priced_by: PricedBy = "operations"

    def charge(self, prices: Prices, passes: Passes) -> None:
        """Add what one picture, or one prompt, went through."""
        self.forwards += passes.forwards
        self.backwards += passes.backwards
        self.pre += prices.of(passes)

    def report(self) -> dict[str, Any]:
        """JSON-ready, rounded."""
        return {
            "pre": round(self.pre, 3),
            "priced_by": self.priced_by,
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
