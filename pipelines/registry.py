"""Adapters by name: a preset, a hub id, a local folder, or a pipeline object that the user already has."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from pipelines import loading, memory
from pipelines.adapter import DiffusersAdapter
from pipelines.arguments import parameters
from pipelines.base import ComponentOverride, ImageSource, PipelineCard
from pipelines.blackbox import BlackBox
from pipelines.calls import is_pipeline, set_up_elsewhere, unusable
from pipelines.devices import check_device
from pipelines.encoders import take_over_text
from pipelines.families import generic
from pipelines.family import Family
from pipelines.planning import SchedulerProblem

log = logging.getLogger(__name__)
FAMILIES = {
    "sd": "pipelines.families.sd",
    "sdxl": "pipelines.families.sdxl",
    "pixart": "pipelines.families.pixart",
    "sana": "pipelines.families.sana",
    "sd3": "pipelines.families.sd3",
    "flux": "pipelines.families.flux",
    "z-image": "pipelines.families.z_image",
}
"""Family -> module, which has FAMILY and CARDS."""


def family(name: str) -> Family:
    """A family by name."""
    return importlib.import_module(FAMILIES[name]).FAMILY


def cards() -> list[PipelineCard]:
    """All presets."""
    return [card for module in FAMILIES.values() for card in importlib.import_module(module).CARDS]


def find_card(name: str) -> PipelineCard:
    """A preset by its name or its hub id.

    Raises:
        ValueError: unknown; names the nearest.
    """
    known = cards()
    for card in known:
        if name in (card.name, _own_id(card)):
            return card
    names = [card.name for card in known]
    near = difflib.get_close_matches(name, names, 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise ValueError(
        f"there is no model {name!r}{hint}; there are {', '.join(names)}, and any local folder or hub id of "
        "their families"
    )


def _own_id(card: PipelineCard) -> str | None:
    """The hub id that means this preset, and not a pipeline of which it takes only components."""
    return None if card.overrides else card.hub_id


def family_of(kind: type) -> Family | None:
    """The family that wraps a pipeline class, or the nearest class that it is derived from."""
    every = [family(name) for name in FAMILIES]
    for base in kind.__mro__:
        for candidate in every:
            if base.__name__ in candidate.pipelines:
                return candidate
    return None


def check_class(kind: type) -> None:
    """Refuse a pipeline class before anything is loaded.

    Raises:
        ValueError: its signatures tell that it makes no pictures of text.
    """
    reason = None if family_of(kind) else unusable(kind)
    if reason:
        raise ValueError(f"pipelines of the class {kind.__name__} are not supported: {reason}")


def load_adapter(
    source: str | Path | PipelineCard,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    variant: str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    memory_plan: str = "auto",
    tiny_decoder: str | Path | None = None,
    text_encoder: str | Path | None = None,
    compile: bool = False,
) -> ImageSource:
    """An adapter by the name of a preset, a hub id, a local folder, or a card; as ``wrap``, for want of one.

    Args:
        dtype: of the weights; None takes bfloat16 on CUDA devices and float32 elsewhere.
        variant: of the weight files, such as "fp16".
        memory_plan, compile: as for ``DiffusersAdapter``.
        tiny_decoder: hub id or folder of an AutoencoderTiny for the gradient, such as
            "madebyollin/taesdxl".
        text_encoder: hub id or folder of a CLIP whose text half takes the place of the pipeline's own.

    Raises:
        ValueError: unknown name, device or memory plan; a pipeline class that makes no pictures of text
            (refused before weights are loaded, where its signatures tell).
        LoadError: what is there cannot be loaded.
    """
    from diffusers import AutoencoderTiny

    place = check_device(device)
    if memory_plan != "auto":
        memory.find_plan(memory_plan)
    card = source if isinstance(source, PipelineCard) else _card_of(source)
    repository = str(source) if card is None else card.hub_id
    overrides = card.overrides if card else ()
    _check_installed(overrides)
    found: dict[str, Any] = {"revision": revision, "local_files_only": local_files_only}
    check_class(_diffusers_class(loading.class_name(repository, **found)))
    if dtype is None:
        dtype = torch.bfloat16 if place.type == "cuda" else torch.float32
    pipeline = loading.load_pipeline(repository, dtype=dtype, variant=variant, **found)
    for override in overrides:
        _apply(pipeline, override, dtype, local_files_only)
    if text_encoder is not None:
        take_over_text(pipeline, text_encoder, dtype=dtype, local_files_only=local_files_only)
    if card and card.scheduler:
        name, settings = card.scheduler
        config = pipeline.scheduler.config
        pipeline.scheduler = getattr(diffusers_classes(), name).from_config(config, **settings)
    tiny = None
    if tiny_decoder is not None:
        options: dict[str, Any] = {"dtype": dtype, "local_files_only": local_files_only}
        tiny = loading.load_model(AutoencoderTiny, tiny_decoder, **options)
    with loading.unchanged_settings():
        made = _wrapped(
            pipeline, card, place, memory_plan=memory_plan, tiny_decoder=tiny, compile=compile
        )
    if isinstance(made, DiffusersAdapter):
        _check_plan(made, repository)
    return made


def _check_plan(adapter: DiffusersAdapter, repository: str) -> None:
    """Configurations of wrong values show when they are first used.

    Raises:
        LoadError: pictures cannot be planned with them.
    """
    try:
        adapter.plan()
    except SchedulerProblem:
        raise
    except ValueError as error:
        raise loading.LoadError(
            f"the configurations in {repository} do not fit together ({error}); load it again"
        ) from error


def _wrapped(
    pipeline: Any,
    card: PipelineCard | None,
    device: str | torch.device | None,
    latent_shape: Sequence[int] | None = None,
    **options: Any,
) -> ImageSource:
    """An adapter of the pipeline's family, or of a guess at it that is checked where the weights will be, or
    a black box."""
    reason = _why_as_it_is(pipeline, latent_shape)
    if reason is None:
        try:
            return _adapted(pipeline, card, device, **options)
        except generic.NotOrdinary as error:
            reason = str(error)
    for name, value in options.items():
        if value not in (None, False, "auto"):
            raise ValueError(
                f"there is no {name} for a pipeline that is called as it is ({reason}); leave it out, or set "
                "the pipeline up itself"
            )
    box = BlackBox(pipeline, card, latent_shape=latent_shape, reason=reason)
    log.info("%s is called as it is, without gradient: %s", box.card.name, reason)
    return box if device is None else box.to(device)


def _why_as_it_is(pipeline: Any, latent_shape: Sequence[int] | None) -> str | None:
    """Why an adapter is not even tried; None where it is."""
    if not is_pipeline(pipeline):
        return "it is a function, into which nobody looks"
    if latent_shape is not None:
        return "a latent_shape was given, which only a pipeline needs that is called as it is"
    elsewhere = set_up_elsewhere(pipeline)
    if elsewhere:
        return f"it {elsewhere}, which gradients do not pass through"
    known = family_of(type(pipeline))
    if known is None:
        return None
    named = next(base for base in type(pipeline).__mro__ if base.__name__ in known.pipelines)
    if type(pipeline).__call__ is not named.__call__:
        return f"{type(pipeline).__name__} has a call of its own, which no adapter knows"
    denoiser = getattr(pipeline, known.denoiser)
    if getattr(denoiser.config, "encoder_hid_dim_type", None) == "ip_image_proj":
        return "an IP-Adapter is loaded, whose pictures only the pipeline's own call takes"
    return None


def _adapted(
    pipeline: Any, card: PipelineCard | None, device: str | torch.device | None, **options: Any
) -> DiffusersAdapter:
    """An adapter of the pipeline's family, or of a guess at it that is checked where the weights will be."""
    known = family_of(type(pipeline))

    def adapter(chosen: Family) -> DiffusersAdapter:
        own = DiffusersAdapter(pipeline, chosen, card or _plain_card(pipeline, chosen), **options)
        return own if device is None else own.to(device)

    if known is not None:
        return adapter(known)
    return generic.verified(adapter(guess) for guess in generic.families(pipeline))


def _card_of(source: str | Path) -> PipelineCard | None:
    """The preset that a name means; None for folders and for hub ids that no preset has."""
    if Path(source).is_dir():
        return None
    if isinstance(source, Path) or source.startswith(("/", ".", "~")):
        raise loading.LoadError(f"there is no folder {source}")
    try:
        return find_card(str(source))
    except ValueError:
        if "/" in str(source):
            return None
        raise


def _diffusers_class(name: str) -> type:
    """A class of diffusers by name."""
    kind = getattr(diffusers_classes(), name, None)
    if not isinstance(kind, type):
        raise ValueError(
            f"diffusers has no pipeline class {name}: load the pipeline with its own code, and wrap it"
        )
    return kind


def _check_installed(overrides: Iterable[ComponentOverride]) -> None:
    """Before anything is loaded."""
    loras = [override.hub_id for override in overrides if override.kind == "lora"]
    if loras and importlib.util.find_spec("peft") is None:
        raise loading.LoadError(
            f"{loras[0]} is a LoRA, and needs peft: pip install 'countgen[learn]'"
        )


def _apply(
    pipeline: Any, override: ComponentOverride, dtype: torch.dtype, local_files_only: bool
) -> None:
    """Put what a preset takes from another place into a pipeline that was loaded for it."""
    old = getattr(pipeline, override.component)
    if override.kind == "folder":
        new = loading.load_model(
            type(old),
            override.hub_id,
            override.subfolder,
            dtype=dtype,
            local_files_only=local_files_only,
        )
        pipeline.register_modules(**{override.component: new})
        return
    state = loading.weights(override.hub_id, override.filename, local_files_only=local_files_only)
    if override.kind == "weights":
        loading.fill(old, state, f"{override.hub_id}/{override.filename}")
    else:
        pipeline.load_lora_weights(state)
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()


def diffusers_classes() -> Any:
    """The package diffusers, imported when it is asked for."""
    return importlib.import_module("diffusers")


def wrap(
    pipeline: Any,
    card: PipelineCard | None = None,
    *,
    latent_shape: Sequence[int] | None = None,
    **options: Any,
) -> ImageSource:
    """A source of pictures around a loaded pipeline, which stays as it is, or around a function.

    Tried are the family's adapter, then a guess at its family whose pictures must be the pipeline's own, and
    last a ``BlackBox``, which gives no gradient; its ``reason`` says why, and so does a line of the log.

    Args:
        card: a preset's, for its steps, size and guidance scale; by default those that the pipeline's own
            call takes.
        latent_shape: for a black box that is given its latents, see there.
        options: as for ``DiffusersAdapter``.

    Raises:
        ValueError: no pipeline for pictures of text; a function that takes something else than prompt,
            latents and generator; options that a black box has no use for; or a scheduler that an adapter
            cannot follow.
    """
    if is_pipeline(pipeline):
        check_class(type(pipeline))
    source = _wrapped(pipeline, card, None, latent_shape, **options)
    if isinstance(source, DiffusersAdapter):
        source.check_scheduler()
    return source


def _plain_card(pipeline: Any, chosen: Family) -> PipelineCard:
    source = str(
        getattr(pipeline, "name_or_path", "") or getattr(pipeline.config, "_name_or_path", "")
    )
    for card in cards():
        if source and source == _own_id(card):
            return card
    height, width = _usual_size(pipeline, chosen)
    call = parameters(type(pipeline), "__call__")
    defaults = {name: call[name].default for name in ("num_inference_steps", "guidance_scale")}
    return PipelineCard(
        name=source or type(pipeline).__name__,
        family=chosen.name,
        summary="a pipeline of the user's own",
        steps=defaults["num_inference_steps"],
        guidance_scale=defaults["guidance_scale"],
        size=height,
        width=None if width == height else width,
        license_code="Apache-2.0",
        license_weights="unknown",
        commercial=False,
        hub_id=source,
    )


def _usual_size(pipeline: Any, chosen: Family) -> tuple[int, int]:
    """Height and width in pixels that the configuration tells, 1024 where it tells none."""
    config = getattr(pipeline, chosen.denoiser).config
    told = getattr(pipeline, "default_sample_size", None) or config.get("sample_size")
    sides = (told, told) if isinstance(told, int) else tuple(told or ())
    if len(sides) != 2 or not all(isinstance(side, int) for side in sides):
        return 1024, 1024
    return sides[0] * pipeline.vae_scale_factor, sides[1] * pipeline.vae_scale_factor
