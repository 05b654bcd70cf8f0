"""The folder of a training: what was asked for, so that a resumed one cannot go on with another thing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from countgen.errors import UsageError
from countgen.files import write

SETTINGS = "training.json"
WORK = "work"
"""Folder beside the result for checkpoints, logs and samples."""


def claim(out: Path, settings: Mapping[str, Any]) -> Path:
    """Note the settings of a training in its folder, or compare them with those noted; its work folder.

    Raises:
        UsageError: the folder holds something else, or a training with other settings; nothing is changed.
        OSError: the folder cannot be written to.
    """
    asked = json.loads(json.dumps(settings))
    path = out / SETTINGS
    if path.is_file():
        try:
            noted = json.loads(path.read_text(encoding="utf-8"))["settings"]
        except (ValueError, KeyError, TypeError):
            raise UsageError(
                f"{path} is damaged; take another folder, or remove this one"
            ) from None
        now, was = _flat(asked), _flat(noted)
        other = [key for key in now | was if now.get(key) != was.get(key)]
        if other:
            told = ", ".join(f"{key} {was.get(key)}, now {now.get(key)}" for key in other)
            raise UsageError(
                f"{out} holds a training with other settings ({told}); take another folder, or the "
                "settings of before"
            )
    elif out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UsageError(f"{out} is not empty, and holds no training; take another folder")
    work = out / WORK
    work.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        note(out, settings, {})
    return work


def note(out: Path, settings: Mapping[str, Any], results: Mapping[str, Any]) -> None:
    """Write the settings of a training and what came of it."""
    document = {"settings": dict(settings), "results": dict(results)}
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    write(out / SETTINGS, text.encode(), replace=True)


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by name, those of the loop beside the others."""
    result: dict[str, Any] = {}
    for key, value in settings.items():
        result |= value if isinstance(value, dict) else {key: value}
    return result
