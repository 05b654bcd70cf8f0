"""Spares imports and loading the collector of cyclic garbage.

torch, diffusers and transformers make a million objects that stay. Python searches them for garbage again
and again while they come, which takes a fifth of the time of a start, and finds nothing.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused_collector() -> Iterator[None]:
    """No search for cyclic garbage until the end; also a decorator.

    What was made inside counts as old then, so that the next search does not begin with all of it. Who has
    turned the collector off, or frozen objects of their own, finds both as they were.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():
            gc.freeze()
            gc.unfreeze()
        gc.enable()
