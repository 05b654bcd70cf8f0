"""Pretrained parts by hub id or local folder, with one clear sentence for everything that can go wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from critics.base import CriticCard
from critics.loading.checkpoint import (
    CheckpointError,
    check_folder,
    is_file_name,
    misfits,
    pickles_in,
)


def origin(
    card: CriticCard, source: str | Path | None, revision: str | None, local_files_only: bool
) -> tuple[str | Path, dict[str, Any]]:
    """Where a critic's parts come from, and the options of ``from_pretrained`` that say so.

    The card's hub id at the card's revision unless told otherwise; other repositories do not have the card's
    revision.
    """
    revision = revision or (card.revision if source is None else "") or "main"
    return source or card.hub_id, {"revision": revision, "local_files_only": local_files_only}


def load_model(cls: Any, source: str | Path, *, ignore: Sequence[str] = (), **options: Any) -> Any:
    """A ``transformers`` model in evaluation, frozen, in float32 unless ``dtype`` says otherwise.

    Only safetensors are read, and no code from a hub is run.

    Args:
        cls: model class with ``from_pretrained``.
        source: hub id, or a folder in the hub's layout.
        ignore: regular expressions of keys that may be missing or left over.
        options: of ``from_pretrained``; ``revision``, ``local_files_only``, ``dtype``.

    Raises:
        CheckpointError: not found, gated, no network, damaged, pickled, or keys that do not fit (listed).
    """
    options = {"dtype": torch.float32, "use_safetensors": True} | options
    folder = Path(source)
    if folder.is_dir() and not any(folder.glob("model*.safetensors*")):
        raise CheckpointError(
            f"model.safetensors is missing in the folder {source}{pickles_in(folder)}; download it again"
        )
    model, report = _guarded(
        cls, source, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    return _complete(model, report, source, ignore)


def fill_model(
    cls: Any, config: Any, state: Mapping[str, Tensor], source: str | Path, dtype: torch.dtype
) -> Any:
    """A ``transformers`` model of tensors that are named as in its own files; as ``load_model`` gives it.

    Args:
        source: where the tensors come from, for messages.

    Raises:
        CheckpointError: keys or shapes that do not fit (listed).
    """
    options = {"config": config, "state_dict": dict(state), "dtype": dtype}
    model, report = cls.from_pretrained(
        None, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    return _complete(model, report, source)


def _complete(
    model: Any, report: Mapping[str, Any], source: str | Path, ignore: Sequence[str] = ()
) -> Any:
    missing, surplus = (
        [name for name in report[key] if not any(re.search(rule, name) for rule in ignore)]
        for key in ("missing_keys", "unexpected_keys")
    )
    found = misfits(missing, surplus, [str(entry[0]) for entry in report["mismatched_keys"]])
    if found:
        raise CheckpointError(
            f"the weights in {source} do not fit {type(model).__name__} ({found}); take a checkpoint of "
            "this family, or load the folder again if a download was cut short"
        )
    return model.eval().requires_grad_(False)


def load_part(cls: Any, source: str | Path, **options: Any) -> Any:
    """A tokenizer, processor or config, with the errors of ``load_model``."""
    return _guarded(cls, source, **options)


def _guarded(cls: Any, source: str | Path, **options: Any) -> Any:
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

    local = isinstance(source, Path) or source.startswith(("/", ".", "~")) or is_file_name(source)
    if local or Path(source).exists():
        check_folder(Path(source), "Or name a model of https://huggingface.co.")
        options["local_files_only"] = True
        page = f"the folder {source}"
    else:
        page = f"https://huggingface.co/{source}"
    try:
        return cls.from_pretrained(str(source), **options)
    except Exception as error:  # each is told apart below; what is not is raised as it came
        chain = list(_causes(error))
        if _any(chain, GatedRepoError):  # a kind of RepositoryNotFoundError
            raise CheckpointError(
                f"{source} is gated: accept its licence at {page} and log in with `hf auth login`"
            ) from error
        if _any(chain, RepositoryNotFoundError, HFValidationError):
            raise CheckpointError(
                f"there is no model {source!r}, neither as a folder nor at {page}; check the spelling, or "
                "log in with `hf auth login` if it is private"
            ) from error
        if _any(chain, RevisionNotFoundError):
            raise CheckpointError(
                f"{page} has no revision {options.get('revision') or 'main'!r}; leave it out, or take one "
                "that the page lists"
            ) from error
        offline = (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError, HfHubHTTPError)
        if _any(chain, *offline) and not _any(chain, RemoteEntryNotFoundError):
            raise CheckpointError(
                f"{source} is not on this machine and the hub cannot be reached; download it once with "
                f"`hf download {source}`, or name a folder"
            ) from error
        if _any(chain, SafetensorError):
            raise CheckpointError(
                f"the weights in {page} are damaged ({chain[-1]}); download them again"
            ) from error
        if isinstance(error, (OSError, ValueError)):
            first = str(error).strip().splitlines()[0]
            raise CheckpointError(
                f"{cls.__name__} cannot be loaded from {page} ({first})"
            ) from error
        raise


def _causes(error: BaseException) -> Any:
    one: BaseException | None = error
    while one is not None:
        yield one
        one = one.__cause__ or one.__context__


def _any(chain: Sequence[BaseException], *kinds: type[BaseException]) -> bool:
    return any(isinstance(one, kinds) for one in chain)
