"""The counting rewards: as published by a hand-written loop, two-sided as documented, on real candidates."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from countgen.guidance import objectives
from countgen.pocket import load_critic
from countgen.pocket.scenes import SceneSpec, compose
from critics.base import CriticCard, Query
from critics.detectors.base import DetectionCritic
from critics.parts.readout import Detections, ReadOut
from critics.rewards import missing_hinge, probabilities, two_sided_hinge, two_sided_reward


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


COUNTS = torch.tensor([[2, 0, 3], [1, 4, 0], [0, 0, 0]])
MASK = torch.tensor([[True, True, True], [True, True, False], [True, True, True]])


def by_hand(values: Tensor, counts: list[int], threshold: float, scale: float) -> float:
    """The published formula for one image, written out."""
    loss = 0.0
    for row, count in zip(values.tolist(), counts, strict=True):
        for score in sorted(row, reverse=True)[:count]:
            loss += max(0.0, threshold - score)
    return scale * loss / sum(counts) if sum(counts) else 0.0


def two_sided_by_hand(values: Tensor, counts: list[int], high: float, low: float) -> float:
    loss = 0.0
    for row, count in zip(values.tolist(), counts, strict=True):
        for rank, score in enumerate(sorted(row, reverse=True)):
            loss += max(0.0, high - score) if rank < count else max(0.0, score - low)
    return 0.5 * loss / max(1, sum(counts))


@pytest.mark.parametrize(("threshold", "scale"), [(0.1, 0.5), (0.6, 2.0)])
def test_the_published_form_is_the_hand_written_loop(threshold: float, scale: float) -> None:
    values = draw(3, 3, 6) ** 3  # many of them small
    found = missing_hinge(values, COUNTS, threshold=threshold, scale=scale)
    expected = [
        by_hand(v, c, threshold, scale) for v, c in zip(values, COUNTS.tolist(), strict=True)
    ]
    assert found.tolist() == pytest.approx(expected)
    assert found[2] == 0 and found.max() > 0
    if (threshold, scale) == (0.1, 0.5):
        assert torch.equal(found, missing_hinge(values, COUNTS))


def test_the_two_sided_form_is_the_hand_written_loop() -> None:
    values = draw(3, 3, 6)
    found = two_sided_reward(values, COUNTS)
    expected = [
        two_sided_by_hand(v, c, 0.5, 0.2) for v, c in zip(values, COUNTS.tolist(), strict=True)
    ]
    assert found.tolist() == pytest.approx(expected)
    masked = two_sided_reward(values, COUNTS, MASK)
    alone = two_sided_reward(values[1:2, :2], COUNTS[1:2, :2])
    assert masked[1] == pytest.approx(alone.item()) and masked[1] != found[1]
    masked = missing_hinge(values / 10, COUNTS + 1, MASK)
    assert masked[1] == pytest.approx(missing_hinge(values[1:2, :2] / 10, COUNTS[1:2, :2] + 1)[0])


@pytest.mark.parametrize("form", [missing_hinge, two_sided_reward])
def test_the_gradient_is_right(form: object) -> None:
    values = (draw(3, 3, 5, seed=1) * 0.98 + 0.01).requires_grad_()
    options = {"threshold": 0.4} if form is missing_hinge else {}
    assert torch.autograd.gradcheck(lambda s: form(s, COUNTS, MASK, **options), (values,))


def test_surplus_is_free_as_published_and_costs_in_our_form() -> None:
    right = torch.tensor([[[0.9, 0.9, 0.05, 0.0]]])
    surplus = torch.tensor([[[0.9, 0.9, 0.9, 0.9]]])
    missing = torch.tensor([[[0.9, 0.05, 0.0, 0.0]]])
    two = torch.tensor([[2]])
    assert (
        missing_hinge(right, two) == missing_hinge(surplus, two) == 0 < missing_hinge(missing, two)
    )
    assert two_sided_reward(right, two) == 0
    assert two_sided_reward(surplus, two) > 0 and two_sided_reward(missing, two) > 0
    none = torch.tensor([[0]])
    assert missing_hinge(surplus, none) == 0 and two_sided_reward(surplus, none) > 0


def test_a_kind_with_too_few_candidates_lacks_the_rest() -> None:
    values = torch.tensor([[[0.9]]])
    assert missing_hinge(values, torch.tensor([[3]])).item() == pytest.approx(0.5 * 0.2 / 3)
    nothing = torch.zeros(1, 1, 0)
    assert missing_hinge(nothing, torch.tensor([[2]])).item() == pytest.approx(0.5 * 0.1)
    assert missing_hinge(torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.int64)).tolist() == [
        0,
        0,
    ]


class Cells:
    """An analytic detector: every pixel is a candidate, and its red its log-odds."""

    card = CriticCard("cells", "analytic", "red pixels", "Apache-2.0", "none", 3)
    network = torch.nn.Identity()

    def prepare(self, nouns: list[str]) -> Query:
        return Query(tuple(nouns))

    def detect(self, images: Tensor, queries: list[Query]) -> Detections:
        logits = (images[:, :1].flatten(2) - 0.5) * 12
        places = torch.arange(logits.shape[-1], dtype=torch.float32)[:, None] * 10
        boxes = torch.cat([places, places, places + 9, places + 9], 1)
        return Detections(logits, boxes[None].expand(len(images), -1, -1))


def test_scores_are_the_probabilities_that_the_detector_gave() -> None:
    critic = DetectionCritic(Cells(), Cells.card, ReadOut(0.23))
    images = draw(2, 3, 3, 3, seed=2).float().requires_grad_()
    query = critic.prepare(["thing"])
    found = probabilities(critic(images, [query, query]), critic.read_out.threshold)
    given = ((images[:, 0].flatten(1) - 0.5) * 12).sigmoid().sort(-1, descending=True).values
    torch.testing.assert_close(found[:, 0], given)
    loss = missing_hinge(found, torch.tensor([[5], [5]]), threshold=0.9)
    (grad,) = torch.autograd.grad(loss.sum(), images)
    assert grad.abs().sum() > 0 and torch.isfinite(grad).all()
    # The counts of the critic and of the probabilities are one.
    assert torch.equal((found > 0.23).sum(-1), critic(images, [query, query]).hard)


def test_duplicates_are_left_out_when_asked_and_padding_scores_nothing() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 1, 10, 11], [50, 0, 60, 10], [80, 0, 90, 10]]])
    margins = torch.tensor([[[3.0, 2.0, 1.0, -torch.inf]]], requires_grad=True)
    estimate = ReadOut(0.5, overlap=0.5).count(
        Detections(margins, boxes), torch.ones(1, 1, dtype=torch.bool)
    )
    every, own = probabilities(estimate, 0.5), probabilities(estimate, 0.5, duplicates=False)
    assert (every > 0).sum() == 3 and (own > 0).sum() == 2
    assert (
        two_sided_reward(own, torch.tensor([[2]]))
        == 0
        < two_sided_reward(every, torch.tensor([[2]]))
    )
    (grad,) = torch.autograd.grad(two_sided_reward(every, torch.tensor([[0]])).sum(), margins)
    assert torch.isfinite(grad).all()


def test_wrong_arguments_are_refused() -> None:
    values = draw(1, 1, 3)
    with pytest.raises(ValueError, match="cannot be negative"):
        missing_hinge(values, torch.tensor([[-1]]))
    with pytest.raises(ValueError, match="low must lie below high"):
        two_sided_reward(values, torch.tensor([[1]]), high=0.2, low=0.2)
    density = load_critic("pocket-density")
    image = torch.from_numpy(compose(SceneSpec((("cat", 2),)), 0).image).permute(2, 0, 1) / 255
    estimate = density(image[None], [density.prepare(["cat"])])
    with pytest.raises(ValueError, match="take a detector"):
        probabilities(estimate, 0.5)
    detector = load_critic("pocket-detector-a")
    estimate = detector(image[None], [detector.prepare(["cat"])])
    with pytest.raises(ValueError, match="between 0 and 1"):
        probabilities(estimate, -0.4)


def test_the_hinge_of_margins_has_the_values_and_gradients_of_the_rule() -> None:
    """The two strongest are lifted to 2, the others lowered to -2; padding and unasked nouns add nothing."""
    lowest = -torch.inf
    margins = torch.tensor(
        [
            [[3.0, 1.5, 0.5, -1.0, -3.0], [0.5, -0.5, lowest, lowest, lowest]],
            [[2.0, -4.0, -2.5, lowest, lowest], [9.0, 9.0, 9.0, 9.0, 9.0]],
        ],
        dtype=torch.float64,
        requires_grad=True,
    )
    counts = torch.tensor([[2, 3], [0, 1]])
    mask = torch.tensor([[True, True], [True, False]])
    loss = two_sided_hinge(margins, counts, mask, high=2.0, low=-2.0)
    # 0.5 to lift 1.5, 2.5 and 1 to lower 0.5 and -1; 1.5 and 2.5 to lift both of three wanted.
    assert loss.tolist() == [0.5 + 2.5 + 1 + 1.5 + 2.5, 4]
    (grad,) = torch.autograd.grad(loss.sum(), margins)
    assert grad.tolist() == [
        [[0, -1, 1, 1, 0], [-1, -1, 0, 0, 0]],
        [[1, 0, 0, 0, 0], [0, 0, 0, 0, 0]],
    ]


def test_the_hinge_does_not_ask_for_an_order() -> None:
    scores, order = draw(2, 3, 7, seed=4), torch.randperm(7)
    counts = torch.tensor([[2, 0, 7], [1, 9, 3]])
    given = two_sided_hinge(scores, counts, high=0.7, low=0.1)
    torch.testing.assert_close(
        two_sided_hinge(scores[..., order], counts, high=0.7, low=0.1), given
    )
    assert two_sided_hinge(scores[..., :0], counts, high=0.7, low=0.1).tolist() == [0, 0]


def test_the_hinge_is_what_guidance_minimises_on_margins() -> None:
    """To the bit, in value and gradient, on random estimates of a detector with duplicates."""
    generator = torch.Generator().manual_seed(3)
    logits = (torch.randn(4, 3, 12, generator=generator) * 3).requires_grad_()
    corners = torch.rand(4, 12, 2, generator=generator) * 30
    boxes = torch.cat([corners, corners + 12], -1)
    mask = torch.tensor([[True, True, True], [True, False, False], [True, True, False]] * 2)[:4]
    estimate = ReadOut(0.4, overlap=0.2, limit=9).count(Detections(logits, boxes), mask)
    wanted = torch.tensor([[0, 1, 2], [3, 0, 0], [12, 2, 0], [1, 1, 1]])
    found = estimate.candidates
    scores = torch.where(found.distinct, found.margins, -torch.inf)
    mine = two_sided_hinge(scores, wanted, mask, high=2.0, low=-2.0)
    theirs = objectives.OBJECTIVES["hinge"](estimate, wanted)
    assert torch.equal(mine, theirs) and (mine > 0).all()
    grads = [
        torch.autograd.grad(loss.sum(), logits, retain_graph=True)[0] for loss in (mine, theirs)
    ]
    assert torch.equal(*grads) and grads[0].abs().sum() > 0
