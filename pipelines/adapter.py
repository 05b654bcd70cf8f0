"""A Diffusers pipeline as a differentiable function of its noise and its text.

Plans, noise, trajectories and prices are here; ``networks`` runs denoiser and decoder, and a ``Family`` says
what differs between kinds of pipelines.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipelines import memory
from pipelines.arguments import CALLBACKS, parameters
from pipelines.base import (
    Around,
    Conditioning,
    DenoiseStep,
    Flops,
    Keep,
    Noise,
    PipelineCard,
    Plan,
    TrajectoryStep,
)
from pipelines.callbacks import Moment, StepCallbacks
from pipelines.devices import check_device, free_bytes, out_of_memory_errors, readable_bytes
from pipelines.family import Family, is_one_of
from pipelines.measures import Measures
from pipelines.memory import MemoryPlan
from pipelines.networks import Networks
from pipelines.pickling import picklable
from pipelines.planning import Planner
from pipelines.problems import one_line
from pipelines.sampler import Sampler
from pipelines.tokens import Tokens, with_tokens


class DiffusersAdapter:
    """A loaded pipeline of a family; nothing of it is changed, and what its user changes is noticed.

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
        self.networks = Networks(
            pipeline, family, memory_plan=memory_plan, tiny_decoder=tiny_decoder, compile=compile
        )
        self._offloader = self.networks.offloader
        self._measures = Measures(self)
        self._planner = Planner(pipeline, family, card)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as what it was made of: where it is moved, and what was measured, is found out anew."""
        state = picklable(self.pipeline), self.family, self.card, self.networks.options()
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

    def to(
        self, device: str | torch.device | None = None, dtype: torch.dtype | None = None
    ) -> DiffusersAdapter:
        """Move the pipeline, all but what is offloaded; with "auto" the memory plan is chosen anew.

        Args:
            dtype: of the weights; None leaves it.

        Raises:
            ValueError: a device that is not there.
        """
        place = self.device if device is None else check_device(device)
        if dtype is not None:
            self.networks.cast(dtype)
            self.forget()
        self._offloader.to(place)
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
        return self.networks.modules()

    def forget(self) -> None:
        """Measure prices and memory anew: for changes inside of modules, such as loaded LoRAs."""
        self._measures.forget()

    def _look(self) -> None:
        """Components may have been exchanged since the last look; what was measured is void then."""
        if self.networks.exchanged():
            self.forget()

    def remarks(self, plan: Plan) -> tuple[str, ...]:
        """What of the wrapped pipeline's own call is left out, a sentence each."""
        kind = type(self.pipeline).__name__
        skipped = {
            "safety_checker": f"the safety checker of this {kind} does not look at these pictures",
            "watermark": f"pictures get no watermark, which this {kind} would add",
        }
        parts = {name: getattr(self.pipeline, name, None) for name in skipped}
        return tuple(skipped[name] for name, part in parts.items() if part is not None)

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

        Args:
            arguments: further ones of the wrapped pipeline's call, by their names there.

        Raises:
            ValueError: steps, a guidance scale or a size that model or memory cannot take, an argument that
                the wrapped pipeline does not take, or a scheduler that cannot be followed.
        """
        self._look()
        plan = self._planner.plan(steps, guidance_scale, height, width, arguments)
        self._check_size(plan)
        return plan

    def check_scheduler(self) -> None:
        """Refuse a scheduler that cannot be followed, before anything is asked for.

        Raises:
            pipelines.planning.SchedulerProblem: says which to take.
        """
        self._planner.check_scheduler()

    def _check_size(self, plan: Plan) -> None:
        """Refuse what cannot fit whatever is done: one convolution of the decoder at full size.

        Raises:
            ValueError: more than the device has.
        """
        if getattr(self.networks.vae, "use_tiling", False):
            return
        height, width = plan.height, plan.width
        config = self.networks.vae.config
        widths = config.get("decoder_block_out_channels") or config.get("block_out_channels") or [1]
        # What goes in and what comes out.
        needed = 2 * widths[0] * height * width * self.networks.vae.dtype.itemsize
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
            ValueError: embeddings of tokens that do not fit the text encoders, or arguments for prompts that
                do not fit these.
        """
        self._look()
        # Tensors of inference mode could not be used with gradient afterwards.
        with torch.inference_mode(False), self._offloader.encoders(), out_of_memory_errors():
            if not tokens:
                with torch.no_grad():
                    return self._encode(copy.copy(self.pipeline), prompts, plan, str)
            with torch.enable_grad(), with_tokens(self.pipeline, tokens) as (view, expand):
                return self._encode(view, prompts, plan, expand)

    def _encode(
        self, view: Any, prompts: Sequence[str], plan: Plan, expand: Callable[[str], str]
    ) -> Conditioning:
        family, texts = self.family, [expand(prompt) for prompt in prompts]
        taken = parameters(type(self.pipeline), "encode_prompt")
        names = (*taken, *family.encode_arguments)
        options = plan.arguments.for_prompts(len(texts), names, expand)
        scale = plan.arguments.lora_scale()
        if scale is not None and "lora_scale" in taken:
            options["lora_scale"] = scale
        halves = family.uses_cfg(self.pipeline, plan)
        try:
            return family.encode(view, texts, halves, self.device, **options)
        except (TypeError, ValueError, IndexError, AttributeError) as error:
            if not options:
                raise
            raise ValueError(
                f"the prompts cannot be encoded with {', '.join(options)} as given ({one_line(error)})"
            ) from error

    def noise(self, generators: Sequence[torch.Generator], plan: Plan) -> Noise:
        """What the wrapped pipeline would draw from one CPU generator an image, in its order."""
        with torch.inference_mode(False):
            draws, shape = 1 + self._planner.count_draws(plan), (1, *plan.latent_shape)
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
        keep: Keep | None = None,
    ) -> Iterator[TrajectoryStep]:
        """Sampling, step by step, one for each of the plan's evaluations.

        Args:
            around: replaces the prediction of every step, given a ``DenoiseStep``; one that returns
                ``step.denoise(step.latents)`` changes nothing.
            grad_steps: how many of the last steps have a graph; None for all. The gradient that reaches the
                first of them is passed on to the noise as it is (a straight-through estimate); text is given
                the gradient of those steps.
            keep: says after every step which of its rows go on; the others are dropped, and the next step has
                fewer rows. Without any left sampling ends.

        Raises:
            ValueError: conditioning or ``grad_steps`` that do not fit the plan.
            torch.OutOfMemoryError: the graph cannot fit on the device.
        """
        skipped = self._steps_without_grad(plan, grad_steps)
        self._look()
        self._measures.check_memory(noise, conditioning, plan, plan.evaluations - skipped)
        sampler = self.sampler(plan, noise.step_noise)
        self._check_scheduler(sampler, noise, plan)
        rows = self.networks.denoiser_rows(conditioning, plan, len(noise))
        first = noise.latents
        latents = clean = first * sampler.init_noise_sigma
        ends_clean = self.family.ends_clean(self.pipeline, plan)
        after = None
        if any(name in plan.arguments for name in CALLBACKS):
            after = StepCallbacks(self.pipeline, self.family, plan)
        stopped = (False,) * len(noise)
        for index, time in enumerate(sampler.timesteps):
            if index and all(stopped):
                yield TrajectoryStep(index, latents, clean, 0, 0)
                continue
            if index == skipped and skipped:
                latents = latents.detach() + (first - first.detach())
            counted = [0, 0]

            def denoise(
                latents: Tensor,
                conditioning: Conditioning | None = None,
                time: Tensor = time,
                counted: list[int] = counted,
                told: Conditioning = rows,
                plan: Plan = plan,
            ) -> Tensor:
                if conditioning is not None:
                    told = self.networks.denoiser_rows(conditioning, plan, len(latents))
                scaled = sampler.scale(latents, time)
                output = self.networks.predict(scaled, time, told, plan).to(latents.dtype)
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
            before, latents = latents, clean if ends_clean else moved
            if after is not None:
                latents = _kept(stopped, before, latents)
                moment = after(index, time, clean, Moment(latents, rows, plan, stopped))
                latents, rows, plan, stopped = moment
            done = TrajectoryStep(index, latents, clean, *counted)
            yield done
            kept = None if keep is None else keep(done)
            if kept is None:
                continue
            if not kept:
                return
            sampler.keep(kept, latents.shape)
            if after is not None:
                after.keep(kept)
            halves = range(0, len(rows), len(latents))
            rows = rows.pick([half + row for half in halves for row in kept])
            first, latents, clean = (rows_of[kept] for rows_of in (first, latents, clean))
            conditioning = conditioning.pick(kept)
            stopped = tuple(stopped[row] for row in kept)

    def _check_scheduler(self, sampler: Sampler, noise: Noise, plan: Plan) -> None:
        """Refuse noise and plans that were made for another scheduler.

        Raises:
            ValueError: the pipeline's was exchanged meanwhile.
        """
        given = 0 if noise.step_noise is None else len(noise.step_noise)
        if (len(sampler.timesteps), given) != (plan.evaluations, self._planner.count_draws(plan)):
            raise ValueError(
                "this plan or this noise was made for another scheduler or for other steps than those of "
                f"the pipeline, whose scheduler is now a {type(self.pipeline.scheduler).__name__}; make "
                "both again"
            )

    def decode(
        self, latents: Float[Tensor, "b c h w"], plan: Plan | None = None
    ) -> Float[Tensor, "b 3 hh ww"]:
        """Images in [0, 1], float32 or the latents' own precision where that is higher.

        Args:
            plan: tells the size of the pictures, which some pipelines draw in another one and scale.
        """
        self._look()
        return self.networks.decode(latents, plan)

    def unpacked(self, latents: Tensor, plan: Plan) -> Float[Tensor, "b c h w"]:
        """Latents as the wrapped pipeline's users hold them."""
        return self.family.unpack(self.pipeline, latents, plan)

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
        return self.decode(last.latents, plan)

    def images(
        self, noise: Noise, prompts: Sequence[str], plan: Plan
    ) -> Float[Tensor, "b 3 hh ww"]:
        """Images in [0, 1], equal to the wrapped pipeline's, without gradient."""
        with torch.no_grad():
            return self.render(noise, self.encode(prompts, plan), plan)

    def sampler(self, plan: Plan, noise: Float[Tensor, "s b c h w"] | None = None) -> Sampler:
        """The pipeline's scheduler of the moment, ready for a plan."""
        return self._planner.sampler(plan, self.device, noise)

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
        self._look()
        return self._measures.flops(plan)

    def estimate_bytes(self, plan: Plan, batch: int = 1, grad_steps: int | None = None) -> int:
        """Bytes that the weights and the graph of a batch take on the device.

        The graph is measured once for a plan and a memory plan, on one step and one picture, and taken to
        grow with both; what is recomputed, and what kernels need meanwhile, comes on top.

        Raises:
            ValueError: ``grad_steps`` that do not fit the plan.
        """
        self._look()
        steps = plan.evaluations - self._steps_without_grad(plan, grad_steps)
        return self._measures.estimate_bytes(plan, batch, steps)


def _unpickled(
    pipeline: Any, family: Family, card: PipelineCard, options: dict[str, Any]
) -> DiffusersAdapter:
    return DiffusersAdapter(pipeline, family, card, **options)


def _kept(stopped: Sequence[bool], before: Tensor, after: Tensor) -> Tensor:
    """Latents after a step, but of the pictures that were stopped those before it."""
    if not any(stopped):
        return after
    rows = torch.tensor(stopped, device=after.device)[:, None, None, None]
    return torch.where(rows, before, after)


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
