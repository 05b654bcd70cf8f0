"""What holds around every call of a critic, so that no family has to think of it.

Pictures and counts that are no numbers are refused, autocast and the default type of new tensors do not reach
the networks, and what is prepared in inference mode can take part in a backward pass later.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from critics.base import CountEstimate, Critic, NonFiniteCountError, Query, check_images

_OWN = ("critics", "jaxtyping", "beartype")
"""Packages whose frames lie between a critic's call and its caller."""
_Call = TypeVar("_Call", bound=Callable[..., Any])


@contextmanager
def own_precision(device: torch.device) -> Iterator[None]:
    """Compute in the precision of weights and pictures: without autocast, new tensors in float32."""
    before = torch.get_default_dtype()
    known = torch.amp.is_autocast_available(device.type)
    with torch.autocast(device.type, enabled=False) if known else nullcontext():
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def guarded_count(call: _Call) -> _Call:
    """Decorates a critic's ``__call__``.

    Raises:
        TypeError, ValueError: of ``critics.base.check_images``; pictures on another device than the weights.
        NonFiniteImageError: a picture that is no picture.
        NonFiniteCountError: the network answers with what is no number.
    """

    @functools.wraps(call)
    def guarded(critic: Critic, images: Tensor, queries: Sequence[Query]) -> Any:
        check_images(images, queries)
        if not queries:
            empty = images.new_zeros(0, 0, dtype=torch.float32)
            return CountEstimate(empty, empty.long(), empty.bool())
        _check_device(critic, images.device)
        with own_precision(images.device):
            found = call(critic, images, queries)
        wrong = ~found.soft.detach().isfinite().all(-1)
        if wrong.any():
            raise NonFiniteCountError(wrong.nonzero()[:, 0].tolist(), critic.card.name)
        return found

    return cast(_Call, guarded)


def guarded_prepare(prepare: _Call) -> _Call:
    """Decorates a critic's ``prepare``: outside of inference mode, without gradient."""

    @functools.wraps(prepare)
    def guarded(critic: Critic, nouns: Sequence[str]) -> Any:
        # Tensors made in inference mode could not take part in a later backward pass.
        with torch.inference_mode(False), torch.no_grad(), own_precision(device_of(critic.network)):
            return prepare(critic, nouns)

    return cast(_Call, guarded)


def warn_caller(message: str) -> None:
    """A warning that points at whoever called a critic, however many wrappers lie between."""
    level, frame = 2, sys._getframe(1).f_back
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _OWN:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def move(network: nn.Module, device: str | torch.device) -> None:
    """Move a network for good, in inference mode too."""
    with torch.inference_mode(False):
        network.to(device)


def device_of(network: nn.Module) -> torch.device:
    """Where a network's weights are; the CPU if it has none."""
    weight = next(network.parameters(), None)
    return torch.device("cpu") if weight is None else weight.device


def _check_device(critic: Critic, device: torch.device) -> None:
    place = device_of(critic.network)
    if place == device:
        return
    # accelerate's hooks bring weights to the device of the work when they are needed.
    if any(hasattr(module, "_hf_hook") for module in critic.network.modules()):
        return
    raise ValueError(
        f"{critic.card.name} is on the device {place}, but the images are on {device}; move one of them, "
        f'for example critic.to("{device}")'
    )
