"""How much memory a guided step may take: what is kept on the device, and what is computed twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class MemoryPlan:
    """One way to trade time for memory; pictures and gradients are the same in all of them.

    Attributes:
        checkpointing: blocks of denoiser and decoder are computed again on the way back, instead of kept.
        slices: the decoder takes one picture after the other.
        rest_encoders: text encoders stay in the CPU's memory, except while they encode.
        take_turns: denoiser and decoder too, except while they work, and nothing of their work is kept.
    """

    name: str
    summary: str
    checkpointing: bool
    slices: bool
    rest_encoders: bool
    take_turns: bool


PLANS = {
    plan.name: plan
    for plan in (
        MemoryPlan("fast", "everything stays on the device", False, False, False, False),
        MemoryPlan(
            "balanced", "checkpoints, text encoders rest on the CPU", True, False, True, False
        ),
        MemoryPlan(
            "low", "one module at a time on the device, one picture in the decoder", *(True,) * 4
        ),
    )
}
NAMES = tuple(PLANS)


def find_plan(name: str) -> MemoryPlan:
    """A plan by name.

    Raises:
        ValueError: unknown name.
    """
    if name not in PLANS:
        raise ValueError(f'memory must be "auto" or one of {", ".join(PLANS)}, not {name!r}')
    return PLANS[name]


def next_plan(plan: MemoryPlan) -> MemoryPlan | None:
    """The next more sparing plan, None after the last."""
    rest = NAMES[NAMES.index(plan.name) + 1 :]
    return PLANS[rest[0]] if rest else None


def choose_plan(free: int, core: int, encoders: int) -> MemoryPlan:
    """The fastest plan that should fit. A rule of thumb: a plan that did not fit is followed by the next.

    Args:
        free: bytes that the device has for us, weights that already lie there included.
        core: bytes of denoiser and decoder.
        encoders: bytes of the text encoders.
    """
    # Kept activations of one picture are about as large as the weights at the published sizes, and a
    # quarter of it with checkpoints; the critic and the allocator's slack take the rest.
    if free >= 2.5 * core + encoders:
        return PLANS["fast"]
    return PLANS["balanced"] if free >= 1.6 * core else PLANS["low"]


def module_bytes(*modules: nn.Module) -> int:
    """Bytes of parameters and buffers, shared ones once."""
    tensors = {id(t): t for m in modules for t in [*m.parameters(), *m.buffers()]}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def free_bytes(device: torch.device, *resident: nn.Module) -> int | None:
    """What a CUDA device has free, with what these modules hold of it; None on other devices."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    held = [m for m in resident if next(m.parameters()).device.type == "cuda"]
    return int(free + unused + module_bytes(*held))


def visit(
    seat: Callable[[], None], work: Callable[..., Tensor], *tensors: Tensor
) -> Float[Tensor, ...]:
    """``work(*tensors)``, of which only the tensors are kept; on the way back it is done once more.

    Args:
        seat: called before the work, each time: brings the weights that it needs to the device.
        work: a function of these tensors alone, as far as gradients go.
    """
    return _Visit.apply(seat, work, *tensors)


class _Visit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, seat: Any, work: Any, *tensors: Tensor) -> Tensor:
        ctx.seat, ctx.work = seat, work
        ctx.save_for_backward(*tensors)
        seat()
        return work(*(tensor.detach() for tensor in tensors))

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        needed = ctx.needs_input_grad[2:]
        own = [
            tensor.detach().requires_grad_(need)
            for tensor, need in zip(ctx.saved_tensors, needed, strict=True)
        ]
        ctx.seat()
        with torch.enable_grad():
            # Views, since torch's counter of operations cannot follow leaves into modules here.
            result = ctx.work(*(tensor.view_as(tensor) for tensor in own))
        slopes = iter(torch.autograd.grad(result, [t for t in own if t.requires_grad], slope))
        return None, None, *(next(slopes) if need else None for need in needed)


@contextmanager
def checkpointed(module: nn.Module, on: bool) -> Iterator[None]:
    """A Diffusers module that checkpoints its blocks, or does not; afterwards its switches are as they were.

    Diffusers' blocks ask ``torch.is_grad_enabled() and self.gradient_checkpointing``, so that neither
    training mode nor a forward without gradient matters.
    """
    # No block has dropout in evaluation mode, so that no random state need be kept.
    again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
    parts: list[Any] = [m for m in module.modules() if hasattr(m, "gradient_checkpointing")]
    stages: list[Any] = [] if parts or not on else _stages(module)
    before = [dict(part.__dict__) for part in (*parts, *stages)]
    keys = ("gradient_checkpointing", "_gradient_checkpointing_func", "forward")
    for part in parts:
        part.gradient_checkpointing = on
        part._gradient_checkpointing_func = again
    for stage in stages:
        stage.forward = partial(again, stage.forward)
    try:
        yield
    finally:
        for part, old in zip((*parts, *stages), before, strict=True):
            for key in keys:
                if key in old:
                    setattr(part, key, old[key])
                else:
                    part.__dict__.pop(key, None)


def _stages(module: nn.Module) -> list[nn.Module]:
    """What can be computed again of a model that has no switch for it, as AutoencoderDC."""
    lists = [m for m in module.modules() if isinstance(m, nn.ModuleList)]
    return [stage for part in lists for stage in part if isinstance(stage, nn.Sequential)]
