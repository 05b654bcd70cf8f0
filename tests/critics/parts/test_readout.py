"""From logits to counts: indicators, duplicates, pre-selection."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from critics.base import CountEstimate, NonFiniteCountError
from critics.parts import readout
from critics.parts.boxes import suppress
from critics.parts.readout import (
    Detections,
    ReadOut,
    plain_indicator,
    scaled_indicator,
    soft_duplicates,
)


def row(*boxes: tuple[float, float, float, float]) -> Tensor:
    return torch.tensor(boxes, dtype=torch.float32)[None]


APART = row((0, 0, 10, 10), (20, 0, 30, 10), (40, 0, 50, 10), (60, 0, 70, 10))
ALL = torch.ones(1, 1, dtype=torch.bool)


def count(margins: Tensor, boxes: Tensor, mask: Tensor = ALL, **settings: Any) -> CountEstimate:
    """At a threshold of 0.5, where logits and margins are one."""
    return ReadOut(0.5, **settings).count(Detections(margins, boxes), mask)


@pytest.mark.parametrize("form", [plain_indicator, scaled_indicator])
def test_indicators_pass_gradcheck(form: object) -> None:
    margins = torch.linspace(-3, 3, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(form, (margins,))


def test_the_scaled_form_keeps_the_gradient_that_the_plain_one_loses() -> None:
    margins = torch.tensor([5.0], requires_grad=True)
    (plain,) = torch.autograd.grad(plain_indicator(margins).sum(), margins)
    (scaled,) = torch.autograd.grad(scaled_indicator(margins).sum(), margins)
    assert plain < 1e-6 and scaled == pytest.approx(1.0, abs=1e-3)


def test_soft_duplicates_pass_gradcheck_and_fade_with_their_rival() -> None:
    boxes = row((0, 0, 10, 10), (1, 0, 11, 10), (40, 0, 50, 10))[:, None].double()
    margins = torch.tensor([[[0.8, 0.3, -0.2]]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m: soft_duplicates(m, boxes, 0.5), (margins,))
    weights = soft_duplicates(margins, boxes, 0.5)[0, 0]
    assert weights[0] == 1 and weights[2] == 1 and weights[1] < 0.1
    weak = soft_duplicates(margins - 2, boxes, 0.5)[0, 0]
    assert weak[1] > 0.9


def test_separate_objects_are_counted_and_missing_ones_keep_a_gradient() -> None:
    margins = torch.tensor([[[2.0, -1.0, 3.0, -0.2]]], requires_grad=True)
    found = count(margins, APART, overlap=0.5)
    assert found.hard.tolist() == [[2]] and found.soft.dtype == torch.float32
    (grad,) = torch.autograd.grad(found.soft.sum(), margins)
    assert (grad > 0).all()
    assert found.candidates is not None
    assert found.candidates.margins[0, 0].tolist() == pytest.approx([3.0, 2.0, -0.2, -1.0])


def test_duplicates_count_once_for_both_counts() -> None:
    boxes = row((0, 0, 10, 10), (0, 1, 10, 11), (1, 0, 11, 10), (60, 0, 70, 10))
    margins = torch.tensor([[[3.0, 2.5, 2.0, 2.0]]], requires_grad=True)
    for duplicates in ("hard", "soft"):
        found = count(margins, boxes, overlap=0.5, duplicates=duplicates)
        assert found.hard.item() == 2 and found.soft.item() == pytest.approx(2, abs=0.01)
    assert count(margins, boxes).hard.item() == 4


def test_thousands_of_background_anchors_add_no_phantom_objects() -> None:
    margins = torch.full((1, 1, 8400), -2.0)
    margins[..., :3] = 2.0
    boxes = torch.rand(1, 8400, 4) * 600
    boxes[..., 2:] += boxes[..., :2] + 1
    assert plain_indicator(margins).sum() > 5  # what a plain sum would say
    boxes[0, :3] = APART[0, :3] + 2000
    assert count(margins, boxes).soft.item() == pytest.approx(3, abs=0.05)


def test_nouns_that_are_not_asked_for_count_nothing() -> None:
    margins = torch.tensor([[[2.0, 1.0, -1.0, -torch.inf], [2.0, 2.0, 2.0, 2.0]]])
    found = count(margins, APART, torch.tensor([[True, False]]))
    assert found.hard.tolist() == [[2, 0]] and found.soft[0, 1] == 0
    assert torch.isfinite(found.soft).all() and torch.isfinite(found.confidence).all()


@given(
    st.lists(
        st.tuples(*[st.integers(0, 20)] * 2, *[st.integers(1, 12)] * 2, st.floats(-3, 3)),
        min_size=1,
        max_size=10,
    )
)
@settings(max_examples=60, deadline=None)
def test_the_hard_count_is_that_of_suppression_above_the_threshold(
    raw: list[tuple[int, int, int, int, float]],
) -> None:
    boxes = row(*[(x, y, x + w, y + h) for x, y, w, h, _ in raw])
    margins = torch.tensor([[[m for *_, m in raw]]])
    order = margins[0, 0].argsort(descending=True, stable=True)
    kept = suppress(boxes[:, None, order], margins[..., order] > 0, 0.5)
    assert count(margins, boxes, overlap=0.5).hard.item() == int(kept.sum())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_no_numbers_are_no_count(value: float) -> None:
    margins = torch.tensor([[[2.0, 1.0, -1.0, -2.0]], [[2.0, value, -1.0, -torch.inf]]])
    with pytest.raises(NonFiniteCountError, match=r"image 1 of the batch") as told:
        count(margins, APART.expand(2, -1, -1), ALL.expand(2, -1))
    assert told.value.rows == (1,)
    # Of a noun that nobody asks for, nothing is read.
    masked = torch.tensor([[True], [False]])
    assert count(margins, APART.expand(2, -1, -1), masked).hard.tolist() == [[2], [0]]


@pytest.mark.parametrize(
    ("setting", "wrong"),
    [
        ("threshold", (0, 1, 1.5, -0.1, float("nan"), "0.5", True)),
        ("overlap", (-0.1, 1.1, "half")),
        ("limit", (0, -1, 2.5)),
        ("inverse_temperature", (0, -4, float("inf"))),
        ("duplicates", ("both", None)),
    ],
)
def test_settings_outside_their_range_are_refused(setting: str, wrong: tuple[Any, ...]) -> None:
    for value in wrong:
        with pytest.raises(ValueError, match=setting) as told:
            ReadOut(0.5).changed(**{setting: value})
        assert repr(value) in str(told.value)
    with pytest.raises(TypeError, match="did you mean threshold"):
        ReadOut(0.5).changed(treshold=0.3)


def test_no_limit_lets_all_candidates_take_part() -> None:
    margins, boxes = torch.full((1, 1, 100), 5.0), torch.arange(400.0).view(1, 100, 4)
    assert count(margins, boxes, limit=None).hard.item() == 100
    assert count(margins, boxes).hard.item() == 64


def test_softmax_log_odds_are_those_of_the_softmaxs_probability() -> None:
    logits = torch.randn(2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    classes = torch.tensor([[0, 2], [3, 3]])
    found = readout.softmax_log_odds(logits, classes)
    for image, row in enumerate(classes.tolist()):
        for noun, kind in enumerate(row):
            p = logits[image].softmax(-1)[:, kind]
            torch.testing.assert_close(found[image, noun], (p / (1 - p)).log())
