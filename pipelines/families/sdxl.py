"""Stable Diffusion XL and its kin: StableDiffusionXLPipeline, with both text encoders or the second alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pipelines.base import Conditioning, Part, PipelineCard, Plan
from pipelines.families.sd import guidance_embedding


class StableDiffusionXL:
    """Pooled text and the sizes condition the UNet too."""

    name = "sdxl"
    pipelines = ("StableDiffusionXLPipeline",)
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
        hidden, away, pooled, away_pooled = pipeline.encode_prompt(
            prompts, device=device, do_classifier_free_guidance=negative
        )
        return Conditioning(
            hidden, pooled, negative=Conditioning(away, away_pooled) if negative else None
        )

    def set_timesteps(
        self, pipeline: Any, scheduler: Any, plan: Plan, device: torch.device
    ) -> None:
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
        side = (plan.height, plan.width, 0, 0, plan.height, plan.width)
        return denoiser(
            latents,
            time,
            encoder_hidden_states=conditioning.hidden,
            timestep_cond=guidance_embedding(pipeline, len(latents), plan.guidance_scale, latents),
            added_cond_kwargs={
                "text_embeds": conditioning.pooled,
                "time_ids": latents.new_tensor(side).expand(len(latents), 6),
            },
            return_dict=False,
        )[0]

    def unscale(self, vae: Any, latents: Tensor) -> Tensor:
        latents = latents / vae.config.scaling_factor
        mean = getattr(vae.config, "latents_mean", None)
        deviation = getattr(vae.config, "latents_std", None)
        if mean is None or deviation is None:
            return latents
        mean, deviation = (latents.new_tensor(v)[:, None, None] for v in (mean, deviation))
        return latents * deviation + mean


def _unet(hub_id: str, filename: str) -> Part:
    return Part("unet", hub_id, "weights", filename=filename)


FAMILY = StableDiffusionXL()
CARDS = (
    PipelineCard(
        name="sdxl-turbo",
        family="sdxl",
        summary="Stable Diffusion XL distilled to one to four steps",
        steps=1,
        guidance_scale=0.0,
        size=512,
        license_code="Apache-2.0",
        license_weights="Stability AI Non-Commercial Research Community License",
        commercial=False,
        hub_id="stabilityai/sdxl-turbo",
        citation="arXiv 2311.17042",
    ),
    PipelineCard(
        name="sdxl-lightning",
        family="sdxl",
        summary="Stable Diffusion XL with ByteDance's UNet of four steps",
        steps=4,
        guidance_scale=0.0,
        size=1024,
        license_code="Apache-2.0",
        license_weights="CreativeML Open RAIL++-M",
        hub_id="stabilityai/stable-diffusion-xl-base-1.0",
        parts=(_unet("ByteDance/SDXL-Lightning", "sdxl_lightning_4step_unet.safetensors"),),
        scheduler=("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
        citation="arXiv 2402.13929",
    ),
    PipelineCard(
        name="sdxl-lightning-1step",
        family="sdxl",
        summary="Stable Diffusion XL with ByteDance's UNet of one step, which predicts the picture",
        steps=1,
        guidance_scale=0.0,
        size=1024,
        license_code="Apache-2.0",
        license_weights="CreativeML Open RAIL++-M",
        hub_id="stabilityai/stable-diffusion-xl-base-1.0",
        parts=(_unet("ByteDance/SDXL-Lightning", "sdxl_lightning_1step_unet_x0.safetensors"),),
        scheduler=(
            "EulerDiscreteScheduler",
            {"timestep_spacing": "trailing", "prediction_type": "sample"},
        ),
        citation="arXiv 2402.13929",
    ),
    PipelineCard(
        name="hyper-sdxl",
        family="sdxl",
        summary="Stable Diffusion XL with the UNet of Hyper-SD, one step at time 800",
        steps=1,
        guidance_scale=0.0,
        size=1024,
        license_code="Apache-2.0",
        license_weights="CreativeML Open RAIL++-M",
        hub_id="stabilityai/stable-diffusion-xl-base-1.0",
        timesteps=(800,),
        parts=(_unet("ByteDance/Hyper-SD", "Hyper-SDXL-1step-Unet.safetensors"),),
        scheduler=("LCMScheduler", {}),
        citation="arXiv 2404.13686",
    ),
)
