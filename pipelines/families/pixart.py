"""PixArt-alpha and -sigma, and what was distilled from them: DMD in one step, LCM in a few.

Masked T5 states condition a transformer. As in Diffusers, pictures are drawn at the nearest size in training,
and scaled. Prompts are lowered and stripped and no more, unless ``clean_caption`` is given: what it does
besides needs other packages.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipelines.base import ComponentOverride, Conditioning, PipelineCard, Plan
from pipelines.family import (
    BINNING,
    DenoiserCall,
    Family,
    binned_size,
    is_one_of,
    patched_size_multiple,
    set_timesteps_from_begin,
)


def _encode(
    pipeline: Any, prompts: list[str], unconditional: bool, device: torch.device, **options: Any
) -> Conditioning:
    hidden, mask, other, other_mask = pipeline.encode_prompt(
        prompts, unconditional, device=device, **options
    )
    half = Conditioning(other, mask=other_mask.bool()) if unconditional else None
    return Conditioning(hidden, mask=mask.bool(), unconditional=half)


def _denoise(call: DenoiserCall) -> Tensor:
    latents, plan = call.latents, call.plan
    sizes: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
    if call.pipeline.transformer.use_additional_conditions:
        _, *shape = plan.latent_shape
        height, width = (rows * call.pipeline.vae_scale_factor for rows in shape)
        side, ratio = latents.new_tensor((height, width)), latents.new_tensor((height / width,))
        sizes = {
            "resolution": side.expand(len(latents), 2),
            "aspect_ratio": ratio.expand(len(latents), 1),
        }
    output = call.denoiser(
        latents,
        encoder_hidden_states=call.conditioning.hidden,
        encoder_attention_mask=call.conditioning.mask,
        timestep=call.time.expand(len(latents)),
        added_cond_kwargs=sizes,
        return_dict=False,
    )[0]
    # Behind the noise come variances, where they were learned; no few-step sampler takes them.
    return output[:, : latents.shape[1]]


def _ends_clean(pipeline: Any, plan: Plan) -> bool:
    """A model distilled to one step predicts the picture itself; PixArt-sigma goes on as ever."""
    return plan.steps == 1 and is_one_of(type(pipeline), ("PixArtAlphaPipeline",))


FAMILY = Family(
    "pixart",
    ("PixArtAlphaPipeline", "PixArtSigmaPipeline"),
    "transformer",
    _encode,
    _denoise,
    size_multiple=patched_size_multiple,
    drawn_size=binned_size,
    set_timesteps=set_timesteps_from_begin,
    arguments=(BINNING,),
    ends_clean=_ends_clean,
)
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
        overrides=(
            ComponentOverride(
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
