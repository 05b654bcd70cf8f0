"""PixArt-alpha and -sigma, and what was distilled from them: DMD in one step, LCM in a few."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pipelines.base import Conditioning, Part, PipelineCard, Plan


class PixArt:
    """Masked T5 states condition a transformer; pictures have the size that was asked for, without bins.

    Prompts are lowered and stripped and no more: what ``clean_caption`` does besides needs other packages.
    """

    name = "pixart"
    pipelines = ("PixArtAlphaPipeline", "PixArtSigmaPipeline")
    denoiser = "transformer"

    def multiple(self, pipeline: Any) -> int:
        return int(pipeline.vae_scale_factor * pipeline.transformer.config.patch_size)

    def latent_shape(self, pipeline: Any, height: int, width: int) -> tuple[int, int, int]:
        factor = pipeline.vae_scale_factor
        return pipeline.transformer.config.in_channels, height // factor, width // factor

    def guides(self, pipeline: Any, scale: float) -> bool:
        return scale > 1

    def encode(
        self, pipeline: Any, prompts: list[str], negative: bool, device: torch.device
    ) -> Conditioning:
        hidden, mask, away, away_mask = pipeline.encode_prompt(prompts, negative, device=device)
        return Conditioning(
            hidden,
            mask=mask.bool(),
            negative=Conditioning(away, mask=away_mask.bool()) if negative else None,
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
        sizes: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if pipeline.transformer.use_additional_conditions:
            side = latents.new_tensor((plan.height, plan.width))
            ratio = latents.new_tensor((plan.height / plan.width,))
            sizes = {
                "resolution": side.expand(len(latents), 2),
                "aspect_ratio": ratio.expand(len(latents), 1),
            }
        output = denoiser(
            latents,
            encoder_hidden_states=conditioning.hidden,
            encoder_attention_mask=conditioning.mask,
            timestep=time.expand(len(latents)),
            added_cond_kwargs=sizes,
            return_dict=False,
        )[0]
        # Behind the noise come variances, where they were learned; no few-step sampler takes them.
        return output[:, : latents.shape[1]]

    def unscale(self, vae: Any, latents: Tensor) -> Tensor:
        return latents / vae.config.scaling_factor


FAMILY = PixArt()
CARDS = (
    PipelineCard(
        name="pixart-dmd",
        family="pixart",
        summary="PixArt-alpha distilled to one step by distribution matching",
        steps=1,
        guidance_scale=0.0,
        size=512,
        license_code="Apache-2.0",
        license_weights="CreativeML Open RAIL++-M",
        hub_id="PixArt-alpha/PixArt-XL-2-512x512",
        timesteps=(400,),
        parts=(
            Part(
                "transformer",
                "PixArt-alpha/PixArt-Alpha-DMD-XL-2-512x512",
                "folder",
                subfolder="transformer",
            ),
        ),
        # Latents reach beyond 1, where this scheduler would cut them off by default.
        scheduler=("DDPMScheduler", {"clip_sample": False}),
        citation="arXiv 2403.04692, 2311.18828",
    ),
    PipelineCard(
        name="pixart-lcm",
        family="pixart",
        summary="latent consistency model of PixArt-alpha, two to eight steps",
        steps=4,
        guidance_scale=0.0,
        size=1024,
        license_code="Apache-2.0",
        license_weights="CreativeML Open RAIL++-M",
        hub_id="PixArt-alpha/PixArt-LCM-XL-2-1024-MS",
        citation="arXiv 2310.00426, 2310.04378",
    ),
    PipelineCard(
        name="pixart-sigma",
        family="pixart",
        summary="PixArt-sigma, not distilled, in as few steps as its solver can do with",
        steps=8,
        guidance_scale=4.5,
        size=1024,
        license_code="Apache-2.0",
        license_weights="CreativeML Open RAIL++-M",
        hub_id="PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
        citation="arXiv 2403.04692",
    ),
)
