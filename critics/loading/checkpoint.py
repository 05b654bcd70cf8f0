"""Folders of trained critics: ``config.json`` beside ``model.safetensors``, checked before use."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import pickle
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from critics.base import CriticCard
from critics.loading.problems import one_line

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


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


@dataclass(frozen=True)
class Config:
    """The ``config.json`` of a critic's folder, whose values are checked as they are read.

    Attributes:
        cure: what to do about a wrong one, for messages.
    """

    path: Path
    values: Mapping[str, Any]
    cure: str = ""

    def get(self, name: str, kind: Any) -> Any:
        """A value of a type: a class, a tuple of them (a list in JSON), a ``Literal`` or a union.

        Raises:
            CheckpointError: it is missing, or of another type.
        """
        if name not in self.values:
            raise self.error(f"{name} is missing")
        try:
            return _of_type(self.values[name], kind)
        except ValueError as error:
            raise self.error(f"{name}: {error}") from None

    def fields(self, cls: type[T], **given: Any) -> T:
        """An instance of a dataclass from the values that have its fields' names, and from those given.

        Raises:
            CheckpointError: a value that is missing, of another type, or refused by the class.
        """
        kinds = get_type_hints(cls)
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            optional = field.default is not dataclasses.MISSING
            if field.name not in given and (field.name in self.values or not optional):
                given[field.name] = self.get(field.name, kinds[field.name])
        return self.build(lambda: cls(**given))

    def card(self, vocabulary: tuple[str, ...]) -> CriticCard:
        """The card under ``"card"``, with the nouns.

        Raises:
            CheckpointError: as ``fields``.
        """
        card = dataclasses.replace(self, values=self.get("card", dict[str, Any]))
        return card.fields(CriticCard, vocabulary=vocabulary)

    def build(self, make: Callable[[], T]) -> T:
        """What ``make`` makes of the values.

        Raises:
            CheckpointError: it cannot be made.
        """
        try:
            return make()
        except (TypeError, ValueError, KeyError, ArithmeticError, RuntimeError) as error:
            raise self.error(one_line(error)) from None

    def error(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path} lacks or misstates a field ({what}). {self.cure}".strip()
        )


def _of_type(value: Any, kind: Any) -> Any:
    """A value of JSON as a type; lists become tuples.

    Raises:
        ValueError: it is of another type.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any or (origin is Literal and value in arguments):
        return value
    if origin is tuple and isinstance(value, list):
        kinds = [arguments[0]] * len(value) if arguments[-1] is ... else list(arguments)
        if len(kinds) == len(value):
            return tuple(_of_type(one, each) for one, each in zip(value, kinds, strict=True))
    elif origin in (Union, UnionType):
        for each in arguments:
            with suppress(ValueError):
                return _of_type(value, each)
    elif origin is dict and isinstance(value, dict):
        return value
    elif kind is float and _is_real(value):
        return float(value)
    elif origin is None and isinstance(value, kind) and isinstance(value, bool) == (kind is bool):
        return value
    if origin is Literal:
        raise ValueError(f"{json.dumps(value)[:60]} is not {' or '.join(map(repr, arguments))}")
    wanted = kind.__name__ if isinstance(kind, type) and not arguments else str(kind)
    raise ValueError(f"{json.dumps(value)[:60]} is not of the type {wanted}")


def _is_real(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)


def read_config(folder: Path, kind: str, cure: str = "", name: str = "config.json") -> Config:
    """The ``config.json`` of a critic's folder, or what stands in its place.

    Raises:
        CheckpointError: no such file, no JSON, or the config of another kind of critic.
    """
    check_folder(folder, cure)
    path = folder / name
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing. {cure}".strip()) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({one_line(error)}). {cure}".strip()
        ) from None
    if not isinstance(config, dict) or config.get("kind") != kind:
        found = config.get("kind") if isinstance(config, dict) else type(config).__name__
        raise CheckpointError(f"{path} describes {found!r}, but {kind!r} is needed. {cure}".strip())
    return Config(path, config, cure)


def load_network(
    folder: Path, kind: str, make: Callable[[Config], M], cure: str = ""
) -> tuple[M, Config]:
    """A network from a folder that ``save`` wrote: made as the config says, filled, frozen.

    Args:
        kind: that the config must name.
        make: the network, without weights, of a config.

    Raises:
        CheckpointError: files that are missing, damaged, or of another kind or another network.
    """
    config = read_config(folder, kind, cure)
    network = config.build(lambda: make(config))
    load_weights(folder, network, cure)
    return network, config


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
        CheckpointError: a file that is missing or damaged.
    """
    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing. {cure}".strip()) from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({one_line(error)}). {cure}".strip()) from None


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
        raise CheckpointError(
            f"{path} is damaged or holds more than tensors ({one_line(error)}); download it again"
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
    found = key_mismatches(own.keys() - state.keys(), state.keys() - own.keys(), wrong)
    if found:
        raise CheckpointError(f"{path} does not fit the model ({found}). {cure}".strip())
    model.load_state_dict({key: value.to(own[key].dtype) for key, value in state.items()})
    model.eval().requires_grad_(False)


def key_mismatches(missing: Iterable[str], surplus: Iterable[str], wrong: Iterable[str]) -> str:
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
