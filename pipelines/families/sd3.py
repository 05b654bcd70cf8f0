"""Stable Diffusion 3 and 3.5: a flow, conditioned by two CLIP encoders and T5, which may be left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pipelines.base import Conditioning, PipelineCard, Plan


class StableDiffusion3:
    """StableDiffusion3Pipeline, without skipped layers and image prompts."""

    name = "sd3"
    pipelines = ("StableDiffusion3Pipeline",)
    denoiser = "transformer"

    def multiple(self, pipeline: Any) -> int:
        return int(pipeline.vae_scale_factor * pipeline.patch_size)

    def latent_shape(self, pipeline: Any, height: int, width: int) -> tuple[int, int, int]:
        factor = pipeline.vae_scale_factor
        return pipeline.transformer.config.in_channels, height // factor, width // factor

    def guides(self, pipeline: Any, scale: float) -> bool:
        return scale > 1

    def encode(
        self, pipeline: Any, prompts: list[str], negative: bool, device: torch.device
    ) -> Conditioning:
        hidden, away, pooled, away_pooled = pipeline.encode_prompt(
            prompts, None, None, device=device, do_classifier_free_guidance=negative
        )
        return Conditioning(
            hidden, pooled, negative=Conditioning(away, away_pooled) if negative else None
        )

    def set_timesteps(
        self, pipeline: Any, scheduler: Any, plan: Plan, device: torch.device
    ) -> None:
        if scheduler.config.get("use_dynamic_shifting"):
            shift = _shift(scheduler.config, plan, pipeline.patch_size)
            scheduler.set_timesteps(plan.steps, device=device, mu=shift)
        else:
            scheduler.set_timesteps(plan.steps, device=device)

    def denoise(
        self,
        pipeline: Any,
        denoiser: Callable[..., Any],
        latents: Tensor,
        time: Tensor,
        conditioning: Conditioning,
        plan: Plan,
    ) -> Tensor:
        return denoiser(
            hidden_states=latents,
            timestep=time.expand(len(latents)),
            encoder_hidden_states=conditioning.hidden,
            pooled_projections=conditioning.pooled,
            return_dict=False,
        )[0]

    def unscale(self, vae: Any, latents: Tensor) -> Tensor:
        return latents / vae.config.scaling_factor + vae.config.shift_factor


def _shift(config: Any, plan: Plan, patch: int) -> float:
    """Larger pictures are sampled at noisier times: linear in their patches, through two known points."""
    _, height, width = plan.latent_shape
    few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    least, most = config.get("base_shift", 0.5), config.get("max_shift", 1.16)
    slope = (most - least) / (many - few)
    return least + slope * ((height // patch) * (width // patch) - few)


FAMILY = StableDiffusion3()
CARDS = (
    PipelineCard(
        name="sd3.5-large-turbo",
        family="sd3",
        summary="Stable Diffusion 3.5 Large distilled to four steps",
        steps=4,
        guidance_scale=0.0,
        size=1024,
        license_code="Apache-2.0",
        license_weights="Stability AI Community License",
        commercial=False,
        hub_id="stabilityai/stable-diffusion-3.5-large-turbo",
        citation="arXiv 2403.03206, 2403.12015",
    ),
    PipelineCard(
        name="sd3.5-medium",
        family="sd3",
        summary="Stable Diffusion 3.5 Medium, not distilled, in as few steps as it can do with",
        steps=8,
        guidance_scale=4.5,
        size=1024,
        license_code="Apache-2.0",
        license_weights="Stability AI Community License",
        commercial=False,
        hub_id="stabilityai/stable-diffusion-3.5-medium",
        citation="arXiv 2403.03206",
    ),
)
