"""FLUX.1: FluxPipeline, a flow of packed latents under CLIP's pooled text and T5's token states.

Noise and latents are unpacked here; the transformer's patches of 2 x 2 are made right before it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipelines.base import Conditioning, PipelineCard, Plan
from pipelines.family import DenoiserCall, Family, packed_size_multiple, set_flow_timesteps


def _uses_cfg(pipeline: Any, plan: Plan) -> bool:
    """``guidance_scale`` is told to the transformer, or ignored; this is ``true_cfg_scale``."""
    given = plan.arguments
    negative = "negative_prompt" in given or "negative_prompt_embeds" in given
    return negative and given.get("true_cfg_scale", 1.0) > 1


def _guide(unconditional: Tensor, conditional: Tensor, time: Tensor, plan: Plan) -> Tensor:
    scale = plan.arguments["true_cfg_scale"]
    return unconditional + scale * (conditional - unconditional)


def _encode(
    pipeline: Any, prompts: list[str], unconditional: bool, device: torch.device, **options: Any
) -> Conditioning:
    other = {name: options.pop(name) for name in _NEGATIVE if name in options}
    hidden, pooled, _ = pipeline.encode_prompt(
        prompts, options.pop("prompt_2", None), device=device, **options
    )
    if not unconditional:
        return Conditioning(hidden, pooled)
    # The same encoder reads the negative prompt, under the names of the positive one.
    options = {n: v for n, v in options.items() if "prompt" not in n}
    options |= {name.removeprefix("negative_"): value for name, value in other.items()}
    texts = options.pop("prompt", None), options.pop("prompt_2", None)
    negative, negative_pooled, _ = pipeline.encode_prompt(*texts, device=device, **options)
    return Conditioning(hidden, pooled, unconditional=Conditioning(negative, negative_pooled))


def _denoise(call: DenoiserCall) -> Tensor:
    latents, hidden = call.latents, call.conditioning.hidden
    rows, _, height, width = latents.shape
    guidance = None
    if call.pipeline.transformer.config.guidance_embeds:
        scale = call.plan.guidance_scale
        guidance = torch.full((rows,), scale, device=latents.device, dtype=torch.float32)
    output = call.denoiser(
        hidden_states=_pack(latents),
        timestep=call.time.expand(rows).to(latents.dtype) / 1000,
        guidance=guidance,
        pooled_projections=call.conditioning.pooled,
        encoder_hidden_states=hidden,
        txt_ids=latents.new_zeros(hidden.shape[1], 3),
        img_ids=_places(height // 2, width // 2).to(latents),
        joint_attention_kwargs=call.plan.arguments.get("joint_attention_kwargs"),
        return_dict=False,
    )[0]
    return _unpack(output, height, width)


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


def _packed(pipeline: Any, latents: Tensor) -> Tensor:
    return _pack(latents)


def _unpacked(pipeline: Any, latents: Tensor, plan: Plan) -> Tensor:
    _, height, width = plan.latent_shape
    return latents if latents.ndim == 4 else _unpack(latents, height, width)


_NEGATIVE = (
    "negative_prompt",
    "negative_prompt_2",
    "negative_prompt_embeds",
    "negative_pooled_prompt_embeds",
)
FAMILY = Family(
    "flux",
    ("FluxPipeline",),
    "transformer",
    _encode,
    _denoise,
    size_multiple=packed_size_multiple,
    uses_cfg=_uses_cfg,
    guide=_guide,
    set_timesteps=set_flow_timesteps,
    pack=_packed,
    unpack=_unpacked,
    lists_prompts=True,
    arguments=("joint_attention_kwargs", "true_cfg_scale", *_NEGATIVE),
    encode_arguments=_NEGATIVE,
)
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
        arguments={"max_sequence_length": 256},  # of T5, on which it was trained
        citation="github.com/black-forest-labs/flux",
    ),
)
