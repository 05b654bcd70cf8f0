"""Floating-point operations of what runs in one thread, by torch's own formulas.

``torch.utils.flop_counter.FlopCounterMode`` also tracks modules, with hooks that reach every thread of the
process and disturb a backward pass that another one is in. Totals need no modules.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

_OWN = ("aten", "prim", "prims")
"""Namespaces of torch's own operators."""


class CountedFlops(TorchDispatchMode):
    """Counts what runs inside of it, backward passes included.

    Attributes:
        total: operations so far.
        foreign: names of operators that are not torch's own and have no formula, such as quantised ones.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0.0
        self.foreign: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = flop_registry.get(func._overloadpacket)
        if formula is None and func is not torch.ops.prim.device.default:
            # What has no formula may be made of what has.
            with self:
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        out = func(*args, **kwargs)
        if formula is None and func.namespace not in _OWN:
            self.foreign.add(f"{func.namespace}::{func._opname}")
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=out)
        return out
