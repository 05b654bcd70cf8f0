"""A Diffusers pipeline as a differentiable function of its noise and its text.

Plans, noise, trajectories and prices are here; ``networks`` runs denoiser and decoder, and a ``Family`` says
what differs between kinds of pipelines.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipelines import memory
from pipelines.base import (
    Around,
    Conditioning,
    DenoiseStep,
    Flops,
    Noise,
    PipelineCard,
    Plan,
    TrajectoryStep,
)
from pipelines.devices import check_device, free_bytes, out_of_memory_errors, readable_bytes
from pipelines.family import Family, is_one_of
from pipelines.flops import CountedFlops
from pipelines.folders import first_sentence
from pipelines.memory import GraphBytes, MemoryPlan
from pipelines.networks import Networks
from pipelines.pickling import picklable
from pipelines.problems import one_line
from pipelines.sampler import Sampler, count_draws
from pipelines.tokens import Tokens, widths, with_tokens

MIN_LATENT_SIDE = 8


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
                may go to one that needs less when memory runs out.
            tiny_decoder: an AutoencoderTiny for the same latents. Pictures still come from the full decoder,
                and the gradient goes back through the tiny one.
            compile: ``torch.compile`` for denoiser and decoder.

        Raises:
            ValueError: a pipeline of another class or without its weights, or an unknown memory plan.
        """
        if not is_one_of(type(pipeline), family.pipelines):
            found = type(pipeline).__name__
            raise ValueError(f"{family.name} wraps {', '.join(family.pipelines)}, not a {found}")
        self.pipeline, self.family, self.card = pipeline, family, card
        self._networks = Networks(
            pipeline, family, memory_plan=memory_plan, tiny_decoder=tiny_decoder, compile=compile
        )
        self._offloader = self._networks.offloader
        self._flops: dict[tuple[Plan, str], dict[str, Flops]] = {}
        self._graph_bytes: dict[tuple[Plan, str, bool], tuple[int, int]] = {}
        self._draws: dict[Plan, int] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as what it was made of: where it is moved, and what was measured, is found out anew."""
        state = picklable(self.pipeline), self.family, self.card, self._networks.options()
        return _unpickled, state

    # -- where it is ------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the work is done."""
        return self._offloader.device

    @property
    def memory(self) -> MemoryPlan:
        """The memory plan of the moment."""
        return self._offloader.plan

    def to(self, device: str | torch.device) -> DiffusersAdapter:
        """Move the pipeline, all but what is offloaded; with "auto" the memory plan is chosen anew.

        Raises:
            ValueError: a device that is not there.
        """
        self._offloader.to(check_device(device))
        return self

    def set_memory_plan(self, name: str) -> None:
        """Go on with another memory plan.

        Raises:
            ValueError: unknown name.
        """
        self._offloader.set_plan(memory.find_plan(name))

    def reduce_memory(self) -> str | None:
        """Go on with the next memory plan, which needs less, and return its name.

        None where there is none, or where the user chose the plan.
        """
        following = memory.next_plan(self.memory) if self._offloader.automatic else None
        if following is None:
            return None
        self.set_memory_plan(following.name)
        return following.name

    def modules(self) -> tuple[nn.Module, ...]:
        """Whatever has weights: the pipeline's components, and decoders of our own."""
        return self._networks.modules()

    # -- plan, text, noise ------------------------------------------------------------------------

    def plan(
        self,
        steps: int | None = None,
        guidance_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        **arguments: Any,
    ) -> Plan:
        """A checked plan; what is None comes from the card.

        Raises:
            ValueError: steps, a guidance scale or a size that model or memory cannot take.
        """
        if arguments:
            raise ValueError(f"{self.card.name} takes no {', '.join(arguments)}")
        steps = self.card.steps if steps is None else _whole("num_inference_steps", steps)
        most = int(self.pipeline.scheduler.config.get("num_train_timesteps", 1000))
        if not 1 <= steps <= most:
            raise ValueError(
                f"num_inference_steps must lie between 1 and {most}, not {steps}: "
                f"{self.card.name} is meant for {self.card.steps}"
            )
        if self.card.timesteps is not None and steps != len(self.card.timesteps):
            raise ValueError(
                f"{self.card.name} was distilled for num_inference_steps={len(self.card.timesteps)}, "
                f"and takes no other number, not {steps}"
            )
        scale = self.card.guidance_scale if guidance_scale is None else guidance_scale
        if not math.isfinite(scale):
            raise ValueError(f"guidance_scale must be a finite number, not {scale}")
        height = self.card.size if height is None else _whole("height", height)
        width = self.card.size if width is None else _whole("width", width)
        factor = self.family.size_multiple(self.pipeline)
        if height % factor or width % factor or min(height, width) < factor:
            raise ValueError(
                f"height and width must be multiples of {factor}, not {height} and {width}"
            )
        shape = self.family.latent_shape(self.pipeline, height, width)
        if min(shape[1:]) < MIN_LATENT_SIDE:
            least = MIN_LATENT_SIDE * height // shape[1]
            raise ValueError(f"height and width must be at least {least}, not {height} and {width}")
        self._check_size(height, width)
        plan = Plan(steps, steps, float(scale), height, width, shape)
        try:
            times = Sampler(
                self.pipeline.scheduler, self._set_timesteps(plan, "cpu"), None
            ).timesteps
        except (ValueError, TypeError, RuntimeError, IndexError, ZeroDivisionError) as error:
            name, reason = type(self.pipeline.scheduler).__name__, first_sentence(one_line(error))
            raise ValueError(
                f"the scheduler {name} takes no num_inference_steps={steps} ({reason})"
            ) from error
        return replace(plan, evaluations=len(times))

    def _check_size(self, height: int, width: int) -> None:
        """Refuse what cannot fit whatever is done: one convolution of the decoder at full size.

        Raises:
            ValueError: more than the device has.
        """
        if getattr(self._networks.vae, "use_tiling", False):
            return
        config = self._networks.vae.config
        widths = config.get("decoder_block_out_channels") or config.get("block_out_channels") or [1]
        # What goes in and what comes out.
        needed = 2 * widths[0] * height * width * self._networks.vae.dtype.itemsize
        free = free_bytes(self.device)
        if needed > free:
            raise ValueError(
                f"a picture of {width} x {height} needs at least {readable_bytes(needed)} of memory, and "
                f"{self.device.type} has {readable_bytes(free)} free; take a smaller height and width"
            )

    def encode(
        self, prompts: Sequence[str], plan: Plan, tokens: Tokens | None = None
    ) -> Conditioning:
        """Prompts as the denoiser takes them; with gradient to the embeddings of new tokens, if given.

        Raises:
            ValueError: embeddings of tokens that do not fit the text encoders.
        """
        halves = self.family.uses_cfg(self.pipeline, plan.guidance_scale)
        # Tensors of inference mode could not be used with gradient afterwards.
        with torch.inference_mode(False), self._offloader.encoders(), out_of_memory_errors():
            if not tokens:
                with torch.no_grad():
                    return self.family.encode(self.pipeline, list(prompts), halves, self.device)
            with torch.enable_grad(), with_tokens(self.pipeline, prompts, tokens) as (view, texts):
                return self.family.encode(view, texts, halves, self.device)

    def noise(self, generators: Sequence[torch.Generator], plan: Plan) -> Noise:
        """What the wrapped pipeline would draw from one CPU generator an image, in its order."""
        if plan not in self._draws:
            self._draws[plan] = count_draws(
                self.pipeline.scheduler, self._set_timesteps(plan, "cpu")
            )
        with torch.inference_mode(False):
            draws, shape = 1 + self._draws[plan], (1, *plan.latent_shape)
            rows = [
                [torch.randn(shape, generator=g, dtype=torch.float32) for _ in range(draws)]
                for g in generators
            ]
            stack = torch.stack([torch.cat(row) for row in rows], 1)
            return Noise(stack[0], stack[1:] if draws > 1 else None).to(self.device)

    # -- pictures ---------------------------------------------------------------------------------

    def trajectory(
        self,
        noise: Noise,
        conditioning: Conditioning,
        plan: Plan,
        around: Around | None = None,
        grad_steps: int | None = None,
    ) -> Iterator[TrajectoryStep]:
        """Sampling, step by step, one for each of the plan's evaluations.

        Args:
            around: replaces the prediction of every step, given a ``DenoiseStep``; one that returns
                ``step.denoise(step.latents)`` changes nothing.
            grad_steps: how many of the last steps have a graph; None for all. The gradient that reaches the
                first of them is passed on to the noise as it is (a straight-through estimate); text is given
                the gradient of those steps.

        Raises:
            ValueError: conditioning or ``grad_steps`` that do not fit the plan.
            torch.OutOfMemoryError: the graph cannot fit on the device.
        """
        skipped = self._steps_without_grad(plan, grad_steps)
        self._check_memory(noise, conditioning, plan, plan.evaluations - skipped)
        sampler = Sampler(
            self.pipeline.scheduler, self._set_timesteps(plan, self.device), noise.step_noise
        )
        rows = self._networks.denoiser_rows(conditioning, plan, len(noise))
        latents = noise.latents * sampler.init_noise_sigma
        for index, time in enumerate(sampler.timesteps):
            if index == skipped and skipped:
                latents = latents.detach() + (noise.latents - noise.latents.detach())
            counted = [0, 0]

            def denoise(
                latents: Tensor,
                conditioning: Conditioning | None = None,
                time: Tensor = time,
                counted: list[int] = counted,
            ) -> Tensor:
                told = rows
                if conditioning is not None:
                    told = self._networks.denoiser_rows(conditioning, plan, len(latents))
                scaled = sampler.scale(latents, time)
                output = self._networks.predict(scaled, time, told, plan).to(latents.dtype)
                counted[0] += len(latents)
                counted[1] += len(latents) * output.requires_grad
                return output

            def predict_clean(
                prediction: Tensor,
                latents: Tensor | None = None,
                time: Tensor = time,
                start: Tensor = latents,
            ) -> Tensor:
                return sampler.predict_clean(
                    prediction, time, start if latents is None else latents
                )

            with torch.set_grad_enabled(torch.is_grad_enabled() and index >= skipped):
                if around is None:
                    output = denoise(latents)
                else:
                    step = DenoiseStep(index, time, latents, conditioning, denoise, predict_clean)
                    output = _prediction(around(step), latents)
                moved, clean = sampler.step(output, time, latents)
            # A model distilled at given times predicts the picture itself, and there is nothing between.
            latents = clean if self.card.timesteps and plan.steps == 1 else moved
            yield TrajectoryStep(index, latents, clean, *counted)

    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 hh ww"]:
        """Images in [0, 1], float32 or the latents' own precision where that is higher."""
        return self._networks.decode(latents)

    def render(
        self,
        noise: Noise,
        conditioning: Conditioning,
        plan: Plan,
        grad_steps: int | None = None,
    ) -> Float[Tensor, "b 3 hh ww"]:
        """Images in [0, 1], equal to the wrapped pipeline's, with gradient to noise and conditioning.

        Args:
            grad_steps, and what is raised: as for ``trajectory``.
        """
        *_, last = self.trajectory(noise, conditioning, plan, grad_steps=grad_steps)
        return self.decode(last.latents)

    def images(
        self, noise: Noise, prompts: Sequence[str], plan: Plan
    ) -> Float[Tensor, "b 3 hh ww"]:
        """Images in [0, 1], equal to the wrapped pipeline's, without gradient."""
        with torch.no_grad():
            return self.render(noise, self.encode(prompts, plan), plan)

    def remarks(self, plan: Plan) -> tuple[str, ...]:
        """None: what it does is what the wrapped pipeline does."""
        return ()

    def _set_timesteps(self, plan: Plan, device: str | torch.device) -> Callable[[Any], None]:
        place = torch.device(device)
        if self.card.timesteps is None:
            return lambda scheduler: self.family.set_timesteps(
                self.pipeline, scheduler, plan, place
            )
        return lambda scheduler: scheduler.set_timesteps(
            timesteps=list(self.card.timesteps or ()), device=place
        )

    @staticmethod
    def _steps_without_grad(plan: Plan, grad_steps: int | None) -> int:
        if grad_steps is None:
            return 0
        if not 1 <= grad_steps <= plan.evaluations:
            raise ValueError(
                f"grad_steps must lie between 1 and {plan.evaluations}, not {grad_steps}"
            )
        return plan.evaluations - grad_steps

    # -- prices -----------------------------------------------------------------------------------

    def flops(self, plan: Plan) -> dict[str, Flops]:
        """Operations of one picture by module; ``denoiser`` is one step.

        Measured once for a plan and a memory plan, by ``pipelines.flops``, on one picture; what is
        recomputed belongs to the backward pass. That of ``text_encoder`` goes to the embeddings of a token.
        """
        key = (plan, self.memory.name)
        if key not in self._flops:
            with torch.inference_mode(False), torch.enable_grad():
                self._flops[key] = self._measure_flops(plan)
        return self._flops[key]

    def _measure_flops(self, plan: Plan) -> dict[str, Flops]:
        dtype = torch.float32
        vectors = [torch.zeros(w, dtype=dtype, requires_grad=True) for w in widths(self.pipeline)]
        tokens = {"<token>": [vector.to(self.device) for vector in vectors]} if vectors else None
        with CountedFlops() as forward:
            encoded = self.encode(["<token>"], plan, tokens)
        states = [t for t in (encoded.hidden, encoded.pooled) if t is not None and t.requires_grad]
        with CountedFlops() as backward:
            if states:
                torch.autograd.grad([t.float().sum() for t in states], vectors, allow_unused=True)
        latents, _, step = self._one_step(plan, encoded)
        return {
            "text_encoder": Flops(forward.total, backward.total),
            "denoiser": _both_ways(step, latents),
            "decoder": _both_ways(lambda: self.decode(latents), latents),
        }

    def _one_step(
        self, plan: Plan, conditioning: Conditioning
    ) -> tuple[Tensor, Conditioning, Callable[[], Tensor]]:
        """Latents of one picture with gradient, what the denoiser is told, and its first prediction."""
        sampler = Sampler(self.pipeline.scheduler, self._set_timesteps(plan, self.device), None)
        shape, time = (1, *plan.latent_shape), sampler.timesteps[0]
        latents = torch.zeros(shape, device=self.device, dtype=torch.float32, requires_grad=True)
        rows = self._networks.denoiser_rows(conditioning.detach(), plan, 1)
        return latents, rows, lambda: self._networks.predict(latents, time, rows, plan)

    def estimate_bytes(self, plan: Plan, batch: int = 1, grad_steps: int | None = None) -> int:
        """Bytes that the weights and the graph of a batch take on the device.

        The graph is measured once for a plan and a memory plan, on one step and one picture, and taken to
        grow with both; what is recomputed, and what kernels need meanwhile, comes on top.

        Raises:
            ValueError: ``grad_steps`` that do not fit the plan.
        """
        steps = plan.evaluations - self._steps_without_grad(plan, grad_steps)
        if self._graph_key(plan) not in self._graph_bytes:
            self._measure_graph(plan, self.encode([""], plan))
        return self._graph(plan, batch, steps) + memory.module_bytes(*self.modules())

    def _graph_key(self, plan: Plan) -> tuple[Plan, str, bool]:
        """A graph keeps more where weights have a gradient too."""
        trained = any(p.requires_grad for m in self.modules() for p in m.parameters())
        return plan, self.memory.name, trained

    def _graph(self, plan: Plan, batch: int, steps: int) -> int:
        step, once = self._graph_bytes[self._graph_key(plan)]
        return batch * (steps * step + once)

    def _measure_graph(self, plan: Plan, conditioning: Conditioning) -> None:
        """Bytes that a graph keeps of every step, and of text and decoder once."""
        with torch.inference_mode(False), torch.enable_grad():
            latents, rows, step = self._one_step(plan, conditioning)
            with GraphBytes(self.modules(), *rows.tensors()) as of_step:
                step()
            with GraphBytes(self.modules()) as of_decoder:
                self.decode(latents)
        text = sum(tensor.nbytes for tensor in rows.tensors())
        self._graph_bytes[self._graph_key(plan)] = of_step.total, of_decoder.total + text

    def _check_memory(
        self, noise: Noise, conditioning: Conditioning, plan: Plan, steps: int
    ) -> None:
        """Refuse a graph that cannot fit, before an operating system ends the process.

        Raises:
            torch.OutOfMemoryError: says what would need less.
        """
        leaves = (noise.latents, noise.step_noise, conditioning.hidden, conditioning.pooled)
        if not torch.is_grad_enabled() or not any(
            t is not None and t.requires_grad for t in leaves
        ):
            return
        if self._graph_key(plan) not in self._graph_bytes:
            self._measure_graph(plan, conditioning.pick([0]))
        needed, free = self._graph(plan, len(noise), steps), free_bytes(self.device)
        if needed > free:
            raise torch.OutOfMemoryError(
                f"the gradient through {steps} steps of {len(noise)} pictures needs about "
                f"{readable_bytes(needed)}, and {self.device.type} has {readable_bytes(free)} free; take "
                "grad_steps, fewer pictures at once, or a memory plan that needs less"
            )


def _unpickled(
    pipeline: Any, family: Family, card: PipelineCard, options: dict[str, Any]
) -> DiffusersAdapter:
    return DiffusersAdapter(pipeline, family, card, **options)


def _whole(name: str, value: Any) -> int:
    """A whole number.

    Raises:
        ValueError: it is none.
    """
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, not {value!r}") from None


def _prediction(output: Any, latents: Tensor) -> Tensor:
    """What an ``around`` returned.

    Raises:
        ValueError: it is no prediction for these latents.
    """
    if not isinstance(output, Tensor) or output.shape != latents.shape:
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"around must return a prediction of the shape {tuple(latents.shape)}, not {found}"
        )
    return output.to(latents.dtype)


def _both_ways(forward: Callable[[], Tensor], leaf: Tensor) -> Flops:
    with CountedFlops() as there:
        output = forward()
    with CountedFlops() as back:
        torch.autograd.grad(output.float().sum(), leaf)
    return Flops(there.total, back.total)
