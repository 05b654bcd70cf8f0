"""Names of the methods, without what they are made of: an unknown one is told before torch is loaded."""

from __future__ import annotations

import difflib
from typing import Final

from countgen.errors import UsageError

METHOD_NAMES: Final = (
    "none",
    "best-of-n",
    "noise",
    "noise-soft",
    "noise-scaled",
    "edit",
    "engine",
    "reno",
    "d2d",
    "count-token",
    "initno",
    "counting-guidance",
    "prompt-steering",
    "prompt-steering-feedback",
    "hill-climbing",
    "trs",
    "zeno",
)


def check_method_name(name: str) -> None:
    """Refuse a name that no method has.

    Raises:
        UsageError: with the nearest ones.
    """
    if name in METHOD_NAMES:
        return
    near = difflib.get_close_matches(name, METHOD_NAMES, n=2)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(METHOD_NAMES)}"
    raise UsageError(f"there is no method {name!r}; {hint}")
