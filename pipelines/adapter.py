"""Any few-step Diffusers pipeline as a differentiable function of its noise and its text.

What all families share is here: plans, noise, sampling, guidance, decoding, memory, prices. A ``Family``
says what differs, and there is one file for each.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pipelines import memory
from pipelines.base import Conditioning, Flops, Noise, PipelineCard, Plan, TrajectoryStep
from pipelines.memory import MemoryPlan
from pipelines.sampler import Sampler, count_draws
from pipelines.tokens import Tokens, text_encoders, with_tokens

MAX_STEPS = 8
LEAST_SIDE = 8
"""Least side of the latents."""


class Family(Protocol):
    """What a family of pipelines does in its own way.

    Attributes:
        name: as in the cards.
        pipelines: names of the Diffusers classes that it is for, and classes derived from them.
        denoiser: the component that denoises.
    """

    name: str
    pipelines: tuple[str, ...]
    denoiser: str

    def multiple(self, pipeline: Any) -> int:
        """What height and width must be multiples of."""
        ...

    def latent_shape(self, pipeline: Any, height: int, width: int) -> tuple[int, int, int]:
        """(channels, height, width) of one picture's latents."""
        ...

    def guides(self, pipeline: Any, scale: float) -> bool:
        """Whether the denoiser runs twice, with and without text, at this guidance scale."""
        ...

    def encode(
        self, pipeline: Any, prompts: list[str], negative: bool, device: torch.device
    ) -> Conditioning:
        """Through the pipeline's own ``encode_prompt``; with a negative part where it is asked for."""
        ...

    def set_timesteps(
        self, pipeline: Any, scheduler: Any, plan: Plan, device: torch.device
    ) -> None:
        """Timesteps as the pipeline sets them; in place, on a copy of its scheduler."""
        ...

    def denoise(
        self,
        pipeline: Any,
        denoiser: Callable[..., Any],
        latents: Float[Tensor, "b c h w"],
        time: Tensor,
        conditioning: Conditioning,
        plan: Plan,
    ) -> Float[Tensor, "b c h w"]:
        """One pass of the denoiser, in its own precision, as the scheduler takes it."""
        ...

    def unscale(self, vae: Any, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Latents as the decoder takes them."""
        ...


def is_one_of(kind: type, names: Sequence[str]) -> bool:
    """Whether a class has one of these names, or one that it is derived from has."""
    return any(base.__name__ in names for base in kind.__mro__)


class DiffusersAdapter:
    """A loaded pipeline of a family; nothing of it is changed.

    Latents are float32, or float64, whatever the precision of the modules is: they are cast at their inputs.
    """

    def __init__(
        self,
        pipeline: Any,
        family: Family,
        card: PipelineCard,
        *,
        memory_plan: str = "auto",
        tiny_decoder: nn.Module | None = None,
        compile: bool = False,
    ) -> None:
        """Wrap a pipeline.

        Args:
            memory_plan: one of ``pipelines.memory.PLANS``, or "auto", which chooses by the free memory and
                may go to a more sparing one when memory runs out.
            tiny_decoder: an AutoencoderTiny for the same latents. Pictures still come from the full decoder,
                and the gradient goes back through the tiny one.
            compile: ``torch.compile`` for denoiser and decoder.

        Raises:
            ValueError: a pipeline of another class, or an unknown memory plan.
        """
        if not is_one_of(type(pipeline), family.pipelines):
            found = type(pipeline).__name__
            raise ValueError(f"{family.name} wraps {', '.join(family.pipelines)}, not a {found}")
        self.pipeline, self.family, self.card = pipeline, family, card
        self.tiny_decoder = tiny_decoder
        self._vae = _steady_decoder(pipeline.vae)
        self._denoiser: nn.Module = getattr(pipeline, family.denoiser)
        self._device = next(self._denoiser.parameters()).device
        self._seated: nn.Module | None = None
        self._may_relieve = memory_plan == "auto"
        self.memory: MemoryPlan = (
            self._choose(self._device) if self._may_relieve else memory.find_plan(memory_plan)
        )
        self._run: Callable[..., Any] = self._denoiser
        self._decode: Callable[[Tensor], Tensor] = _sample_of(self._vae.decode)
        if compile:
            self._run, self._decode = torch.compile(self._run), torch.compile(self._decode)
        self._flops: dict[tuple[Plan, str], dict[str, Flops]] = {}
        self._draws: dict[Plan, int] = {}

    # -- where it is ------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the work is done."""
        return self._device if self.memory.take_turns else next(self._denoiser.parameters()).device

    def to(self, device: str | torch.device) -> DiffusersAdapter:
        """Move the pipeline, all but what the memory plan lets rest; with "auto" the plan is chosen anew."""
        self._device = torch.device(device)
        if self._may_relieve:
            self.memory = self._choose(self._device)
        self._settle()
        return self

    def use(self, name: str) -> None:
        """Go on with another memory plan.

        Raises:
            ValueError: unknown name.
        """
        self._device, self.memory = self.device, memory.find_plan(name)
        self._settle()

    def relieve(self) -> str | None:
        """Take the next more sparing memory plan, and return its name.

        None where there is none, or the user chose the plan.
        """
        sparing = memory.next_plan(self.memory) if self._may_relieve else None
        if sparing is None:
            return None
        self.use(sparing.name)
        return sparing.name

    def _settle(self) -> None:
        """Bring every module to where it rests."""
        rests: tuple[nn.Module, ...] = self._encoders() if self.memory.rest_encoders else ()
        if self.memory.take_turns:
            rests += self._denoiser, self._vae
        for module in self.modules():
            away = any(module is one for one in rests)
            module.to("cpu" if away and self._device.type == "cuda" else self._device)
        self._seated = None

    def _seat(self, module: nn.Module | None) -> None:
        """Where modules take turns: this one to the device, and the one before it away."""
        if not self.memory.take_turns or self._seated is module:
            return
        if self._seated is not None and self._device.type == "cuda":
            self._seated.to("cpu")
        if module is not None:
            module.to(self._device)
        self._seated = module

    def modules(self) -> tuple[nn.Module, ...]:
        """Whatever has weights: the pipeline's components, and decoders of our own."""
        parts = [*self.pipeline.components.values(), self._vae, self.tiny_decoder]
        return tuple({id(p): p for p in parts if isinstance(p, nn.Module)}.values())

    def _encoders(self) -> tuple[nn.Module, ...]:
        return tuple(getattr(self.pipeline, name) for _, name in text_encoders(self.pipeline))

    def _choose(self, device: torch.device) -> MemoryPlan:
        core = (self._denoiser, self._vae)
        free = memory.free_bytes(device, *core, *self._encoders())
        if free is None:
            return memory.PLANS["fast"]
        sizes = memory.module_bytes(*core), memory.module_bytes(*self._encoders())
        return memory.choose_plan(free, *sizes)

    # -- plan, text, noise ------------------------------------------------------------------------

    def plan(
        self,
        steps: int | None = None,
        guidance_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> Plan:
        """A checked plan; what is None comes from the card.

        Raises:
            ValueError: steps or a size that the model cannot take.
        """
        steps = self.card.steps if steps is None else steps
        if not 1 <= steps <= MAX_STEPS:
            raise ValueError(
                f"num_inference_steps must lie between 1 and {MAX_STEPS}, not {steps}: "
                f"{self.card.name} is meant for {self.card.steps}"
            )
        if self.card.timesteps is not None and steps != len(self.card.timesteps):
            raise ValueError(
                f"{self.card.name} was distilled for num_inference_steps={len(self.card.timesteps)}, "
                f"and takes no other number, not {steps}"
            )
        scale = self.card.guidance_scale if guidance_scale is None else guidance_scale
        height, width = height or self.card.size, width or self.card.size
        factor = self.family.multiple(self.pipeline)
        if height % factor or width % factor or min(height, width) < factor:
            raise ValueError(
                f"height and width must be multiples of {factor}, not {height} and {width}"
            )
        shape = self.family.latent_shape(self.pipeline, height, width)
        if min(shape[1:]) < LEAST_SIDE:
            least = LEAST_SIDE * height // shape[1]
            raise ValueError(f"height and width must be at least {least}, not {height} and {width}")
        return Plan(steps, float(scale), height, width, shape)

    def encode(
        self, prompts: Sequence[str], plan: Plan, tokens: Tokens | None = None
    ) -> Conditioning:
        """Prompts as the denoiser takes them; with gradient to the embeddings of new tokens, if given.

        Raises:
            ValueError: embeddings of tokens that do not fit the text encoders.
        """
        negative = self.family.guides(self.pipeline, plan.guidance_scale)
        self._seat(None)
        device, homes = self.device, [next(e.parameters()).device for e in self._encoders()]
        for encoder in self._encoders():
            encoder.to(device)
        if tokens:
            with (
                torch.enable_grad(),
                with_tokens(self.pipeline, prompts, tokens) as (view, texts),
            ):
                encoded = self.family.encode(view, texts, negative, device)
        else:
            with torch.no_grad():
                encoded = self.family.encode(self.pipeline, list(prompts), negative, device)
        for encoder, home in zip(self._encoders(), homes, strict=True):
            encoder.to("cpu" if self.memory.rest_encoders else home)
        return encoded

    def noise(self, generators: Sequence[torch.Generator], plan: Plan) -> Noise:
        """What the wrapped pipeline would draw from one CPU generator an image, in its order."""
        if plan not in self._draws:
            scheduler = self.pipeline.scheduler
            self._draws[plan] = count_draws(
                scheduler, self._set_timesteps(plan, torch.device("cpu"))
            )
        drawn = [
            torch.cat([torch.randn((1, *plan.latent_shape), generator=g) for _ in range(1 + steps)])
            for g in generators
            for steps in [self._draws[plan]]
        ]
        stack = torch.stack(drawn, 1)
        return Noise(stack[0], stack[1:] if len(stack) > 1 else None).to(self.device)

    # -- pictures ---------------------------------------------------------------------------------

    def trajectory(
        self, noise: Noise, conditioning: Conditioning, plan: Plan
    ) -> Iterator[TrajectoryStep]:
        """Sampling, step by step."""
        setter = self._set_timesteps(plan, self.device)
        sampler = Sampler(self.pipeline.scheduler, setter, noise.step_noise)
        latents, rows = noise.latents * sampler.first_scale, self._rows(conditioning, plan)
        for step, time in enumerate(sampler.timesteps):
            output = self._guided(sampler.scale(latents, time), time, rows, plan)
            moved, clean = sampler.step(output.to(latents.dtype), time, latents)
            # A model distilled at given times predicts the picture itself, and there is nothing between.
            latents = clean if self.card.timesteps and plan.steps == 1 else moved
            yield TrajectoryStep(step, latents, clean)

    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 hh ww"]:
        """Images in [0, 1], float32 or the latents' own precision where that is higher."""
        rows = latents.split(1) if self.memory.slices else (latents,)
        return torch.cat([self._pixels(row) for row in rows])

    def render(
        self, noise: Noise, conditioning: Conditioning, plan: Plan
    ) -> Float[Tensor, "b 3 hh ww"]:
        """Images in [0, 1], equal to the wrapped pipeline's, with gradient to noise and conditioning."""
        *_, last = self.trajectory(noise, conditioning, plan)
        return self.decode(last.latents)

    def _set_timesteps(self, plan: Plan, device: torch.device) -> Callable[[Any], None]:
        if self.card.timesteps is None:
            return lambda scheduler: self.family.set_timesteps(
                self.pipeline, scheduler, plan, device
            )
        return lambda scheduler: scheduler.set_timesteps(
            timesteps=list(self.card.timesteps or ()), device=device
        )

    def _rows(self, conditioning: Conditioning, plan: Plan) -> Conditioning:
        """What the denoiser is told: where the plan guides, first without the text and then with it.

        Raises:
            ValueError: encoded for a plan without guidance.
        """
        towards = replace(conditioning, negative=None)
        if not self.family.guides(self.pipeline, plan.guidance_scale):
            return towards
        if conditioning.negative is None:
            raise ValueError("this conditioning was encoded for a plan without guidance")
        return Conditioning.join([conditioning.negative, towards])

    def _guided(self, latents: Tensor, time: Tensor, rows: Conditioning, plan: Plan) -> Tensor:
        """The denoiser's word, moved away from what it says without the text, where the plan guides."""
        if len(rows) == len(latents):
            return self._denoise(latents, time, rows, plan)
        away, towards = self._denoise(torch.cat([latents] * 2), time, rows, plan).chunk(2)
        return away + plan.guidance_scale * (towards - away)

    def _denoise(
        self, latents: Tensor, time: Tensor, conditioning: Conditioning, plan: Plan
    ) -> Tensor:
        dtype = next(self._denoiser.parameters()).dtype

        def work(latents: Tensor, hidden: Tensor, *pooled: Tensor) -> Tensor:
            cast = replace(
                conditioning,
                hidden=hidden.to(dtype),
                pooled=pooled[0].to(dtype) if pooled else None,
            )
            with memory.checkpointed(self._denoiser, self.memory.checkpointing):
                return self.family.denoise(
                    self.pipeline, self._run, latents.to(dtype), time, cast, plan
                )

        pooled = () if conditioning.pooled is None else (conditioning.pooled,)
        return self._work(self._denoiser, work, latents, conditioning.hidden, *pooled)

    def _work(self, module: nn.Module, work: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """What a module makes of tensors, in its turn where they take turns."""
        if not self.memory.take_turns:
            return work(*tensors)
        return memory.visit(lambda: self._seat(module), work, *tensors)

    def _pixels(self, latents: Tensor) -> Tensor:
        if self.tiny_decoder is None or not latents.requires_grad:
            return self._through(self._vae, self._decode, latents)
        with torch.no_grad():
            exact = self._through(self._vae, self._decode, latents)
        rough = self._through(self.tiny_decoder, _sample_of(self.tiny_decoder.decode), latents)
        return rough + (exact - rough).detach()

    def _through(self, vae: Any, decode: Callable[[Tensor], Tensor], latents: Tensor) -> Tensor:
        dtype = next(vae.parameters()).dtype

        def work(latents: Tensor) -> Tensor:
            with memory.checkpointed(vae, self.memory.checkpointing):
                image = decode(self.family.unscale(vae, latents.to(dtype)))
            wide = image.to(torch.promote_types(image.dtype, torch.float32))
            return (wide / 2 + 0.5).clamp(0, 1)

        return work(latents) if vae is self.tiny_decoder else self._work(vae, work, latents)

    # -- prices -----------------------------------------------------------------------------------

    def flops(self, plan: Plan) -> dict[str, Flops]:
        """Operations of one picture by module; ``denoiser`` is one step.

        Measured once for a plan and a memory plan, with torch's FlopCounterMode, on one picture; what a
        checkpoint computes again belongs to the way back.
        """
        key = (plan, self.memory.name)
        if key not in self._flops:
            self._flops[key] = self._measure(plan)
        return self._flops[key]

    def _measure(self, plan: Plan) -> dict[str, Flops]:
        with torch.enable_grad():
            with FlopCounterMode(display=False) as text:
                conditioning = self.encode([""], plan)
            latents = torch.zeros(1, *plan.latent_shape, device=self.device, requires_grad=True)
            scheduler = copy.deepcopy(self.pipeline.scheduler)
            self._set_timesteps(plan, self.device)(scheduler)
            time = scheduler.timesteps[0]
            rows = self._rows(conditioning, plan)
            step = _both_ways(lambda: self._guided(latents, time, rows, plan), latents)
            image = _both_ways(lambda: self.decode(latents), latents)
        return {
            "text_encoder": Flops(float(text.get_total_flops()), 0.0),
            "denoiser": step,
            "decoder": image,
        }


def _both_ways(forward: Callable[[], Tensor], leaf: Tensor) -> Flops:
    with FlopCounterMode(display=False) as there:
        output = forward()
    with FlopCounterMode(display=False) as back:
        torch.autograd.grad(output.float().sum(), leaf)
    return Flops(float(there.get_total_flops()), float(back.get_total_flops()))


def _sample_of(decode: Any) -> Callable[[Tensor], Tensor]:
    return lambda latents: decode(latents, return_dict=False)[0]


def _steady_decoder(vae: Any) -> Any:
    """The decoder, or a float32 copy of one that is known to overflow in half precision, as pipelines do."""
    overflows = getattr(vae.config, "force_upcast", False) and vae.dtype == torch.float16
    return copy.deepcopy(vae).to(torch.float32) if overflows else vae
