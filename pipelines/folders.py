"""A folder in Diffusers' layout, looked through before anything of it is loaded.

Libraries read what they can and fill the rest in: random weights for missing ones, an empty vocabulary for a
tokenizer without files. What is found here is refused with the name of the file.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.problems import damaged_file, one_line
from pipelines.tokens import text_encoders

_COUNTS_PARTS = re.compile(r"^num_|layers|blocks|extra_ids|order")
_MOST_PARTS, _MOST = 10**5, 10**9
"""Greatest numbers in configurations, since libraries would fill the memory before they notice."""
_UNBOUNDED = ("model_max_length", "rope_theta")


class LoadError(ValueError):
    """A pipeline cannot be loaded; the message says why and what to do."""


def first_sentence(text: str) -> str:
    """Of a library's error, which may go on for pages, what is wrong."""
    return text.split(". ")[0][:200].rstrip(".")


class Place:
    """Where something is loaded from.

    Attributes:
        source: as the user named it: a folder or a hub id.
        folder: with the files; for a hub id that was not downloaded yet it does not exist.
        is_local: the user named a folder.
        where, cure: for messages: what it is called, and what mends missing and damaged files.
    """

    def __init__(self, source: str | Path, folder: str | Path | None = None) -> None:
        self.source, self.folder = str(source), Path(folder or source)
        self.is_local = Path(source).is_dir()
        if self.is_local:
            self.where, self.cure = f"the folder {source}", "copy the folder again"
        else:
            self.where = f"https://huggingface.co/{source}"
            self.cure = f"run `hf download {source}`"


@dataclass(frozen=True)
class Component:
    """One entry of model_index.json.

    Attributes:
        name: of the component and of its folder.
        kind: its class; None for one that neither diffusers nor transformers has.
        has_weights: it is a model.
    """

    name: str
    kind: Any
    has_weights: bool


def read_index(place: Place) -> dict[str, Any]:
    """model_index.json of a folder.

    Raises:
        LoadError: there is none, or it is not of a pipeline.
    """
    path = place.folder / "model_index.json"
    if not path.is_file():
        raise LoadError(
            f"{place.where} holds no Diffusers pipeline: model_index.json is missing; a single .safetensors "
            "file is made a folder by from_single_file(...).save_pretrained(...)"
        )
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LoadError(
            f"model_index.json of {place.where} is damaged ({one_line(error)}); {place.cure}"
        ) from error
    if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
        raise LoadError(f"model_index.json of {place.where} names no pipeline class; {place.cure}")
    return index


def components(place: Place, index: Mapping[str, Any]) -> Iterator[Component]:
    """What a pipeline consists of, by its index.

    Raises:
        LoadError: an entry that is not of the form [library, class].
    """
    from torch import nn

    for name, value in index.items():
        if name.startswith("_") or not isinstance(value, list):
            continue
        if len(value) != 2 or not all(isinstance(word, str | None) for word in value):
            raise LoadError(
                f"model_index.json of {place.where} says {name}: {json.dumps(value)[:60]}, which are not the "
                f"names of a library and a class; {place.cure}"
            )
        library, kind = value
        if library is None or kind is None:
            continue
        found = _class_of(library, kind)
        yield Component(name, found, isinstance(found, type) and issubclass(found, nn.Module))


def _class_of(library: str, kind: str) -> Any:
    """A class of diffusers, of transformers or beside a pipeline; None for others, which nothing imports."""
    if library in ("diffusers", "transformers"):
        return getattr(importlib.import_module(library), kind, None)
    pipelines = importlib.import_module("diffusers.pipelines")
    return getattr(getattr(pipelines, library, None), kind, None)


def check_files(place: Place) -> None:
    """Look at every file in a folder's layout by itself.

    Raises:
        LoadError: names the first that no loader could read.
    """
    damaged = damaged_file(place.folder)
    if damaged:
        path, reason = damaged
        file = path.relative_to(place.folder).as_posix()
        raise LoadError(f"{file} of {place.where} is damaged ({reason}); {place.cure}")


def check_folder(place: Place, index: Mapping[str, Any], variant: str | None) -> None:
    """Look through the folder of a pipeline.

    Raises:
        LoadError: names the file that is missing or wrong.
    """
    check_files(place)
    models = [c.name for c in components(place, index) if c.has_weights]
    if variant and not any(variant in _variants(place.folder / name) for name in models):
        raise LoadError(
            f"{place.where} has no weights of the variant {variant!r}; leave the variant out"
        )
    for name in _needed(index["_class_name"]):
        if not isinstance(index.get(name), list):
            raise LoadError(f"model_index.json of {place.where} names no {name}; {place.cure}")
    configs: dict[str, dict[str, Any]] = {}
    for component in components(place, index):
        own = place.folder / component.name
        if not own.is_dir():
            raise _lacks(place, component.name)
        if component.has_weights:
            _check_weights(place, own, variant)
        if hasattr(component.kind, "vocab_files_names"):
            configs[component.name] = _check_tokenizer(place, own, component.kind)
        elif component.has_weights or hasattr(component.kind, "config_name"):
            file = f"{component.name}/{getattr(component.kind, 'config_name', 'config.json')}"
            configs[component.name] = _config(place, file)
            _check_types(place, file, component.kind, configs[component.name])
    _check_lengths(place, configs)


def _needed(kind: str) -> list[str]:
    """Components without which a pipeline class cannot be made."""
    cls = getattr(importlib.import_module("diffusers"), kind, None)
    parameters = inspect.signature(cls).parameters.values() if isinstance(cls, type) else ()
    return [p.name for p in parameters if p.default is p.empty and p.kind != p.VAR_KEYWORD]


def _lacks(place: Place, name: str) -> LoadError:
    return LoadError(f"{name} of {place.where} is missing; {place.cure}")


def _config(place: Place, name: str) -> dict[str, Any]:
    path = place.folder / name
    if not path.is_file():
        raise _lacks(place, name)
    config = dict(json.loads(path.read_text(encoding="utf-8")))
    for key, value in config.items():
        limit = _MOST_PARTS if _COUNTS_PARTS.search(key) else _MOST
        numbers = value if isinstance(value, list) else [value]
        if key not in _UNBOUNDED and any(isinstance(n, int) and abs(n) > limit for n in numbers):
            raise LoadError(
                f"{name} of {place.where} says {key}: {json.dumps(value)[:40]}, which no model has; "
                f"{place.cure}"
            )
    return config


def _check_weights(place: Place, own: Path, variant: str | None) -> None:
    if not any(own.glob("*.safetensors")):
        if any(own.glob("*.bin")) or any(own.glob("*.pt")) or any(own.glob("*.pth")):
            raise LoadError(
                f"{own.name} of {place.where} has pickled weights (.bin), which are not loaded, since "
                "they can run code; save it with safe_serialization=True"
            )
        raise _lacks(place, f"{own.name}/*.safetensors")
    if variant is None and None not in _variants(own):
        raise LoadError(
            f"{own.name} of {place.where} has weights of the variant {min(map(str, _variants(own)))!r} "
            "alone; name it"
        )
    for path in own.glob("*.safetensors.index.json"):
        for file in sorted({*json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()}):
            if not (own / file).is_file():
                raise _lacks(place, f"{own.name}/{file}")


def own_variant(own: Path, variant: str | None) -> str | None:
    """The variant of a component's weights to load: None where it has none of that name."""
    return variant if variant in _variants(own) else None


def _variants(own: Path) -> set[str | None]:
    """Variants of the weights in a component's folder; None are those without a name."""
    found = (
        re.search(r"\.(\w+)(-\d+-of-\d+)?\.safetensors$", path.name)
        for path in own.glob("*.safetensors")
    )
    return {mark[1] if mark else None for mark in found}


def _check_tokenizer(place: Place, own: Path, kind: Any) -> dict[str, Any]:
    config = _config(place, f"{own.name}/tokenizer_config.json")
    names = dict(kind.vocab_files_names)
    whole = names.pop("tokenizer_file", "tokenizer.json")
    apart = [name for name in names.values() if isinstance(name, str)]
    if not (own / whole).is_file() and not (
        apart and all((own / name).is_file() for name in apart)
    ):
        raise _lacks(place, f"{own.name}/{whole}")
    return config


def _check_types(place: Place, file: str, kind: Any, config: Mapping[str, Any]) -> None:
    """Refuse values of a kind that a class's own default values rule out."""
    method = getattr(kind, "__init__", None)
    parameters = inspect.signature(method).parameters if inspect.isfunction(method) else {}
    for name, value in config.items():
        if name not in parameters:
            continue
        default, nullable = parameters[name].default, "None" in str(parameters[name].annotation)
        number = isinstance(default, int | float) and not isinstance(default, bool)
        needs_number = number and not nullable
        annotation = str(parameters[name].annotation).lower()
        several = annotation == str(inspect.Parameter.empty).lower() or (
            "tuple" in annotation or "list" in annotation
        )
        wrong_list = number and isinstance(value, list) and not (several and _are_numbers(value))
        if not _may_replace(default, value) or (needs_number and value is None) or wrong_list:
            raise LoadError(
                f"{file} of {place.where} says {name}: {json.dumps(value)[:40]}, where a value such as "
                f"{json.dumps(default)[:40]} belongs; {place.cure}"
            )


def _are_numbers(values: list[Any]) -> bool:
    """Whether a list, or the lists in it, hold numbers alone."""
    return all(
        _are_numbers(value) if isinstance(value, list) else isinstance(value, int | float)
        for value in values
    )


def _may_replace(default: Any, value: Any) -> bool:
    """Whether a value of JSON may stand for a default; what defaults do not tell, they allow."""
    if value is None:
        return True
    if isinstance(default, bool | int | float):
        return not isinstance(value, str | dict)
    if isinstance(default, str):
        return not isinstance(value, int | float | dict)
    if isinstance(default, tuple | list):
        return not isinstance(value, int | float | dict)
    return True


def _check_lengths(place: Place, configs: Mapping[str, Mapping[str, Any]]) -> None:
    """CLIP's text encoders have learned positions, and texts are padded to what the tokenizer says."""
    for name, config in configs.items():
        encoder = configs.get(name.replace("tokenizer", "text_encoder"))
        if not name.startswith("tokenizer") or encoder is None:
            continue
        if not str(encoder.get("model_type", "")).startswith("clip"):
            continue
        length, most = config.get("model_max_length"), encoder.get("max_position_embeddings", 77)
        if not isinstance(most, int):
            raise LoadError(
                f"{name.replace('tokenizer', 'text_encoder')}/config.json of {place.where} says "
                f"max_position_embeddings: {json.dumps(most)[:40]}, where a number belongs; {place.cure}"
            )
        if not isinstance(length, int) or not 1 <= length <= most:
            raise LoadError(
                f"{name}/tokenizer_config.json of {place.where} says model_max_length: {length}, and "
                f"the text encoder reads 1 to {most} tokens; {place.cure}"
            )


def check_special_tokens(place: Place, pipeline: Any) -> None:
    """Refuse a tokenizer that its text encoder has no embeddings for, as one of another model.

    Raises:
        LoadError: names the token.
    """
    for tokenizer_name, encoder_name in text_encoders(pipeline):
        tokenizer = getattr(pipeline, tokenizer_name)
        rows = len(getattr(pipeline, encoder_name).get_input_embeddings().weight)
        if tokenizer.pad_token_id is None:
            raise LoadError(
                f"{tokenizer_name}/tokenizer_config.json of {place.where} names no pad_token; {place.cure}"
            )
        ids = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
        for token, number in ids:
            if number is None or number >= rows:
                raise LoadError(
                    f"{tokenizer_name} of {place.where} has the token {token!r}, which {encoder_name} has no "
                    f"embedding for; {place.cure}"
                )
