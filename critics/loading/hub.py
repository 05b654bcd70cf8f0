"""Pretrained parts by hub id or local folder, with one clear sentence for everything that can go wrong."""

from __future__ import annotations

import json
import math
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
    key_mismatches,
    pickles_in,
)
from critics.loading.problems import damaged_file, hub_problem, index_problem

_INDEX = "model.safetensors.index.json"
_SENTENCES = {
    "gated": "{source} is gated: accept its licence at {page} and log in with `hf auth login`",
    "no model": "there is no model {source!r}, neither as a folder nor at {page}; check the spelling, or log "
    "in with `hf auth login` if it is private",
    "no revision": "{page} has no revision {revision!r}; leave it out, or take one that the page lists",
    "no file": "{part} cannot be loaded from {page}, which does not hold {detail}; name another model",
    "offline": "{source} is not on this machine and the hub cannot be reached; download it once with "
    "`hf download {source}`, or name a folder",
    "damaged": "{part} cannot be loaded from {page}, where a file is damaged ({detail}); download it again",
    "unreadable": "{part} cannot be loaded from {page} ({detail})",
}


def resolve_source(
    card: CriticCard, source: str | Path | None, revision: str | None, local_files_only: bool
) -> tuple[str | Path, dict[str, Any]]:
    """Where a critic's parts come from, and the options of ``from_pretrained`` that say so.

    The card's hub id at the card's revision unless told otherwise; other repositories do not have the card's
    revision.
    """
    revision = revision or (card.revision if source is None else "") or "main"
    return source or card.hub_id, {"revision": revision, "local_files_only": local_files_only}


def channel_statistics(processor: Any, source: str | Path) -> tuple[list[float], list[float]]:
    """Mean and deviation of the three channels that an image processor names.

    Raises:
        CheckpointError: they are no three numbers each, or a deviation that nothing can be divided by.
    """
    found = processor.image_mean, processor.image_std
    for name, values in zip(("image_mean", "image_std"), found, strict=True):
        several = isinstance(values, Sequence) and not isinstance(values, str) and len(values) == 3
        numbers = several and all(
            isinstance(v, int | float) and math.isfinite(v) and (name == "image_mean" or v > 0)
            for v in values
        )
        if not numbers:
            raise CheckpointError(
                f"preprocessor_config.json of {source} has the {name} {str(values)[:40]}; name three "
                "numbers, one a channel"
            )
    return list(found[0]), list(found[1])


LEAST_SIDE = 16
"""Of pictures as networks see them: smaller ones are no size that a detector was trained on."""


def picture_sides(first: Any, second: Any, source: str | Path) -> tuple[int, int]:
    """Two sides in pixels that an image processor names.

    Raises:
        CheckpointError: they are no whole numbers, or too small for any network.
    """
    sides = first, second
    if not all(type(side) is int and side >= LEAST_SIDE for side in sides):
        raise CheckpointError(
            f"preprocessor_config.json of {source} has the size {str(sides)[:60]}; name whole numbers of "
            f"pixels, from {LEAST_SIDE} on"
        )
    return first, second


def load_model(cls: Any, source: str | Path, *, ignore: Sequence[str] = (), **options: Any) -> Any:
    """A ``transformers`` model in evaluation, frozen, in float32 unless ``dtype`` says otherwise.

    Only safetensors are read, and no code from a hub is run.

    Args:
        cls: model class with ``from_pretrained``.
        source: hub id, or a folder in the hub's layout.
        ignore: regular expressions of keys that may be missing or left over.
        options: of ``from_pretrained``; ``revision``, ``local_files_only``, ``dtype``.

    Raises:
        CheckpointError: not found, gated, no network, damaged, pickled, numbers that cannot be, or keys that
            do not fit (listed).
    """
    options = {"dtype": torch.float32, "use_safetensors": True} | options
    folder = Path(source)
    if folder.is_dir() and not any(folder.glob("model*.safetensors*")):
        raise CheckpointError(
            f"model.safetensors is missing in the folder {source}{pickles_in(folder)}; download it again"
        )
    if not folder.exists():
        _check_index(source, options)
    model, report = _guarded(
        cls, source, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    _check_numbers(model.config.to_dict(), source)
    return _complete(model, report, source, ignore)


def _check_numbers(config: Mapping[Any, Any], source: str | Path) -> None:
    """Refuse what a network is made with, and fails at only when it counts: less than none of something.

    Raises:
        CheckpointError: a negative number of layers, heads, queries and so on, in a part of the model too.
    """
    for name, value in config.items():
        if isinstance(value, Mapping):
            _check_numbers(value, source)
        elif str(name).startswith("num_") and isinstance(value, int) and value < 0:
            raise CheckpointError(
                f"config.json of {source} says {name}: {value}; it cannot be negative, download it again"
            )


def _check_index(source: str | Path, options: Mapping[str, Any]) -> None:
    """Refuse, before anything is read, weights on the hub whose index leads to pickles.

    What else may be wrong with them is told when they are loaded.
    """
    from transformers.utils import cached_file

    quiet = ("missing_entries", "gated_repo", "connection_errors")
    try:
        path = cached_file(
            str(source),
            _INDEX,
            revision=options.get("revision"),
            local_files_only=options.get("local_files_only", False),
            **{f"_raise_exceptions_for_{kind}": False for kind in quiet},
        )
        index = {} if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    wrong = index_problem(index) if isinstance(index, dict) and index else ""
    if wrong:
        raise CheckpointError(f"{_INDEX} of {source} cannot be used: {wrong}")


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
    found = key_mismatches(missing, surplus, [str(entry[0]) for entry in report["mismatched_keys"]])
    if found:
        raise CheckpointError(
            f"the weights in {source} do not fit {type(model).__name__} ({found}); take a checkpoint of "
            "this family, or load the folder again if a download was cut short"
        )
    return model.eval().requires_grad_(False)


def load_tokenizer(cls: Any, source: str | Path, entries: int, **options: Any) -> Any:
    """A tokenizer, with the errors of ``load_model``.

    Args:
        entries: that the text encoder has an embedding for. Where a folder has no tokenizer,
            ``transformers`` makes one that knows nothing but its special tokens.

    Raises:
        CheckpointError: a tokenizer that is missing, damaged or of another model.
    """
    tokenizer = _guarded(cls, source, **options)
    if len(tokenizer) != entries:
        raise CheckpointError(
            f"the tokenizer in {source} has {len(tokenizer)} entries, but the text encoder {entries}: its "
            "files (tokenizer.json, or vocab.json and merges.txt) are missing or of another model; take "
            "tokenizer and weights from one checkpoint"
        )
    if tokenizer.pad_token_id is None:
        raise CheckpointError(
            f"the tokenizer in {source} has no pad_token, with which shorter texts are filled; name it in "
            "tokenizer_config.json, or take tokenizer and weights from one checkpoint"
        )
    return tokenizer


def load_part(cls: Any, source: str | Path, **options: Any) -> Any:
    """A processor or config, with the errors of ``load_model``."""
    return _guarded(cls, source, **options)


def _guarded(cls: Any, source: str | Path, **options: Any) -> Any:
    local = isinstance(source, Path) or source.startswith(("/", ".", "~")) or is_file_name(source)
    local = local or Path(source).exists()
    if local:
        check_folder(Path(source), "Or name a model of https://huggingface.co.")
        if broken := damaged_file(Path(source)):
            path, wrong = broken
            raise CheckpointError(
                f"{path} is damaged or cannot be used: {wrong}; download it again"
            )
        options["local_files_only"] = True
    try:
        return cls.from_pretrained(str(source), **options)
    except (
        Exception
    ) as error:  # what a file can cause is told; everything else is raised as it came
        problem = hub_problem(error, local=local)
        if problem is None:
            raise
        raise CheckpointError(
            _SENTENCES[problem.kind].format(
                part=cls.__name__,
                source=source,
                page=f"the folder {source}" if local else f"https://huggingface.co/{source}",
                revision=options.get("revision") or "main",
                detail=problem.detail,
            )
        ) from error
