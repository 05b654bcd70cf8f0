"""What is wrong with weights from a hub or a folder, told apart for the sentences of whoever loads them.

This file stands in ``critics.loading`` and in ``pipelines``, equal to the letter (a test compares them): the
two packages may not import each other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Problem:
    """Why something cannot be loaded.

    Attributes:
        kind: "gated": a licence must be accepted first. "no model": the hub has none of that name, or shows
            it to others only. "no revision": the hub's repository lacks it. "no file": the repository
            lacks a file. "offline": it is not in the cache and the hub cannot be reached. "damaged": a file
            is cut short or no JSON. "unreadable": anything else that a file's content or absence causes.
        detail: of "no file" the file's name, of "damaged" and "unreadable" what the reader said of it, on
            one line; else empty.
    """

    kind: Literal["gated", "no model", "no revision", "no file", "offline", "damaged", "unreadable"]
    detail: str = ""


def hub_problem(error: Exception, *, local: bool) -> Problem | None:
    """What an error of ``from_pretrained`` or of a download means; None for what no file can cause.

    Args:
        error: with the errors that it was raised from or while handling.
        local: a folder was read, so that no network took part.
    """
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

    chain = list(_chain(error))

    def among(*kinds: type[BaseException]) -> BaseException | None:
        return next((one for one in chain if isinstance(one, kinds)), None)

    if among(GatedRepoError):  # before RepositoryNotFoundError, of which it is a kind
        return Problem("gated")
    if among(RepositoryNotFoundError, HFValidationError):
        return Problem("no model")
    if among(RevisionNotFoundError):
        return Problem("no revision")
    absent = among(RemoteEntryNotFoundError)
    if isinstance(absent, RemoteEntryNotFoundError):
        return Problem("no file", str(absent.response.url).rpartition("/")[2])
    if broken := among(SafetensorError, json.JSONDecodeError, UnicodeDecodeError):
        return Problem("damaged", one_line(broken))
    offline = (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError, HfHubHTTPError)
    if not local and (among(*offline) or "couldn't connect" in str(error).lower()):
        return Problem("offline")
    if isinstance(error, (ImportError, MemoryError)):
        return None
    return Problem("unreadable", one_line(error))


def damaged_file(folder: Path) -> tuple[Path, str] | None:
    """The first file of a folder, or of the folders in it, that no loader could read, and what is wrong with
    it: JSON that is no object, safetensors that are cut short, an index that leads to pickles.

    What this finds, libraries report without naming the file, or, an index that leads to pickles, read.
    """
    from safetensors import SafetensorError, safe_open

    for path in sorted(folder.rglob("*.json")):
        if not any(word in path.name for word in ("config", "index", "token", "vocab")):
            continue  # what people keep beside weights may hold anything
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            return path, f"it is no JSON: {one_line(error)}"
        if not isinstance(found, dict):
            return path, f"it holds {json.dumps(found)[:20]}, not an object with names and values"
        if path.name.endswith(".index.json") and (wrong := index_problem(found)):
            return path, wrong
    for path in sorted(folder.rglob("*.safetensors")):
        try:
            with safe_open(path, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            return path, one_line(error)
    return None


def index_problem(index: Mapping[str, object]) -> str:
    """What is wrong with the index of weights in several files; empty if nothing is.

    Refused are files that are no safetensors: pickles can run code when read.
    """
    files = index.get("weight_map")
    if not isinstance(files, Mapping) or not files:
        return "it has no weight_map, which says in which file a tensor is"
    for name in files.values():
        if not isinstance(name, str) or Path(name).name != name:
            return f"its weight_map names {name!r}, which is no file beside it"
        if Path(name).suffix != ".safetensors":
            return f"it leads to {name}, which may be a pickle and run code when read; safetensors are needed"
    return ""


def one_line(error: BaseException) -> str:
    """What an error says, on one line of bearable length; its kind where it says nothing."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 300 else f"{words[:297]}..."


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was raised from or while handling, and so on."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__
