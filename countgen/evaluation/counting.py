"""The counting metrics as ``torchmetrics.Metric``s, for training loops and runs of several processes.

Functions do the work, and the classes only keep sums, so that they add up over processes.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from countgen._torchvision import hide_unloadable_torchvision, without_hidden_torchvision

hide_unloadable_torchvision()
with without_hidden_torchvision():
    from torchmetrics import Metric


def count_sums(
    found: Int[Tensor, "b k"], wanted: Int[Tensor, "b k"], mask: Bool[Tensor, "b k"] | None = None
) -> Float[Tensor, " 7"]:
    """Pictures, exact ones, nouns, nouns within one, and sums of error, of |error| and of its square.

    Args:
        mask: False for nouns that a picture does not have; all of them if None.
    """
    real = torch.ones_like(wanted, dtype=torch.bool) if mask is None else mask
    error = torch.where(real, found - wanted, 0).double()
    parts = (
        real.any(-1),
        (error == 0).all(-1) & real.any(-1),
        real,
        real & (error.abs() <= 1),
        error,
        error.abs(),
        error**2,
    )
    return torch.stack([part.sum().double() for part in parts])


def _check(found: Tensor, wanted: Tensor) -> None:
    if found.shape != wanted.shape or found.ndim != 2:
        raise ValueError(
            f"counts {tuple(found.shape)} and wanted ones {tuple(wanted.shape)} must have one shape, (b, k)"
        )


class CountError(Metric):
    """Exact and within-one shares, mean absolute error, root mean square error and signed bias.

    ``update(found, wanted, mask=None)`` takes integers (b, k), ``compute`` gives
    ``{"exact", "within_one", "mae", "rmse", "bias"}``. "exact" is a share of pictures, all nouns right; the
    others are over nouns, errors in objects, bias positive where too many are found. Without any
    picture they are no numbers.
    """

    is_differentiable = False
    full_state_update = False
    sums: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("sums", torch.zeros(7, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, found: Tensor, wanted: Tensor, mask: Tensor | None = None) -> None:
        """Add a batch."""
        _check(found, wanted)
        self.sums += count_sums(found, wanted, mask).to(self.sums)

    def compute(self) -> dict[str, Tensor]:
        """The figures of all batches, of all processes."""
        pictures, exact, nouns, near, error, absolute, square = self.sums
        return {
            "exact": exact / pictures,
            "within_one": near / nouns,
            "mae": absolute / nouns,
            "rmse": (square / nouns).sqrt(),
            "bias": error / nouns,
        }


class CountConfusion(Metric):
    """How often each number was found where each was wanted.

    ``update(found, wanted, mask=None)`` takes integers (b, k), ``compute`` gives (most + 1, most + 1):
    row = wanted, column = found; what is above ``most`` counts as ``most``.

    Args:
        most: the largest number with a row of its own.
    """

    is_differentiable = False
    full_state_update = False
    table: Tensor

    def __init__(self, most: int = 20, **options: Any) -> None:
        super().__init__(**options)
        if most < 1:
            raise ValueError(f"the largest number must be at least 1, not {most}")
        self.most = most
        side = most + 1
        self.add_state("table", torch.zeros(side, side, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, found: Tensor, wanted: Tensor, mask: Tensor | None = None) -> None:
        """Add a batch."""
        _check(found, wanted)
        real = torch.ones_like(wanted, dtype=torch.bool) if mask is None else mask
        side = self.most + 1
        rows, columns = (x[real].clamp(0, self.most).long() for x in (wanted, found))
        counts = torch.bincount(rows * side + columns, minlength=side * side)
        self.table += counts.view(side, side).to(self.table)

    def compute(self) -> Tensor:
        """The table of all batches, of all processes."""
        return self.table
