"""The sharpness of a reward: by hand where it is known, and on a trained counter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from countgen.pocket import load_critic
from countgen.pocket.scenes import SceneSpec, compose
from critics.parts.sharpness import sharpness


def test_it_is_what_the_formula_gives_for_known_rewards() -> None:
    images = torch.rand(3, 3, 5, 7, generator=torch.Generator().manual_seed(0)).double()
    weights = torch.tensor([0.0, 1.0, -4.0], dtype=torch.float64)

    def linear(x: Tensor) -> Tensor:
        return weights * x.sum((1, 2, 3))

    found = sharpness(linear, images, radius=0.3)
    # Over the length of the gradient, which is the weight times the root of 105 values.
    assert found.tolist() == pytest.approx([0, 0.3 * 105**0.5, 4 * 0.3 * 105**0.5])

    def quadratic(x: Tensor) -> Tensor:
        return -(x.square().sum((1, 2, 3)))

    lengths = images.flatten(1).norm(dim=1)
    # The step leads outwards: -|x|^2 + (|x| + radius)^2.
    expected = (lengths + 0.3) ** 2 - lengths**2
    torch.testing.assert_close(sharpness(quadratic, images, radius=0.3), expected)


def test_a_faint_gradient_still_has_a_direction() -> None:
    images = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    faint = sharpness(lambda x: 1e-30 * x.sum((1, 2, 3)), images, radius=1.0)
    assert faint.item() == pytest.approx(1e-30 * 48**0.5, rel=1e-3, abs=0)
    assert sharpness(lambda x: 0 * x.sum((1, 2, 3)), images).item() == 0


def test_patterns_made_for_the_counter_are_sharper_than_scenes() -> None:
    """In the median of six: a single scene may stand on an edge of the counter, too."""
    critic = load_critic("pocket-density")
    query = critic.prepare(["cat"])
    spec = SceneSpec((("cat", 3),), "grass")
    scenes = [
        torch.from_numpy(compose(spec, seed).image).permute(2, 0, 1) / 255 for seed in range(6)
    ]
    grey = 0.5 + 0.05 * torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    forged = torch.cat([torch.stack(scenes), grey.clamp(0, 1)])

    def reward(x: Tensor) -> Tensor:
        return -(critic(x, [query] * len(x)).soft - 3).abs().sum(-1)

    for _ in range(30):
        forged.requires_grad_()
        (grad,) = torch.autograd.grad(reward(forged).sum(), forged)
        grad[:6] = 0  # the scenes stay as they are
        forged = (forged + 0.02 * grad.sign()).clamp(0, 1).detach()
    with torch.no_grad():
        assert critic(forged, [query] * 12).soft[6:].median() > 1  # it took the patterns for cats
        found = sharpness(reward, forged, radius=0.1)  # without gradient mode around it
    assert found.shape == (12,) and not found.requires_grad and torch.isfinite(found).all()
    assert found[6:].median() > 3 * found[:6].median()


def test_wrong_arguments_are_refused() -> None:
    images = torch.rand(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"one value an image, shape \(2,\), not \(\)"):
        sharpness(lambda x: x.sum(), images)
    with pytest.raises(ValueError, match="must be positive"):
        sharpness(lambda x: x.sum((1, 2, 3)), images, radius=0)
