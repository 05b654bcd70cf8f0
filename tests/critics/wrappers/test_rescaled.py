"""Static and detector-rescaled factors, around the trained pocket counters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from counting_scenes import NOUNS, draw
from critic_contract import CriticContract, noise

from countgen.pocket import load_critic
from critics.base import UnknownNounError
from critics.wrappers.ensemble import Ensemble
from critics.wrappers.rescaled import RescaledCritic


@pytest.fixture(scope="module")
def density() -> Any:
    return load_critic("pocket-density")


@pytest.fixture(scope="module")
def detector() -> Any:
    return load_critic("pocket-detector-a")


class TestStatic(CriticContract):
    nouns = ("red apple", "dog", "cat")

    @pytest.fixture(scope="module")
    @classmethod
    def critic(cls, density: Any) -> Any:
        return RescaledCritic(density, 70 / 60)

    def test_counts_and_map_are_divided_by_the_factor(self, critic: Any, density: Any) -> None:
        images, nouns = noise(2, 3, 64, 64), ["dog", "cat"]
        mine, raw = (each(images, [each.prepare(nouns)] * 2) for each in (critic, density))
        torch.testing.assert_close(mine.soft, raw.soft * 6 / 7)
        torch.testing.assert_close(mine.density.sum((2, 3)), mine.soft)
        assert critic.card.family == density.card.family


class TestDynamic(CriticContract):
    nouns = ("red apple", "dog", "cat")

    @pytest.fixture(scope="module")
    @classmethod
    def critic(cls, density: Any, detector: Any) -> Any:
        return RescaledCritic(density, detector=detector)

    def test_the_value_is_the_detectors_and_the_gradient_the_density_critics(
        self, critic: Any, density: Any, detector: Any
    ) -> None:
        scenes = draw(6, seed=3)
        images = scenes.images.requires_grad_()
        nouns = [[NOUNS[i]] for i in scenes.nouns]
        found = critic(images, [critic.prepare(n) for n in nouns])
        raw = density(images, [density.prepare(n) for n in nouns])
        seen = detector(images, [detector.prepare(n) for n in nouns]).hard
        assert (seen[:, 0] > 0).sum() >= 4 and torch.equal(found.hard[seen > 0], seen[seen > 0])
        torch.testing.assert_close(found.soft[seen > 0], seen[seen > 0].float())
        torch.testing.assert_close(found.density.sum((2, 3)), found.soft)
        (mine,) = torch.autograd.grad(found.soft.sum(), images)
        grads = torch.autograd.grad(raw.soft.sum(), images)[0]
        scale = torch.where(seen > 0, seen / raw.soft.detach(), 1.0)
        # The factor has no gradient: the density critic's gradient, scaled.
        torch.testing.assert_close(mine, grads * scale[..., None, None], rtol=1e-4, atol=1e-6)

    def test_without_detections_the_static_factor_keeps_a_gradient(
        self, density: Any, detector: Any
    ) -> None:
        critic = RescaledCritic(density, 2.0, detector)
        images = torch.full((1, 3, 64, 64), 0.5, requires_grad=True)
        query = critic.prepare(["dog"])
        assert detector(images, [detector.prepare(["dog"])]).hard.item() == 0
        found = critic(images, [query])
        raw = density(images, [density.prepare(["dog"])]).soft
        torch.testing.assert_close(found.soft, raw / 2)
        (grad,) = torch.autograd.grad(found.soft.sum(), images)
        assert torch.isfinite(grad).all() and grad.abs().sum() > 0

    def test_the_card_is_of_both_families(self, critic: Any, density: Any, detector: Any) -> None:
        """The number is the detector's, the gradient is not: neither family may verify the other."""
        families = density.card.families | detector.card.families
        assert critic.card.families == families and len(families) == 2
        for inner in (density, detector):
            with pytest.raises(ValueError, match="both of the family"):
                Ensemble([critic, inner])
        assert critic.card.name == "pocket-density-by-pocket-detector-a"
        assert "dog" in critic.card.vocabulary

    def test_a_noun_that_either_critic_does_not_know_is_refused(self, critic: Any) -> None:
        with pytest.raises(UnknownNounError, match="cannot see 'zeppelin'"):
            critic.prepare(["zeppelin"])


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_factors_that_cannot_divide_are_refused(density: Any, factor: float) -> None:
    with pytest.raises(ValueError, match="positive and finite"):
        RescaledCritic(density, factor)
