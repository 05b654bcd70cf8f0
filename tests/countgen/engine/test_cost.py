"""Costs: one unit for everything, by each prompt's own price."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from countgen import CountGuidedPipeline
from countgen.engine.cost import (
    Clock,
    Cost,
    Passes,
    PriceList,
    Prices,
    gradient_step,
    passes_of,
    peak_bytes,
    plain_look,
    shape_of,
)
from critics.base import Query
from pipelines.base import Flops

PRICES = Prices(
    {
        "text_encoder": Flops(0.01, 0.03),
        "denoiser": Flops(0.1, 0.12),
        "decoder": Flops(0.2, 0.25),
        "critic": Flops(0.05, 0.06),
        "verifier": Flops(0.07, 0.0),
    }
)


def test_a_plain_picture_costs_one_by_definition() -> None:
    assert PRICES.of(plain_look(8)) == pytest.approx(1.05)
    assert PRICES.of(gradient_step(8)) == pytest.approx(1.05 + 8 * 0.12 + 0.25 + 0.06)
    assert PRICES.verify() == pytest.approx(0.12) and Prices({}).verify() == 0.0


def test_what_runs_beside_the_denoiser_is_paid_both_ways() -> None:
    beside = ("text_encoder",)
    assert PRICES.of(plain_look(8, beside)) == pytest.approx(1.06)
    extra = PRICES.of(gradient_step(8, beside)) - PRICES.of(gradient_step(8))
    assert extra == pytest.approx(0.04)


@pytest.mark.parametrize(("grad_steps", "back"), [(None, 8), (1, 1), (3, 3), (8, 8), (20, 8)])
def test_the_way_back_through_the_last_steps_alone(grad_steps: int | None, back: int) -> None:
    passes = gradient_step(8, (), grad_steps)
    assert passes.forwards == {"denoiser": 8, "decoder": 1, "critic": 1}
    assert passes.backwards == {"denoiser": back, "decoder": 1, "critic": 1}


def test_a_cost_adds_up_by_module() -> None:
    cost = Cost()
    for _ in range(3):
        cost.charge(PRICES, gradient_step(8))
    cost.charge(PRICES, Passes(Counter({"verifier": 2})))
    assert cost.pre == pytest.approx(3 * (8 * 0.22 + 0.45 + 0.11) + 2 * 0.07)
    assert cost.forwards == {"denoiser": 24, "decoder": 3, "critic": 3, "verifier": 2}
    assert cost.backwards == {"denoiser": 24, "decoder": 3, "critic": 3}
    report = cost.report()
    assert set(report) == {
        "pre",
        "priced_by",
        "seconds",
        "peak_bytes",
        "forwards",
        "backwards",
    }
    assert report["pre"] == round(cost.pre, 3) and next(iter(report["forwards"])) == "critic"


def test_passes_add_up_and_are_left_as_they_were() -> None:
    one, two = Passes(Counter({"critic": 1})), Passes(Counter({"critic": 2}), Counter(critic=1))
    both = one + two
    assert both.forwards == {"critic": 3} and both.backwards == {"critic": 1}
    assert one.forwards == {"critic": 1} and not one.backwards


def test_measured_prices_agree_with_the_definition(pocket: CountGuidedPipeline) -> None:
    found = pocket(["three stars"], guidance="none", seed=1)
    assert found.cost.forwards["denoiser"] == 8
    assert found.cost.forwards["decoder"] == found.cost.forwards["critic"] == 1
    # One render, two counters and the text: a little more than one.
    assert 1.0 < found.cost.pre < 1.5 and not found.cost.backwards
    assert found.cost.seconds > 0 and found.cost.peak_bytes > 10**7
    prices = listed(pocket, {})
    flops = prices.modules
    assert 8 * flops["denoiser"].forward + flops["decoder"].forward == pytest.approx(1, rel=1e-12)


def listed(pipeline: CountGuidedPipeline, queries: dict[str, Query], **changes: Any) -> Prices:
    plan = replace(pipeline.adapter.plan(), **changes)
    roles = {"critic": pipeline.critic, "verifier": pipeline.verifier}
    return PriceList(pipeline.adapter, plan, roles).of(queries)  # type: ignore[arg-type]


def test_a_plain_render_of_several_evaluations_a_step_costs_one(
    pocket: CountGuidedPipeline,
) -> None:
    class TwoEvaluations:
        """The pocket adapter as a second-order sampler would take it."""

        def __getattr__(self, name: str) -> Any:
            return getattr(pocket.adapter, name)

        def flops(self, plan: Any) -> dict[str, Flops]:
            return pocket.adapter.flops(pocket.adapter.plan())

    plan = replace(pocket.adapter.plan(), evaluations=15)
    prices = PriceList(TwoEvaluations(), plan, {}).of({})  # type: ignore[arg-type]
    look = plain_look(15)
    del look.forwards["critic"]
    assert prices.of(look) == pytest.approx(1, rel=1e-12)


def query(nouns: int, tokens: int = 4, members: int = 0) -> Query:
    own = tuple(query(nouns) for _ in range(members))
    return Query(("cat",) * nouns, text={"ids": torch.zeros(nouns, tokens)}, members=own)


def test_queries_of_one_shape_have_one_price() -> None:
    assert shape_of(query(2)) == shape_of(replace(query(2), nouns=("dog", "cat"), seed=5))
    other = (query(3), query(2, 5), query(2, members=1), query(2, members=2), query(0))
    assert len({shape_of(one) for one in (query(2), *other)}) == 6
    assert shape_of(Query(("cat",))) != shape_of(Query(("cat", "dog")))


class ByNoun:
    """The pocket detector, asked for one noun after the other: its price grows with the nouns."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.measured = inner, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __call__(self, images: Any, queries: Any) -> Any:
        self.measured += 1
        for _ in range(max(len(q.nouns) for q in queries) - 1):
            self.inner(images, queries)
        return self.inner(images, queries)


def test_a_picture_is_priced_by_its_own_prompt(pocket: CountGuidedPipeline) -> None:
    critic: Any = ByNoun(pocket.critic)
    pipeline = CountGuidedPipeline(pocket.adapter, critic, pocket.verifier, "none")
    prompts = ["six dogs and seven cats and seven cups", "eleven stars", "twelve balls"]
    found = pipeline(prompts, seed=1)
    price = pocket.adapter.flops(pocket.adapter.plan())
    unit = 8 * price["denoiser"].forward + price["decoder"].forward
    one = listed(
        pocket,
        {
            "critic": pocket.critic.prepare(["star"]),
            "verifier": Query(("star",), torch.tensor([0])),
        },
    )
    critics = [history[0].pre - 1 for history in found.history]
    verified = [one.verify() if job.records[0].verifier else 0.0 for job in found.jobs]
    alone = one.modules["critic"].forward
    assert unit > 0 and alone > 0.01
    for paid, check, times in zip(critics, verified, (3, 1, 1), strict=True):
        assert paid - check == pytest.approx(times * alone, rel=1e-6)
    # One measurement for each shape of a query, and one look at all three pictures.
    assert critic.measured == 3


def test_the_gradient_of_a_token_is_paid_for(pocket: CountGuidedPipeline) -> None:
    found = pocket("eleven dogs", guidance="count-token", budget=6, seed=1)
    assert found.history[0][0].gradient
    forwards, backwards = found.cost.forwards, found.cost.backwards
    steps = sum(record.gradient for record in found.history[0])
    looks = len(found.history[0])
    assert backwards["text_encoder"] == steps and backwards["denoiser"] == 8 * steps
    # Once for the prompt itself, and at every look for the token in it.
    assert forwards["text_encoder"] == looks + 1
    prices = listed(
        pocket,
        {"critic": pocket.critic.prepare(["dog"]), "verifier": Query(("d",), torch.tensor([0]))},
    )
    assert prices.modules["text_encoder"].backward > 0
    step = prices.of(gradient_step(8, ("text_encoder",)))
    assert found.history[0][0].pre == pytest.approx(step, rel=1e-6)


def test_a_counter_without_gradient_has_no_way_back(pocket: CountGuidedPipeline) -> None:
    plan = pocket.adapter.plan()
    layer = torch.nn.Conv2d(3, 1, 3)
    both = passes_of(layer, plan, "cpu")
    assert both.forward == 2 * 27 * 62 * 62 and both.backward > 0
    with torch.no_grad():
        assert passes_of(lambda x: layer(x.detach()).detach(), plan, "cpu").backward == 0


def test_seconds_and_memory_are_measured() -> None:
    assert Clock().seconds() >= 0 and peak_bytes(torch.device("cpu")) > 10**7
