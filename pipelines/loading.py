"""Pipelines and their parts by hub id or local folder, with one clear sentence for what can go wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn


class LoadError(ValueError):
    """A pipeline cannot be loaded; the message says why and what to do."""


def class_name(source: str | Path, **options: Any) -> str:
    """The Diffusers class that a folder's or a hub repository's model_index.json names.

    Raises:
        LoadError: there is none, or it cannot be read.
    """
    from diffusers import DiffusionPipeline

    index = Path(source, "model_index.json")
    if Path(source).is_dir() and not index.is_file():
        raise LoadError(
            f"the folder {source} holds no Diffusers pipeline: model_index.json is missing; a single "
            ".safetensors file is made a folder by from_single_file(...).save_pretrained(...)"
        )
    found = _guarded(DiffusionPipeline.load_config, source, **options)
    config = found[0] if isinstance(found, tuple) else found
    if "_class_name" not in config:
        raise LoadError(f"model_index.json of {source} names no pipeline class; load it again")
    return str(config["_class_name"])


def load(cls: Any, source: str | Path, **options: Any) -> Any:
    """``cls.from_pretrained``, safetensors only and without code from a hub.

    Raises:
        LoadError: not found, gated, no network, damaged or half-downloaded.
    """
    return _guarded(cls.from_pretrained, source, use_safetensors=True, **options)


def weights(
    source: str | Path, filename: str, *, local_files_only: bool = False
) -> dict[str, Tensor]:
    """The tensors of one safetensors file in a repository or a folder.

    Raises:
        LoadError: as ``load``.
    """
    from huggingface_hub import hf_hub_download
    from safetensors.torch import load_file

    def read(place: str, **options: Any) -> dict[str, Tensor]:
        local = Path(place, filename)
        if Path(place).is_dir():
            if not local.is_file():
                raise OSError(f"{filename} is missing")
            return load_file(local)
        return load_file(hf_hub_download(place, filename, **options))

    return _guarded(read, source, local_files_only=local_files_only)


def fill(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load weights into a module, all of them and no others.

    Raises:
        LoadError: missing or surplus keys, or shapes that do not fit (listed).
    """
    own = module.state_dict()
    wrong = [
        *(f"{key} is missing" for key in own if key not in state),
        *(f"{key} is not known" for key in state if key not in own),
        *(
            f"{key} has the wrong shape"
            for key in own
            if key in state and own[key].shape != state[key].shape
        ),
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise LoadError(
            f"the weights in {source} do not fit {type(module).__name__}: {'; '.join(wrong[:3])}{more}"
        )
    module.load_state_dict(dict(state))


def _guarded(read: Any, source: str | Path, **options: Any) -> Any:
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from safetensors import SafetensorError

    local = Path(source).is_dir()
    if local:
        options["local_files_only"] = True
    page = f"the folder {source}" if local else f"https://huggingface.co/{source}"
    again = "copy the folder again" if local else f"run `hf download {source}`"
    try:
        return read(str(source), **options)
    except Exception as error:  # each is told apart below; what is not is raised as it came
        chain = list(_causes(error))
        text = " ".join(str(one) for one in chain)
        if _any(chain, GatedRepoError):  # a kind of the next
            raise LoadError(
                f"{source} is gated: accept its licence at {page} and log in with `hf auth login`"
            ) from error
        if _any(chain, RepositoryNotFoundError, HFValidationError):
            raise LoadError(
                f"there is no model {source!r}, neither as a folder nor at {page}; check the spelling, or "
                "log in with `hf auth login` if it is private"
            ) from error
        if _any(chain, RevisionNotFoundError):
            raise LoadError(f"{page} has no revision {options.get('revision')!r}") from error
        for one in chain:
            if isinstance(one, RemoteEntryNotFoundError):
                name = str(one.response.url).rpartition("/")[2]
                raise LoadError(
                    f"{page} does not hold {name}: is it a Diffusers pipeline?"
                ) from error
        if _any(chain, SafetensorError, json.JSONDecodeError):
            broken = _damaged(Path(source)) if local else "a file"
            raise LoadError(f"{broken} in {page} is damaged ({chain[-1]}); {again}") from error
        offline = (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError, HfHubHTTPError)
        if not local and (_any(chain, *offline) or "couldn't connect" in text.lower()):
            raise LoadError(
                f"{source} is not on this machine and the hub cannot be reached; download it once with "
                f"`hf download {source}`, or name a folder"
            ) from error
        hint = _other_weights(Path(source), options.get("variant")) if local else ""
        if hint:
            raise LoadError(f"{page} {hint}") from error
        if isinstance(error, (OSError, ValueError, KeyError, RuntimeError)):
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise LoadError(
                f"{page} is incomplete or damaged ({lines[0]}); if a download was cut short, {again}"
            ) from error
        raise


def _damaged(folder: Path) -> str:
    """The first file of safetensors that cannot be read."""
    from safetensors import SafetensorError, safe_open

    for path in sorted(folder.rglob("*.safetensors")):
        try:
            with safe_open(path, "pt"):
                pass
        except SafetensorError:
            return str(path.relative_to(folder))
    return "a file"


def _other_weights(folder: Path, variant: str | None) -> str:
    """What a folder has in place of the weights that were asked for; empty where that is not the matter."""
    files = list(folder.rglob("*.safetensors"))
    marks = [re.search(r"\.(\w+)(-\d+-of-\d+)?\.safetensors$", path.name) for path in files]
    variants = {mark[1] if mark else None for mark in marks}
    if variant is not None and variant not in variants:
        return f"has no weights of the variant {variant!r}; leave the variant out"
    if variant is None and len(variants) == 1 and None not in variants:
        return f"has weights of the variant {variants.pop()!r} alone; name it"
    if {path.parent for path in folder.rglob("*.bin")} - {path.parent for path in files}:
        return "has pickled weights (.bin), which are not loaded, since they can run code"
    return ""


def _causes(error: BaseException) -> Iterator[BaseException]:
    one: BaseException | None = error
    while one is not None:
        yield one
        one = one.__cause__ or one.__context__


def _any(chain: Sequence[BaseException], *kinds: type[BaseException]) -> bool:
    return any(isinstance(one, kinds) for one in chain)
