"""Stable Diffusion XL and its kin: StableDiffusionXLPipeline, with both text encoders or the second alone."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pipelines.base import Conditioning, Flops, Noise, PipelineCard, Plan, TrajectoryStep

MAX_STEPS = 8
QUIET_SCHEDULERS = ("DPMSolverMultistepScheduler", "EulerDiscreteScheduler", "DDIMScheduler")
"""Schedulers that add no noise of their own."""


class SDXLAdapter:
    """A loaded StableDiffusionXLPipeline as a differentiable function of its noise."""

    def __init__(self, pipeline: Any, card: PipelineCard) -> None:
        """Wrap a pipeline; nothing of it is changed.

        Raises:
            ValueError: a scheduler that adds noise of its own at every step.
        """
        name = type(pipeline.scheduler).__name__
        sde = str(getattr(pipeline.scheduler.config, "algorithm_type", "")).startswith("sde")
        if name not in QUIET_SCHEDULERS or sde:
            raise ValueError(
                f"the scheduler {name} draws noise at every step, which is not supported; set "
                "pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)"
            )
        self.pipeline = pipeline
        self.card = card
        self._flops: dict[Plan, dict[str, Flops]] = {}

    @property
    def device(self) -> torch.device:
        return self.pipeline.unet.device

    def to(self, device: str | torch.device) -> SDXLAdapter:
        self.pipeline.to(device)
        return self

    def modules(self) -> tuple[torch.nn.Module, ...]:
        """Whatever of the pipeline has weights."""
        parts = self.pipeline.components.values()
        return tuple(part for part in parts if isinstance(part, torch.nn.Module))

    def plan(
        self,
        steps: int | None = None,
        guidance_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> Plan:
        steps = self.card.steps if steps is None else steps
        if not 1 <= steps <= MAX_STEPS:
            raise ValueError(
                f"num_inference_steps must lie between 1 and {MAX_STEPS}, not {steps}: "
                f"{self.card.name} is meant for {self.card.steps}"
            )
        scale = self.card.guidance_scale if guidance_scale is None else guidance_scale
        height, width = height or self.card.size, width or self.card.size
        factor = self.pipeline.vae_scale_factor
        if height % factor or width % factor or min(height, width) < 8 * factor:
            raise ValueError(
                f"height and width must be multiples of {factor} and at least {8 * factor}, "
                f"not {height} and {width}"
            )
        channels = self.pipeline.unet.config.in_channels
        return Plan(
            steps, float(scale), height, width, (channels, height // factor, width // factor)
        )

    def encode(self, prompts: Sequence[str], plan: Plan) -> Conditioning:
        guided = plan.guidance_scale > 1
        with torch.no_grad():
            hidden, negative, pooled, negative_pooled = self.pipeline.encode_prompt(
                list(prompts), device=self.device, do_classifier_free_guidance=guided
            )
        return Conditioning(
            hidden, pooled, Conditioning(negative, negative_pooled) if guided else None
        )

    def noise(self, generators: Sequence[torch.Generator], plan: Plan) -> Noise:
        drawn = [torch.randn((1, *plan.latent_shape), generator=g) for g in generators]
        return Noise(torch.cat(drawn).to(self.device))

    def trajectory(
        self, noise: Noise, conditioning: Conditioning, plan: Plan
    ) -> Iterator[TrajectoryStep]:
        scheduler = copy.deepcopy(self.pipeline.scheduler)  # it remembers past steps
        scheduler.set_timesteps(plan.steps, device=self.device)
        latents = noise.latents * scheduler.init_noise_sigma
        for step, time in enumerate(scheduler.timesteps):
            scaled = scheduler.scale_model_input(latents, time)
            output = self._denoise(scaled, time, conditioning, plan)
            stepped = scheduler.step(output, time, latents)
            clean = getattr(stepped, "pred_original_sample", None)
            if clean is None:
                clean = scheduler.model_outputs[-1]  # DPM-Solver++ keeps the clean prediction
            latents = stepped.prev_sample
            yield TrajectoryStep(step, latents, clean)

    def _denoise(
        self, latents: Tensor, time: Tensor, conditioning: Conditioning, plan: Plan
    ) -> Tensor:
        unet = self.pipeline.unet
        side = (plan.height, plan.width, 0, 0, plan.height, plan.width)
        rows = [conditioning]
        if plan.guidance_scale > 1:
            if conditioning.negative is None:
                raise ValueError("this conditioning was encoded for a plan without guidance")
            rows = [conditioning.negative, conditioning]
        hidden = torch.cat([row.hidden for row in rows]).to(unet.dtype)
        pooled = torch.cat([row.pooled for row in rows]).to(unet.dtype)
        output = unet(
            torch.cat([latents] * len(rows)).to(unet.dtype),
            time,
            encoder_hidden_states=hidden,
            added_cond_kwargs={
                "text_embeds": pooled,
                "time_ids": hidden.new_tensor(side).expand(len(hidden), 6),
            },
        ).sample
        if len(rows) == 1:
            return output
        away, towards = output.chunk(2)
        return away + plan.guidance_scale * (towards - away)

    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 hh ww"]:
        vae = self.pipeline.vae
        image = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor).sample
        return (image.float() / 2 + 0.5).clamp(0, 1)

    def render(
        self, noise: Noise, conditioning: Conditioning, plan: Plan
    ) -> Float[Tensor, "b 3 hh ww"]:
        *_, last = self.trajectory(noise, conditioning, plan)
        return self.decode(last.latents)

    def flops(self, plan: Plan) -> dict[str, Flops]:
        """Measured once a plan, with torch's FlopCounterMode, on one picture."""
        if plan not in self._flops:
            self._flops[plan] = self._measure(plan)
        return self._flops[plan]

    def _measure(self, plan: Plan) -> dict[str, Flops]:
        with torch.enable_grad():
            with FlopCounterMode(display=False) as text:
                conditioning = self.encode([""], plan)
            noise = Noise(torch.zeros(1, *plan.latent_shape, device=self.device))
            latents = noise.latents.clone().requires_grad_()
            time = torch.tensor(500, device=self.device)
            step = _both_ways(lambda: self._denoise(latents, time, conditioning, plan), latents)
            image = _both_ways(lambda: self.decode(latents), latents)
        return {
            "text_encoder": Flops(text.get_total_flops(), 0.0),
            "denoiser": step,
            "decoder": image,
        }


def _both_ways(forward: Any, leaf: Tensor) -> Flops:
    with FlopCounterMode(display=False) as there:
        output = forward()
    with FlopCounterMode(display=False) as back:
        torch.autograd.grad(output.float().sum(), leaf)
    return Flops(float(there.get_total_flops()), float(back.get_total_flops()))
