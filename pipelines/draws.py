"""What a call draws from the generators that it was given: seen once, and from then on handed out.

Whoever draws, a pipeline or its scheduler, draws with torch's own functions. A ``TorchFunctionMode`` sees
those of its own thread alone, so that nothing of the pipeline is exchanged, and other threads notice nothing.
Latents are mostly drawn before they are packed into the shape that the denoiser takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

_Supply = Callable[[int, int, Tensor], "Tensor | None"]


@dataclass(frozen=True)
class Draw:
    """One draw from a generator.

    Attributes:
        normal: from a standard normal.
        again: draws the same from another generator.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    normal: bool
    again: Callable[[torch.Generator], Tensor]

    def is_like(self, other: Draw) -> bool:
        """Whether both are noise of one shape."""
        return self.normal and other.normal and self.shape == other.shape


class Draws(TorchFunctionMode):
    """While it is active, lists what is drawn from some generators, and may put other numbers in its place.

    Attributes:
        seen: by generator, every draw in order.
    """

    def __init__(
        self, generators: Sequence[torch.Generator], supply: _Supply | None = None
    ) -> None:
        """Supply: (number of the generator, of its draw, what was drawn) -> what to take instead, or None."""
        super().__init__()
        self._generators, self._supply = list(generators), supply
        self.seen: list[list[Draw]] = [[] for _ in generators]

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        generator = kwargs.get("generator")
        if generator is None or not isinstance(result, Tensor):
            return result
        for number, own in enumerate(self._generators):
            if own is generator:
                self._note(number, func, args, kwargs, result)
        return result

    def _note(
        self, number: int, func: Any, args: Any, kwargs: dict[str, Any], drawn: Tensor
    ) -> None:
        draw = _draw(func, args, kwargs, drawn)
        if self._supply is not None:
            value = self._supply(number, len(self.seen[number]), drawn)
            if value is not None:
                drawn.copy_(value.reshape(drawn.shape))
        self.seen[number].append(draw)


def _draw(func: Any, args: Any, kwargs: Mapping[str, Any], drawn: Tensor) -> Draw:
    shape, dtype, name = tuple(drawn.shape), drawn.dtype, getattr(func, "__name__", "")
    if name in ("randn", "randn_like") or (name.startswith("normal") and _standard(args, kwargs)):
        return Draw(
            shape,
            dtype,
            True,
            lambda generator: torch.randn(shape, generator=generator, dtype=dtype),
        )
    # What is drawn in place is drawn into a copy when it is drawn again.
    given = tuple(one.clone() if isinstance(one, Tensor) else one for one in args)
    return Draw(
        shape, dtype, False, lambda generator: func(*given, **{**kwargs, "generator": generator})
    )


def _standard(args: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether a mean and a standard deviation, if they are told at all, are 0 and 1."""
    first, *others = args or (None,)
    # A tensor is that which is filled, or the means of ``torch.normal``.
    told = others if first is None or isinstance(first, Tensor) else [first, *others]
    mean = told[0] if told else 0
    std = told[1] if len(told) > 1 else 1
    told_by_name = kwargs.get("mean", mean), kwargs.get("std", std)
    return not any(isinstance(one, Tensor) for one in told_by_name) and told_by_name == (0, 1)


# -- where it stands in the picture --------------------------------------------------------------


def latents_among(draws: Sequence[Draw]) -> int | None:
    """Number of the draw that is the first noise: a batch of at least two dimensions, before any other."""
    normal = [number for number, draw in enumerate(draws) if draw.normal]
    spread = [number for number in normal if len(draws[number].shape) > 2]
    return next(iter(spread or normal), None)


def roles_of(draws: Sequence[Draw], first: int) -> tuple[int | None, ...]:
    """Of each draw: 0 for the latents, from 1 on for further noise of their shape, None for all else."""
    roles: list[int | None] = []
    steps = 0
    for number, draw in enumerate(draws):
        if number == first:
            roles.append(0)
        elif draw.is_like(draws[first]):
            roles.append(steps := steps + 1)
        else:
            roles.append(None)
    return tuple(roles)


@dataclass(frozen=True)
class Layout:
    """Where the numbers of a noise stand in the picture.

    Attributes:
        drawn: shape in which one picture's are drawn, without the batch.
        shape: (c, h, w) in which they are kept.
        places: whether h and w are those of the picture.
    """

    drawn: tuple[int, ...]
    shape: tuple[int, int, int]
    places: bool

    @property
    def rows_of_tokens(self) -> bool:
        return len(self.drawn) == 2 and self.places

    def kept(self, drawn: Tensor) -> Float[Tensor, "1 c h w"]:
        """One picture's as it is kept."""
        if self.rows_of_tokens:
            drawn = drawn.reshape(self.drawn).transpose(0, 1)
        return drawn.reshape(1, *self.shape)

    def given(self, kept: Float[Tensor, "c h w"]) -> Tensor:
        """One picture's as it is drawn."""
        if self.rows_of_tokens:
            kept = kept.flatten(1).transpose(0, 1)
        return kept.reshape(self.drawn)


def layout_of(drawn: Sequence[int], height: int, width: int) -> Layout:
    """The layout of one picture's noise of a shape, as far as shape and size of the picture tell.

    Latents are (c, h, w), with a dimension of one picture or one frame beside them, or packed into tokens,
    (h * w, c) row by row, as FLUX and Qwen-Image hold them.
    """
    shape = tuple(drawn)
    sizes = list(shape)
    while len(sizes) > 3 and 1 in sizes:
        sizes.remove(1)
    if len(sizes) == 3:
        return Layout(shape, (sizes[0], sizes[1], sizes[2]), _fits(sizes[1:], height, width))
    if len(sizes) == 2:
        tokens, channels = sizes
        columns = max(1, round(math.sqrt(tokens * width / height)))
        rows = tokens // columns
        if rows * columns == tokens and _fits((rows, columns), height, width):
            return Layout(shape, (channels, rows, columns), True)
    return Layout(shape, (1, 1, math.prod(shape)), False)


def _fits(grid: Sequence[int], height: int, width: int) -> bool:
    """Whether a grid has the picture's aspect ratio, to less than a cell."""
    rows, columns = grid
    across = rows / height * width
    return min(rows, columns) > 1 and abs(columns - across) < max(1.0, across / rows)
