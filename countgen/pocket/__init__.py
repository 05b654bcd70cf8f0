"""Pocket: a small world of emoji scenes with a generator and counters that run on a bare laptop.

``world`` names what there is to draw, ``scenes`` composes pictures with exact boxes, ``captions`` says
what they show. The trained files lie in the folders beside this one, and ``python -m
countgen.pocket.train`` makes every one of them again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from countgen._torchvision import hidden_torchvision
from countgen.pocket.world import FOLDER, SIZE, PocketError

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline

    from critics.base import Critic
    from pipelines.adapter import DiffusersAdapter
    from pipelines.base import PipelineCard

STEPS = 8
"""Sampling steps that the pocket generator is meant for."""
ROLES = {"critic": "pocket-detector-a", "verifier": "pocket-density", "judge": "pocket-detector-b"}
CURE = (
    "Reinstall countgen (pip install --force-reinstall --no-deps countgen), "
    "or make the files again: python -m countgen.pocket.train all"
)
_GENERATOR_FILES = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder_2/config.json",
    "text_encoder_2/model.safetensors",
    "tokenizer_2/tokenizer.json",
    "tokenizer_2/tokenizer_config.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
)

__all__ = [
    "CURE",
    "ROLES",
    "STEPS",
    "PocketError",
    "card",
    "load_adapter",
    "load_clip",
    "load_critic",
    "load_generator",
]


@hidden_torchvision()
def load_generator(folder: str | Path | None = None) -> StableDiffusionXLPipeline:
    """The pocket text-to-image pipeline, in float32 on the CPU, ready to be called.

    ``diffusers.DiffusionPipeline.from_pretrained`` on the same folder gives the same pipeline; this adds
    the checks and spares the reader diffusers' remarks about unusual combinations of classes.

    Raises:
        PocketError: a file is missing or damaged; the message names it and the cure.
    """
    folder = Path(folder) if folder else FOLDER / "generator"
    _check_files(folder, _GENERATOR_FILES)
    import torch

    from pipelines.loading import LoadError, load_pipeline

    try:
        return load_pipeline(folder, dtype=torch.float32)
    except LoadError as error:
        raise PocketError(f"the pocket generator cannot be loaded: {error}. {CURE}") from None


def card() -> PipelineCard:
    """What there is to know of the generator, without loading it."""
    from pipelines.base import PipelineCard

    return PipelineCard(
        name="pocket",
        family="pocket",
        summary="small world of emoji scenes, embedded, for any machine",
        steps=STEPS,
        guidance_scale=1.0,
        size=SIZE,
        license_code="Apache-2.0",
        license_weights="Apache-2.0",
        citation="arXiv 2209.03003 (rectified flow)",
    )


def load_adapter(folder: str | Path | None = None) -> DiffusersAdapter:
    """The pocket generator as a differentiable function of its noise.

    Raises:
        PocketError: a file is missing or damaged; the message names it and the cure.
    """
    from pipelines.adapter import DiffusersAdapter
    from pipelines.registry import family

    return DiffusersAdapter(load_generator(folder), family("sdxl"), card(), memory_plan="fast")


def load_critic(name: str, folder: str | Path | None = None) -> Critic:
    """One of pocket's counters: ``pocket-detector-a``, ``pocket-density`` or ``pocket-detector-b``.

    Raises:
        PocketError: unknown name, or a missing or damaged file, named with the cure.
    """
    from critics.density.blockwise import BlockwiseCounter
    from critics.detectors import dense, heatmap
    from critics.loading.checkpoint import CheckpointError

    loaders: dict[str, Callable[[Path, str], Critic]] = {
        "pocket-detector-a": heatmap.load,
        "pocket-density": BlockwiseCounter.from_pretrained,
        "pocket-detector-b": dense.load,
    }
    if name not in loaders:
        raise PocketError(f"pocket has no counter {name!r}; it has {', '.join(loaders)}")
    place = Path(folder) if folder else FOLDER / name.removeprefix("pocket-")
    try:
        return loaders[name](place, CURE)
    except CheckpointError as error:
        raise PocketError(str(error)) from None


@hidden_torchvision()
def load_clip(folder: str | Path | None = None) -> tuple[Any, Any]:
    """Pocket's small CLIP and its tokenizer: ``transformers.CLIPModel`` and a whole-word tokenizer.

    Raises:
        PocketError: a file is missing or damaged; the message names it and the cure.
    """
    place = Path(folder) if folder else FOLDER / "clip"
    _check_files(place, ("config.json", "model.safetensors", "tokenizer.json"))
    import torch
    from transformers import CLIPModel, PreTrainedTokenizerFast

    from pipelines.loading import unchanged_settings

    with unchanged_settings():
        model = CLIPModel.from_pretrained(place, local_files_only=True, dtype=torch.float32)
    return model.eval().requires_grad_(False), PreTrainedTokenizerFast.from_pretrained(place)


def unknown_words(prompt: str) -> tuple[str, ...]:
    """Words of a prompt that the generator reads as ``<unk>``, in order, each once."""
    from countgen.pocket.captions import vocabulary, words

    known = set(vocabulary())
    return tuple(dict.fromkeys(word for word in words(prompt) if word not in known))


def _check_files(folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        path = folder / name
        if not path.is_file():
            raise PocketError(f"{path} is missing. {CURE}")
        if path.stat().st_size == 0:
            raise PocketError(f"{path} is empty. {CURE}")
