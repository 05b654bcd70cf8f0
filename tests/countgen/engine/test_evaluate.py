"""Looking at a batch: what is told of every picture, and that parts are left as they were."""

from __future__ import annotations

import math
import threading
from dataclasses import replace
from typing import Any

import pytest
import torch
from estimates import estimate
from torch import nn

from countgen import CountGuidedPipeline
from countgen.engine.actions import Change, Edit
from countgen.engine.candidates import NEAR
from countgen.engine.evaluate import padded
from countgen.engine.policy import DrawThenImprove
from countgen.engine.sharing import frozen, using
from countgen.engine.verification import lowest_confidence
from countgen.guidance.methods import find_method
from critics.base import CountEstimate

NEVER = [("dog", 1), ("cat", 19)]


def test_wanted_counts_are_padded_with_zeros() -> None:
    assert padded([[3], [1, 2], []]).tolist() == [[3, 0], [1, 2], [0, 0]]
    assert padded([[], []]).shape == (2, 0)


def test_the_confidence_of_a_picture_is_that_of_its_least_clear_noun() -> None:
    found = estimate([[4.0, 0.4, -3.0], [4.0, 2.0, -0.1]], [True, False])
    expected = 2 / (1 + math.exp(-0.4)) - 1
    assert found.confidence[:, 0].tolist() == [pytest.approx(expected), 1.0]
    density = CountEstimate(
        torch.tensor([[2.9, 4.5]]), torch.tensor([[3, 4]]), torch.ones(1, 2) > 0
    )
    assert density.confidence[0].tolist() == [pytest.approx(0.8), pytest.approx(0.0)]
    assert lowest_confidence(density) == [pytest.approx(0.0)]
    nothing = CountEstimate(torch.zeros(2, 0), torch.zeros(2, 0).long(), torch.ones(2, 0) > 0)
    assert lowest_confidence(nothing) == [1.0, 1.0]


def test_weights_are_frozen_for_a_while_and_then_as_they_were() -> None:
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    with pytest.raises(KeyError), frozen([layer]):
        assert not any(p.requires_grad for p in layer.parameters())
        raise KeyError
    assert layer.weight.requires_grad and not layer.bias.requires_grad


class Adapter:
    """As much of an adapter as a lock sees."""

    def __init__(self, *modules: nn.Module) -> None:
        self._modules = modules

    def modules(self) -> tuple[nn.Module, ...]:
        return self._modules


def test_adapters_that_share_a_module_take_turns() -> None:
    shared, own, other = (nn.Linear(1, 1) for _ in range(3))
    first: Any = Adapter(own, shared)
    second: Any = Adapter(shared, other)
    apart: Any = Adapter(nn.Linear(1, 1))
    reached: list[str] = []

    def work(name: str, adapter: Any) -> None:
        with using(adapter):
            reached.append(name)

    with using(first):
        with using(first):  # the same thread goes on
            pass
        blocked = threading.Thread(target=work, args=("second", second))
        free = threading.Thread(target=work, args=("apart", apart))
        blocked.start()
        free.start()
        free.join(60)
        blocked.join(0.2)
        assert reached == ["apart"]
    blocked.join(60)
    assert reached == ["apart", "second"]


def test_a_policy_is_told_of_candidates_as_edits_find_them(pocket: CountGuidedPipeline) -> None:
    run = pocket.stream("seven dogs and four cups", guidance="best-of-n", budget=9, seed=1)
    state = next(run)
    (job,) = state.jobs
    look = job.observations[0] if job.observations else job.best
    assert look is not None and look.candidates is not None
    with torch.no_grad():
        found = pocket.critic(state.images, [job.request.queries["critic"]])
    assert found.candidates is not None
    for noun, (seen, kept) in enumerate(zip(look.record.nouns, look.candidates, strict=True)):
        own = found.candidates.distinct[0, noun].nonzero()[:, 0][: len(kept.margins)]
        torch.testing.assert_close(
            kept.margins, found.candidates.margins[0, noun, own], rtol=1e-3, atol=1e-3
        )
        assert seen.count == found.hard[0, noun] == len(seen.kept)
        assert seen.wanted == (7, 4)[noun] and len(seen.near) <= NEAR
        margins = kept.margins.tolist()
        assert all(margins[i] > 0 for i in seen.kept) and all(m <= 0 for _, m in seen.near)
        assert list(seen.near) == sorted(seen.near, key=lambda pair: -pair[1])
        assert seen.doubtful is not None
        assert abs(seen.doubtful[1]) == min(map(abs, margins))
        assert margins[seen.doubtful[0]] == seen.doubtful[1]
    run.close()


def test_changes_of_one_edit_follow_on_each_other(pocket: CountGuidedPipeline) -> None:
    found = pocket("twenty dogs", targets=NEVER, guidance="edit", budget=8, seed=1)
    edits = [record for record in found.history[0] if record.move == "edit"]
    assert edits and all(len(record.changes) == 2 for record in edits)
    assert all(isinstance(c, Change) for record in edits for c in record.changes)
    assert Edit(0, edits[0].changes) and all(record.base is not None for record in edits)
    # What is changed is the base's noise: an edit of boxes leaves most of it.
    assert found.jobs[0].best is not None


def test_a_noise_that_left_its_shell_has_diverged(pocket: CountGuidedPipeline) -> None:
    from countgen.guidance.optimizers import SGD
    from countgen.guidance.priors import Free

    method = replace(
        find_method("noise"),
        policy=DrawThenImprove(draws=0, steps=6, candidates=1),
        optimizer=SGD(lr=1e4),
        prior=Free(),
    )
    found = pocket("twenty dogs", targets=NEVER, guidance=method, budget=40, seed=1)
    assert found.outcomes == ["diverged"]
    assert [record.diverged for record in found.history[0]] == [False, True]
    first, second = found.history[0]
    assert first.moved and not second.moved and second.norm > 1.5 * first.norm
    # The nearest picture is kept.
    assert found.jobs[0].best is not None and torch.isfinite(found.noise.latents).all()
