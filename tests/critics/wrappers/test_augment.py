"""Random views inside a critic: the count stays, draws belong to images, and gradients are right."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from critic_contract import CriticContract, noise
from torch import Tensor

from countgen.pocket import ROLES, load_critic
from countgen.pocket.scenes import compose, sample_spec
from critics.base import Critic, Query
from critics.wrappers.augment import (
    AugmentedCritic,
    Strength,
    Views,
    draw_views,
    look,
    low_pass,
    place,
    recolour,
)

OFF = Strength(flip=False, shift=0, smallest=1, colour=0, blur=0, noise=0)
EACH = {
    "flip": replace(OFF, flip=True),
    "shift": replace(OFF, shift=Strength.shift),
    "smallest": replace(OFF, smallest=Strength.smallest),
    "colour": replace(OFF, colour=Strength.colour),
    "blur": replace(OFF, blur=Strength.blur),
    "noise": replace(OFF, noise=Strength.noise),
    "all": Strength(),
}


class TestAugmented(CriticContract):
    nouns = ("cat", "dog", "cup")

    @pytest.fixture(scope="class")
    def critic(self) -> Critic:
        return AugmentedCritic(load_critic("pocket-density"), views=2)


@pytest.fixture(scope="module")
def scenes() -> tuple[Tensor, list[list[str]]]:
    """60 composed scenes of up to ten objects of one to three kinds, and their nouns."""
    rng = np.random.default_rng(7)
    pictures, nouns = [], []
    while len(pictures) < 60:
        spec = sample_spec(rng)
        if spec.total <= 10:  # the small counters are not sure of smaller objects than these
            pictures.append(torch.from_numpy(compose(spec, len(pictures)).image))
            nouns.append([noun for noun, _ in spec.counts])
    return torch.stack(pictures).permute(0, 3, 1, 2).float() / 255, nouns


@pytest.mark.parametrize("name", ROLES.values())
def test_every_augmentation_keeps_the_hard_count(
    name: str, scenes: tuple[Tensor, list[list[str]]]
) -> None:
    images, nouns = scenes
    critic = load_critic(name)
    queries = [critic.prepare(kinds) for kinds in nouns]
    with torch.no_grad():
        counts = critic(images, queries).hard
        for case, strength in EACH.items():
            views = draw_views(range(60), (64, 64), strength)
            seen = look(images, views)
            changed = (seen - images).abs().amax((1, 2, 3)) > 1e-3
            assert changed.float().mean() > 0.3, case
            kept = (critic(seen, queries).hard == counts).all(-1).float().mean()
            assert kept >= 0.95, case


def test_nothing_is_changed_when_all_is_switched_off() -> None:
    images = noise(3, 3, 20, 28)
    torch.testing.assert_close(
        look(images, draw_views([1, 2, 3], (20, 28), OFF)), images, rtol=0, atol=1e-5
    )
    critic = load_critic("pocket-density")
    plain = AugmentedCritic(critic, views=3, strength=OFF)
    query = critic.prepare(["cat"])
    torch.testing.assert_close(
        plain(images, [query] * 3).soft, critic(images, [query] * 3).soft, rtol=1e-3, atol=1e-4
    )


def test_each_step_does_what_it_says() -> None:
    images = noise(1, 3, 10, 12)
    still, one = torch.zeros(1, 2, dtype=torch.int64), torch.ones(1)
    no, yes = torch.tensor([False]), torch.tensor([True])
    near = {"rtol": 0.0, "atol": 1e-5}
    torch.testing.assert_close(place(images, yes, still, one), images.flip(-1), **near)
    moved = place(images, no, torch.tensor([[2, -1]]), one)
    torch.testing.assert_close(moved[..., :-1, 2:], images[..., 1:, :-2], **near)
    # The border is the picture reflected at its edge.
    torch.testing.assert_close(moved[..., :-1, :2], images[..., 1:, :2].flip(-1), **near)
    small = place(images, no, still, torch.tensor([0.5]))
    rim = torch.cat([images[..., 0, :], images[..., -1, :], images[..., 0], images[..., -1]], -1)
    assert torch.equal(small[..., 0, 0], rim.median(-1).values)
    assert small.var((-2, -1)).sum() < images.var((-2, -1)).sum()
    # Brightness scales the mean; contrast and saturation keep the mean grey.
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]

    def grey(pictures: Tensor) -> Tensor:
        return (pictures * weights).sum(1).mean((-2, -1))

    bright = recolour(images, torch.tensor([[1.1, 1.0, 1.0]]))
    torch.testing.assert_close(bright, images * 1.1, **near)
    other = recolour(images, torch.tensor([[1.0, 0.8, 0.7]]))
    torch.testing.assert_close(grey(other), grey(images), **near)
    assert other.var() < images.var()


def test_the_low_pass_is_a_gaussian_of_each_images_own_width() -> None:
    spot = torch.zeros(2, 3, 31, 31)
    spot[:, :, 15, 15] = 1
    blurred = low_pass(spot, torch.tensor([0.0, 2.0]))
    torch.testing.assert_close(blurred[0], spot[0])
    steps = torch.arange(31.0) - 15
    variance = (blurred[1, 0].sum(0) * steps**2).sum()
    assert variance.item() == pytest.approx(4, rel=0.05)
    assert blurred[1].sum().item() == pytest.approx(3, rel=1e-5)
    flat = torch.full((1, 3, 4, 4), 0.3)  # smaller than the kernel
    torch.testing.assert_close(low_pass(flat, torch.tensor([2.0])), flat)


def test_the_gradient_of_a_view_is_right() -> None:
    images = (noise(2, 3, 6, 7).double() * 0.4 + 0.3).requires_grad_()  # away from the clamp
    views = draw_views([3, 4], (6, 7), Strength(colour=0.05, noise=0.01))
    wide = Views(*(v.double() if v.is_floating_point() else v for v in vars(views).values()))
    assert torch.autograd.gradcheck(lambda x: look(x, wide), (images,))


def test_saturated_pixels_stay_in_range_and_keep_a_gradient() -> None:
    images = torch.ones(4, 3, 16, 16, requires_grad=True)
    seen = look(images, draw_views(range(4), (16, 16), Strength(smallest=1)))
    assert seen.min() >= 0 and seen.max() <= 1
    seen.sum().backward()
    # All but those that a shift moved out of the picture.
    assert images.grad is not None and (images.grad.sum(1) > 0).float().mean() > 0.9


def test_draws_follow_the_seeds_and_nothing_else() -> None:
    critic = AugmentedCritic(load_critic("pocket-density"), views=2, seed=5)
    images = noise(3, 3, 64, 64)
    query = critic.prepare(["cat", "dog"])
    own = [replace(query, seed=i) for i in (11, 12, 13)]
    together = critic(images, own).soft
    for i in range(3):
        alone = critic(images[i : i + 1], [own[i]]).soft
        torch.testing.assert_close(alone[0], together[i], rtol=1e-4, atol=1e-5)
    turned = critic(images.flip(0), own[::-1]).soft.flip(0)
    torch.testing.assert_close(turned, together, rtol=1e-4, atol=1e-5)
    # Other seeds, of the query or of the critic, are other views: of the same picture too.
    same = critic(images[:1].expand(3, -1, -1, -1), own).soft
    assert len({round(value, 6) for value in same[:, 0].tolist()}) == 3
    critic.seed = 6
    assert not torch.allclose(critic(images, own).soft, together, atol=1e-5)
    # Global randomness is neither used nor moved.
    state = torch.get_rng_state()
    critic(images, own)
    assert torch.equal(state, torch.get_rng_state())


def test_the_views_of_an_image_differ_and_the_soft_count_is_their_mean() -> None:
    inner = load_critic("pocket-density")
    images, query = noise(1, 3, 64, 64), inner.prepare(["cat"])
    singles = [AugmentedCritic(inner, views=n)(images, [query]).soft for n in (1, 2, 3)]
    second = 2 * singles[1] - singles[0]
    third = 3 * singles[2] - 2 * singles[1]
    assert len({round(value.item(), 5) for value in (singles[0], second, third)}) == 3


@pytest.mark.parametrize("name", ["pocket-detector-a", "pocket-density"])
def test_hard_count_and_boxes_are_of_the_untouched_picture(
    name: str, scenes: tuple[Tensor, list[list[str]]]
) -> None:
    inner = load_critic(name)
    images, queries = scenes[0][:4], [inner.prepare(nouns) for nouns in scenes[1][:4]]
    plain, found = inner(images, queries), AugmentedCritic(inner, views=2)(images, queries)
    assert torch.equal(found.hard, plain.hard) and torch.equal(found.mask, plain.mask)
    assert found.density is None and not torch.equal(found.soft, plain.soft)
    assert ((found.soft - plain.soft).abs() < 0.7).all()
    assert (found.candidates is None) == (plain.candidates is None)
    if found.candidates is not None and plain.candidates is not None:
        assert torch.equal(found.candidates.boxes, plain.candidates.boxes)
        assert torch.equal(found.candidates.margins, plain.candidates.margins)


def test_the_low_pass_is_measured_in_pixels_of_the_critics_input() -> None:
    small = draw_views([1], (64, 64), Strength())
    large = draw_views([1], (64, 64), Strength(), unit=4.0)
    torch.testing.assert_close(large.blur, small.blur * 4)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="shift of the augmentations must lie between 0 and 1"):
        Strength(shift=3)
    with pytest.raises(ValueError, match="smallest of the augmentations"):
        Strength(smallest=0)
    with pytest.raises(ValueError, match="at least one view, not 0"):
        AugmentedCritic(load_critic("pocket-density"), views=0)
    assert Query(("cat",)).seed == 0
