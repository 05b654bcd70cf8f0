"""Guidance: objectives and their slopes, the pool, costs and outcomes, and that the count really moves."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from countgen import CountGuidedPipeline, CountTarget
from countgen.engine.cost import Cost, Prices
from countgen.engine.pool import OUTCOMES
from countgen.errors import UsageError
from countgen.guidance.methods import METHODS, find_method
from countgen.guidance.objectives import OBJECTIVES, two_sided_margin
from countgen.guidance.priors import norms, renormalise
from countgen.pocket import ROLES, load_critic
from critics.base import Candidates, CountEstimate, Critic, UnknownNounError
from critics.parts.readout import plain_indicator
from pipelines.base import Flops, Noise


@pytest.fixture(scope="module")
def pipeline() -> CountGuidedPipeline:
    return CountGuidedPipeline.from_pretrained("pocket")


def estimate(rows: Sequence[Sequence[float]], mask: Sequence[bool] | None = None) -> CountEstimate:
    """One kind an image; margins strongest first, all distinct."""
    margins = torch.tensor(rows, dtype=torch.float64)[:, None].requires_grad_()
    distinct = torch.ones_like(margins, dtype=torch.bool)
    kept = margins.detach() > 0
    real = torch.tensor(mask if mask is not None else [True] * len(rows))[:, None]
    boxes = torch.zeros(*margins.shape, 4)
    soft = plain_indicator(margins).sum(-1).float()
    return CountEstimate(soft, kept.sum(-1), real, Candidates(margins, boxes, kept, distinct))


def slope(name: str, rows: Sequence[Sequence[float]], wanted: int) -> Tensor:
    found = estimate(rows)
    assert found.candidates is not None
    loss = OBJECTIVES[name](found, torch.full((len(rows), 1), wanted))
    return torch.autograd.grad(loss.sum(), found.candidates.margins)[0][:, 0]


# -- objectives -----------------------------------------------------------------------------------


def test_missing_objects_pull_up_the_best_candidates_however_weak() -> None:
    for name in ("scaled", "margin"):
        (found,) = slope(name, [[3.0, -9.0, -12.0]], wanted=2)
        assert found[1] < -0.5, f"{name}: no pull on a candidate far below the threshold"
        assert found[2] >= 0, f"{name}: pulls on more candidates than are missing"


def test_surplus_objects_are_pushed_down_however_confident() -> None:
    (margin,) = slope("margin", [[9.0, 8.0, 7.0]], wanted=2)
    assert margin.tolist() == [0.0, 0.0, 1.0]
    (scaled,) = slope("scaled", [[9.0, 8.0, 7.0]], wanted=2)
    assert (scaled > 0.9).all()
    (soft,) = slope("soft", [[9.0, 8.0, 7.0]], wanted=2)
    assert soft.abs().max() < 1e-3, "the plain form is known to lose its slope here"


def test_the_margin_objective_is_zero_once_every_margin_is_met() -> None:
    (found,) = slope("margin", [[2.5, 2.1, -2.2, -5.0]], wanted=2)
    assert not found.any()
    (found,) = slope("margin", [[2.5, 1.0, -1.0, -5.0]], wanted=2)
    assert found.tolist() == [0.0, -1.0, 1.0, 0.0]


def test_a_wanted_zero_pushes_everything_down() -> None:
    (found,) = slope("margin", [[4.0, -1.0, -3.0]], wanted=0)
    assert found.tolist() == [1.0, 1.0, 0.0]


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


def test_kinds_that_an_image_does_not_ask_for_add_nothing() -> None:
    for name, objective in OBJECTIVES.items():
        found = objective(
            estimate([[1.0, -1.0], [1.0, -1.0]], [True, False]), torch.tensor([[2], [2]])
        )
        assert found[0] != 0 and found[1] == 0, name


def test_candidates_are_needed_where_they_are_and_the_message_says_so() -> None:
    bare = replace(estimate([[1.0]]), candidates=None)
    with pytest.raises(ValueError, match="use the objective 'soft'"):
        two_sided_margin(bare, torch.tensor([[1]]))


@given(st.integers(1, 4), st.floats(0.1, 50.0), st.integers(0, 2**31))
def test_renormalised_noise_has_its_norm_and_direction(
    images: int, radius: float, seed: int
) -> None:
    noise = torch.randn(images, 2, 3, 3, generator=torch.Generator().manual_seed(seed))
    found = renormalise(noise, torch.full((images,), radius))
    torch.testing.assert_close(norms(found), torch.full((images,), radius), rtol=1e-4, atol=0)
    cosine = torch.cosine_similarity(found.flatten(1), noise.flatten(1))
    torch.testing.assert_close(cosine, torch.ones(images), rtol=1e-4, atol=1e-4)


def test_confidence_is_that_of_the_nearest_candidate_counted_or_not() -> None:
    found = estimate([[4.0, 0.4, -3.0], [4.0, 2.0, -0.1]], [True, False])
    expected = 2 / (1 + math.exp(-0.4)) - 1
    assert found.confidence[:, 0].tolist() == [pytest.approx(expected), 1.0]
    density = CountEstimate(
        torch.tensor([[2.9, 4.5]]), torch.tensor([[3, 4]]), torch.ones(1, 2) > 0
    )
    assert density.confidence[0].tolist() == [pytest.approx(0.8), pytest.approx(0.0)]


# -- costs ----------------------------------------------------------------------------------------


def test_a_plain_picture_costs_one_by_definition() -> None:
    modules = {
        "text_encoder": Flops(0.01, 0.0),
        "denoiser": Flops(0.1, 0.12),
        "decoder": Flops(0.2, 0.2),
        "critic": Flops(0.05, 0.06),
        "verifier": Flops(0.07, 0.0),
    }
    prices = Prices(modules, steps=8)
    assert prices.look() == pytest.approx(1.05)
    assert prices.improve() == pytest.approx(1.05 + 8 * 0.12 + 0.2 + 0.06)
    cost = Cost()
    cost.charge_render(prices, 3, backward=True)
    cost.charge(prices, "verifier", 2)
    assert cost.pre == pytest.approx(3 * (8 * 0.22 + 0.4) + 2 * 0.07)
    assert cost.forwards == {"denoiser": 24, "decoder": 3, "verifier": 2}
    assert cost.backwards == {"denoiser": 24, "decoder": 3}


def test_measured_prices_agree_with_the_definition(pipeline: CountGuidedPipeline) -> None:
    found = pipeline(["three stars"], guidance="none")
    counted = found.cost.forwards
    assert counted["denoiser"] == 8 and counted["decoder"] == counted["critic"] == 1
    # One render, two counters and the text: a little more than one.
    assert 1.0 < found.cost.pre < 1.5 and not found.cost.backwards
    assert found.cost.seconds > 0 and found.cost.peak_bytes > 10**7


@pytest.mark.parametrize("method", ["best-of-n", "noise"])
@pytest.mark.parametrize("budget", [0.5, 6.0])
def test_the_budget_is_kept_by_every_picture(
    pipeline: CountGuidedPipeline, method: str, budget: float
) -> None:
    # Twenty dogs and no dog at once: nothing is ever exact.
    found = pipeline(
        "twenty dogs",
        targets=[("dog", 20), ("cat", 19)],
        num_images_per_prompt=2,
        guidance=method,
        budget=budget,
    )
    assert found.outcomes == ["budget spent"] * 2 and not any(found.verified)
    for picture in found.pictures:
        first_draw_and_check = 2.0
        assert picture.spent <= max(budget + 0.5, first_draw_and_check)
        assert len(picture.history) >= 1
    assert sum(p.spent for p in found.pictures) == pytest.approx(found.cost.pre, rel=0.05)


# -- the loop -------------------------------------------------------------------------------------


def test_guidance_moves_the_judges_count_not_only_the_critics(
    pipeline: CountGuidedPipeline,
) -> None:
    """Trained weights, three counters of different families; the judge takes no part in the search."""
    prompts = ["eight red apples on a table", "six stars in the sky", "nine mushrooms on grass"]
    counts = [("red apple", 8), ("star", 6), ("mushroom", 9)]
    judge = load_critic(ROLES["judge"])
    errors = {}
    for method in ("none", "noise"):
        found = pipeline(
            prompts, guidance=method, num_images_per_prompt=4, output_type="pt", budget=48, seed=11
        )
        queries = [judge.prepare([noun]) for noun, _ in counts for _ in range(4)]
        wanted = torch.tensor([[n] for _, n in counts for _ in range(4)])
        with torch.no_grad():
            errors[method] = (judge(found.images, queries).hard - wanted).abs().float().mean()
        if method == "noise":
            assert sum(found.verified) >= 9, found.outcomes
    assert errors["noise"] < 0.5 * errors["none"]


def test_a_verified_picture_is_exact_by_two_families(pipeline: CountGuidedPipeline) -> None:
    found = pipeline("three oranges and two stars", seed=4, num_images_per_prompt=4)
    wanted = {"orange": 3, "star": 2}
    assert sum(found.verified) >= 3
    for verified, outcome, counts in zip(found.verified, found.outcomes, found.counts, strict=True):
        assert verified == (outcome == "exact")
        assert not verified or counts == {"critic": wanted, "verifier": wanted}
    assert pipeline.verifier is not None
    assert len({pipeline.critic.card.family, pipeline.verifier.card.family}) == 2


def asking(critic: Critic | None, confidence: float) -> Any:
    """The same counter, with another least confidence on its card."""
    asked: Any = copy.copy(critic)
    asked.card = replace(asked.card, min_confidence=confidence)
    return asked


@pytest.mark.parametrize("whose", ["confidence", "verifier_confidence"])
def test_a_picture_that_is_exact_only_narrowly_is_not_verified(
    pipeline: CountGuidedPipeline, whose: str
) -> None:
    level = {"confidence": 0.9, "verifier_confidence": 0.98}[whose]
    strict = {"confidence": 0.0, "verifier_confidence": 0.0, whose: level}
    prompts, options = ["two stars", "three red apples"], {"num_images_per_prompt": 8, "seed": 2}
    lax, found = (
        CountGuidedPipeline(
            pipeline.adapter,
            asking(pipeline.critic, levels["confidence"]),
            asking(pipeline.verifier, levels["verifier_confidence"]),
            "none",
        )(prompts, **options)
        for levels in ({"confidence": 0.0, "verifier_confidence": 0.0}, strict)
    )
    best = [picture.best for picture in lax.pictures]
    clear = [look is not None and getattr(look, whose) >= level for look in best]
    assert sum(lax.verified) > 3
    assert found.verified == [v and c for v, c in zip(lax.verified, clear, strict=True)]
    assert "close call" in found.outcomes
    for outcome, verified in zip(found.outcomes, lax.verified, strict=True):
        assert (outcome in ("close call", "exact")) == verified


def test_the_nearest_of_the_plain_draws_is_the_one_that_is_improved(
    pipeline: CountGuidedPipeline,
) -> None:
    # Nothing is ever exact, so every picture climbs.
    never = [("dog", 20), ("cat", 19)]
    method = replace(find_method("noise"), explore=4, steps=2)
    found = pipeline("twenty dogs", targets=never, num_images_per_prompt=3, guidance=method)
    for history in found.history:
        draws, climb = history[:4], history[4:7]
        assert [row["gradient"] for row in draws] == [0] * 4
        assert [row["candidate"] for row in draws] == [0, 1, 2, 3]
        nearest = min(draws, key=lambda row: row["loss"])
        assert {row["candidate"] for row in climb} == {nearest["candidate"]}
        assert [(row["gradient"], row["step"]) for row in climb] == [(1, 0), (1, 1), (0, 2)]
        # The same noise again, then two steps from it.
        assert climb[0]["loss"] == pytest.approx(nearest["loss"], rel=1e-3)
        assert [row["candidate"] for row in history[7:9]] == [4, 5]


def test_results_do_not_depend_on_company_or_batch(pipeline: CountGuidedPipeline) -> None:
    prompts = ["five stars", "four oranges and a car", "seven balls"]
    options: dict[str, Any] = {"budget": 12, "output_type": "pt", "seed": 1}
    together = pipeline(prompts, batch_size=3, **options)
    singly = pipeline(prompts, batch_size=1, **options)
    alone = pipeline(prompts[1], **options)
    # Batches round differently: one step agrees closely, and a whole run in its outcome.
    assert together.outcomes == singly.outcomes
    first, second = together.pictures[1].plain, alone.pictures[0].plain
    assert first is not None and second is not None
    torch.testing.assert_close(first.image, second.image, atol=2e-4, rtol=0)
    torch.testing.assert_close(singly.images[1:2], alone.images, atol=2e-3, rtol=0)
    one, two = together.history[2][0], singly.history[2][0]
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-3)


def test_the_final_noise_makes_the_picture_again(pipeline: CountGuidedPipeline) -> None:
    found = pipeline("six red apples", seed=4, output_type="pt")
    again = pipeline("six red apples", latents=found.noise, guidance="none", output_type="pt")
    torch.testing.assert_close(again.images, found.images, atol=2e-4, rtol=0)


def test_optimised_noise_stays_on_its_shell(pipeline: CountGuidedPipeline) -> None:
    found = pipeline(["nine cups", "eight fish"], budget=20, seed=5)
    entries = found.noise.latents[0].numel()
    for noise in found.noise.latents:
        assert float(noise.norm()) == pytest.approx(entries**0.5, rel=0.08)


class Poisoned:
    """The pocket adapter whose gradient is not a number for one row of every batch of several."""

    def __init__(self, inner: Any, row: int) -> None:
        self.inner, self.row = inner, row

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def render(self, noise: Noise, conditioning: Any, plan: Any) -> Tensor:
        images = self.inner.render(noise, conditioning, plan)
        if images.requires_grad and len(images) > 1:
            poison = torch.ones(len(images), 1, 1, 1)
            poison[self.row] = torch.nan
            images.register_hook(lambda slope: slope * poison[: len(slope)])
        return images


def test_a_non_finite_gradient_stays_with_its_image(pipeline: CountGuidedPipeline) -> None:
    prompts = ["twelve dogs and seven cats", "five stars"]
    poisoned = CountGuidedPipeline(
        Poisoned(pipeline.adapter, 0),  # type: ignore[arg-type]
        # Both climb at once, and the healthy one ends with the first picture that is exact at all.
        asking(pipeline.critic, 0.0),
        asking(pipeline.verifier, 0.0),
        replace(find_method("noise"), explore=0, candidates=2),
    )
    found = poisoned(prompts, seed=2, budget=40, batch_size=2)
    assert found.outcomes[0] == "non-finite gradient" and not found.verified[0]
    assert found.outcomes[1] == "exact"
    assert torch.isfinite(found.noise.latents).all()


def test_closing_the_stream_keeps_what_there_is(pipeline: CountGuidedPipeline) -> None:
    states = pipeline.stream(
        ["ten dogs and ten cats", "twenty fish"], budget=60, num_images_per_prompt=1
    )
    next(states)
    states.close()
    found = pipeline.output()
    assert found.outcomes and set(found.outcomes) <= {"cancelled", "exact"}
    assert len(found.images) == len(found.outcomes) == len(found.noise)


def test_a_callback_sees_every_step_and_can_stop(pipeline: CountGuidedPipeline) -> None:
    seen: list[tuple[int, float]] = []

    def stop(pipe: CountGuidedPipeline, step: int, pre: float, values: dict[str, Any]) -> None:
        seen.append((step, pre))
        assert values["state"].images.shape[1:] == (3, 64, 64)
        pipe._interrupt = step == 1

    found = pipeline("eleven dogs and nine cats", callback_on_step_end=stop)
    assert [step for step, _ in seen] == [0, 1] and seen[0][1] < seen[1][1]
    assert found.outcomes == ["cancelled"]


def test_a_prompt_without_a_count_is_drawn_once(pipeline: CountGuidedPipeline) -> None:
    found = pipeline(["cats on grass", "two stars"], output_type="np")
    assert found.outcomes[0] == "no count in the prompt" and not found.verified[0]
    assert found.images.shape == (2, 64, 64, 3) and len(found.history[0]) == 1
    assert set(found.outcomes) <= set(OUTCOMES)


def test_generators_take_the_place_of_the_seed(pipeline: CountGuidedPipeline) -> None:
    def seeded() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in (7, 8)]

    options: dict[str, Any] = {"guidance": "none", "output_type": "pt", "num_images_per_prompt": 2}
    one = pipeline("two cats", generator=seeded(), **options)
    two = pipeline("two cats", generator=seeded(), **options)
    assert torch.equal(one.images, two.images)
    assert not torch.equal(one.images[0], one.images[1])


@pytest.mark.parametrize(
    ("prompt", "options", "error", "message"),
    [
        ("", {}, UsageError, "the prompt is empty"),
        ([], {}, UsageError, "the prompt is empty"),
        ("two cats", {"budget": float("nan")}, UsageError, "positive number"),
        ("two cats", {"num_images_per_prompt": 0}, UsageError, "at least 1"),
        ("two cats", {"guidance": "best-of"}, UsageError, "did you mean best-of-n"),
        ("two cats", {"output_type": "gif"}, UsageError, "pil, pt or np"),
        ("two cats", {"num_inference_steps": 99}, UsageError, "between 1 and 8"),
        ("two cats", {"height": 65}, UsageError, "multiples of"),
        ("two cats", {"latents": torch.zeros(1, 4, 2, 2)}, UsageError, "latents must have"),
        ("two cats", {"generator": []}, UsageError, "as many generators"),
        ("two cats", {"targets": [[("cat", 1)], [("cat", 2)]]}, UsageError, "as many lists"),
        ("two cats", {"targets": [("cat", -1)]}, UsageError, "between 0 and"),
        ("two unicorns", {}, UnknownNounError, "cannot see 'unicorn'"),
    ],
)
def test_mistakes_are_one_sentence(
    pipeline: CountGuidedPipeline, prompt: Any, options: Any, error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        pipeline(prompt, **options)


def test_critic_and_verifier_of_one_family_are_refused(pipeline: CountGuidedPipeline) -> None:
    with pytest.raises(UsageError, match="both of the family pocket-heatmap"):
        CountGuidedPipeline(pipeline.adapter, pipeline.critic, pipeline.critic)


def test_explicit_targets_win(pipeline: CountGuidedPipeline) -> None:
    found = pipeline("some stars", targets=[CountTarget("star", 2)], budget=4)
    assert set(found.counts[0]["critic"]) == {"star"} and found.outcomes != [
        "no count in the prompt"
    ]


def test_methods_are_settings_only() -> None:
    assert {"none", "best-of-n", "noise"} <= set(METHODS)
    with pytest.raises(UsageError, match="there is no objective"):
        replace(METHODS["noise"], objective="density")


@pytest.fixture(autouse=True)
def _no_weights_left_frozen(pipeline: CountGuidedPipeline) -> Iterator[None]:
    """Every test leaves the user's generator as it was."""
    before = [p.requires_grad for m in pipeline.adapter.modules() for p in m.parameters()]
    yield
    assert before == [p.requires_grad for m in pipeline.adapter.modules() for p in m.parameters()]
