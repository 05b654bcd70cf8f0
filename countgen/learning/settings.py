"""What trainings check first: that settings in the folder are the same, and a critic that gives boxes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from countgen.errors import UsageError
from countgen.files import write


def keep_settings(folder: Path, name: str, settings: Mapping[str, Any]) -> None:
    """Write ``name``.json into a folder, or check that it says the same; made if it does not exist.

    Raises:
        UsageError: the folder is of a training with other settings; its checkpoints stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    asked = json.loads(json.dumps(settings))
    if not path.exists():
        write(path, (json.dumps(asked, indent=2) + "\n").encode())
        return
    try:
        stored = _flat(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(f"{path} cannot be read ({error}); take another folder") from None
    wanted = _flat(asked)
    other = [key for key in wanted | stored if stored.get(key) != wanted.get(key)]
    if other:
        was = ", ".join(f"{key} {stored.get(key)}, now {wanted.get(key)}" for key in sorted(other))
        raise UsageError(
            f"{folder} is of a training with other settings ({was}); take another folder, or the settings "
            "of before"
        )


def check_boxes(critic: str, gives: str, purpose: str) -> None:
    """Refuse a critic that cannot say where objects are.

    Args:
        critic: its name.
        gives: what it gives, as ``Critic.gives``.
        purpose: what its boxes are for, in a clause.

    Raises:
        UsageError: it gives no boxes.
    """
    if gives != "candidates":
        raise UsageError(f"{purpose}, and {critic} gives none; take a detector as the critic")


def _flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{above}{key}.")
        else:
            found[above + key] = value
    return found
