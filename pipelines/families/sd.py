"""Stable Diffusion 1 and 2 and what was distilled from them: SD-Turbo, LCM and other UNets of few steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipelines.base import Conditioning, PipelineCard, Plan
from pipelines.family import (
    DenoiserCall,
    Family,
    default_set_timesteps,
    guidance_embedding,
    is_one_of,
    set_timesteps,
    unet_uses_cfg,
)


def _encode(
    pipeline: Any, prompts: list[str], unconditional: bool, device: torch.device, **options: Any
) -> Conditioning:
    hidden, other = pipeline.encode_prompt(
        prompts,
        device=device,
        num_images_per_prompt=1,
        do_classifier_free_guidance=unconditional,
        **options,
    )
    return Conditioning(hidden, unconditional=Conditioning(other) if unconditional else None)


def _set_timesteps(pipeline: Any, scheduler: Any, plan: Plan, device: torch.device) -> None:
    if is_one_of(type(pipeline), ("LatentConsistencyModelPipeline",)):
        original = plan.arguments.get("original_inference_steps")
        set_timesteps(scheduler, plan, device, original_inference_steps=original)
    else:
        default_set_timesteps(pipeline, scheduler, plan, device)


def _denoise(call: DenoiserCall) -> Tensor:
    return call.denoiser(
        call.latents,
        call.time,
        encoder_hidden_states=call.conditioning.hidden,
        timestep_cond=guidance_embedding(call),
        cross_attention_kwargs=call.plan.arguments.get("cross_attention_kwargs"),
        return_dict=False,
    )[0]


FAMILY = Family(
    "sd",
    ("StableDiffusionPipeline", "LatentConsistencyModelPipeline"),
    "unet",
    _encode,
    _denoise,
    uses_cfg=unet_uses_cfg,
    set_timesteps=_set_timesteps,
    arguments=("cross_attention_kwargs", "guidance_rescale", "original_inference_steps"),
)
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
