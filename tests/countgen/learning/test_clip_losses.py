"""The counting losses against their formulas, written out in plain Python and float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from countgen.learning.clip_losses import LOSSES, Sayings, Variant, soft_sort

SCALE = 3.0


def sayings(n: int = 4, m: int = 7, d: int = 5, seed: int = 0) -> Sayings:
    draw = torch.Generator().manual_seed(seed)
    images = F.normalize(torch.randn(n, d, generator=draw, dtype=torch.float64), dim=-1)
    captions = F.normalize(torch.randn(n, m, d, generator=draw, dtype=torch.float64), dim=-1)
    numbers = torch.arange(m).expand(n, m)
    right = torch.randint(m, (n,), generator=draw)
    return Sayings(images, captions, numbers, right, torch.tensor(SCALE, dtype=torch.float64))


def value(name: Variant, given: Sayings, seed: int = 1) -> float:
    return LOSSES[name](given, torch.Generator().manual_seed(seed)).item()


def test_all_wrong_numbers_stand_in_the_denominator() -> None:
    given = sayings()
    expected = 0.0
    for row, right in zip(given.cosines.tolist(), given.right.tolist(), strict=True):
        every = [math.exp(SCALE * s) for s in row]
        expected -= math.log(every[right] / sum(every)) / 4
    assert value("all-wrong", given) == pytest.approx(expected)


def test_one_wrong_number_is_drawn_of_all_and_never_the_right_one() -> None:
    given = sayings(n=1, m=5)
    cosines, right = given.cosines[0].tolist(), int(given.right)
    possible = {
        round(math.log(1 + math.exp(SCALE * (s - cosines[right]))), 9)
        for i, s in enumerate(cosines)
        if i != right
    }
    found = {round(value("one-wrong", given, seed), 9) for seed in range(60)}
    assert found == possible


def test_the_decoupled_loss_leaves_the_right_caption_out_of_the_denominator() -> None:
    given = sayings()
    expected = 0.0
    for row, right in zip(given.cosines.tolist(), given.right.tolist(), strict=True):
        wrong = sum(math.exp(SCALE * s) for i, s in enumerate(row) if i != right)
        expected -= (SCALE * row[right] - math.log(wrong)) / 4
    assert value("decoupled", given) == pytest.approx(expected)


def test_a_soft_sort_of_values_far_apart_is_the_permutation() -> None:
    values = torch.tensor([[3.0, -1.0, 2.0, 0.0]]) * 1e12
    ranks = soft_sort(values)[0].round()
    assert ranks.tolist() == torch.eye(4)[[3, 0, 2, 1]].tolist()
    near = soft_sort(torch.randn(5, 6, dtype=torch.float64))
    for axis in (1, 2):  # rows and columns are chances
        torch.testing.assert_close(near.sum(axis), torch.ones(5, 6, dtype=torch.float64))


def test_two_captions_compare_by_the_steepened_cauchy_distribution() -> None:
    gap = 0.3
    stays = 0.5 + math.atan(gap / gap**0.25) / math.pi
    found = soft_sort(torch.tensor([[0.1, 0.1 + gap]], dtype=torch.float64))[0]
    # The second layer of two elements compares nothing.
    assert found.tolist() == [
        pytest.approx([stays, 1 - stays]),
        pytest.approx([1 - stays, stays]),
    ]


def test_group_ordering_of_two_groups_is_the_published_cross_entropy() -> None:
    """One positive and one negative, whose chances are those above."""
    images = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    captions = torch.tensor([[[0.8, 0.6], [0.6, 0.8]]], dtype=torch.float64)
    given = Sayings(
        images, captions, torch.tensor([[4, 9]]), torch.tensor([0]), torch.tensor(1.0).double()
    )
    gap = 0.2
    stays = 0.5 + math.atan(gap / gap**0.25) / math.pi
    assert value("group-ordering", given) == pytest.approx(-math.log(stays))


def test_group_ordering_wants_near_numbers_nearer_than_far_ones() -> None:
    """Of two pictures whose right caption is the likeliest by as much, the ordered one loses less."""

    def given(cosines: list[float]) -> Sayings:
        c = torch.tensor(cosines, dtype=torch.float64)
        captions = torch.stack([c, (1 - c.square()).sqrt()], -1)[None]
        images = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
        numbers = torch.arange(len(cosines))[None]
        return Sayings(images, captions, numbers, torch.tensor([2]), torch.tensor(1.0).double())

    ordered, mixed = given([-0.6, 0.2, 0.8, 0.2, -0.6]), given([0.2, -0.6, 0.8, -0.6, 0.2])
    assert value("group-ordering", ordered) < value("group-ordering", mixed)


def test_regression_mixup_is_its_formula() -> None:
    given = sayings(n=2, m=6)
    draw = torch.Generator().manual_seed(1)
    shares = torch.rand(2, 6, 9, generator=draw).sort(-1).values[..., 1].double()
    losses = []
    for k in range(2):
        image, right = given.images[k], int(given.right[k])
        exact = (given.captions[k] @ image * SCALE).tolist()
        below = sum((1 + abs(n - right)) * math.exp(s) for n, s in enumerate(exact))
        positives = [exact[right]]
        for n in range(6):
            if n != right:
                share = shares[k, n].item()
                mixed = share * image + (1 - share) * given.captions[k, n]
                weight = 1 + (1 - share) * abs(n - right)
                below += weight * math.exp(SCALE * float(mixed @ image))
        for small in range(max(0, right - 4), right):
            for large in range(right + 1, min(6, right + 5)):
                share = (large - right) / (large - small)
                mixed = share * given.captions[k, small] + (1 - share) * given.captions[k, large]
                positives.append(SCALE * float(mixed @ image))
        below += sum(map(math.exp, positives[1:]))
        losses.append(math.log(below) - sum(positives) / len(positives))
    assert value("regression-mixup", given) == pytest.approx(sum(losses) / 2)


@pytest.mark.parametrize("name", ["one-wrong", "all-wrong", "decoupled", "group-ordering"])
def test_gradients(name: Variant) -> None:
    """Not of the mixtures, which are constants of the published loss."""
    given = sayings(n=2, m=4, d=3)

    def loss(images: Tensor, captions: Tensor) -> Tensor:
        changed = Sayings(images, captions, given.numbers, given.right, given.scale)
        return LOSSES[name](changed, torch.Generator().manual_seed(0))

    inputs = (given.images.requires_grad_(), given.captions.requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("name", LOSSES)
def test_equal_captions_and_large_scales_have_finite_gradients(name: Variant) -> None:
    images = F.normalize(torch.randn(3, 4), dim=-1).requires_grad_()
    captions = images.detach()[:, None].expand(-1, 5, -1).clone().requires_grad_()
    numbers, right = torch.arange(5).expand(3, 5), torch.tensor([0, 2, 4])
    given = Sayings(images, captions, numbers, right, torch.tensor(100.0))
    LOSSES[name](given, torch.Generator().manual_seed(0)).backward()
    assert images.grad is not None and torch.isfinite(images.grad).all()


@pytest.mark.parametrize("name", LOSSES)
def test_going_down_makes_the_right_number_the_likeliest(name: Variant) -> None:
    given = sayings(n=6, m=6, d=8)
    images = given.images.clone().requires_grad_()
    captions = given.captions.clone().requires_grad_()
    optimiser = torch.optim.Adam([images, captions], 0.05)
    for step in range(120):
        now = Sayings(
            F.normalize(images, dim=-1),
            F.normalize(captions, dim=-1),
            given.numbers,
            given.right,
            given.scale,
        )
        optimiser.zero_grad()
        LOSSES[name](now, torch.Generator().manual_seed(step)).backward()
        optimiser.step()
    assert torch.equal(now.cosines.argmax(1), given.right)
