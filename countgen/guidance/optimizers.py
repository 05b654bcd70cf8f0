"""How a step is made of a gradient, for every picture on its own.

States are rows like the variables': tensors whose first dimension is the picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from countgen.errors import UsageError
from countgen.guidance.base import Rows, per_row, row_norms

_TINY = 1e-20


@dataclass(frozen=True)
class Polyak:
    """Loss over gradient norm along the gradient (Polyak's step for a least value of 0), with momentum.

    Attributes:
        step_size: greatest length of a step before momentum, as a share of the rows' norm; of the norm that a
            Gaussian noise of their size has, where they are all zero.
        momentum: of the steps.
    """

    step_size: float = 0.05
    momentum: float = 0.7

    def __post_init__(self) -> None:
        _check_step("step_size", self.step_size)
        _check_shares("momentum", self.momentum)

    def init(self, rows: Rows) -> Rows:
        return {f"velocity.{name}": torch.zeros_like(tensor) for name, tensor in rows.items()}

    def update(
        self, grads: Rows, state: Rows, rows: Rows, loss: Float[Tensor, " b"]
    ) -> tuple[Rows, Rows]:
        length, radius = row_norms(grads).clamp_min(_TINY), _radius(rows)
        reach = torch.minimum(self.step_size * radius, loss.abs() / length)
        moved, kept = {}, {}
        for name, tensor in rows.items():
            unit = grads[name] / per_row(length, tensor)
            velocity = self.momentum * state[f"velocity.{name}"] + unit * per_row(reach, tensor)
            moved[name], kept[f"velocity.{name}"] = tensor - velocity, velocity
        return moved, kept


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent as ``torch.optim.SGD`` has it, per picture, clipped before the step.

    Attributes:
        clip: greatest norm of a picture's gradient, as ``clip_grad_norm_`` cuts it; None leaves it.
    """

    lr: float
    momentum: float = 0.0
    nesterov: bool = False
    clip: float | None = None

    def __post_init__(self) -> None:
        _check_step("lr", self.lr)
        _check_shares("momentum", self.momentum)
        if self.clip is not None:
            _check_step("clip", self.clip)

    def init(self, rows: Rows) -> Rows:
        return {f"velocity.{name}": torch.zeros_like(tensor) for name, tensor in rows.items()}

    def update(
        self, grads: Rows, state: Rows, rows: Rows, loss: Float[Tensor, " b"]
    ) -> tuple[Rows, Rows]:
        grads = clipped(grads, self.clip)
        moved, kept = {}, {}
        for name, tensor in rows.items():
            velocity = self.momentum * state[f"velocity.{name}"] + grads[name]
            step = grads[name] + self.momentum * velocity if self.nesterov else velocity
            moved[name], kept[f"velocity.{name}"] = tensor - self.lr * step, velocity
        return moved, kept


@dataclass(frozen=True)
class Adam:
    """Adam as ``torch.optim.AdamW`` has it (decoupled weight decay), per picture, clipped before the step."""

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float | None = None

    def __post_init__(self) -> None:
        _check_step("lr", self.lr)
        _check_step("eps", self.eps)
        _check_shares("betas", *self.betas)
        _check_shares("weight_decay", self.weight_decay)
        if self.clip is not None:
            _check_step("clip", self.clip)

    def init(self, rows: Rows) -> Rows:
        state: Rows = {}
        for name, tensor in rows.items():
            state[f"mean.{name}"] = torch.zeros_like(tensor)
            state[f"square.{name}"] = torch.zeros_like(tensor)
        first = next(iter(rows.values()))
        return state | {"steps": torch.zeros(len(first), dtype=torch.float64, device=first.device)}

    def update(
        self, grads: Rows, state: Rows, rows: Rows, loss: Float[Tensor, " b"]
    ) -> tuple[Rows, Rows]:
        grads, (first, second) = clipped(grads, self.clip), self.betas
        steps = state["steps"] + 1
        moved: Rows = {}
        kept: Rows = {"steps": steps}
        for name, tensor in rows.items():
            grad = grads[name]
            mean = first * state[f"mean.{name}"] + (1 - first) * grad
            square = second * state[f"square.{name}"] + (1 - second) * grad.square()
            unbiased = square.sqrt() / per_row((1 - second**steps).sqrt(), tensor) + self.eps
            step = mean / per_row(1 - first**steps, tensor) / unbiased
            moved[name] = tensor * (1 - self.lr * self.weight_decay) - self.lr * step
            kept[f"mean.{name}"], kept[f"square.{name}"] = mean, square
        return moved, kept


def clipped(grads: Rows, most: float | None) -> Rows:
    """Each picture's gradient, shortened to at most this norm."""
    if most is None:
        return grads
    # The same small number that torch adds.
    factor = (most / (row_norms(grads) + 1e-6)).clamp_max(1)
    return {name: grad * per_row(factor, grad) for name, grad in grads.items()}


def _radius(rows: Rows) -> Float[Tensor, " b"]:
    entries = sum(tensor[0].numel() for tensor in rows.values())
    norms = row_norms(rows)
    return torch.where(norms > 0, norms, entries**0.5)


def _check_step(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise UsageError(f"{name} of an optimizer must be positive and finite, not {value}")


def _check_shares(name: str, *values: float) -> None:
    if not all(0 <= value < 1 for value in values):
        told = ", ".join(map(str, values))
        raise UsageError(f"{name} of an optimizer must lie in [0, 1), not {told}")
