"""Makes sure that countgen runs with its own ``pipelines`` and ``critics``.

The three are separate packages side by side, and the other two have common names: a project's own
folder of the same name, earlier on the path, would otherwise be imported in their place.
"""

import os.path
from importlib.util import find_spec
from typing import Final

SIBLINGS: Final = ("pipelines", "critics")


def check_siblings() -> None:
    """Raise ImportError unless the importable siblings lie in the folder that countgen lies in."""
    home = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    for name in SIBLINGS:
        expected = os.path.join(home, name, "__init__.py")
        found = _file_of(name)
        if found is None or os.path.realpath(found) != expected:
            raise ImportError(_explain(name, found, expected), name=name, path=found)


def _file_of(name: str) -> str | None:
    """The file that ``import name`` would run; for a folder without ``__init__.py``, the folder."""
    spec = find_spec(name)
    if spec is None:
        return None
    return spec.origin or next(iter(spec.submodule_search_locations or ()), None)


def _explain(name: str, found: str | None, expected: str) -> str:
    if found is None or not os.path.exists(expected):
        cure = "countgen is installed in part only: reinstall it (pip install --force-reinstall)."
    else:
        cure = (
            f"Rename or remove the {name!r} that was found, or take its folder off the front of "
            "sys.path (the folder of the script that runs, the working directory, PYTHONPATH)."
        )
    return (
        f"countgen needs the package {name!r} that is installed beside it, and finds another.\n"
        f"  found:    {found or 'nothing of that name'}\n"
        f"  expected: {expected}\n"
        f"  cure:     {cure}"
    )
