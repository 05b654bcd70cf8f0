"""Ensembles: means for guidance, common counts for reporting, and doubt where the members differ."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from critic_contract import CriticContract
from torch import Tensor

from countgen import CountGuidedPipeline
from countgen.errors import UsageError
from countgen.pocket import load_adapter, load_critic
from countgen.pocket.scenes import SceneSpec, compose
from critics.base import Critic, UnknownNounError
from critics.detectors.base import DetectionCritic
from critics.wrappers.augment import AugmentedCritic
from critics.wrappers.ensemble import Ensemble

NAMES = ("pocket-detector-a", "pocket-density", "pocket-detector-b")


def scene(*counts: tuple[str, int], seed: int = 0) -> Tensor:
    """(1, 3, 64, 64) composed scene in [0, 1]."""
    image = compose(SceneSpec(counts, "grass"), seed).image
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255


class TestEnsemble(CriticContract):
    nouns = ("cat", "dog", "cup")

    @pytest.fixture(scope="class")
    def critic(self) -> Critic:
        return Ensemble([load_critic("pocket-density"), load_critic("pocket-detector-a")])


def deaf(limit: float) -> DetectionCritic:
    """Detector A with another threshold: it then counts otherwise than the rest."""
    detector = load_critic("pocket-detector-a")
    assert isinstance(detector, DetectionCritic)
    return detector.with_settings(threshold=limit)


def test_the_soft_count_and_its_gradient_are_the_means_of_the_members() -> None:
    members = [load_critic(name) for name in NAMES]
    ensemble = Ensemble(members)
    nouns = ["dog", "cup"]
    images = scene(("dog", 2), ("cup", 4)).requires_grad_()
    found = ensemble(images, [ensemble.prepare(nouns)])
    alone = [member(images, [member.prepare(nouns)]) for member in members]
    torch.testing.assert_close(found.soft, sum(e.soft for e in alone) / 3)
    (grad,) = torch.autograd.grad(found.soft.sum(), images, retain_graph=True)
    grads = [torch.autograd.grad(e.soft.sum(), images, retain_graph=True)[0] for e in alone]
    torch.testing.assert_close(grad, sum(grads) / 3, rtol=1e-4, atol=1e-6)
    assert found.hard.tolist() == [[2, 4]] and found.disagreement is not None
    assert found.disagreement.tolist() == [[0, 0]] and (found.confidence > 0).all()
    assert found.candidates is not None and alone[0].candidates is not None
    assert torch.equal(found.candidates.margins, alone[0].candidates.margins)


def test_candidates_are_of_the_first_member_that_has_them() -> None:
    density, detector = load_critic("pocket-density"), load_critic("pocket-detector-b")
    ensemble = Ensemble([density, detector])
    images = scene(("cat", 3))
    found = ensemble(images, [ensemble.prepare(["cat"])])
    alone = detector(images, [detector.prepare(["cat"])])
    assert found.candidates is not None and alone.candidates is not None
    assert torch.equal(found.candidates.boxes, alone.candidates.boxes)
    assert found.density is None


def test_where_members_disagree_the_estimate_says_so_and_nothing_is_clear() -> None:
    images = scene(("cat", 3))
    blind, sound = deaf(1 - 1e-9), load_critic("pocket-density")
    for bound, disagreement in ((0, 3), (2, 3), (3, 0)):
        ensemble = Ensemble([sound, blind], bound=bound)
        found = ensemble(images, [ensemble.prepare(["cat", "cup"])])
        assert found.disagreement is not None
        # Of the cups, which are none, there is no doubt.
        assert found.disagreement.tolist() == [[disagreement, 0]]
        assert (found.confidence[0, 0] == 0) == (disagreement > 0) and found.confidence[0, 1] > 0
        assert found.hard.tolist() == [[0, 0]]  # of two in the middle the lower
    three = Ensemble([sound, blind, load_critic("pocket-detector-b")])
    found = three(images, [three.prepare(["cat"])])
    assert found.hard.item() == 3 and found.confidence.item() == 0
    nested = Ensemble([Ensemble([sound, blind]), load_critic("pocket-detector-b")], bound=5)
    assert nested(images, [nested.prepare(["cat"])]).confidence.item() == 0


def test_two_members_of_one_family_are_refused() -> None:
    detector, density = load_critic("pocket-detector-a"), load_critic("pocket-density")
    message = (
        "pocket-detector-a and pocket-detector-a-augmented are both of the family pocket-heatmap"
    )
    with pytest.raises(ValueError, match=message):
        Ensemble([detector, density, AugmentedCritic(detector)])
    with pytest.raises(ValueError, match="both of the family pocket-density"):
        Ensemble([Ensemble([detector, density]), load_critic("pocket-density")])
    with pytest.raises(ValueError, match="at least two critics, but there are 1"):
        Ensemble([detector])
    with pytest.raises(ValueError, match="cannot be negative"):
        Ensemble([detector, density], bound=-1)


def test_the_card_is_that_of_all_members() -> None:
    members = [load_critic("pocket-density"), load_critic("pocket-detector-b")]
    narrow = members[0]
    narrow.card = replace(narrow.card, vocabulary=("cat", "dog"), license_weights="MIT")
    card = Ensemble(members).card
    assert card.families == {"pocket-density", "pocket-dense"} and not card.published
    assert card.vocabulary == ("cat", "dog") and card.license_weights == "MIT and Apache-2.0"
    assert card.input_size == 96
    assert card.parameters == sum(member.card.parameters for member in members)


def test_a_noun_that_one_member_does_not_know_is_refused() -> None:
    with pytest.raises(UnknownNounError, match="cannot see 'unicorn'"):
        Ensemble([load_critic(name) for name in NAMES]).prepare(["unicorn"])


def test_a_member_of_the_ensemble_cannot_verify_it() -> None:
    ensemble = Ensemble([load_critic("pocket-detector-a"), load_critic("pocket-density")])
    with pytest.raises(UsageError, match="both of the family pocket-density"):
        CountGuidedPipeline(load_adapter(), ensemble, load_critic("pocket-density"))


@pytest.mark.slow
def test_an_ensemble_steers_the_pocket_generator() -> None:
    critic = Ensemble([load_critic("pocket-detector-a"), load_critic("pocket-density")])
    pipeline = CountGuidedPipeline(load_adapter(), critic, load_critic("pocket-detector-b"))
    found = pipeline("three cats", budget=8)
    assert found.counts[0]["critic"] == {"cat": 3} and found.outcomes == ["exact"]
