"""Denoiser and decoder of a pipeline as functions of tensors, wherever a memory plan keeps their weights."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipelines import memory
from pipelines.base import Conditioning, Plan
from pipelines.devices import out_of_memory_errors
from pipelines.family import DenoiserCall, Family, resized
from pipelines.memory import Modules, Offloader
from pipelines.tokens import text_encoders


class Networks:
    """Casts at the modules' inputs, classifier-free guidance, checkpoints, offloading and compilation.

    Its modules are those that the pipeline has at the moment: a user may exchange them.
    """

    def __init__(
        self,
        pipeline: Any,
        family: Family,
        *,
        memory_plan: str,
        tiny_decoder: Any,
        compile: bool,
    ) -> None:
        """As for ``DiffusersAdapter``.

        Raises:
            ValueError: weights on the meta device, or an unknown memory plan.
        """
        self._pipeline, self._family, self._tiny = pipeline, family, tiny_decoder
        self._stable: tuple[Any, Any] = None, None
        self._check_weights()
        self.offloader = Offloader(self._by_use, memory_plan)
        self._compile = compile
        self._compiled: dict[str, Callable[..., Any]] = {}
        self._seen = self._references()

    @property
    def denoiser(self) -> nn.Module:
        """Of the pipeline."""
        return getattr(self._pipeline, self._family.denoiser)

    @property
    def vae(self) -> Any:
        """The pipeline's, or a float32 copy of one that is known to overflow in half precision, as pipelines
        use it then."""
        own = self._pipeline.vae
        if not getattr(own.config, "force_upcast", False) or own.dtype != torch.float16:
            return own
        if self._stable[0] is not own:
            self._stable = own, copy.deepcopy(own).to(torch.float32)
        return self._stable[1]

    def exchanged(self) -> bool:
        """Whether modules were exchanged since the last look; new ones are put where the others are.

        Raises:
            ValueError: weights on the meta device.
        """
        now = self._references()
        if now == self._seen:
            return False
        self._check_weights()
        self._compiled.clear()
        self.offloader.place()
        self._seen = self._references()
        return True

    def _references(self) -> list[weakref.ref[nn.Module]]:
        """What modules there are, without keeping them."""
        parts = [*self._pipeline.components.values(), self._tiny]
        return [weakref.ref(part) for part in parts if isinstance(part, nn.Module)]

    def _check_weights(self) -> None:
        for module in self.modules():
            if any(weight.is_meta for weight in module.parameters()):
                raise ValueError(
                    f"the weights of {type(module).__name__} are on the meta device, which holds no values; "
                    "load the pipeline without device_map, and wrap it then"
                )

    def options(self) -> dict[str, Any]:
        """With which it can be made again."""
        plan = "auto" if self.offloader.automatic else self.offloader.plan.name
        return {"memory_plan": plan, "tiny_decoder": self._tiny, "compile": self._compile}

    def modules(self) -> tuple[nn.Module, ...]:
        """Whatever has weights: the pipeline's components, and decoders of our own."""
        parts = [*self._pipeline.components.values(), self.vae, self._tiny]
        return tuple({id(p): p for p in parts if isinstance(p, nn.Module)}.values())

    def _by_use(self) -> Modules:
        encoders = tuple(getattr(self._pipeline, name) for _, name in text_encoders(self._pipeline))
        own = {id(module) for module in (*encoders, self.denoiser, self.vae)}
        others = tuple(module for module in self.modules() if id(module) not in own)
        return Modules(encoders, self.denoiser, self.vae, others)

    def denoiser_rows(self, conditioning: Conditioning, plan: Plan, count: int) -> Conditioning:
        """What the denoiser is told: with classifier-free guidance the unconditional half first.

        Raises:
            ValueError: not a row for each picture, or encoded for a plan without guidance.
        """
        if len(conditioning) != count:
            raise ValueError(
                f"{count} pictures need as many rows of conditioning, not {len(conditioning)}"
            )
        conditional = replace(conditioning, unconditional=None)
        if not self._family.uses_cfg(self._pipeline, plan):
            return conditional
        if conditioning.unconditional is None:
            raise ValueError("this conditioning was encoded for a plan without guidance")
        return Conditioning.join([conditioning.unconditional, conditional])

    def predict(self, latents: Tensor, time: Tensor, rows: Conditioning, plan: Plan) -> Tensor:
        """The denoiser's output, with classifier-free guidance where it is planned."""
        if len(rows) == len(latents):
            return self._denoise(latents, time, rows, plan)
        both = self._denoise(torch.cat([latents] * 2), time, rows, plan)
        unconditional, conditional = both.chunk(2)
        return self._family.guide(unconditional, conditional, time, plan)

    def decode(
        self, latents: Float[Tensor, "b c h w"], plan: Plan | None = None
    ) -> Float[Tensor, "b 3 hh ww"]:
        """Images in [0, 1], float32 or the latents' own precision where that is higher."""
        rows = latents.split(1) if self.offloader.plan.vae_slicing else (latents,)
        return torch.cat([self._pixels(row, plan) for row in rows])

    def _denoise(
        self, latents: Tensor, time: Tensor, conditioning: Conditioning, plan: Plan
    ) -> Tensor:
        dtype = next(self.denoiser.parameters()).dtype
        denoiser = self._optimized("denoiser", self.denoiser)

        def run(latents: Tensor, hidden: Tensor, *pooled: Tensor) -> Tensor:
            cast = replace(
                conditioning,
                hidden=hidden.to(dtype),
                pooled=pooled[0].to(dtype) if pooled else None,
            )
            call = DenoiserCall(self._pipeline, denoiser, latents.to(dtype), time, cast, plan)
            checkpoints = self.offloader.plan.gradient_checkpointing
            scale = plan.arguments.lora_scale()
            with memory.checkpointed(self.denoiser, checkpoints, partial(_lora_scaled, scale)):
                return self._family.denoise(call)

        pooled = () if conditioning.pooled is None else (conditioning.pooled,)
        return self._run(self.denoiser, run, latents, conditioning.hidden, *pooled)

    def _pixels(self, latents: Tensor, plan: Plan | None) -> Tensor:
        decode = self._optimized("decoder", self.vae.decode)
        if self._tiny is None or not latents.requires_grad:
            return self._decoded(self.vae, decode, latents, plan)
        with torch.no_grad():
            exact = self._decoded(self.vae, decode, latents, plan)
        approximate = self._decoded(self._tiny, self._tiny.decode, latents, plan)
        return approximate + (exact - approximate).detach()

    def _decoded(
        self, vae: Any, decode: Callable[..., Any], latents: Tensor, plan: Plan | None
    ) -> Tensor:
        dtype = next(vae.parameters()).dtype

        def run(latents: Tensor) -> Tensor:
            with memory.checkpointed(vae, self.offloader.plan.gradient_checkpointing):
                latents = self._family.denormalize_latents(vae, latents.to(dtype))
                image = decode(latents, return_dict=False)[0]
            if plan is not None:
                image = resized(image, plan)
            wide = image.to(torch.promote_types(image.dtype, torch.float32))
            return (wide / 2 + 0.5).clamp(0, 1)

        return run(latents) if vae is self._tiny else self._run(vae, run, latents)

    def _run(self, module: nn.Module, run: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """What a module makes of tensors, brought to the device and recomputed where it is offloaded."""
        with out_of_memory_errors():
            if not self.offloader.plan.model_offload:
                return run(*tensors)
            return memory.recompute(lambda: self.offloader.onload(module), run, *tensors)

    def _optimized(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        if not self._compile:
            return call
        if name not in self._compiled:
            self._compiled[name] = torch.compile(call)
        return self._compiled[name]


@contextmanager
def _lora_scaled(scale: float | None, module: nn.Module) -> Iterator[None]:
    """LoRAs by this scale, as they are inside of a denoiser that is told it; checkpoints run again later."""
    from diffusers.utils.peft_utils import scale_lora_layers, unscale_lora_layers

    loras = scale is not None and bool(getattr(module, "peft_config", None))
    if loras:
        scale_lora_layers(module, scale)
    try:
        yield
    finally:
        if loras:
            unscale_lora_layers(module, scale)
