"""Loading leaves the process as it was: its random numbers and the type of new tensors."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch


@contextmanager
def global_settings_kept() -> Iterator[None]:
    """A context, and a decorator, for loading.

    Networks are filled with random numbers before their weights are read. Inside, they are made in float32
    whatever the default type, outside of inference mode (whose tensors could not take part in a backward
    pass), and on the CPU whatever the default device.
    """
    default, python, numpy = torch.get_default_dtype(), random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    elsewhere = torch.get_default_device().type != "cpu"
    place = torch.device("cpu") if elsewhere else nullcontext()
    with torch.random.fork_rng(list(devices)), torch.inference_mode(False), place:
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(default)
            random.setstate(python)
            np.random.set_state(numpy)
