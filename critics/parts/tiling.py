"""Large pictures through a network of fixed input size: windows whose maps join into one that counts once.

Sliding windows are how CLIP-EBC and other density counters are published to be used (arXiv 2403.09281, 4.1),
there without gradients. Here the joined map keeps its gradient. As published, the last window of a row is
pushed back into the picture and its overlap with its neighbour is averaged, so no cell counts twice. Ours is
that a picture is first stretched by less than one cell, so that windows begin and end at cells.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from critics.parts.preprocess import resize

Counter = Callable[[Float[Tensor, "t 3 h w"], Int64[Tensor, " t"]], Float[Tensor, "t k hh ww"]]
"""Windows and the row of the batch that each is cut from, to objects per cell."""


def fit(images: Float[Tensor, "b 3 h w"], window: int, cell: int) -> Float[Tensor, "b 3 hh ww"]:
    """At least one window high and wide, and whole cells: the nearest size that has the same aspect.

    Pictures that are large enough change by less than one cell; smaller ones grow until the shorter side
    fills a window. In float32, as ``critics.parts.preprocess.resize``.
    """
    height, width = images.shape[-2:]
    scale = max(1.0, window / min(height, width))
    size = tuple(max(window, round(side * scale / cell) * cell) for side in (height, width))
    return resize(images, (size[0], size[1]))


def starts(length: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows that cover a side; the last one is pushed back into the picture.

    >>> starts(512, 224, 224)
    [0, 224, 288]
    """
    return [*range(0, length - window, stride), length - window]


def count_in_windows(
    counter: Counter,
    images: Float[Tensor, "b 3 h w"],
    window: int,
    cell: int,
    stride: int | None = None,
) -> Float[Tensor, "b k hh ww"]:
    """Objects per cell of whole pictures, from a counter of windows; differentiable.

    Args:
        counter: maps (t, 3, window, window) to (t, k, window / cell, window / cell).
        images: any size, one whole batch; sizes that do not fit go through ``fit``.
        window: side in pixels, a multiple of ``cell``.
        cell: pixels that one value of the counter's map stands for.
        stride: between windows, a multiple of ``cell`` and at most ``window``; None: windows do not overlap
            except where the last ones are pushed back.

    Raises:
        ValueError: window, cell and stride that do not go together, or a counter with maps of another size.
    """
    stride = stride or window
    if window % cell or stride % cell or not 0 < stride <= window:
        raise ValueError(
            f"a window of {window} and a stride of {stride} pixels must be multiples of the cell of {cell} "
            "pixels, and the stride no longer than the window"
        )
    images = fit(images, window, cell)
    (batch, _, height, width), side = images.shape, window // cell
    corners = [
        (y, x) for y in starts(height, window, stride) for x in starts(width, window, stride)
    ]
    windows = torch.stack([images[..., y : y + window, x : x + window] for y, x in corners], 1)
    rows = torch.arange(batch, device=images.device).repeat_interleave(len(corners))
    maps = counter(windows.flatten(0, 1), rows)
    if maps.shape[-2:] != (side, side):
        raise ValueError(
            f"the counter's maps are {tuple(maps.shape[-2:])} for windows of {window} pixels, but cells of "
            f"{cell} pixels need {(side, side)}"
        )
    maps = maps.unflatten(0, (batch, len(corners)))
    joined = maps.new_zeros(batch, maps.shape[2], height // cell, width // cell)
    cover = maps.new_zeros(height // cell, width // cell)
    for i, (y, x) in enumerate(corners):
        place = (..., slice(y // cell, y // cell + side), slice(x // cell, x // cell + side))
        joined[place] += maps[:, i]
        cover[place] += 1
    return joined / cover
