"""What one family of pipelines does in its own way, and the defaults that most of them share.

A family is a value: one module of ``pipelines.families`` fills in ``Family``, with functions of its own where
its pipelines differ from these defaults. All of them are plain functions of the loaded pipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from pipelines.arguments import Arguments, parameters
from pipelines.base import Conditioning, Plan


@dataclass(frozen=True)
class DenoiserCall:
    """One pass of the denoiser, in its own precision; ``plan.arguments`` has what its call is told besides.

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


def default_drawn_size(
    pipeline: Any, height: int, width: int, arguments: Arguments
) -> tuple[int, int]:
    return height, width


def default_uses_cfg(pipeline: Any, plan: Plan) -> bool:
    return plan.guidance_scale > 1


def default_guide(unconditional: Tensor, conditional: Tensor, time: Tensor, plan: Plan) -> Tensor:
    """Classifier-free guidance (arXiv 2207.12598), rescaled where that is asked for (2305.08891)."""
    guided = unconditional + plan.guidance_scale * (conditional - unconditional)
    rescale = plan.arguments.get("guidance_rescale", 0.0)
    if rescale <= 0:
        return guided
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    return rescale_noise_cfg(guided, conditional, guidance_rescale=rescale)


def default_set_timesteps(pipeline: Any, scheduler: Any, plan: Plan, device: torch.device) -> None:
    set_timesteps(scheduler, plan, device)


def set_timesteps(scheduler: Any, plan: Plan, device: torch.device, **options: Any) -> None:
    """The scheduler's own times, or those that the plan's ``timesteps`` or ``sigmas`` tell.

    Raises:
        ValueError: both, or a scheduler that takes none.
    """
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import retrieve_timesteps

    times, sigmas = (_numbers(plan.arguments.get(name)) for name in ("timesteps", "sigmas"))
    retrieve_timesteps(scheduler, plan.steps, device, times, sigmas, **options)


def _numbers(values: Any) -> list[float] | None:
    """Schedulers differ in whether they take tuples and arrays."""
    if values is None:
        return None
    return list(values.tolist() if hasattr(values, "tolist") else values)


def set_timesteps_from_begin(
    pipeline: Any, scheduler: Any, plan: Plan, device: torch.device
) -> None:
    """For pipelines that tell the scheduler where it begins; others let it look for the first time."""
    set_timesteps(scheduler, plan, device)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)


def default_denormalize_latents(
    vae: Any, latents: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b c h w"]:
    return latents / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0)


def default_pack(pipeline: Any, latents: Float[Tensor, "b c h w"]) -> Tensor:
    return latents


def default_unpack(pipeline: Any, latents: Tensor, plan: Plan) -> Float[Tensor, "b c h w"]:
    return latents


def no_callback_inputs(pipeline: Any, plan: Plan, like: Tensor) -> Mapping[str, Tensor]:
    return {}


def never(pipeline: Any, plan: Plan) -> bool:
    return False


class Encode(Protocol):
    """Prompts as the denoiser takes them, as ``Family.encode``."""

    def __call__(
        self,
        pipeline: Any,
        prompts: list[str],
        unconditional: bool,
        device: torch.device,
        **options: Any,
    ) -> Conditioning: ...


@dataclass(frozen=True)
class Family:
    """What differs between families of pipelines.

    Attributes:
        name: as in the cards.
        pipelines: names of the Diffusers classes that it is for, and classes derived from them.
        denoiser: the component that denoises.
        encode: (pipeline, prompts, unconditional, device, **options) -> Conditioning, through the pipeline's
            own ``encode_prompt``, which the options are for; with its unconditional half where that is asked
            for.
        denoise: a ``DenoiserCall`` -> (b, c, h, w), the output as the scheduler takes it.
        size_multiple: pipeline -> what height and width must be multiples of.
        latent_shape: (pipeline, height, width) -> (channels, height, width) of one picture's latents.
        drawn_size: (pipeline, height, width, arguments) -> (height, width) in pixels of what is drawn, and
            scaled to the size that was asked for.
        uses_cfg: (pipeline, plan) -> whether the denoiser runs with classifier-free guidance.
        guide: (unconditional, conditional, time, plan) -> the prediction of classifier-free guidance.
        set_timesteps: (pipeline, scheduler, plan, device): sets the timesteps as the pipeline does, in place,
            on a copy of its scheduler.
        denormalize_latents: (vae, latents) -> latents as the decoder takes them.
        pack, unpack: (pipeline, latents), and (pipeline, packed, plan): latents as the pipeline's callbacks
            and users hold them, and back.
        arguments: names of the pipeline's call that ``encode``, ``denoise``, ``guide`` or ``set_timesteps``
            act on, beside those of its ``encode_prompt``, ``timesteps``, ``sigmas`` and ``eta``.
        encode_arguments: those of them that ``encode`` is given too.
        callback_inputs: (pipeline, plan, like) -> what callbacks may be shown beside latents and prompt, of
            the kind of the tensor ``like``.
        lists_prompts: its callbacks get a prompt's states in lists, or those of guidance apart.
        ends_clean: (pipeline, plan) -> whether the picture is the last step's clean prediction.
    """

    name: str
    pipelines: tuple[str, ...]
    denoiser: str
    encode: Encode
    denoise: Callable[[DenoiserCall], Tensor]
    size_multiple: Callable[[Any], int] = default_size_multiple
    latent_shape: Callable[[Any, int, int], tuple[int, int, int]] = default_latent_shape
    drawn_size: Callable[[Any, int, int, Arguments], tuple[int, int]] = default_drawn_size
    uses_cfg: Callable[[Any, Plan], bool] = default_uses_cfg
    guide: Callable[[Tensor, Tensor, Tensor, Plan], Tensor] = default_guide
    set_timesteps: Callable[[Any, Any, Plan, torch.device], None] = default_set_timesteps
    denormalize_latents: Callable[[Any, Tensor], Tensor] = default_denormalize_latents
    pack: Callable[[Any, Tensor], Tensor] = default_pack
    unpack: Callable[[Any, Tensor, Plan], Tensor] = default_unpack
    arguments: tuple[str, ...] = ()
    encode_arguments: tuple[str, ...] = ()
    callback_inputs: Callable[[Any, Plan, Tensor], Mapping[str, Tensor]] = no_callback_inputs
    lists_prompts: bool = False
    ends_clean: Callable[[Any, Plan], bool] = never


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


def unet_uses_cfg(pipeline: Any, plan: Plan) -> bool:
    return plan.guidance_scale > 1 and not embeds_guidance(pipeline)


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
    sigmas = _numbers(plan.arguments.get("sigmas")) or sigmas
    own = scheduler.config.get("use_flow_sigmas", False)
    shift = resolution_shift(scheduler.config, plan)
    retrieve_timesteps(scheduler, plan.steps, device, sigmas=None if own else sigmas, mu=shift)
    scheduler.set_begin_index(0)


BINNING = "use_resolution_binning"
"""The argument by which a pipeline draws pictures of the nearest size that it was trained on."""


def binned_size(pipeline: Any, height: int, width: int, arguments: Arguments) -> tuple[int, int]:
    """The size of the nearest aspect ratio in training, for pipelines that draw those by default.

    Raises:
        ValueError: it is asked for, and there are no such sizes.
    """
    default = parameters(type(pipeline), "__call__")[BINNING].default
    if not arguments.get(BINNING, default):
        return height, width
    side = pipeline.transformer.config.sample_size * pipeline.vae_scale_factor
    bins = _bins().get(side)
    if bins is None:
        if BINNING in arguments:
            raise ValueError(f"there are no sizes to choose among for pictures of {side} pixels")
        return height, width
    low, high = pipeline.image_processor.classify_height_width_bin(height, width, ratios=bins)
    return low, high


@cache
def _bins() -> Mapping[int, Mapping[str, Sequence[float]]]:
    """Side of a square picture -> aspect ratio -> (height, width)."""
    from diffusers.pipelines.pixart_alpha import pipeline_pixart_alpha, pipeline_pixart_sigma
    from diffusers.pipelines.sana import pipeline_sana

    return {
        256: pipeline_pixart_alpha.ASPECT_RATIO_256_BIN,
        512: pipeline_pixart_alpha.ASPECT_RATIO_512_BIN,
        1024: pipeline_pixart_alpha.ASPECT_RATIO_1024_BIN,
        2048: pipeline_pixart_sigma.ASPECT_RATIO_2048_BIN,
        4096: pipeline_sana.ASPECT_RATIO_4096_BIN,
    }


def resized(images: Float[Tensor, "b 3 h w"], plan: Plan) -> Float[Tensor, "b 3 hh ww"]:
    """Pictures of another size at the plan's, as pipelines with ``use_resolution_binning`` scale them."""
    if images.shape[-2:] == (plan.height, plan.width):
        return images
    from diffusers.image_processor import PixArtImageProcessor

    return PixArtImageProcessor.resize_and_crop_tensor(images, plan.width, plan.height)
