"""How much memory a guided step may take: what is offloaded, and what the backward pass recomputes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipelines.devices import free_bytes


@dataclass(frozen=True)
class MemoryPlan:
    """One way to trade time for memory; pictures and gradients are the same in all of them.

    Attributes:
        gradient_checkpointing: activations inside the blocks of denoiser and decoder are recomputed in the
            backward pass.
        vae_slicing: the decoder takes one picture at a time.
        text_encoder_offload: text encoders are on the CPU, except while they encode.
        model_offload: denoiser and decoder too, except while they run, and of a whole pass only the inputs
            are kept: it is recomputed in the backward pass.
    """

    name: str
    summary: str
    gradient_checkpointing: bool = False
    vae_slicing: bool = False
    text_encoder_offload: bool = False
    model_offload: bool = False


PLANS = {
    plan.name: plan
    for plan in (
        MemoryPlan("fast", "everything stays on the device"),
        MemoryPlan(
            "balanced",
            "gradient checkpointing, text encoders on the CPU",
            gradient_checkpointing=True,
            text_encoder_offload=True,
        ),
        MemoryPlan(
            "low",
            "one module at a time on the device, one picture in the decoder",
            gradient_checkpointing=True,
            vae_slicing=True,
            text_encoder_offload=True,
            model_offload=True,
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
    """The next plan, which needs less memory; None after the last."""
    later = NAMES[NAMES.index(plan.name) + 1 :]
    return PLANS[later[0]] if later else None


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


class Modules(NamedTuple):
    """The modules of a pipeline, by when they are needed."""

    encoders: tuple[nn.Module, ...]
    denoiser: nn.Module
    decoder: nn.Module
    others: tuple[nn.Module, ...]


class Offloader:
    """Keeps the modules of one pipeline where a memory plan wants them: on the device, or on the CPU.

    Offloading is for CUDA devices; elsewhere a plan only decides what is recomputed.

    Attributes:
        plan: the memory plan of the moment.
        automatic: "auto" was asked for, so that the plan may change with the device and with its memory.
    """

    def __init__(self, modules: Callable[[], Modules], plan: str) -> None:
        """``plan``: a name, or "auto".

        Raises:
            ValueError: unknown name.
        """
        self._modules = modules
        self._device = next(modules().denoiser.parameters()).device
        self._onloaded: nn.Module | None = None
        self.automatic = plan == "auto"
        self.plan = self._choose() if self.automatic else find_plan(plan)

    @property
    def device(self) -> torch.device:
        """Where the work is done."""
        if self.plan.model_offload:
            return self._device
        return next(self._modules().denoiser.parameters()).device

    def to(self, device: torch.device) -> None:
        """Another device; an automatic plan is chosen anew."""
        self._device = device
        if self.automatic:
            self.plan = self._choose()
        self.place()

    def set_plan(self, plan: MemoryPlan) -> None:
        self._device, self.plan = self.device, plan
        self.place()

    def onload(self, module: nn.Module | None) -> None:
        """With model offload: this module to the device, and the one before it to the CPU."""
        if not self.plan.model_offload or self._onloaded is module:
            return
        if self._onloaded is not None and self._device.type == "cuda":
            self._onloaded.to("cpu")
        if module is not None:
            module.to(self._device)
        self._onloaded = module

    @contextmanager
    def encoders(self) -> Iterator[None]:
        """Text encoders on the device for a while, afterwards where the plan or the user put them."""
        self.onload(None)
        encoders = self._modules().encoders
        before = [next(encoder.parameters()).device for encoder in encoders]
        for encoder in encoders:
            encoder.to(self.device)
        try:
            yield
        finally:
            for encoder, device in zip(encoders, before, strict=True):
                encoder.to("cpu" if self.plan.text_encoder_offload else device)

    def place(self) -> None:
        """Every module to where the plan wants it."""
        encoders, denoiser, decoder, others = self._modules()
        offloaded: list[nn.Module] = [*encoders] if self.plan.text_encoder_offload else []
        if self.plan.model_offload:
            offloaded += denoiser, decoder
        for module in (*encoders, denoiser, decoder, *others):
            away = self._device.type == "cuda" and any(module is one for one in offloaded)
            module.to("cpu" if away else self._device)
        self._onloaded = None

    def _choose(self) -> MemoryPlan:
        if self._device.type != "cuda":
            return PLANS["fast"]
        encoders, denoiser, decoder, _ = self._modules()
        own = (denoiser, decoder, *encoders)
        resident = [m for m in own if next(m.parameters()).device.type == "cuda"]
        free = free_bytes(self._device) + module_bytes(*resident)
        return choose_plan(free, module_bytes(denoiser, decoder), module_bytes(*encoders))


def recompute(
    prepare: Callable[[], None], run: Callable[..., Tensor], *tensors: Tensor
) -> Float[Tensor, ...]:
    """``run(*tensors)``, of which only the tensors are kept; it is run again in the backward pass.

    Args:
        prepare: called before each run: brings the weights that it needs to the device.
        run: a function of these tensors alone, as far as gradients go.
    """
    return _Recompute.apply(prepare, run, *tensors)


class _Recompute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, prepare: Any, run: Any, *tensors: Tensor) -> Tensor:
        ctx.prepare, ctx.run = prepare, run
        kind = tensors[0].device.type
        # The backward pass may be outside of the autocast that the forward pass was in.
        ctx.autocast = partial(
            torch.autocast,
            kind,
            dtype=torch.get_autocast_dtype(kind),
            enabled=torch.is_autocast_enabled(kind),
        )
        ctx.save_for_backward(*tensors)
        prepare()
        return run(*(tensor.detach() for tensor in tensors))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        needed = ctx.needs_input_grad[2:]
        leaves = [
            tensor.detach().requires_grad_(need)
            for tensor, need in zip(ctx.saved_tensors, needed, strict=True)
        ]
        ctx.prepare()
        with torch.enable_grad(), ctx.autocast():
            # Views, since torch's counter of operations cannot follow leaves into modules here.
            result = ctx.run(*(tensor.view_as(tensor) for tensor in leaves))
        grads = iter(torch.autograd.grad(result, [t for t in leaves if t.requires_grad], grad))
        return None, None, *(next(grads) if need else None for need in needed)


class GraphBytes:
    """Counts the bytes that graphs built inside ``with`` keep for the backward pass, weights aside.

    Args:
        modules: whose weights, in whatever view, are not counted.
        known: tensors that are not counted either.
    """

    def __init__(self, modules: Iterable[nn.Module], *known: Tensor) -> None:
        weights = (tensor for m in modules for tensor in (*m.parameters(), *m.buffers()))
        self._known = {tensor.untyped_storage().data_ptr() for tensor in (*weights, *known)}
        self._kept: dict[int, int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def __enter__(self) -> GraphBytes:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)

    @property
    def total(self) -> int:
        return sum(self._kept.values())

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._kept[storage.data_ptr()] = storage.nbytes()
        return tensor


@contextmanager
def checkpointed(
    module: nn.Module,
    on: bool,
    again: Callable[[nn.Module], AbstractContextManager[None]] | None = None,
) -> Iterator[None]:
    """Gradient checkpointing of a Diffusers module, on or off; afterwards its switches are as they were.

    Args:
        again: given the module, makes the context that its parts are run in for the second time, for what
            its own forward pass does around them.

    Diffusers' blocks ask ``torch.is_grad_enabled() and self.gradient_checkpointing``, so that neither
    training mode nor a forward without gradient matters.
    """
    # No block has dropout in evaluation mode, so that no random state need be kept.
    options: dict[str, Any] = {}
    if again is not None:
        options["context_fn"] = lambda: (nullcontext(), again(module))
    recomputed = partial(checkpoint, use_reentrant=False, preserve_rng_state=False, **options)
    parts: list[Any] = [m for m in module.modules() if hasattr(m, "gradient_checkpointing")]
    stages: list[Any] = [] if parts or not on else _stages(module)
    before = [dict(part.__dict__) for part in (*parts, *stages)]
    keys = ("gradient_checkpointing", "_gradient_checkpointing_func", "forward")
    for part in parts:
        part.gradient_checkpointing = on
        part._gradient_checkpointing_func = recomputed
    for stage in stages:
        stage.forward = partial(recomputed, stage.forward)
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
    """What can be recomputed of a model that has no switch for it, as AutoencoderDC."""
    lists = [m for m in module.modules() if isinstance(m, nn.ModuleList)]
    return [stage for part in lists for stage in part if isinstance(stage, nn.Sequential)]
