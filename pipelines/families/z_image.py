"""Z-Image: ZImagePipeline, a flow under the token states of Qwen3, as long as each prompt is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pipelines.base import Conditioning, PipelineCard, Plan
from pipelines.families.flux import set_flow


class ZImage:
    """Its times run from 0 to 1, its output points from noise to picture, and it guides from scale 0 on."""

    name = "z-image"
    pipelines = ("ZImagePipeline",)
    denoiser = "transformer"

    def multiple(self, pipeline: Any) -> int:
        return 2 * int(pipeline.vae_scale_factor)

    def latent_shape(self, pipeline: Any, height: int, width: int) -> tuple[int, int, int]:
        factor = pipeline.vae_scale_factor
        return pipeline.transformer.config.in_channels, height // factor, width // factor

    def guides(self, pipeline: Any, scale: float) -> bool:
        return scale > 0

    def encode(
        self, pipeline: Any, prompts: list[str], negative: bool, device: torch.device
    ) -> Conditioning:
        # The pipeline writes its chat template into the list that it is given.
        states, away = pipeline.encode_prompt(
            list(prompts), device=device, do_classifier_free_guidance=negative
        )
        return Conditioning(*_pad(states), negative=Conditioning(*_pad(away)) if negative else None)

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
        assert conditioning.mask is not None
        texts = [
            row[mask] for row, mask in zip(conditioning.hidden, conditioning.mask, strict=True)
        ]
        outputs = denoiser(
            list(latents.unsqueeze(2)),
            (1000 - time.expand(len(latents))) / 1000,
            texts,
            return_dict=False,
        )[0]
        flow = -torch.stack(list(outputs)).squeeze(2)
        if not self.guides(pipeline, plan.guidance_scale):
            return flow
        # The scale counts from what is said with the text, and the adapter counts from without.
        away, towards = flow.chunk(2)
        return torch.cat([away, towards + (towards - away) / plan.guidance_scale])

    def unscale(self, vae: Any, latents: Tensor) -> Tensor:
        return latents / vae.config.scaling_factor + vae.config.shift_factor


def _pad(states: list[Tensor]) -> tuple[Tensor, None, Tensor]:
    """Rows of different lengths as the first three members of a Conditioning."""
    masks = [torch.ones(len(row), dtype=torch.bool, device=row.device) for row in states]
    return pad_sequence(states, True), None, pad_sequence(masks, True)


FAMILY = ZImage()
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
