"""FLUX.1: FluxPipeline, a flow of packed latents under CLIP's pooled text and T5's token states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pipelines.base import Conditioning, PipelineCard, Plan


class Flux:
    """Noise and latents are unpacked here; the transformer's patches of 2 x 2 are made at its door."""

    name = "flux"
    pipelines = ("FluxPipeline",)
    denoiser = "transformer"

    def multiple(self, pipeline: Any) -> int:
        return 2 * int(pipeline.vae_scale_factor)

    def latent_shape(self, pipeline: Any, height: int, width: int) -> tuple[int, int, int]:
        factor = pipeline.vae_scale_factor
        return pipeline.transformer.config.in_channels // 4, height // factor, width // factor

    def guides(self, pipeline: Any, scale: float) -> bool:
        return False  # the scale is told to the transformer, or ignored

    def encode(
        self, pipeline: Any, prompts: list[str], negative: bool, device: torch.device
    ) -> Conditioning:
        # FLUX.1-schnell, which is not told the scale, was trained on 256 tokens of T5, and -dev on 512.
        tokens = 512 if pipeline.transformer.config.guidance_embeds else 256
        hidden, pooled, _ = pipeline.encode_prompt(
            prompts, None, device=device, max_sequence_length=tokens
        )
        return Conditioning(hidden, pooled)

    def set_timesteps(
        self, pipeline: Any, scheduler: Any, plan: Plan, device: torch.device
    ) -> None:
        set_flow(scheduler, plan, device)

    def denoise(
        self,
        pipeline: Any,
        denoiser: Callable[..., Any],
        latents: Tensor,
        time: Tensor,
        conditioning: Conditioning,
        plan: Plan,
    ) -> Tensor:
        rows, _, height, width = latents.shape
        guidance = None
        if pipeline.transformer.config.guidance_embeds:
            guidance = torch.full((rows,), plan.guidance_scale, device=latents.device)
        output = denoiser(
            hidden_states=_pack(latents),
            timestep=time.expand(rows).to(latents.dtype) / 1000,
            guidance=guidance,
            pooled_projections=conditioning.pooled,
            encoder_hidden_states=conditioning.hidden,
            txt_ids=latents.new_zeros(conditioning.hidden.shape[1], 3),
            img_ids=_places(height // 2, width // 2).to(latents),
            return_dict=False,
        )[0]
        return _unpack(output, height, width)

    def unscale(self, vae: Any, latents: Tensor) -> Tensor:
        return latents / vae.config.scaling_factor + vae.config.shift_factor


def set_flow(scheduler: Any, plan: Plan, device: torch.device) -> None:
    """Even sigmas from 1 to 1 / steps, shifted by the number of 2 x 2 patches where the scheduler shifts."""
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps

    config = scheduler.config
    _, height, width = plan.latent_shape
    shift = calculate_shift(
        (height // 2) * (width // 2),
        config.get("base_image_seq_len", 256),
        config.get("max_image_seq_len", 4096),
        config.get("base_shift", 0.5),
        config.get("max_shift", 1.15),
    )
    sigmas = torch.linspace(1, 1 / plan.steps, plan.steps, dtype=torch.float64).tolist()
    own = config.get("use_flow_sigmas", False)
    retrieve_timesteps(scheduler, plan.steps, device, sigmas=None if own else sigmas, mu=shift)
    scheduler.set_begin_index(0)


def _pack(latents: Tensor) -> Tensor:
    """(b, c, h, w) -> (b, h/2 * w/2, 4 c), row by row."""
    rows, channels, height, width = latents.shape
    patches = latents.reshape(rows, channels, height // 2, 2, width // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def _unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """(b, h/2 * w/2, 4 c) -> (b, c, h, w)."""
    patches = tokens.reshape(len(tokens), height // 2, width // 2, -1, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def _places(height: int, width: int) -> Tensor:
    """(h * w, 3): 0, row and column of every patch."""
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], -1).flatten(0, 1)


FAMILY = Flux()
CARDS = (
    PipelineCard(
        name="flux-schnell",
        family="flux",
        summary="FLUX.1 distilled to one to four steps; gated: its licence is accepted on the hub",
        steps=4,
        guidance_scale=0.0,
        size=1024,
        license_code="Apache-2.0",
        license_weights="Apache-2.0",
        hub_id="black-forest-labs/FLUX.1-schnell",
        citation="github.com/black-forest-labs/flux",
    ),
)
