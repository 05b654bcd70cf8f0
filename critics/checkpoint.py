"""Folders of trained critics: ``config.json`` beside ``model.safetensors``, checked before use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn


class CheckpointError(OSError):
    """A folder of weights is missing, damaged or of another layout; the message names file and cure."""


def save(folder: Path, config: dict[str, Any], model: nn.Module, half: bool = True) -> None:
    """Write a model, its floating-point weights in half precision unless told otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {}
    for key, value in model.state_dict().items():
        small = half and value.is_floating_point()
        state[key] = value.detach().cpu().to(torch.float16 if small else value.dtype).contiguous()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def read_config(folder: Path, kind: str, cure: str = "") -> dict[str, Any]:
    """The ``config.json`` of a critic's folder.

    Raises:
        CheckpointError: no such file, no JSON, or the config of another kind of critic.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing. {cure}".strip()) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}). {cure}".strip()) from None
    if not isinstance(config, dict) or config.get("kind") != kind:
        found = config.get("kind") if isinstance(config, dict) else type(config).__name__
        raise CheckpointError(f"{path} describes {found!r}, but {kind!r} is needed. {cure}".strip())
    return config


def load_weights(folder: Path, model: nn.Module, cure: str = "") -> None:
    """Fill a model with a folder's weights, in float32, switch it to evaluation and freeze it.

    Raises:
        CheckpointError: file missing or damaged, or keys or shapes that do not match (listed).
    """
    path = folder / "model.safetensors"
    if not path.exists():
        raise CheckpointError(f"{path} is missing. {cure}".strip())
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error}). {cure}".strip()) from None
    own = model.state_dict()
    missing, surplus = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    wrong = [key for key in own.keys() & state.keys() if own[key].shape != state[key].shape]
    if missing or surplus or wrong:
        parts = [("missing", missing), ("surplus", surplus), ("of wrong shape", sorted(wrong))]
        found = "; ".join(
            f"{len(keys)} {word}: {', '.join(keys[:5])}{' ...' if len(keys) > 5 else ''}"
            for word, keys in parts
            if keys
        )
        raise CheckpointError(f"{path} does not fit the model ({found}). {cure}".strip())
    model.load_state_dict({key: value.to(own[key].dtype) for key, value in state.items()})
    model.eval().requires_grad_(False)
