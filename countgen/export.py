"""A picture taken along: its noise, and a Diffusers script of a few lines that draws it without countgen."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from countgen.errors import UsageError
from countgen.provenance import Provenance

if TYPE_CHECKING:
    from torch import Tensor

    from pipelines.replay import Call


def export(made: Provenance, folder: Path) -> list[Path]:
    """Write ``draw.py`` and ``noise.safetensors`` into a folder, and what else the script needs.

    That is ``token.safetensors``, a textual-inversion file, for pictures with a count token, and the weights
    of pocket, which are on no hub. The script draws in the precision of the picture; on another device the
    two differ by rounding.

    Args:
        made: as ``countgen.provenance.read`` gives it. It may come from a stranger, so nothing of it gets
            into the script but plain values.

    Returns:
        what was written, the script first.

    Raises:
        UsageError: a picture that its noise alone does not make, or settings that are damaged.
        OSError: the folder cannot be written to.
    """
    import torch
    from safetensors.torch import save

    from countgen.files import write
    from pipelines.replay import script

    settings, tensors = made.settings, _checked(made)
    call = _call(settings.get("diffusers"))
    token = settings.get("token")
    prompt = _text(token, "prompt") if token else _text(settings, "prompt")
    embedded, card = _model(_text(settings, "model"))
    dtype = str(settings.get("dtype", "float32"))
    options = settings.get("load") or {}
    try:
        if not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise ValueError(f"{dtype!r} is no precision")
        text = script(
            "model" if embedded else (card.hub_id if card else _text(settings, "model")),
            call,
            prompt,
            card=card,
            dtype=dtype,
            options={k: str(options[k]) for k in ("variant", "revision") if k in options},
            step_noise="step_noise" in tensors,
            token=_text(token, "text") if token else "",
            beside=embedded is not None,
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"the settings of the picture are damaged ({error})") from None
    folder.mkdir(parents=True, exist_ok=True)
    files = {"draw.py": text.encode()}
    noise = {name: t.contiguous() for name, t in tensors.items() if not name.startswith("token.")}
    files["noise.safetensors"] = save(noise)
    if token:
        vectors = {name: tensors[f"token.{name}"].contiguous() for name in call.encoders}
        if len(vectors) == 1:
            vectors = {token["text"]: next(iter(vectors.values()))}
        files["token.safetensors"] = save(vectors)
    written = []
    for name, data in files.items():
        write(folder / name, data, replace=True)
        written.append(folder / name)
    if embedded is not None:
        shutil.copytree(embedded, folder / "model", dirs_exist_ok=True)
        written.append(folder / "model")
    return written


def _checked(made: Provenance) -> Mapping[str, Tensor]:
    """The tensors of a picture that its noise makes.

    Raises:
        UsageError: it is not made by its noise, or they are not what they should be.
    """
    from countgen.guidance.methods import METHODS

    tensors = made.tensors
    if not tensors:
        method = METHODS.get(str(made.settings.get("method")))
        if method is not None and method.guide is not None:
            raise UsageError(
                f"{method.name} guides the single steps of sampling, so that no noise alone draws its "
                "pictures; export one of a method that changes the noise, such as engine"
            )
        raise UsageError(
            "the picture does not carry the noise that it was drawn from: it is a side-by-side (export the "
            "numbered picture itself), or was made by an earlier version or a generator that takes no noise"
        )
    latents, steps = tensors.get("latents"), tensors.get("step_noise")
    fits = latents is not None and latents.ndim == 4 and len(latents) == 1
    if fits and latents is not None and steps is not None:
        fits = steps.ndim == 5 and steps.shape[1:] == latents.shape
    if not fits or not all(t.is_floating_point() and t.isfinite().all() for t in tensors.values()):
        raise UsageError("the noise of the picture is damaged; make the picture again")
    token = made.settings.get("token")
    if token is not None:
        encoders = (made.settings.get("diffusers") or {}).get("encoders") or {}
        if not encoders or any(f"token.{name}" not in tensors for name in encoders):
            raise UsageError("the count token of the picture is damaged; make the picture again")
    return tensors


def _call(written: Any) -> Call:
    from pipelines.replay import Call

    try:
        call = Call(**written)
        if not all(isinstance(part, dict) for part in (call.arguments, call.encoders)):
            raise TypeError("arguments and encoders must be objects")
        return call
    except TypeError as error:
        raise UsageError(f"the settings of the picture are damaged ({error})") from None


def _text(settings: Any, name: str) -> str:
    value = settings.get(name) if isinstance(settings, Mapping) else None
    if not isinstance(value, str) or not value:
        raise UsageError(f"the settings of the picture are damaged (no {name})")
    return value


def _model(name: str) -> tuple[Path | None, Any]:
    """Where the weights of an embedded generator are, and the card of a preset; None for what it is not."""
    from countgen.pocket.world import FOLDER
    from countgen.presets import EMBEDDED
    from pipelines.registry import find_card

    if name in EMBEDDED:
        return FOLDER / "generator", None
    try:
        return None, find_card(name)
    except ValueError:  # a hub id or a folder
        return None, None
