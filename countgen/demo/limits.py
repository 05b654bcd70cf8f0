"""What one visitor may ask of the page, checked on the server whatever the browser or a client sends."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from countgen.errors import UsageError


@dataclass(frozen=True)
class Limits:
    """Bounds of every request; the defaults suit a public page on one device."""

    prompt: int = 500
    """Most letters of a prompt."""
    count: int = 50
    """Most objects of one kind that may be asked for."""
    pictures: int = 6
    """Most pictures of one prompt."""
    budget: float = 256.0
    """Most plain renders that one picture may cost."""
    steps: int = 50
    """Most sampling steps."""
    side: int = 1024
    """Longest side of a drawn picture, in pixels."""
    methods: int = 4
    """Most methods in one comparison."""
    batch: int = 50
    """Most prompts that are drawn of one list."""
    upload: int = 10_000_000
    """Most bytes of an uploaded file."""
    pixels: int = 16_000_000
    """Most pixels of an uploaded picture, read from its header before it is decoded."""
    seconds: float = 300.0
    """After which a run is stopped, and the nearest picture so far kept, so that others have their turn."""
    queue: int = 32
    """Most visitors who wait for the device."""

    def checked(self) -> Limits:
        """These limits, if a page can be served within them.

        Raises:
            UsageError: one below its least.
        """
        for one in fields(self):
            value, least = getattr(self, one.name), 0 if one.name in ("budget", "queue") else 1
            if not value >= least:
                raise UsageError(f"the limit {one.name} must be at least {least}, not {value}")
        return self


LEAST_SIDE = 32
MAX_SEED = 2**53 - 1
"""Largest whole number that a browser holds exactly."""


def text(value: Any, name: str, most: int, required: bool = True) -> str:
    """A text of at most so many letters, in one line.

    Raises:
        UsageError: no text, too long, or nothing where something is required.
    """
    value = "" if value is None else value
    if not isinstance(value, str):
        raise UsageError(f"{name} must be a text, not {_kind(value)}")
    if len(value) > most:
        raise UsageError(f"{name} has {len(value):,} letters, and {most} are allowed; shorten it")
    if any(0xD800 <= ord(sign) <= 0xDFFF for sign in value):
        raise UsageError(f"{name} is not valid text; write it in UTF-8")
    line = " ".join("".join(s if unicodedata.category(s) != "Cc" else " " for s in value).split())
    if required and not line:
        raise UsageError(f"{name} is empty; fill it in")
    return line


def number(value: Any, name: str, low: float, high: float, default: float | None = None) -> float:
    """A number from ``low`` to ``high``; nothing is the default, if there is one.

    Raises:
        UsageError: no number, or out of range.
    """
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{name} must be a number from {low:g} to {high:,.0f}, not {_kind(value)}")
    if not low <= value <= high:  # what is no number is out of every range
        raise UsageError(f"{name} must be from {low:g} to {high:,.0f}, not {_shown(value)}")
    return float(value) if isinstance(value, float) else value


def whole(value: Any, name: str, low: int, high: int, default: int | None = None) -> int:
    """A whole number from ``low`` to ``high``; nothing is the default, if there is one.

    Raises:
        UsageError: no whole number, or out of range.
    """
    found = number(value, name, low, high, default)
    if found != int(found):
        raise UsageError(f"{name} must be a whole number, not {found:g}")
    return int(found)


def choice(value: Any, name: str, choices: Sequence[str], default: str | None = None) -> str:
    """One of the choices; nothing is the default, if there is one.

    Raises:
        UsageError: another one.
    """
    if value in (None, "") and default is not None:
        return default
    if not isinstance(value, str) or value not in choices:
        raise UsageError(f"{name} must be one of {', '.join(choices)}, not {_shown(value)}")
    return value


def several(value: Any, name: str, choices: Sequence[str], most: int) -> tuple[str, ...]:
    """Some of the choices, in the order of ``choices``.

    Raises:
        UsageError: none, too many, or others.
    """
    if not isinstance(value, list | tuple) or not value:
        raise UsageError(f"choose at least one of {name}: {', '.join(choices)}")
    chosen = {choice(one, name, choices) for one in value}
    if len(chosen) > most:
        raise UsageError(f"choose at most {most} of {name}, not {len(chosen)}")
    return tuple(one for one in choices if one in chosen)


def uploaded(value: Any, name: str, most: int) -> tuple[Path, str]:
    """The file behind an upload, whose path the page's server has checked, and the name that it came with.

    Raises:
        UsageError: nothing, no file, or too large a one.
    """
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if isinstance(value, str):
        value = {"path": value}
    if value is None or (isinstance(value, Mapping) and not value.get("path")):
        raise UsageError(f"{name} is missing; choose a file")
    if not isinstance(value, Mapping) or not isinstance(value["path"], str):
        raise UsageError(f"{name} must be one file, not {_kind(value)}")
    path = Path(value["path"])
    original = value.get("orig_name")
    shown = Path(original if isinstance(original, str) and original else path.name).name
    if not path.is_file():
        raise UsageError(f"{name} is not there any more; choose the file again")
    size = path.stat().st_size
    if size > most:
        raise UsageError(
            f"{shown[:60]} has {size / 1e6:.1f} MB, and {most / 1e6:.0f} MB are allowed; take a smaller file"
        )
    if not size:
        raise UsageError(f"{shown[:60]} is empty; choose another file")
    return path, shown


def _kind(value: Any) -> str:
    kinds = {
        dict: "an object",
        list: "a list",
        bool: "yes or no",
        str: "a text",
        type(None): "nothing",
    }
    return kinds.get(type(value), f"a {type(value).__name__}")


def _shown(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return "a number without bound" if not math.isnan(value) else "what is no number"
    if isinstance(value, int) and abs(value) >= 10**15:
        return f"about 10**{len(str(abs(value))) - 1}" if abs(value) < 10**300 else "one so large"
    said = repr(value)
    return said if len(said) <= 40 else said[:37] + "..."
