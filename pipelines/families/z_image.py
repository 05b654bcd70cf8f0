"""Z-Image: ZImagePipeline, a flow under the token states of Qwen3, as long as each prompt is.

Its times run from 0 to 1, its output points from noise to picture, and classifier-free guidance begins above
scale 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pipelines.base import Conditioning, PipelineCard
from pipelines.family import DenoiserCall, Family, packed_size_multiple, set_flow_timesteps


def _uses_cfg(pipeline: Any, guidance_scale: float) -> bool:
    return guidance_scale > 0


def _encode(
    pipeline: Any, prompts: list[str], unconditional: bool, device: torch.device
) -> Conditioning:
    # The pipeline writes its chat template into the list that it is given.
    states, others = pipeline.encode_prompt(
        list(prompts), device=device, do_classifier_free_guidance=unconditional
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
        return_dict=False,
    )[0]
    flow = -torch.stack(list(outputs)).squeeze(2)
    if not _uses_cfg(call.pipeline, call.plan.guidance_scale):
        return flow
    # The scale counts from the conditional half here, and from the unconditional one in the adapter.
    unconditional, conditional = flow.chunk(2)
    further = (conditional - unconditional) / call.plan.guidance_scale
    return torch.cat([unconditional, conditional + further])


FAMILY = Family(
    "z-image",
    ("ZImagePipeline",),
    "transformer",
    _encode,
    _denoise,
    size_multiple=packed_size_multiple,
    uses_cfg=_uses_cfg,
    set_timesteps=set_flow_timesteps,
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
