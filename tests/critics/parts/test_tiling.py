"""Windows count a picture once, whatever its size, and so do their gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from critics.parts.tiling import count_in_windows, fit, starts

WINDOW, CELL = 32, 8


def mass(windows: Tensor, rows: Tensor) -> Tensor:
    """A counter whose truth is known: the red of a cell's pixels."""
    return F.avg_pool2d(windows[:, :1], CELL) * CELL**2


@settings(max_examples=25, deadline=None)
@given(
    st.integers(4, 15).map(lambda n: n * CELL),
    st.integers(4, 15).map(lambda n: n * CELL),
    st.sampled_from([None, 8, 16, 24]),
)
def test_tile_counts_of_a_known_density_add_up_to_the_whole(
    height: int, width: int, stride: int | None
) -> None:
    images = torch.rand(2, 3, height, width, dtype=torch.float32).requires_grad_()
    joined = count_in_windows(mass, images, WINDOW, CELL, stride)
    torch.testing.assert_close(joined, mass(images, torch.arange(2)))
    torch.testing.assert_close(joined.sum((1, 2, 3)), images[:, 0].sum((1, 2)))
    (grad,) = torch.autograd.grad(joined.sum(), images)
    torch.testing.assert_close(grad[:, 0], torch.ones_like(grad[:, 0]))  # no pixel counts twice


def test_a_plain_sum_of_the_windows_would_count_the_pushed_back_ones_twice() -> None:
    images = torch.ones(1, 3, 40, 40)
    windows = [images[..., y : y + 32, x : x + 32] for y in starts(40, 32, 32) for x in (0, 8)]
    assert sum(window[:, 0].sum() for window in windows) == 4 * 32**2
    assert count_in_windows(mass, images, WINDOW, CELL).sum() == 40**2


@pytest.mark.parametrize("size", [(20, 20), (33, 61), (50, 200), (100, 37), (512, 384)])
def test_other_sizes_are_stretched_by_less_than_a_cell_or_up_to_a_window(
    size: tuple[int, int],
) -> None:
    images = torch.rand(1, 3, *size)
    fitted = fit(images, WINDOW, CELL)
    scale = max(1.0, WINDOW / min(size))
    for side, was in zip(fitted.shape[-2:], size, strict=True):
        assert side % CELL == 0 and side >= WINDOW and abs(side - was * scale) <= CELL / 2
    joined = count_in_windows(mass, images, WINDOW, CELL)
    torch.testing.assert_close(joined.sum(), fitted[:, 0].sum())


def test_the_counter_is_told_which_picture_a_window_is_of() -> None:
    images = torch.zeros(3, 3, 64, 40)
    joined = count_in_windows(
        lambda windows, rows: mass(windows, rows) + rows[:, None, None, None].float(),
        images,
        WINDOW,
        CELL,
    )
    assert joined.shape == (3, 1, 8, 5)
    assert [joined[i].unique().tolist() for i in range(3)] == [[0.0], [1.0], [2.0]]


def test_sizes_that_do_not_go_together_are_refused() -> None:
    images = torch.zeros(1, 3, 64, 64)
    for window, cell, stride in ((30, 8, None), (32, 8, 12), (32, 8, 40)):
        with pytest.raises(ValueError, match="multiples of the cell"):
            count_in_windows(mass, images, window, cell, stride)
    with pytest.raises(ValueError, match="the counter's maps are"):
        count_in_windows(lambda w, r: w, images, 32, 8)
