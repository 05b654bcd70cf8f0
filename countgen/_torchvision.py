"""Keeps a torchvision that cannot be imported from breaking diffusers and transformers.

countgen does not use torchvision, but transformers imports it whenever it is installed. A
torchvision built for CUDA beside a CPU build of torch (what ``pip install ultralytics`` brings to
such a machine) fails on import, "operator torchvision::nms does not exist", and takes every model
class of transformers and diffusers down with it. Such a torchvision counts as not installed.

The command line hides it for good: its process is its own. The library hides it while it loads models, so
that ``sys.modules`` is afterwards as it was; ``import countgen`` changes nothing.
"""

import os.path
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec


def hide_unloadable_torchvision() -> None:
    """Make ``import torchvision`` report a missing module if it is built for CUDA and torch is not.

    Reads the version files instead of importing either package, and so costs next to nothing. What
    transformers and diffusers, if they are imported already, have found out about torchvision is found out
    anew.
    """
    if "torchvision" in sys.modules:
        return
    torchvision_is_for_cuda = re.search(r"^__version__ = '[^']*\+cu", _version("torchvision"), re.M)
    torch_is_without_cuda = re.search(r"^cuda: [^=]*= None$", _version("torch"), re.M)
    if torchvision_is_for_cuda and torch_is_without_cuda:
        sys.modules["torchvision"] = None  # type: ignore[assignment]
        _forget_availability()


@contextmanager
def hidden_torchvision() -> Iterator[None]:
    """The same for a while, for whoever loads models in another's process; also a decorator."""
    hidden_before = "torchvision" in sys.modules
    hide_unloadable_torchvision()
    try:
        yield
    finally:
        if not hidden_before and sys.modules.get("torchvision", sys) is None:
            transformers = sys.modules.get("transformers.utils.import_utils")
            if transformers is not None:
                # What it has found out once, it does not ask again.
                transformers.is_torchvision_available()
            del sys.modules["torchvision"]


def _forget_availability() -> None:
    transformers = sys.modules.get("transformers.utils.import_utils")
    for name, test in vars(transformers).items() if transformers else ():
        if name.startswith("is_torchvision") and hasattr(test, "cache_clear"):
            test.cache_clear()
    diffusers = sys.modules.get("diffusers.utils.import_utils")
    if diffusers is not None:
        diffusers._torchvision_available = False  # type: ignore[attr-defined]


def _version(package: str) -> str:
    """The text of ``package/version.py``, empty where there is none."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return ""
    path = os.path.join(os.path.dirname(spec.origin), "version.py")
    if not os.path.isfile(path):
        return ""
    with open(path, encoding="utf-8") as file:
        return file.read()
