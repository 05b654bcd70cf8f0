"""Early looks: what is abandoned, what it costs, and that nothing else changes by them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hand_made import noun, record

from countgen import CountGuidedPipeline
from countgen.engine.actions import Record
from countgen.engine.cost import PriceList
from countgen.engine.early import EarlyLook, tolerated
from countgen.errors import UsageError
from countgen.guidance.methods import Method, find_method
from countgen.pocket import card, load_generator
from pipelines.blackbox import BlackBox

STEPS = 6
EARLY = EarlyLook(share=0.5, steps=STEPS)
OPTIONS: dict[str, Any] = {"num_inference_steps": STEPS, "seed": 4, "budget": 7}
PROMPTS = ["seventeen dogs", "two stars", "nine cats and four balls"]


def early(name: str) -> Method:
    return replace(find_method(name), early=EARLY)


def seen(count: int, early: int | None = None) -> Record:
    """A look at a picture in which seven are wanted."""
    return record(0, noun(7, count), early=None if early is None else (early,))


def test_a_limit_is_set_by_the_nearest_picture_and_by_how_far_early_counts_were_off() -> None:
    first = seen(4, early=4)
    assert tolerated([]) == tolerated([seen(4)]) == math.inf
    assert tolerated([first]) == 2
    assert tolerated([first, seen(6, early=4)]) == 0
    assert tolerated([first, seen(3, early=9)]) == 2
    assert tolerated([seen(4, early=9), seen(5, early=8)]) == 1 + 3
    # What was abandoned, or could not be counted, says nothing of how right early counts are.
    assert tolerated([first, replace(seen(6, early=6), abandoned=True)]) == 2
    assert tolerated([first, replace(seen(7, early=0), finite=False)]) == 2


def test_the_step_of_a_look(pocket: CountGuidedPipeline) -> None:
    plan = pocket.adapter.plan
    assert [EarlyLook(0.3, 10).after(plan(n)) for n in (8, 10, 20)] == [0, 3, 6]
    assert EarlyLook(0.01, 2).after(plan(8)) == 1 and EarlyLook(0.99, 2).after(plan(8)) == 7
    for share, steps in ((0.0, 20), (1.0, 20), (0.5, 1), (math.nan, 20)):
        with pytest.raises(ValueError, match="early look"):
            EarlyLook(share, steps)


def test_pictures_are_the_same_as_without_and_abandoned_ones_cost_what_they_ran(
    pocket: CountGuidedPipeline,
) -> None:
    plain = pocket(PROMPTS, guidance="best-of-n", **OPTIONS)
    found = pocket(PROMPTS, guidance=early("best-of-n"), **OPTIONS)
    prices = PriceList(
        pocket.adapter,
        pocket.adapter.plan(STEPS),
        {"critic": pocket.critic, "verifier": pocket.verifier},
    )
    abandoned = 0
    for job, history, other in zip(found.jobs, found.history, plain.history, strict=True):
        price = {n: f.forward for n, f in prices.of(job.request.queries).modules.items()}
        whole = STEPS * price["denoiser"] + 2 * (price["decoder"] + price["critic"])
        spent = 0.0
        for one in history:
            part = whole
            if one.abandoned:
                abandoned += 1
                part = STEPS // 2 * price["denoiser"] + price["decoder"] + price["critic"]
                assert one.counts == one.early and one.error > 0
                assert not one.exact and one.verifier is None
            elif one.number < len(other):
                assert one.counts == other[one.number].counts
            part += price["critic"] + price["verifier"] if one.verifier is not None else 0.0
            spent += part
            assert one.pre == pytest.approx(spent)
        assert not history[0].abandoned and history[0].early is not None
        assert job.best is not None and not job.best.record.abandoned
        assert job.spent <= 7 + price["critic"] + price["verifier"]
    assert 0 < abandoned < sum(map(len, found.history)) - len(PROMPTS)
    assert max(map(len, found.history)) > max(map(len, plain.history))
    drawn = sum(map(len, found.history))
    assert found.cost.forwards["denoiser"] == STEPS * drawn - STEPS // 2 * abandoned
    assert found.cost.forwards["decoder"] == 2 * drawn - abandoned


def test_abandoned_rows_drop_out_of_their_batch(pocket: CountGuidedPipeline) -> None:
    sizes: list[int] = []

    def watch(module: Any, given: Any) -> None:
        sizes.append(len(given[0]))

    options = OPTIONS | {"num_images_per_prompt": 4}
    run = pocket.stream("seventeen dogs", guidance=early("best-of-n"), **options)
    next(run)
    hook = pocket.adapter.pipeline.unet.register_forward_pre_hook(watch)
    try:
        state = next(run)
    finally:
        hook.remove()
        run.close()
    left = sum(not record.abandoned for record in state.records)
    assert len(state.records) == 4 > left > 0
    assert sizes == [4] * (STEPS // 2) + [left] * (STEPS // 2)
    assert state.images.shape[0] == 4 and state.images.isfinite().all()


def test_what_is_no_number_early_is_finished(pocket: CountGuidedPipeline) -> None:
    trajectory = pocket.adapter.trajectory

    def broken(*given: Any, keep: Any) -> Any:
        return trajectory(
            *given, keep=lambda step: keep(step._replace(clean=step.clean * torch.nan))
        )

    pocket.adapter.trajectory = broken  # type: ignore[method-assign]
    try:
        found = pocket("seventeen dogs", guidance=early("best-of-n"), **(OPTIONS | {"budget": 4}))
    finally:
        del pocket.adapter.trajectory
    assert all(not record.abandoned and record.finite for record in found.history[0])


def test_short_plans_and_sources_without_steps_are_not_looked_into(
    pocket: CountGuidedPipeline,
) -> None:
    method = replace(find_method("engine"), early=replace(EARLY, steps=STEPS + 1))
    found = pocket("two stars", guidance=method, **OPTIONS)
    without = pocket("two stars", guidance="engine", **OPTIONS)
    assert repr(found.history) == repr(without.history)
    assert early("engine").fitted(gradient=False).early is None
    assert early("engine").fitted().early == EARLY
    named = pocket("two stars", guidance="engine-early", **(OPTIONS | {"num_inference_steps": 8}))
    short = pocket("two stars", guidance="engine", **(OPTIONS | {"num_inference_steps": 8}))
    assert repr(named.history) == repr(short.history)

    box = BlackBox(load_generator(), card())
    other = CountGuidedPipeline(box, pocket.critic, pocket.verifier)
    with pytest.raises(UsageError, match="best-of-n looks into the steps"):
        other("two stars", guidance=early("best-of-n"), budget=1)
    run = other.stream("two stars", guidance=early("engine"), budget=1)
    assert next(run).records[0].early is None


def test_a_guide_of_single_steps_is_not_looked_at() -> None:
    with pytest.raises(UsageError, match="guides single steps"):
        early("prompt-steering")
