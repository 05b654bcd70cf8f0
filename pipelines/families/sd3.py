"""Stable Diffusion 3 and 3.5: a flow, conditioned by two CLIP encoders and T5, which may be left out.

Without skipped layers and image prompts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipelines.base import Conditioning, PipelineCard, Plan
from pipelines.family import DenoiserCall, Family, resolution_shift, set_timesteps


def _size_multiple(pipeline: Any) -> int:
    return int(pipeline.vae_scale_factor * pipeline.patch_size)


def _encode(
    pipeline: Any, prompts: list[str], unconditional: bool, device: torch.device, **options: Any
) -> Conditioning:
    options = {"prompt_2": None, "prompt_3": None} | options
    hidden, other, pooled, other_pooled = pipeline.encode_prompt(
        prompts, device=device, do_classifier_free_guidance=unconditional, **options
    )
    half = Conditioning(other, other_pooled) if unconditional else None
    return Conditioning(hidden, pooled, unconditional=half)


def _set_timesteps(pipeline: Any, scheduler: Any, plan: Plan, device: torch.device) -> None:
    shift = plan.arguments.get("mu")
    if shift is None and scheduler.config.get("use_dynamic_shifting"):
        shift = resolution_shift(scheduler.config, plan, pipeline.patch_size, max_shift=1.16)
    set_timesteps(scheduler, plan, device, **({} if shift is None else {"mu": shift}))


def _denoise(call: DenoiserCall) -> Tensor:
    return call.denoiser(
        hidden_states=call.latents,
        timestep=call.time.expand(len(call.latents)),
        encoder_hidden_states=call.conditioning.hidden,
        pooled_projections=call.conditioning.pooled,
        joint_attention_kwargs=call.plan.arguments.get("joint_attention_kwargs"),
        return_dict=False,
    )[0]


FAMILY = Family(
    "sd3",
    ("StableDiffusion3Pipeline",),
    "transformer",
    _encode,
    _denoise,
    size_multiple=_size_multiple,
    set_timesteps=_set_timesteps,
    arguments=("joint_attention_kwargs", "mu"),
)
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
