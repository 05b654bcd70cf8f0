"""Pipelines of no known family whose components are the usual ones, such as AuraFlow's or Sana's.

What cannot be told from signatures and configurations is refused, and what was told is not believed before
the adapter's picture equals the pipeline's own.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.adapter import DiffusersAdapter
from pipelines.arguments import parameters
from pipelines.base import Conditioning, Plan
from pipelines.calls import view_of
from pipelines.family import BINNING, DenoiserCall, Family, binned_size, default_drawn_size
from pipelines.planning import MIN_LATENT_SIDE
from pipelines.tokens import text_encoders

_ASKED = ("prompt", "height", "width", "num_inference_steps", "guidance_scale", "generator")
_OTHER_TASKS = ("image", "mask_image", "control_image", "video", "num_frames")
_ENCODED = ("prompt", "device", "do_classifier_free_guidance")
_INPUTS = (
    "timestep",
    "encoder_hidden_states",
    "sample",
    "hidden_states",
    "encoder_attention_mask",
    "pooled_projections",
)
_DENOISERS = ("unet", "transformer")
_DIVISORS = (1, 1000)
_SIDE_MULTIPLE = 32
"""In pixels; even pipelines that ask for more than their VAE does take multiples of it."""
_PROMPTS = ("a red apple", "three cats on green grass")
_ROUNDING = {torch.float32: 1e-3, torch.float64: 1e-3}
_HALF_ROUNDING = 0.05
"""Mean differences that are rounding, as shares of the picture's standard deviation."""


class NotOrdinary(ValueError):
    """A pipeline that works in another way; the message says in which."""


def _family(pipeline: Any, denoiser: str, divisor: int) -> Family:
    """Text states and times go to one denoiser, and its latents to a usual VAE.

    Args:
        divisor: of the scheduler's times, which some denoisers take from 0 to 1.
    """
    inputs = tuple(parameters(type(getattr(pipeline, denoiser)), "forward"))
    call = parameters(type(pipeline), "__call__")
    return Family(
        "generic",
        (type(pipeline).__name__,),
        denoiser,
        partial(_encode, inputs),
        partial(_denoise, inputs, denoiser, divisor),
        size_multiple=partial(_size_multiple, denoiser),
        drawn_size=binned_size if BINNING in call else default_drawn_size,
        arguments=(BINNING,),
    )


def _size_multiple(denoiser: str, pipeline: Any) -> int:
    patch = getattr(pipeline, denoiser).config.get("patch_size", 1)
    return int(pipeline.vae_scale_factor) * int(patch)


def _encode(
    inputs: Sequence[str],
    pipeline: Any,
    prompts: list[str],
    unconditional: bool,
    device: torch.device,
    **given: Any,
) -> Conditioning:
    # What the pipeline's call hands over where its user says nothing.
    call = parameters(type(pipeline), "__call__")
    names = parameters(type(pipeline), "encode_prompt")
    options = {n: call[n].default for n in names if n in call and n != "prompt"}
    options |= {"device": device, "do_classifier_free_guidance": unconditional}
    options |= {"num_images_per_prompt": 1} | given
    found = view_of(pipeline).encode_prompt(
        prompts, **{n: v for n, v in options.items() if n in names}
    )
    tensors = [t for t in found if isinstance(t, Tensor)]
    hidden = [t for t in tensors if t.ndim == 3]
    if len(hidden) != 1 + unconditional:
        raise ValueError("its encode_prompt returns something other than states of tokens")
    pooled: Sequence[Any] = [t for t in tensors if t.ndim == 2 and t.is_floating_point()]
    masks: Sequence[Any] = [t.bool() for t in tensors if t.shape == hidden[0].shape[:2]]
    if "encoder_attention_mask" not in inputs or len(masks) != 1 + unconditional:
        masks = (None, None)
    if "pooled_projections" not in inputs or len(pooled) != 1 + unconditional:
        pooled = (None, None)
    half = Conditioning(hidden[1], pooled[1], masks[1]) if unconditional else None
    return Conditioning(hidden[0], pooled[0], masks[0], half)


def _denoise(inputs: Sequence[str], denoiser: str, divisor: int, call: DenoiserCall) -> Tensor:
    config = getattr(call.pipeline, denoiser).config
    conditioning, time = call.conditioning, call.time.expand(len(call.latents))
    options = {
        "timestep": time / divisor * config.get("timestep_scale", 1),
        "encoder_hidden_states": conditioning.hidden,
    }
    if conditioning.mask is not None:
        options["encoder_attention_mask"] = conditioning.mask.long()
    if conditioning.pooled is not None:
        options["pooled_projections"] = conditioning.pooled
    first = "sample" if "sample" in inputs else "hidden_states"
    output = call.denoiser(**{first: call.latents}, **options, return_dict=False)[0]
    # The second half, where there is one, is a learned variance.
    return output[:, : call.latents.shape[1]]


def unusual(kind: type) -> str | None:
    """Why pipelines of a class are not ordinary, as far as its signatures tell; None where they do not."""
    call, parts = parameters(kind, "__call__"), parameters(kind, "__init__")
    encode = parameters(kind, "encode_prompt")
    needed = [name for name in _needed(call) if name != "prompt"]
    return _first(
        *((name in call, f"its call takes {name}") for name in _OTHER_TASKS),
        *((name not in call, f"its call takes no {name}") for name in _ASKED),
        (bool(needed), f"its call needs {', '.join(needed)}"),
        *((name not in parts, f"it has no {name}") for name in ("vae", "scheduler")),
        (len(_denoisers(parts)) != 1, "it has not one of unet and transformer"),
        *((name not in encode, f"its encode_prompt takes no {name}") for name in _ENCODED),
    )


def families(pipeline: Any) -> list[Family]:
    """Families that a loaded pipeline may be of, to be tried; never none.

    Raises:
        NotOrdinary: it works in another way, as far as its components tell.
    """
    reason = unusual(type(pipeline)) or _unusual_parts(pipeline)
    if reason:
        raise NotOrdinary(reason)
    (denoiser,) = _denoisers(pipeline.components)
    return [_family(pipeline, denoiser, divisor) for divisor in _DIVISORS]


def verified(adapters: Iterable[DiffusersAdapter]) -> DiffusersAdapter:
    """The first adapter whose pictures are those of the pipeline that it wraps.

    Pictures of the smallest size are compared, of two steps, unguided and guided.

    Raises:
        NotOrdinary: none is; names the least difference.
    """
    found: list[tuple[float, str]] = []
    for adapter in adapters:
        gap, reason = _difference(adapter)
        if not reason:
            return adapter
        found.append((gap, reason))
    raise NotOrdinary(min(found)[1])


def _denoisers(parts: Iterable[str]) -> list[str]:
    return [name for name in _DENOISERS if name in parts]


def _unusual_parts(pipeline: Any) -> str | None:
    (denoiser,) = _denoisers(pipeline.components)
    usual = {"vae", denoiser, "safety_checker", *(e for _, e in text_encoders(pipeline))}
    modules = [n for n, part in pipeline.components.items() if isinstance(part, nn.Module)]
    inputs = parameters(type(getattr(pipeline, denoiser)), "forward")
    needed = [name for name in _needed(inputs) if name not in _INPUTS]
    config, vae = getattr(pipeline, denoiser).config, pipeline.vae.config
    return _first(
        *((name not in usual, f"it has the component {name}") for name in modules),
        *((True, f"its {denoiser} needs {name}") for name in needed),
        *((n not in inputs, f"its {denoiser} takes no {n}") for n in _INPUTS[:2]),
        (bool(config.get("addition_embed_type")), f"its {denoiser} needs added_cond_kwargs"),
        (not vae.get("scaling_factor"), "its VAE tells no scaling_factor"),
        (
            config.get("in_channels") != vae.get("latent_channels"),
            f"its {denoiser} does not take its VAE's latents as they are",
        ),
        (
            bool(pipeline.scheduler.config.get("use_dynamic_shifting")),
            "its times depend on the size of the picture",
        ),
    )


def _needed(parameters: Mapping[str, inspect.Parameter]) -> list[str]:
    return [
        name
        for name, p in parameters.items()
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]


def _first(*checks: tuple[bool, str]) -> str | None:
    return next((reason for wrong, reason in checks if wrong), None)


def _difference(adapter: DiffusersAdapter) -> tuple[float, str]:
    """How far an adapter's pictures are from the pipeline's own, and why it is refused, if it is."""
    device = adapter.device
    before = [(module, next(module.parameters()).device) for module in adapter.modules()]
    for module, _ in before:
        module.to(device)
    worst = 0.0
    try:
        for scale in (adapter.card.guidance_scale, 3.0):
            plan = _small_plan(adapter, scale)
            generators = [
                [torch.Generator().manual_seed(i) for i in range(len(_PROMPTS))] for _ in "ab"
            ]
            theirs = _own_pictures(adapter.pipeline, plan, generators[0]).to(device)
            with torch.no_grad():
                noise = adapter.noise(generators[1], plan)
                mine = adapter.render(noise, adapter.encode(_PROMPTS, plan), plan)
            worst = max(worst, float((mine - theirs).abs().mean() / theirs.float().std()))
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, RuntimeError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return torch.inf, f"a small picture of it fails ({line})"
    finally:
        for module, place in before:
            module.to(place)
    dtype = next(getattr(adapter.pipeline, adapter.family.denoiser).parameters()).dtype
    limit = _ROUNDING.get(dtype, _HALF_ROUNDING)
    if worst <= limit:  # false for nan too, which a blank picture gives
        return worst, ""
    return worst, (
        "it does more than what its components tell: pictures of the adapter and of the pipeline itself "
        f"differ by {worst:.2g} of their standard deviation, where {limit:g} may be rounding"
    )


def _small_plan(adapter: DiffusersAdapter, scale: float) -> Plan:
    """Two steps, and a picture that is wider than high, as small as may be."""
    family, pipeline = adapter.family, adapter.pipeline
    multiple = side = math.lcm(family.size_multiple(pipeline), _SIDE_MULTIPLE)
    while min(family.latent_shape(pipeline, side, side)[1:]) < MIN_LATENT_SIDE:
        side += multiple
    times = adapter.card.timesteps
    # Else pictures of other sizes would be made, and scaled.
    plain = {BINNING: False} if BINNING in parameters(type(pipeline), "__call__") else {}
    return adapter.plan(len(times) if times else 2, scale, side, side + multiple, **plain)


def _own_pictures(pipeline: Any, plan: Plan, generators: list[torch.Generator]) -> Tensor:
    """What the pipeline itself returns."""
    view = view_of(pipeline)
    return view(
        list(_PROMPTS),
        height=plan.height,
        width=plan.width,
        num_inference_steps=plan.steps,
        guidance_scale=plan.guidance_scale,
        generator=generators,
        output_type="pt",
        **plan.arguments,
    ).images
