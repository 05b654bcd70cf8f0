"""Pipelines and their parts by hub id or local folder, with one clear sentence for what can go wrong."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pipelines.devices import is_out_of_memory
from pipelines.folders import LoadError as LoadError
from pipelines.folders import (
    Place,
    check_files,
    check_folder,
    check_special_tokens,
    components,
    first_sentence,
    own_variant,
    read_index,
)
from pipelines.problems import hub_problem, one_line

T = TypeVar("T")
_DAMAGED = (
    "{where} is incomplete or damaged ({detail}); if a download or a copy was cut short, {cure}"
)
_SENTENCES = {
    "gated": "{source} is gated: accept its licence at {page} and log in with `hf auth login`",
    "no model": "there is no model {source!r}, neither as a folder nor at {page}; check the spelling, or log "
    "in with `hf auth login` if it is private",
    "no revision": "{page} has no revision {revision!r}; leave it out, or take one that it lists",
    "no file": "{page} does not hold {detail}: is it a Diffusers pipeline?",
    "offline": "{source} is not on this machine and the hub cannot be reached; download it once with "
    "`hf download {source}`, or name a folder",
    "damaged": _DAMAGED,
    "unreadable": _DAMAGED,
}
"""By the kind of a ``Problem``."""


def class_name(source: str | Path, **options: Any) -> str:
    """The Diffusers class that a folder's or a hub repository's model_index.json names.

    Raises:
        LoadError: there is none, or it cannot be read.
    """
    from diffusers import DiffusionPipeline

    if Path(source).is_dir():
        return str(read_index(Place(source))["_class_name"])
    found = _guarded(DiffusionPipeline.load_config, source, **options)
    config = found[0] if isinstance(found, tuple) else found
    if not isinstance(config.get("_class_name"), str):
        raise LoadError(f"model_index.json of {source} names no pipeline class; load it again")
    return str(config["_class_name"])


def load_pipeline(
    source: str | Path,
    *,
    dtype: torch.dtype,
    variant: str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> Any:
    """A Diffusers pipeline with all of its weights and tokenizers: safetensors only, no code from a hub.

    Random state, logging and progress bars are afterwards as they were.

    Raises:
        LoadError: not found, gated, no network, damaged, incomplete or half-downloaded.
    """
    from diffusers import DiffusionPipeline

    place = Place(source)
    if not place.is_local:
        found: dict[str, Any] = {
            "revision": revision,
            "local_files_only": local_files_only,
            "variant": variant,
        }
        download = DiffusionPipeline.download
        place = Place(source, _guarded(download, source, use_safetensors=True, **found))
    index = read_index(place)
    with unchanged_settings():
        check_folder(place, index, variant)
        loaded = {
            component.name: _load_whole(
                component.kind,
                place,
                component.name,
                dtype=dtype,
                variant=own_variant(place.folder / component.name, variant),
            )
            for component in components(place, index)
            if component.has_weights
        }
        make = partial(_guarded, DiffusionPipeline.from_pretrained, source, place.folder)
        pipeline = make(dtype=dtype, **loaded)
    check_special_tokens(place, pipeline)
    pipeline.register_to_config(_name_or_path=str(source))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_model(
    cls: Any,
    source: str | Path,
    subfolder: str = "",
    *,
    dtype: torch.dtype,
    local_files_only: bool = False,
) -> Any:
    """A model of diffusers or transformers, with all of its weights.

    Raises:
        LoadError: as ``load_pipeline``.
    """
    place = Place(source)
    if place.is_local:
        check_files(place)
    with unchanged_settings():
        options = {"dtype": dtype, "local_files_only": local_files_only}
        return _load_whole(cls, place, subfolder, **options)


def _load_whole(cls: Any, place: Place, subfolder: str, **options: Any) -> Any:
    """A model of which nothing stayed random.

    Raises:
        LoadError: missing weights, or of another shape (listed), or as ``_guarded``.
    """
    if subfolder:
        options["subfolder"] = subfolder
    model, report = _guarded(
        cls.from_pretrained,
        place.source,
        place.folder,
        use_safetensors=True,
        output_loading_info=True,
        **options,
    )
    wrong = [
        *(f"{key} is missing" for key in sorted(report["missing_keys"])),
        *(f"{entry[0]} has the wrong shape" for entry in report["mismatched_keys"]),
    ]
    _check_fit(model, wrong, f"{subfolder or 'a file'} of {place.where}")
    # Convolutions are faster in this layout, values are the same.
    return model.to(memory_format=torch.channels_last)


def weights(
    source: str | Path, filename: str, *, local_files_only: bool = False
) -> dict[str, Tensor]:
    """The tensors of one safetensors file in a repository or a folder.

    Raises:
        LoadError: as ``load_pipeline``.
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
    _check_fit(module, wrong, source)
    module.load_state_dict(dict(state))


def _check_fit(module: nn.Module, wrong: list[str], source: str) -> None:
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise LoadError(
            f"the weights in {source} do not fit {type(module).__name__}: {'; '.join(wrong[:3])}{more}"
        )


@contextmanager
def unchanged_settings() -> Iterator[None]:
    """Loads in silence, and leaves random state, logging and progress bars as they were."""
    import numpy as np
    from diffusers.utils import logging as diffusers_logging
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )
    from transformers.utils import logging as transformers_logging

    libraries: tuple[Any, ...] = (diffusers_logging, transformers_logging)
    before = [(lib, lib.get_verbosity(), lib.is_progress_bar_enabled()) for lib in libraries]
    bars, states = are_progress_bars_disabled(), (random.getstate(), np.random.get_state())
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
        for lib in libraries:
            lib.set_verbosity_error()
            lib.disable_progress_bar()
        try:
            yield
        finally:
            for lib, level, shown in before:
                lib.set_verbosity(level)
                (lib.enable_progress_bar if shown else lib.disable_progress_bar)()
            # transformers' switch turns the hub's, too.
            (disable_progress_bars if bars else enable_progress_bars)()
            random.setstate(states[0])
            np.random.set_state(states[1])


def _guarded(
    read: Callable[..., T], source: str | Path, folder: str | Path | None = None, **options: Any
) -> T:
    """``read``, with a LoadError for whatever files, the hub or a network can cause.

    Args:
        source: as the user named it, for the message, and where it is unless there is a ``folder``.
    """
    place = Place(source, folder)
    local = place.folder.is_dir()
    if local:
        options["local_files_only"] = True
    try:
        return read(str(place.folder) if local else str(source), **options)
    except LoadError:
        raise
    except (
        Exception
    ) as error:  # each is told apart by ``hub_problem``; the rest is raised as it came
        if is_out_of_memory(error):
            raise
        if isinstance(error, ImportError):
            raise LoadError(f"{source} needs a package: {one_line(error)}") from error
        problem = hub_problem(error, local=local)
        if problem is None:
            raise
        part = options.get("subfolder")
        where = f"{part} of {place.where}" if part else place.where
        lacks = isinstance(error, KeyError)
        detail = f"it lacks {error}" if lacks else first_sentence(problem.detail)
        raise LoadError(
            _SENTENCES[problem.kind].format(
                source=source,
                page=place.where,
                where=where,
                cure=place.cure,
                revision=options.get("revision"),
                detail=detail,
            )
        ) from error
