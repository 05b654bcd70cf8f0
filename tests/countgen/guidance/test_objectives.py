"""Objectives: values against their formulas, and which candidates they pull and push."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from estimates import estimate
from torch import Tensor

from countgen.errors import UsageError
from countgen.guidance.objectives import (
    OBJECTIVES,
    CountingReward,
    ScaledIndicator,
    SoftCount,
    TwoSidedHinge,
)
from critics.base import CountEstimate
from critics.parts.readout import plain_indicator


def grad(name: str, rows: Sequence[Sequence[float]], wanted: int) -> Tensor:
    found = estimate(rows)
    assert found.candidates is not None
    loss = OBJECTIVES[name](found, torch.full((len(rows), 1), wanted))
    return torch.autograd.grad(loss.sum(), found.candidates.margins)[0][:, 0]


def density(soft: Sequence[Sequence[float]]) -> CountEstimate:
    """Soft counts alone, as a density counter gives them."""
    counts = torch.tensor(soft)
    return CountEstimate(counts, counts.round().long(), torch.ones_like(counts) > 0)


def test_missing_objects_pull_up_the_best_candidates_however_weak() -> None:
    for name in ("scaled", "hinge"):
        (found,) = grad(name, [[3.0, -9.0, -12.0]], wanted=2)
        assert found[1] < -0.5, f"{name}: no pull on a candidate far below the threshold"
        assert found[2] >= 0, f"{name}: pulls on more candidates than are missing"


def test_surplus_objects_are_pushed_down_however_confident() -> None:
    (hinge,) = grad("hinge", [[9.0, 8.0, 7.0]], wanted=2)
    assert hinge.tolist() == [0.0, 0.0, 1.0]
    (scaled,) = grad("scaled", [[9.0, 8.0, 7.0]], wanted=2)
    assert (scaled > 0.9).all()
    (soft,) = grad("soft", [[9.0, 8.0, 7.0]], wanted=2)
    assert soft.abs().max() < 1e-3, "the plain form is known to lose its gradient here"


def test_the_hinge_is_zero_once_every_margin_is_met() -> None:
    (found,) = grad("hinge", [[2.5, 2.1, -2.2, -5.0]], wanted=2)
    assert not found.any()
    (found,) = grad("hinge", [[2.5, 1.0, -1.0, -5.0]], wanted=2)
    assert found.tolist() == [0.0, -1.0, 1.0, 0.0]


def test_a_wanted_zero_pushes_everything_down() -> None:
    (found,) = grad("hinge", [[4.0, -1.0, -3.0]], wanted=0)
    assert found.tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("margin", [0.5, 2.0])
def test_the_hinge_is_its_formula(margin: float) -> None:
    rows = [[2.5, 1.0, -0.2, -1.0, -5.0], [0.3, -0.1, -0.3, -0.4, -0.6]]
    wanted = [2, 4]
    found = TwoSidedHinge(margin)(estimate(rows), torch.tensor(wanted)[:, None])
    expected = [
        sum(max(margin - m, 0) for m in row[:n]) + sum(max(m + margin, 0) for m in row[n:])
        for row, n in zip(rows, wanted, strict=True)
    ]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


def test_a_hinge_without_width_is_refused() -> None:
    with pytest.raises(UsageError, match=r"margin.*positive"):
        TwoSidedHinge(0.0)


def test_the_soft_count_is_its_formula() -> None:
    found, wanted = density([[5.5, 0.25], [2.0, 3.0]]), torch.tensor([[4, 0], [2, 5]])
    for objective, expected in (
        (SoftCount(), [1.75, 2.0]),
        (SoftCount("squared"), [1.5**2 + 0.25**2, 4.0]),
        # ((count - N) / N)^2, of Counting Guidance; over 1 where nothing is wanted.
        (SoftCount("relative"), [(1.5 / 4) ** 2 + 0.25**2, 0.4**2]),
        (SoftCount(dead_zone=0.5), [1.0, 1.5]),
    ):
        assert objective(found, wanted).tolist() == pytest.approx(expected)


def test_the_scaled_indicator_is_its_formula() -> None:
    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    rows, objective = [[1.5, 0.5, -0.25, -1.0]], ScaledIndicator(inverse_temperature=4.0)
    # Two are counted. Surplus: the sum over all of m * sigmoid(4 m).
    (found,) = objective(estimate(rows), torch.tensor([[1]])).tolist()
    assert found == pytest.approx(sum(m * sigmoid(4 * m) for m in rows[0]), rel=1e-5)
    # One is missing: the mirrored form of the best uncounted candidate alone.
    (found,) = objective(estimate(rows), torch.tensor([[3]])).tolist()
    assert found == pytest.approx(0.25 * sigmoid(4 * 0.25), rel=1e-5)
    assert objective(estimate(rows), torch.tensor([[2]])).tolist() == [0.0]


def test_the_counting_reward_is_its_formula() -> None:
    rows = [[1.0, -3.0, -4.0]]
    scores = [1 / (1 + math.exp(-m)) for m in rows[0]]
    (found,) = CountingReward(0.5)(estimate(rows), torch.tensor([[3]])).tolist()
    # scale / N * sum over the N best of relu(threshold - score), as published: 0.5 and 0.1.
    assert found == pytest.approx(0.5 / 3 * sum(max(0.1 - s, 0) for s in scores), rel=1e-5)
    # Surplus costs nothing, as published.
    assert CountingReward(0.5)(estimate(rows), torch.tensor([[0]])).tolist() == [0.0]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_is_differentiable_and_each_image_is_its_own(name: str) -> None:
    rows = [[1.3, 0.4, -0.7, -2.4], [2.2, 0.9, 0.3, -1.1]]
    wanted = torch.tensor([[3], [1]])

    def value(margins: Tensor) -> Tensor:
        base = estimate(rows)
        assert base.candidates is not None
        soft = plain_indicator(margins).sum(-1).float()
        return OBJECTIVES[name](
            replace(base, soft=soft, candidates=replace(base.candidates, margins=margins)), wanted
        )

    margins = torch.tensor(rows, dtype=torch.float64)[:, None].requires_grad_()
    matrix = torch.autograd.functional.jacobian(value, margins)
    assert matrix.shape == (2, 2, 1, 4)
    assert not matrix[0, 1].any() and not matrix[1, 0].any()
    h = 1e-3  # objectives compute in float32
    for i in range(2):
        for c in range(4):
            way = torch.zeros_like(margins)
            way[i, 0, c] = h
            with torch.no_grad():
                rise = (value(margins + way) - value(margins - way))[i] / (2 * h)
            assert float(rise) == pytest.approx(float(matrix[i, i, 0, c]), abs=5e-3)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_batch_is_its_pictures_alone(name: str) -> None:
    rows, wanted = [[1.3, 0.4, -3.0], [2.2, -4.0, -5.0], [0.1, -0.1, -0.2]], [1, 3, 0]
    together = OBJECTIVES[name](estimate(rows), torch.tensor(wanted)[:, None])
    alone = [
        OBJECTIVES[name](estimate([row]), torch.tensor([[n]])).item()
        for row, n in zip(rows, wanted, strict=True)
    ]
    assert together.tolist() == pytest.approx(alone, rel=1e-6)


def test_kinds_that_an_image_does_not_ask_for_add_nothing() -> None:
    for name, objective in OBJECTIVES.items():
        rows = [[1.0, -3.0], [1.0, -3.0]]
        found = objective(estimate(rows, [True, False]), torch.tensor([[2], [2]]))
        assert found[0] != 0 and found[1] == 0, name


def test_duplicates_and_padding_take_no_part() -> None:
    base = estimate([[3.0, 2.5, -1.0, -math.inf]])
    assert base.candidates is not None
    distinct = torch.tensor([[[True, False, True, False]]])
    kept = distinct & (base.candidates.margins > 0)
    found = replace(
        base, hard=kept.sum(-1), candidates=replace(base.candidates, distinct=distinct, kept=kept)
    )
    for name in ("scaled", "hinge"):
        loss = OBJECTIVES[name](found, torch.tensor([[2]]))
        assert base.candidates is not None
        (slope,) = torch.autograd.grad(loss.sum(), base.candidates.margins, retain_graph=True)
        assert slope[0, 0, 1] == 0 == slope[0, 0, 3] and slope[0, 0, 2] < 0, name
        assert loss.isfinite().all()


def test_candidates_are_needed_where_they_are_and_the_message_says_so() -> None:
    bare = replace(estimate([[1.0]]), candidates=None)
    for name, objective in OBJECTIVES.items():
        if objective.needs == "candidates":
            with pytest.raises(ValueError, match="needs a detector's candidates"):
                objective(bare, torch.tensor([[1]]))
        else:
            assert objective(bare, torch.tensor([[1]])).isfinite().all(), name
