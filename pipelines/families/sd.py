"""Stable Diffusion 1 and 2 and what was distilled from them: SD-Turbo, LCM and other UNets of few steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pipelines.adapter import is_one_of
from pipelines.base import Conditioning, PipelineCard, Plan


class StableDiffusion:
    """StableDiffusionPipeline, and LatentConsistencyModelPipeline, whose UNet is told the guidance scale."""

    name = "sd"
    pipelines = ("StableDiffusionPipeline", "LatentConsistencyModelPipeline")
    denoiser = "unet"

    def multiple(self, pipeline: Any) -> int:
        return int(pipeline.vae_scale_factor)

    def latent_shape(self, pipeline: Any, height: int, width: int) -> tuple[int, int, int]:
        factor = pipeline.vae_scale_factor
        return pipeline.unet.config.in_channels, height // factor, width // factor

    def guides(self, pipeline: Any, scale: float) -> bool:
        return scale > 1 and pipeline.unet.config.time_cond_proj_dim is None

    def encode(
        self, pipeline: Any, prompts: list[str], negative: bool, device: torch.device
    ) -> Conditioning:
        hidden, away = pipeline.encode_prompt(
            prompts,
            device=device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=negative,
        )
        return Conditioning(hidden, negative=Conditioning(away) if negative else None)

    def set_timesteps(
        self, pipeline: Any, scheduler: Any, plan: Plan, device: torch.device
    ) -> None:
        if is_one_of(type(pipeline), ("LatentConsistencyModelPipeline",)):
            scheduler.set_timesteps(plan.steps, device, original_inference_steps=None)
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
            latents,
            time,
            encoder_hidden_states=conditioning.hidden,
            timestep_cond=guidance_embedding(pipeline, len(latents), plan.guidance_scale, latents),
            return_dict=False,
        )[0]

    def unscale(self, vae: Any, latents: Tensor) -> Tensor:
        return latents / vae.config.scaling_factor


def guidance_embedding(pipeline: Any, rows: int, scale: float, like: Tensor) -> Tensor | None:
    """The guidance scale as UNets of latent consistency models take it; None for all others."""
    width = pipeline.unet.config.time_cond_proj_dim
    if width is None:
        return None
    weights = torch.full((rows,), scale - 1, device=like.device, dtype=torch.float32)
    return pipeline.get_guidance_scale_embedding(weights, embedding_dim=width).to(like)


FAMILY = StableDiffusion()
CARDS = (
    PipelineCard(
        name="sd-turbo",
        family="sd",
        summary="Stable Diffusion 2.1 distilled to one to four steps",
        steps=1,
        guidance_scale=0.0,
        size=512,
        license_code="Apache-2.0",
        license_weights="Stability AI Community License",
        commercial=False,
        hub_id="stabilityai/sd-turbo",
        citation="arXiv 2311.17042",
    ),
    PipelineCard(
        name="lcm-dreamshaper",
        family="sd",
        summary="latent consistency model of Dreamshaper v7, four to eight steps",
        steps=4,
        guidance_scale=8.5,
        size=768,
        license_code="Apache-2.0",
        license_weights="MIT",
        hub_id="SimianLuo/LCM_Dreamshaper_v7",
        citation="arXiv 2310.04378",
    ),
)
