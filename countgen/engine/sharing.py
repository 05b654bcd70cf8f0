"""What several runs may share: a generator works for one of them at a time, and is left as it was."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from critics.base import Critic
from pipelines.base import ImageSource
from pipelines.devices import out_of_memory_errors

_LOCKS: weakref.WeakKeyDictionary[Any, threading.RLock] = weakref.WeakKeyDictionary()
_LOCKS_LOCK = threading.Lock()


@contextmanager
def using(adapter: ImageSource, *critics: Critic | None, gradient: bool = True) -> Iterator[None]:
    """A generator for one run alone for a while, its weights without gradient; afterwards as they were.

    Runs that take turns, and threads, each get the parts whole: hooks of new tokens, memory plans and the
    weights' flags are changed within, never across a look.

    Args:
        gradient: whether a gradient may be taken meanwhile. Without one nobody asks for the weights' flags,
            and they are left alone: going through all weights takes its time at every look.

    Raises:
        torch.OutOfMemoryError: whatever device runs out of memory meanwhile, the CPU included.
    """
    modules = adapter.modules()
    # By module, in one order for all: two adapters around one pipeline take turns as well. A function shows
    # no modules, and takes turns itself.
    shared: set[Any] = set(modules) or {adapter}
    with _LOCKS_LOCK:
        parts = sorted(shared, key=id)
        locks = [_LOCKS.setdefault(module, threading.RLock()) for module in parts]
    with ExitStack() as stack:
        for lock in locks:
            stack.enter_context(lock)
        if gradient:
            stack.enter_context(frozen(modules))
        stack.enter_context(out_of_memory_errors())
        yield


@contextmanager
def frozen(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Weights without gradient for a while; afterwards everything is as the user left it."""
    learnable = [p for module in modules for p in module.parameters() if p.requires_grad]
    for weight in learnable:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in learnable:
            weight.requires_grad_(True)
