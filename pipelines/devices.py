"""Devices: which there are, how much memory they have, and one error for having too little of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

DEVICES = ("cuda", "mps", "cpu")
_TOO_LITTLE = (
    "can't allocate memory",  # torch's CPU allocator on Linux and macOS
    "not enough memory",  # and on Windows
    "out of memory",  # MPS, and kernels of CUDA libraries
)
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def check_device(device: str | torch.device) -> torch.device:
    """A device that exists and is available, to be asked before anything is loaded.

    Raises:
        ValueError: misspelt, or not on this machine.
    """
    choice = f"take {', '.join(DEVICES[:-1])} or {DEVICES[-1]}"
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"there is no device {str(device)!r}; {choice}") from None
    if found.type not in DEVICES:
        raise ValueError(f"the device {str(device)!r} is not supported; {choice}")
    number = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    count = number.get(found.type, 1)
    if count == 0:
        raise ValueError(f"{found.type} is not available here; take {_best()}")
    if (found.index or 0) >= count:
        several = f"{count} devices of this kind, counted from 0" if count > 1 else "only one"
        raise ValueError(f"there is no device {str(device)!r}: this machine has {several}")
    return found


def _best() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps or cpu" if torch.backends.mps.is_available() else "cpu"


def free_bytes(device: torch.device) -> int:
    """Memory that this process can still get on a device, as far as its system tells."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + cached)
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    import psutil

    free = psutil.virtual_memory().available
    try:
        limit = int(_CGROUP_LIMIT.read_text())  # a container's; "max" where there is none
    except (OSError, ValueError):
        return int(free)
    return int(min(free, limit - psutil.Process(os.getpid()).memory_info().rss))


def readable_bytes(number: float) -> str:
    """A number of bytes in words: ``'1.5 GiB'``."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, the CPU included, has too little memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(words in text for words in _TOO_LITTLE)


@contextmanager
def out_of_memory_errors() -> Iterator[None]:
    """Whatever says that memory ran out, on any device, becomes ``torch.OutOfMemoryError``."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, torch.OutOfMemoryError) or not is_out_of_memory(error):
            raise
        raise torch.OutOfMemoryError(str(error) or "out of memory") from error
