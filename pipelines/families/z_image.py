"""Z-Image: ZImagePipeline, a flow under the token states of Qwen3, as long as each prompt is.

Its times run from 0 to 1, its output points from noise to picture, and classifier-free guidance begins above
scale 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pipelines.base import Conditioning, PipelineCard, Plan
from pipelines.family import DenoiserCall, Family, packed_size_multiple, set_flow_timesteps


def _uses_cfg(pipeline: Any, plan: Plan) -> bool:
    return plan.guidance_scale > 0


def _guide(unconditional: Tensor, conditional: Tensor, time: Tensor, plan: Plan) -> Tensor:
    """The scale counts from the conditional half; it may end late in sampling, and lengthen nothing."""
    last, longest = (
        plan.arguments.get("cfg_truncation", 1.0),
        plan.arguments.get("cfg_normalization"),
    )
    if (1000 - float(time)) / 1000 > last:
        return conditional
    conditional, unconditional = conditional.float(), unconditional.float()
    guided = conditional + plan.guidance_scale * (conditional - unconditional)
    if not longest or float(longest) <= 0:
        return guided
    own, new = (v.flatten(1).norm(dim=1)[:, None, None, None] for v in (conditional, guided))
    return guided * (own * float(longest) / new).clamp_max(1)


def _encode(
    pipeline: Any, prompts: list[str], unconditional: bool, device: torch.device, **options: Any
) -> Conditioning:
    # The pipeline writes its chat template into the list that it is given.
    states, others = pipeline.encode_prompt(
        list(prompts), device=device, do_classifier_free_guidance=unconditional, **options
    )
    half = Conditioning(*_pad(others)) if unconditional else None
    return Conditioning(*_pad(states), unconditional=half)


def _pad(states: list[Tensor]) -> tuple[Tensor, None, Tensor]:
    """Rows of different lengths as the first three members of a Conditioning."""
    masks = [torch.ones(len(row), dtype=torch.bool, device=row.device) for row in states]
    return pad_sequence(states, True), None, pad_sequence(masks, True)


def _denoise(call: DenoiserCall) -> Tensor:
    hidden, mask = call.conditioning.hidden, call.conditioning.mask
    assert mask is not None
    outputs = call.denoiser(
        list(call.latents.unsqueeze(2)),
        (1000 - call.time.expand(len(call.latents))) / 1000,
        [row[kept] for row, kept in zip(hidden, mask, strict=True)],
        joint_attention_kwargs=call.plan.arguments.get("joint_attention_kwargs"),
        return_dict=False,
    )[0]
    return -torch.stack(list(outputs)).squeeze(2)


FAMILY = Family(
    "z-image",
    ("ZImagePipeline",),
    "transformer",
    _encode,
    _denoise,
    size_multiple=packed_size_multiple,
    uses_cfg=_uses_cfg,
    guide=_guide,
    set_timesteps=set_flow_timesteps,
    lists_prompts=True,
    arguments=("cfg_normalization", "cfg_truncation", "joint_attention_kwargs"),
)
CARDS = (
    PipelineCard(
        name="z-image-turbo",
        family="z-image",
        summary="Z-Image, 6 billion parameters, distilled to eight steps",
        steps=8,
        guidance_scale=0.0,
        size=1024,
        license_code="Apache-2.0",
        license_weights="Apache-2.0",
        hub_id="Tongyi-MAI/Z-Image-Turbo",
        citation="arXiv 2511.22699",
    ),
)
