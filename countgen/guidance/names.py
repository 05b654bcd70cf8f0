"""Names of the methods, without what they are made of: an unknown one is told before torch is loaded."""

from __future__ import annotations

import difflib
from pathlib import Path
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
    "engine-early",
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

LEARNT_NAMES: Final = {
    "screening": "screening",
    "amortised": "noise",
    "token-network": "token-network",
}
"""What makes first noises or prompts better, each with the command (countgen learn ...) that makes its file:
methods of their own (screening=FILE), or of another method (engine+screening=FILE)."""
LEARNT_SUMMARIES: Final = {
    "screening": "draw again from noises that a network picks out of many by the number they will become",
    "amortised": "draw again from noises that a network changes once, as guidance would in many steps",
    "token-network": "draw again with a count token that a network makes from noun and number",
}


def check_method_name(name: str) -> None:
    """Refuse a name that no method has.

    Raises:
        UsageError: with the nearest ones; or what is no name at all.
    """
    if not isinstance(name, str):
        raise UsageError(f"guidance is a method or its name (countgen list methods), not {name!r}")
    if name in METHOD_NAMES:
        return
    of, _, path = name.partition("=")
    base, _, kind = of.rpartition("+")
    if kind in LEARNT_NAMES and (not base or base in METHOD_NAMES):
        if not path:
            raise UsageError(
                f"{name} needs what countgen learn {LEARNT_NAMES[kind]} has written; name its file, "
                f"{of}=FILE"
            )
        if not Path(path).is_file():
            raise UsageError(f"there is no file {path} for the method {of}")
        return
    near = difflib.get_close_matches(name, (*METHOD_NAMES, *LEARNT_NAMES), n=2)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(METHOD_NAMES)}"
    raise UsageError(f"there is no method {name!r}; {hint}")
