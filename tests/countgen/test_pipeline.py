"""CountGuidedPipeline: pictures whose number is right by two counters, and one sentence for every mistake."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch

from countgen import CountGuidedPipeline, CountTarget
from countgen.engine.policy import DrawThenImprove
from countgen.errors import UsageError
from countgen.guidance.methods import find_method
from countgen.pocket import ROLES, load_critic
from critics.base import Critic, UnknownNounError

NEVER = [("dog", 1), ("cat", 19)]
"""Never exact."""


@pytest.mark.slow
def test_guidance_moves_the_judges_count_not_only_the_critics(pocket: CountGuidedPipeline) -> None:
    """Trained weights, three counters of different families; the judge takes no part in the search."""
    prompts = ["eight red apples on a table", "six stars in the sky", "nine mushrooms on grass"]
    counts = [("red apple", 8), ("star", 6), ("mushroom", 9)]
    judge = load_critic(ROLES["judge"])
    errors = {}
    for method in ("none", "noise"):
        found = pocket(
            prompts, guidance=method, num_images_per_prompt=4, output_type="pt", budget=48, seed=11
        )
        queries = [judge.prepare([noun]) for noun, _ in counts for _ in range(4)]
        wanted = torch.tensor([[n] for _, n in counts for _ in range(4)])
        with torch.no_grad():
            errors[method] = (judge(found.images, queries).hard - wanted).abs().float().mean()
        if method == "noise":
            assert sum(found.verified) >= 9, found.outcomes
    assert errors["noise"] < 0.5 * errors["none"]


@pytest.mark.slow
def test_a_verified_picture_is_exact_by_two_families(pocket: CountGuidedPipeline) -> None:
    found = pocket("three oranges and two stars", seed=4, num_images_per_prompt=4)
    wanted = {"orange": 3, "star": 2}
    assert sum(found.verified) >= 3
    for verified, outcome, counts in zip(found.verified, found.outcomes, found.counts, strict=True):
        assert verified == (outcome == "exact")
        assert not verified or counts == {"critic": wanted, "verifier": wanted}
    assert pocket.verifier is not None
    assert len({pocket.critic.card.family, pocket.verifier.card.family}) == 2


def asking(critic: Critic | None, confidence: float) -> Any:
    """The same counter, with another least confidence on its card."""
    asked: Any = copy.copy(critic)
    asked.card = replace(asked.card, min_confidence=confidence)
    return asked


@pytest.mark.parametrize("whose", ["confidence", "verifier_confidence"])
def test_a_picture_that_is_exact_only_narrowly_is_not_verified(
    pocket: CountGuidedPipeline, whose: str
) -> None:
    level = {"confidence": 0.9, "verifier_confidence": 0.98}[whose]
    strict = {"confidence": 0.0, "verifier_confidence": 0.0, whose: level}
    prompts, options = ["two stars", "three red apples"], {"num_images_per_prompt": 8, "seed": 2}
    lax, found = (
        CountGuidedPipeline(
            pocket.adapter,
            asking(pocket.critic, levels["confidence"]),
            asking(pocket.verifier, levels["verifier_confidence"]),
            "none",
        )(prompts, **options)
        for levels in ({"confidence": 0.0, "verifier_confidence": 0.0}, strict)
    )
    best = [job.best.record if job.best else None for job in lax.jobs]
    clear = [record is not None and getattr(record, whose) >= level for record in best]
    assert sum(lax.verified) > 3
    assert found.verified == [v and c for v, c in zip(lax.verified, clear, strict=True)]
    assert "close call" in found.outcomes
    for outcome, verified in zip(found.outcomes, lax.verified, strict=True):
        assert (outcome in ("close call", "exact")) == verified


def test_the_nearest_of_the_plain_draws_is_the_one_that_is_improved(
    pocket: CountGuidedPipeline,
) -> None:
    method = replace(find_method("noise"), policy=DrawThenImprove(draws=4, steps=2))
    found = pocket(
        "twenty dogs", targets=NEVER, num_images_per_prompt=2, guidance=method, budget=12
    )
    for history in found.history:
        draws, climb = history[:4], history[4:7]
        assert not any(record.gradient for record in draws)
        assert [record.candidate for record in draws] == [0, 1, 2, 3]
        nearest = min(draws, key=lambda record: record.loss)
        assert {record.candidate for record in climb} == {nearest.candidate}
        assert [(r.gradient, r.step) for r in climb] == [(True, 0), (True, 1), (False, 2)]
        assert [r.base for r in climb] == [nearest.number, 4, 5]
        # The same noise again, then two steps from it.
        assert climb[0].loss == pytest.approx(nearest.loss, rel=1e-3)
        assert climb[0].drift == 0 < climb[1].drift < climb[2].drift
        assert [record.candidate for record in history[7:9]] == [4, 5][: len(history) - 7]


def test_a_method_without_gradient_orders_pictures_by_its_objective(
    pocket: CountGuidedPipeline,
) -> None:
    found = pocket("twenty dogs", targets=NEVER, guidance="edit", budget=8, seed=1)
    (history,) = found.history
    assert {record.move for record in history} == {"draw", "edit"}
    assert all(record.loss > 0 and record.changes for record in history[3:])
    assert history[3].base is not None and history[3].candidate < 3
    assert not found.cost.backwards


def test_the_final_noise_makes_the_picture_again(pocket: CountGuidedPipeline) -> None:
    found = pocket("six red apples", seed=4, output_type="pt")
    again = pocket("six red apples", latents=found.noise, guidance="none", output_type="pt")
    torch.testing.assert_close(again.images, found.images, atol=2e-4, rtol=0)
    edited = pocket("twenty dogs", targets=NEVER, guidance="edit", budget=8, output_type="pt")
    again = pocket("twenty dogs", latents=edited.noise, guidance="none", output_type="pt")
    torch.testing.assert_close(again.images, edited.images, atol=2e-4, rtol=0)


def test_optimised_noise_stays_on_its_shell(pocket: CountGuidedPipeline) -> None:
    method = replace(find_method("noise"), policy=DrawThenImprove(draws=0, steps=4, candidates=1))
    found = pocket(["twenty dogs"], targets=NEVER, guidance=method, budget=20, seed=5)
    first, *others = found.history[0]
    assert len(others) == 4
    for record in others:
        assert record.drift > 0.02 * first.norm
        assert record.norm == pytest.approx(first.norm, rel=1e-4)


def test_pictures_depend_on_seed_prompt_and_index_alone(pocket: CountGuidedPipeline) -> None:
    options: dict[str, Any] = {"guidance": "none", "output_type": "pt"}
    two = pocket(["two stars", "two cats"], num_images_per_prompt=2, seed=3, **options).images
    one = pocket("two cats", num_images_per_prompt=2, seed=3, **options).images
    torch.testing.assert_close(two[2:], one, atol=2e-4, rtol=0)
    other = pocket("two cats", num_images_per_prompt=2, seed=4, **options).images
    named = pocket("two cats", num_images_per_prompt=2, seed=3, prompt_ids=["x"], **options).images
    for images in (other, named, one.flip(0)):
        assert (images - one).abs().max() > 0.1


def test_generators_take_the_place_of_the_seed(pocket: CountGuidedPipeline) -> None:
    def seeded() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in (7, 8)]

    options: dict[str, Any] = {"guidance": "none", "output_type": "pt", "num_images_per_prompt": 2}
    one = pocket("two cats", generator=seeded(), **options)
    two = pocket("two cats", generator=seeded(), **options)
    assert torch.equal(one.images, two.images)
    assert not torch.equal(one.images[0], one.images[1])


@pytest.mark.parametrize(
    ("prompt", "options", "error", "message"),
    [
        ("", {}, UsageError, "prompt is empty"),
        ([], {}, UsageError, "prompt is empty"),
        ("two cats", {"budget": float("nan")}, UsageError, r"budget.*from 0"),
        ("two cats", {"budget": -1}, UsageError, "budget.*not -1"),
        ("two cats", {"num_images_per_prompt": 0}, UsageError, "images.*from 1"),
        ("two cats", {"batch_size": 0}, UsageError, "batch size.*from 1"),
        ("two cats", {"guidance": "best-of"}, UsageError, "did you mean best-of-n"),
        ("two cats", {"output_type": "gif"}, UsageError, "pil, pt or np"),
        ("two cats", {"num_inference_steps": 5000}, UsageError, "num_inference_steps"),
        ("two cats", {"height": 65}, UsageError, "multiples of"),
        ("two cats", {"latents": torch.zeros(1, 4, 2, 2)}, UsageError, "latents must have"),
        ("two cats", {"generator": []}, UsageError, "as many generators"),
        ("two cats", {"prompt_ids": []}, UsageError, "as many prompt_ids"),
        ("two cats", {"targets": [[("cat", 1)], [("cat", 2)]]}, UsageError, "as many lists"),
        ("two cats", {"targets": [("cat", -1)]}, UsageError, "-1"),
        ("two unicorns", {}, UnknownNounError, "cannot see 'unicorn'"),
        (3, {}, UsageError, "a prompt is a text, or a list of texts, not 3"),
        (["two cats", None], {}, UsageError, "a prompt is a text, or a list of texts, not None"),
        ("two cats", {"guidance": 3}, UsageError, "guidance is a method or its name"),
        ("two cats", {"generator": 1}, UsageError, "numbers go to seed"),
    ],
)
def test_mistakes_are_one_sentence(
    pocket: CountGuidedPipeline, prompt: Any, options: Any, error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        pocket(prompt, **options)


def test_critic_and_verifier_of_one_family_are_refused(pocket: CountGuidedPipeline) -> None:
    with pytest.raises(UsageError, match=rf"both of the family {pocket.critic.card.family}"):
        CountGuidedPipeline(pocket.adapter, pocket.critic, pocket.critic)


@pytest.mark.parametrize(
    ("counter", "message"), [("owlv2", r'load_critic\("owlv2"\)'), (3, "a card, prepare")]
)
def test_counters_that_are_not_loaded_are_refused(
    pocket: CountGuidedPipeline, counter: Any, message: str
) -> None:
    with pytest.raises(UsageError, match=f"critic .*{message}"):
        CountGuidedPipeline(pocket.adapter, counter)
    with pytest.raises(UsageError, match=f"verifier .*{message}"):
        CountGuidedPipeline(pocket.adapter, pocket.critic, counter)


def test_what_no_adapter_wraps_is_refused(pocket: CountGuidedPipeline) -> None:
    with pytest.raises(UsageError):
        CountGuidedPipeline(object(), pocket.critic)


def test_explicit_targets_win(pocket: CountGuidedPipeline) -> None:
    found = pocket("some stars", targets=[CountTarget("star", 2)], budget=4)
    assert set(found.counts[0]["critic"]) == {"star"}
    assert found.outcomes != ["no count in the prompt"]


def test_a_noun_can_be_held_at_zero(pocket: CountGuidedPipeline) -> None:
    found = pocket(
        "two cats on grass", targets={"cat": 2, "dog": 0}, guidance="engine", seed=1, budget=30
    )
    assert found.history[0][0].nouns[1].wanted == 0 and found.verified == [True]
    assert found.counts[0]["verifier"] == {"cat": 2, "dog": 0}


def test_without_a_verifier_nothing_is_verified(pocket: CountGuidedPipeline) -> None:
    alone = CountGuidedPipeline(pocket.adapter, pocket.critic, guidance="best-of-n")
    found = alone("two stars", seed=1)
    assert found.outcomes == ["exact"] and found.verified == [False]
    assert set(found.counts[0]) == {"critic"} and found.cost.forwards["verifier"] == 0


def test_pipeline_and_output_can_be_pickled(pocket: CountGuidedPipeline) -> None:
    found = pocket("two cats", guidance="none", output_type="pt")
    again = pickle.loads(pickle.dumps(pocket))("two cats", guidance="none", output_type="pt")
    torch.testing.assert_close(again.images, found.images, atol=1e-5, rtol=0)
    kept = pickle.loads(pickle.dumps(found))
    assert torch.equal(kept.images, found.images) and kept.counts == found.counts
    assert repr(kept.jobs[0].records) == repr(found.jobs[0].records)
    assert torch.equal(kept.noise.latents, found.noise.latents)
