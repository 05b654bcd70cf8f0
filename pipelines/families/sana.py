"""SANA-Sprint: consistency distilled to one to four steps, with a language model as the text encoder.

Its scheduler counts time as an angle, its transformer as a share of noise, and the transformer is told the
guidance scale. Latents are in units of the scheduler's ``sigma_data``. As in Diffusers, pictures are drawn at
the nearest size in training, and scaled.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor

from pipelines.base import Conditioning, PipelineCard, Plan
from pipelines.family import BINNING, DenoiserCall, Family, binned_size, patched_size_multiple


def _size_multiple(pipeline: Any) -> int:
    # The pipeline asks for 32, whatever its decoder's factor is.
    return math.lcm(32, patched_size_multiple(pipeline))


def _uses_cfg(pipeline: Any, plan: Plan) -> bool:
    return False


def _encode(
    pipeline: Any, prompts: list[str], unconditional: bool, device: torch.device, **options: Any
) -> Conditioning:
    """With the instruction that the pipeline puts before every prompt, whose states are cut off again."""
    side = pipeline.tokenizer.padding_side  # encode_prompt changes it for good
    instruction = _default(pipeline, "complex_human_instruction")
    options = {"complex_human_instruction": instruction} | options
    hidden, mask = pipeline.encode_prompt(prompts, device=device, **options)
    pipeline.tokenizer.padding_side = side
    return Conditioning(hidden, mask=mask.bool())


def _set_timesteps(pipeline: Any, scheduler: Any, plan: Plan, device: torch.device) -> None:
    given, times = plan.arguments, plan.arguments.get("timesteps")
    options: dict[str, Any] = {"timesteps": None if times is None else [float(t) for t in times]}
    if times is None:
        between = _default(pipeline, "intermediate_timesteps") if plan.steps == 2 else None
        options["intermediate_timesteps"] = given.get("intermediate_timesteps", between)
    most = None if times is not None else _default(pipeline, "max_timesteps")
    options["max_timesteps"] = given.get("max_timesteps", most)
    scheduler.register_to_config(sigma_data=1.0)
    scheduler.set_timesteps(plan.steps, device=device, **options)
    scheduler.set_begin_index(0)


def _denoise(call: DenoiserCall) -> Tensor:
    latents, time = call.latents, call.time
    share = time.sin() / (time.sin() + time.cos())
    norm = (share**2 + (1 - share) ** 2).sqrt()
    # What is close to one another is subtracted here, and not in half precision.
    noisy = latents.to(torch.promote_types(latents.dtype, torch.float32)) * norm
    scale = call.plan.guidance_scale * call.pipeline.transformer.config.guidance_embeds_scale
    flow = call.denoiser(
        noisy.to(latents.dtype),
        encoder_hidden_states=call.conditioning.hidden,
        encoder_attention_mask=call.conditioning.mask,
        guidance=torch.full((len(latents),), scale, device=latents.device, dtype=latents.dtype),
        timestep=share.expand(len(latents)),
        attention_kwargs=call.plan.arguments.get("attention_kwargs"),
        return_dict=False,
    )[0]
    return ((1 - 2 * share) * noisy + (1 - 2 * share + 2 * share**2) * flow) / norm


def _pack(pipeline: Any, latents: Tensor) -> Tensor:
    return latents * pipeline.scheduler.config.sigma_data


def _unpack(pipeline: Any, latents: Tensor, plan: Plan) -> Tensor:
    return latents / pipeline.scheduler.config.sigma_data


def _default(pipeline: Any, name: str) -> Any:
    """What the pipeline takes for an argument that it is not given."""
    return inspect.signature(type(pipeline).__call__).parameters[name].default


FAMILY = Family(
    "sana",
    ("SanaSprintPipeline",),
    "transformer",
    _encode,
    _denoise,
    size_multiple=_size_multiple,
    uses_cfg=_uses_cfg,
    set_timesteps=_set_timesteps,
    drawn_size=binned_size,
    pack=_pack,
    unpack=_unpack,
    arguments=(BINNING, "attention_kwargs", "intermediate_timesteps", "max_timesteps"),
)
CARDS = (
    PipelineCard(
        name="sana-sprint",
        family="sana",
        summary="SANA-Sprint of 0.6 billion parameters, one to four steps",
        steps=2,
        guidance_scale=4.5,
        size=1024,
        license_code="Apache-2.0",
        license_weights="NVIDIA License (NSCL v2-custom) and Gemma Terms of Use",
        commercial=False,
        hub_id="Efficient-Large-Model/Sana_Sprint_0.6B_1024px_diffusers",
        citation="arXiv 2503.09641",
    ),
)
