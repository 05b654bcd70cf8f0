"""Stable Diffusion XL: StableDiffusionXLPipeline, with both text encoders or the second alone.

Pooled text and the sizes condition the UNet too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pipelines.base import ComponentOverride, Conditioning, PipelineCard, Plan
from pipelines.family import (
    DenoiserCall,
    Family,
    guidance_embedding,
    set_timesteps_from_begin,
    unet_uses_cfg,
)


def _encode(
    pipeline: Any, prompts: list[str], unconditional: bool, device: torch.device, **options: Any
) -> Conditioning:
    hidden, other, pooled, other_pooled = pipeline.encode_prompt(
        prompts, device=device, do_classifier_free_guidance=unconditional, **options
    )
    half = Conditioning(other, other_pooled) if unconditional else None
    return Conditioning(hidden, pooled, unconditional=half)


def _denoise(call: DenoiserCall) -> Tensor:
    latents, plan = call.latents, call.plan
    return call.denoiser(
        latents,
        call.time,
        encoder_hidden_states=call.conditioning.hidden,
        timestep_cond=guidance_embedding(call),
        added_cond_kwargs={
            "text_embeds": call.conditioning.pooled,
            "time_ids": _sizes(call.pipeline, plan, latents),
        },
        cross_attention_kwargs=plan.arguments.get("cross_attention_kwargs"),
        return_dict=False,
    )[0]


def _sizes(pipeline: Any, plan: Plan, latents: Tensor) -> Tensor:
    """(b, 6) what the UNet is told of the size of b pictures before and after they were cut."""
    given = plan.arguments
    size = plan.height, plan.width
    own = *(given.get("original_size") or size), *given.get("crops_coords_top_left", (0, 0))
    rows = latents.new_tensor((*own, *(given.get("target_size") or size))).expand(len(latents), 6)
    before, after = given.get("negative_original_size"), given.get("negative_target_size")
    if before is None or after is None or not unet_uses_cfg(pipeline, plan):
        return rows
    cut = given.get("negative_crops_coords_top_left", (0, 0))
    half = len(latents) // 2
    return torch.cat([latents.new_tensor((*before, *cut, *after)).expand(half, 6), rows[half:]])


def _callback_inputs(pipeline: Any, plan: Plan, like: Tensor) -> dict[str, Tensor]:
    both = unet_uses_cfg(pipeline, plan)
    return {"add_time_ids": _sizes(pipeline, plan, like.new_zeros(1 + both))}


def _denormalize_latents(vae: Any, latents: Tensor) -> Tensor:
    latents = latents / vae.config.scaling_factor
    mean = getattr(vae.config, "latents_mean", None)
    deviation = getattr(vae.config, "latents_std", None)
    if mean is None or deviation is None:
        return latents
    mean, deviation = (latents.new_tensor(v)[:, None, None] for v in (mean, deviation))
    return latents * deviation + mean


def _unet(hub_id: str, filename: str) -> ComponentOverride:
    return ComponentOverride("unet", hub_id, "weights", filename=filename)


_ON_BASE = PipelineCard(
    name="",
    family="sdxl",
    summary="",
    steps=1,
    guidance_scale=0.0,
    size=1024,
    license_code="Apache-2.0",
    license_weights="CreativeML Open RAIL++-M",
    hub_id="stabilityai/stable-diffusion-xl-base-1.0",
)
"""What presets share that put another UNet into Stable Diffusion XL."""

FAMILY = Family(
    "sdxl",
    ("StableDiffusionXLPipeline",),
    "unet",
    _encode,
    _denoise,
    uses_cfg=unet_uses_cfg,
    set_timesteps=set_timesteps_from_begin,
    denormalize_latents=_denormalize_latents,
    callback_inputs=_callback_inputs,
    arguments=(
        "cross_attention_kwargs",
        "guidance_rescale",
        "original_size",
        "crops_coords_top_left",
        "target_size",
        "negative_original_size",
        "negative_crops_coords_top_left",
        "negative_target_size",
    ),
)
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
    replace(
        _ON_BASE,
        name="sdxl-lightning",
        summary="Stable Diffusion XL with ByteDance's UNet of four steps",
        steps=4,
        overrides=(_unet("ByteDance/SDXL-Lightning", "sdxl_lightning_4step_unet.safetensors"),),
        scheduler=("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
        citation="arXiv 2402.13929",
    ),
    replace(
        _ON_BASE,
        name="sdxl-lightning-1step",
        summary="Stable Diffusion XL with ByteDance's UNet of one step, which predicts the picture",
        overrides=(_unet("ByteDance/SDXL-Lightning", "sdxl_lightning_1step_unet_x0.safetensors"),),
        scheduler=(
            "EulerDiscreteScheduler",
            {"timestep_spacing": "trailing", "prediction_type": "sample"},
        ),
        citation="arXiv 2402.13929",
    ),
    replace(
        _ON_BASE,
        name="hyper-sdxl",
        summary="Stable Diffusion XL with the UNet of Hyper-SD, one step at time 800",
        timesteps=(800,),
        overrides=(_unet("ByteDance/Hyper-SD", "Hyper-SDXL-1step-Unet.safetensors"),),
        scheduler=("LCMScheduler", {}),
        citation="arXiv 2404.13686",
    ),
)
