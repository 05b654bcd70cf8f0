"""What one family of pipelines does in its own way, and the defaults that most of them share.

A family is a value: one module of ``pipelines.families`` fills in ``Family``, with functions of its own where
its pipelines differ from these defaults. All of them are plain functions of the loaded pipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pipelines.base import Conditioning, Plan


@dataclass(frozen=True)
class DenoiserCall:
    """One pass of the denoiser, in its own precision.

    Attributes:
        pipeline: the wrapped one.
        denoiser: its denoiser, compiled where that was asked for.
        latents: (b, c, h, w) as the scheduler scales them.
        time: the scheduler's, a scalar.
        conditioning: b rows. With classifier-free guidance the first half of the rows is unconditional.
    """

    pipeline: Any
    denoiser: Callable[..., Any]
    latents: Float[Tensor, "b c h w"]
    time: Tensor
    conditioning: Conditioning
    plan: Plan


def default_size_multiple(pipeline: Any) -> int:
    return int(pipeline.vae_scale_factor)


def default_latent_shape(pipeline: Any, height: int, width: int) -> tuple[int, int, int]:
    factor = pipeline.vae_scale_factor
    return pipeline.vae.config.latent_channels, height // factor, width // factor


def default_uses_cfg(pipeline: Any, guidance_scale: float) -> bool:
    return guidance_scale > 1


def default_set_timesteps(pipeline: Any, scheduler: Any, plan: Plan, device: torch.device) -> None:
    scheduler.set_timesteps(plan.steps, device=device)


def default_denormalize_latents(
    vae: Any, latents: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b c h w"]:
    return latents / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0)


@dataclass(frozen=True)
class Family:
    """What differs between families of pipelines.

    Attributes:
        name: as in the cards.
        pipelines: names of the Diffusers classes that it is for, and classes derived from them.
        denoiser: the component that denoises.
        encode: (pipeline, prompts, unconditional, device) -> Conditioning, through the pipeline's own
            ``encode_prompt``; with its unconditional half where that is asked for.
        denoise: a ``DenoiserCall`` -> (b, c, h, w), the output as the scheduler takes it.
        size_multiple: pipeline -> what height and width must be multiples of.
        latent_shape: (pipeline, height, width) -> (channels, height, width) of one picture's latents.
        uses_cfg: (pipeline, guidance scale) -> whether the denoiser runs with classifier-free guidance.
        set_timesteps: (pipeline, scheduler, plan, device): sets the timesteps as the pipeline does, in place,
            on a copy of its scheduler.
        denormalize_latents: (vae, latents) -> latents as the decoder takes them.
    """

    name: str
    pipelines: tuple[str, ...]
    denoiser: str
    encode: Callable[[Any, list[str], bool, torch.device], Conditioning]
    denoise: Callable[[DenoiserCall], Tensor]
    size_multiple: Callable[[Any], int] = default_size_multiple
    latent_shape: Callable[[Any, int, int], tuple[int, int, int]] = default_latent_shape
    uses_cfg: Callable[[Any, float], bool] = default_uses_cfg
    set_timesteps: Callable[[Any, Any, Plan, torch.device], None] = default_set_timesteps
    denormalize_latents: Callable[[Any, Tensor], Tensor] = default_denormalize_latents


def is_one_of(kind: type, names: Sequence[str]) -> bool:
    """Whether a class has one of these names, or one that it is derived from has."""
    return any(base.__name__ in names for base in kind.__mro__)


# -- what several families share, and not all ----------------------------------------------------


def patched_size_multiple(pipeline: Any) -> int:
    """For transformers: a whole number of patches."""
    return int(pipeline.vae_scale_factor * pipeline.transformer.config.patch_size)


def packed_size_multiple(pipeline: Any) -> int:
    """For transformers that take latents in patches of 2 x 2."""
    return 2 * int(pipeline.vae_scale_factor)


def embeds_guidance(pipeline: Any) -> bool:
    """Whether a UNet is told the guidance scale, as those of latent consistency models are."""
    return pipeline.unet.config.time_cond_proj_dim is not None


def unet_uses_cfg(pipeline: Any, guidance_scale: float) -> bool:
    return guidance_scale > 1 and not embeds_guidance(pipeline)


def guidance_embedding(call: DenoiserCall) -> Tensor | None:
    """(b, d) the guidance scale as UNets of latent consistency models take it; None for all others."""
    pipeline, like = call.pipeline, call.latents
    if not embeds_guidance(pipeline):
        return None
    scale = call.plan.guidance_scale - 1
    weights = torch.full((len(like),), scale, device=like.device, dtype=torch.float32)
    width = pipeline.unet.config.time_cond_proj_dim
    return pipeline.get_guidance_scale_embedding(weights, embedding_dim=width).to(like)


def resolution_shift(config: Any, plan: Plan, patch: int = 2, max_shift: float = 1.15) -> float:
    """``mu``, by which larger pictures are sampled at noisier times, as schedulers take it.

    Linear in the number of patches, through two known points (arXiv 2403.03206).

    Args:
        config: of the scheduler.
        patch: side of the transformer's patches, in latents.
        max_shift: where the configuration tells none.
    """
    _, height, width = plan.latent_shape
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    least, most = config.get("base_shift", 0.5), config.get("max_shift", max_shift)
    slope = (most - least) / (high - low)
    return (height // patch) * (width // patch) * slope + (least - slope * low)


def set_flow_timesteps(pipeline: Any, scheduler: Any, plan: Plan, device: torch.device) -> None:
    """Even sigmas from 1 to 1 / steps, shifted by the number of 2 x 2 patches where the scheduler shifts."""
    from diffusers.pipelines.flux.pipeline_flux import retrieve_timesteps

    sigmas = torch.linspace(1, 1 / plan.steps, plan.steps, dtype=torch.float64).tolist()
    own = scheduler.config.get("use_flow_sigmas", False)
    shift = resolution_shift(scheduler.config, plan)
    retrieve_timesteps(scheduler, plan.steps, device, sigmas=None if own else sigmas, mu=shift)
    scheduler.set_begin_index(0)
