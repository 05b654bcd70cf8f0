"""What of a pipeline cannot be pickled although its parts can: hooks that transformers leaves behind."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

from torch import nn

from pipelines.tokens import text_encoders

_HOOKS = "transformers.utils.output_capturing"
"""Puts hooks, functions inside functions, on a text encoder that is asked for its hidden states."""
_MARK = "_output_capturing_hooks_installed"


def picklable(pipeline: Any) -> Any:
    """A pipeline with the same weights, whose text encoders are as before transformers' first hook."""
    view = copy.copy(pipeline)
    for _, name in text_encoders(pipeline):
        view.__dict__[name] = _without_hooks(getattr(pipeline, name))
    return view


def _without_hooks(module: nn.Module) -> nn.Module:
    clone = copy.copy(module)
    clone.__dict__ = {key: value for key, value in module.__dict__.items() if key != _MARK}
    clone._modules = {
        name: None if part is None else _without_hooks(part)
        for name, part in module._modules.items()
    }
    clone._forward_hooks = OrderedDict(
        (key, hook)
        for key, hook in module._forward_hooks.items()
        if getattr(hook, "__module__", None) != _HOOKS
    )
    return clone
