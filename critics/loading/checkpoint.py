"""Folders of trained critics: ``config.json`` beside ``model.safetensors``, checked before use."""

from __future__ import annotations

import argparse
import json
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


class CheckpointError(OSError):
    """A folder of weights is missing, damaged or of another layout; the message names file and cure."""


_PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")


def check_folder(folder: Path, cure: str = "") -> None:
    """Refuse what is no folder; a pickle is called one.

    Raises:
        CheckpointError: nothing is there, or a file.
    """
    if folder.is_dir():
        return
    what = f"there is no {'file' if is_file_name(folder) else 'folder'} {folder}"
    if folder.is_file():
        what = f"{folder} is a file, and the folder with model.safetensors is needed"
        if folder.suffix in _PICKLES:
            what = f"{folder} is a pickle, which could run code when read; safetensors are needed"
    raise CheckpointError(f"{what}. {cure}".strip())


def is_file_name(source: str | Path) -> bool:
    """Whether it is called like a file of weights, which no folder or model on a hub is."""
    return Path(source).suffix in (*_PICKLES, ".safetensors")


def pickles_in(folder: Path) -> str:
    """An aside on the pickles of a folder without safetensors: why they do not do; empty if it has none."""
    found = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    if not found:
        return ""
    return f" ({', '.join(found)} is a pickle, which could run code when read, and is left alone)"


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
    check_folder(folder, cure)
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
    """Fill a model with a folder's weights, in its own precision, switch it to evaluation and freeze it.

    Raises:
        CheckpointError: file missing or damaged, or keys or shapes that do not match (listed).
    """
    check_folder(folder, cure)
    path = folder / "model.safetensors"
    if not path.exists():
        raise CheckpointError(f"{path} is missing{pickles_in(folder)}. {cure}".strip())
    fill(model, read_safetensors(path, cure), path, cure)


def read_safetensors(path: Path, cure: str = "") -> dict[str, Tensor]:
    """The tensors of a file.

    Raises:
        CheckpointError: a damaged file.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error}). {cure}".strip()) from None


def read_published(
    path: Path, allow_pickle: bool, inside: str = "model_state_dict"
) -> dict[str, Tensor]:
    """The state_dict in a file that its authors published; of a pickle, only tensors are made.

    Args:
        allow_pickle: the user's consent to read one; a ``.safetensors`` file needs none.
        inside: key under which training scripts put the state_dict, beside other things.

    Raises:
        CheckpointError: no consent, a damaged file, or one that holds no state_dict.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if not allow_pickle:
        raise CheckpointError(
            f"{path} is a pickle, which could run code when read; if you trust where it comes from, pass "
            "allow_pickle=True (even then only its tensors are read)"
        )
    try:
        # Training scripts add their settings in a Namespace, which runs nothing.
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise CheckpointError(
            f"{path} is damaged or holds more than tensors ({first}); download it again"
        ) from None
    if isinstance(state, dict):
        state = state.get(inside, state)
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path} holds no state_dict, nor one under {inside!r}")
    return {str(key): value for key, value in state.items()}


def fill(model: nn.Module, state: Mapping[str, Tensor], path: Path, cure: str = "") -> None:
    """Give a model all its weights, in its own precision, switch it to evaluation and freeze it.

    Raises:
        CheckpointError: keys or shapes that do not match (listed).
    """
    own = model.state_dict()
    wrong = [key for key in own.keys() & state.keys() if own[key].shape != state[key].shape]
    found = misfits(own.keys() - state.keys(), state.keys() - own.keys(), wrong)
    if found:
        raise CheckpointError(f"{path} does not fit the model ({found}). {cure}".strip())
    model.load_state_dict({key: value.to(own[key].dtype) for key, value in state.items()})
    model.eval().requires_grad_(False)


def misfits(missing: Iterable[str], surplus: Iterable[str], wrong: Iterable[str]) -> str:
    """How a state_dict's keys differ from a model's, the first five of each kind; empty if they do not."""
    parts = []
    for word, keys in (("missing", missing), ("surplus", surplus), ("of wrong shape", wrong)):
        names = sorted(keys)
        if names:
            more = " ..." if len(names) > 5 else ""
            parts.append(f"{len(names)} {word}: {', '.join(names[:5])}{more}")
    return "; ".join(parts)


def count_parts(state: Mapping[str, Tensor], rule: str) -> int:
    """How many numbered parts a module has: one more than the highest number that the rule's group matches
    at the beginning of a key."""
    return 1 + max((int(m[1]) for m in (re.match(rule, key) for key in state) if m), default=-1)
