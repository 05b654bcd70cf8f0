"""The referring counter: contract, files, tokens that know their place, the contrastive loss."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from critic_contract import ConfigContract, CriticContract, noise
from torch.nn import functional as F

from critics.base import UnknownNounError
from critics.detectors.c_rex import ReferNetwork, save, supervised_contrastive_loss
from critics.loading.checkpoint import CheckpointError
from critics.registry import load_critic

WORDS = ("the", "cat", "dog", "red", "apple", "on", "left", "right")


def folder_of(place: Path) -> Path:
    torch.manual_seed(0)
    save(place, ReferNetwork(len(WORDS), 16, 8), WORDS, 64, 0.4)
    return place


class TestContract(CriticContract):
    nouns = ("cat", "dog on the left", "red apple")

    @pytest.fixture(scope="module")
    @classmethod
    def critic(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        return load_critic("c-rex", folder_of(tmp_path_factory.mktemp("c-rex")))

    def test_words_that_were_not_learned_are_named(self, critic: Any) -> None:
        with pytest.raises(UnknownNounError, match=r"cannot see 'dogg'.*dog"):
            critic.prepare(["dogg on the left"])
        with pytest.raises(UnknownNounError, match="13 words"):
            critic.prepare(["the " * 12 + "cat"])

    def test_centroids_lie_where_the_boxes_are(self, critic: Any) -> None:
        found = critic(noise(1, 3, 128, 64), [critic.prepare(["cat"])]).candidates
        sides = found.boxes[..., 2:] - found.boxes[..., :2]
        torch.testing.assert_close(sides[0, 0, 0], torch.tensor([8.0, 16.0]))
        assert (found.boxes[0, 0, :, 2:] > 0).all() and (found.boxes[0, 0, :, 0] < 64).all()

    def test_expressions_and_places_make_a_difference(self, critic: Any) -> None:
        images = torch.full((1, 3, 64, 64), 0.5)
        one, two = (
            critic(images, [critic.prepare([said])]).soft for said in ("dog on the left", "cat")
        )
        assert one != two
        tokens = critic.network.see(images)[0]
        inner = tokens[:, 5:11, 5:11].flatten(1)
        assert not torch.allclose(inner[:, :1].expand_as(inner), inner, atol=1e-4)


class TestLoading(ConfigContract):
    @pytest.fixture(scope="module")
    @classmethod
    def saved(cls, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
        return "c-rex", folder_of(tmp_path_factory.mktemp("c-rex"))


def test_a_threshold_of_ones_own_wins_and_without_weights_there_is_none(tmp_path: Path) -> None:
    found = load_critic("c-rex", folder_of(tmp_path), threshold=0.7)
    assert found.read_out.threshold == 0.7
    with pytest.raises(CheckpointError, match=r"no published weights.*countgen learn counter"):
        load_critic("c-rex")


def test_the_contrastive_loss_is_the_published_formula() -> None:
    torch.manual_seed(0)
    embeds = F.normalize(torch.randn(7, 4, dtype=torch.float64), dim=-1)
    labels = torch.tensor([0, 1, 0, -1, 1, 0, 2])
    expected, anchors = 0.0, 0
    for i in range(7):
        positives = [p for p in range(7) if p != i and labels[i] >= 0 and labels[p] == labels[i]]
        if not positives:
            continue
        anchors += 1
        every = [math.exp(float(embeds[i] @ embeds[a]) / 0.1) for a in range(7) if a != i]
        for p in positives:
            share = math.exp(float(embeds[i] @ embeds[p]) / 0.1) / sum(every)
            expected -= math.log(share) / len(positives)
    found = supervised_contrastive_loss(embeds, labels)
    assert found.item() == pytest.approx(expected / anchors)
    inputs = (embeds.requires_grad_(),)
    assert torch.autograd.gradcheck(lambda e: supervised_contrastive_loss(e, labels, 0.5), inputs)


def test_without_two_tokens_of_an_expression_there_is_nothing_to_contrast() -> None:
    embeds = F.normalize(torch.randn(3, 4), dim=-1).requires_grad_()
    loss = supervised_contrastive_loss(embeds, torch.tensor([0, -1, 1]))
    loss.backward()
    assert loss.item() == 0 and embeds.grad is not None and not embeds.grad.any()
