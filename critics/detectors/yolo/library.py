"""ultralytics itself: found, imported without its words and files, and named in messages.

It is licensed under AGPL-3.0. The files of this folder alone import it, and only when a critic is loaded or
saved.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch

from critics.loading.checkpoint import CheckpointError
from critics.loading.problems import one_line

TESTED = (8, 4, 190)
UPDATE = f"`pip install -U 'ultralytics>={'.'.join(map(str, TESTED))}'`"


def ultralytics_tasks() -> Any:
    """The module of ultralytics that has the model classes.

    Raises:
        CheckpointError: it is not installed, or cannot be imported.
    """
    try:
        with _quiet_import():
            from ultralytics.nn import tasks
    except ImportError as error:
        raise CheckpointError(
            "YOLO critics need ultralytics, the extra yolo, which is licensed under AGPL-3.0 and not part of "
            f'countgen: if you accept its terms, run `pip install "countgen[yolo]"` ({one_line(error)})'
        ) from error
    return tasks


def version() -> str:
    from ultralytics import __version__

    return str(__version__)


@contextmanager
def _quiet_import() -> Iterator[None]:
    """The first import leaves nothing behind but the modules.

    On its own it greets on stdout, where it goes on logging, writes a file of settings for those who have
    none, and changes how tensors are printed and what other libraries read in the environment.
    """
    if "ultralytics" in sys.modules:
        yield
        return
    environment, printing = dict(os.environ), torch._tensor_str.PRINT_OPTS
    torch_printing = {key: getattr(printing, key) for key in _TORCH_PRINTING}
    numpy_printing = np.get_printoptions()
    with ExitStack() as stack:
        # Its log handler keeps the stream that it finds.
        stack.enter_context(redirect_stdout(sys.stderr))
        if not _has_settings():
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            os.environ["YOLO_CONFIG_DIR"] = folder
        threshold = logging.root.manager.disable
        logging.disable(max(threshold, logging.INFO))
        try:
            yield
        finally:
            logging.disable(threshold)
            os.environ.clear()
            os.environ.update(environment)
            torch.set_printoptions(**torch_printing)
            np.set_printoptions(**numpy_printing)


_TORCH_PRINTING = ("precision", "threshold", "edgeitems", "linewidth", "sci_mode")


def _has_settings() -> bool:
    """Whether the user has used ultralytics, so that its own settings are there to be read."""
    home = Path.home()
    places = [
        os.environ.get("YOLO_CONFIG_DIR"),
        os.environ.get("XDG_CONFIG_HOME", home / ".config"),
        home / "AppData" / "Roaming",
        home / "Library" / "Application Support",
    ]
    return any(place and Path(place, "Ultralytics", "settings.json").is_file() for place in places)
