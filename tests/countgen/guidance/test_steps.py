"""Guidance of single steps: nothing at strength 0, the published formulas, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from countgen import CountGuidedPipeline, parse_prompt
from countgen.engine.cost import Passes
from countgen.engine.evaluate import padded
from countgen.errors import UsageError
from countgen.guidance.methods import find_method
from countgen.guidance.steps import (
    CountingGuidance,
    PromptSteering,
    StepContext,
    StepGuide,
    control_prompt,
)
from countgen.pocket import load_critic
from critics.base import Critic
from pipelines.base import DenoiseStep

PROMPTS = ("seven red apples", "two cats on grass")


def context(
    adapter: Any, critic: Critic, prompts: Sequence[str] = PROMPTS, steps: int = 3
) -> StepContext:
    plan = adapter.plan(steps)
    parsed = [parse_prompt(prompt) for prompt in prompts]
    wanted = [[target.count for target in prompt.targets] for prompt in parsed]
    noise = adapter.noise([torch.Generator().manual_seed(i) for i in range(len(prompts))], plan)
    queries = [critic.prepare([target.noun for target in p.targets]) for p in parsed]
    text = adapter.encode(prompts, plan)
    return StepContext(adapter, plan, critic, queries, parsed, padded(wanted), noise, text)


def drawn(own: StepContext, guide: StepGuide | None) -> tuple[Tensor, Passes | None]:
    with torch.no_grad():
        around, ran = guide.around(own) if guide else (None, None)
        *_, last = own.adapter.trajectory(own.noise, own.conditioning, own.plan, around)
        return own.adapter.decode(last.latents), ran() if ran else None


def hooked(
    own: StepContext,
    guide: StepGuide,
    index: int = 0,
    look: Callable[[DenoiseStep], Any] = lambda step: None,
) -> tuple[Tensor, Tensor, Any]:
    """The plain prediction of a step, the guided one, and what ``look`` says while the step lasts."""
    around, _ = guide.around(own)
    found: list[Any] = []

    def spy(step: DenoiseStep) -> Tensor:
        plain, guided = step.denoise(step.latents), around(step)
        if step.index == index:
            found.append((plain, guided, look(step)))
        return guided

    with torch.no_grad():
        list(own.adapter.trajectory(own.noise, own.conditioning, own.plan, spy))
    return found[0]


@pytest.fixture(scope="module")
def critic() -> Critic:
    return load_critic("pocket-detector-a")


@pytest.fixture(params=["tiny", "pocket"])
def generator(request: pytest.FixtureRequest, tiny_sd: Any, pocket: CountGuidedPipeline) -> Any:
    return tiny_sd if request.param == "tiny" else pocket.adapter


@pytest.mark.parametrize(
    ("still", "guide"),
    [
        (CountingGuidance(strength=0.0), CountingGuidance()),
        (PromptSteering(weight=0.0), PromptSteering()),
        (PromptSteering("feedback", weight=0.0), PromptSteering("feedback")),
    ],
)
def test_strength_0_changes_not_a_bit(
    still: StepGuide, guide: StepGuide, generator: Any, critic: Critic
) -> None:
    own = context(generator, critic)
    plain, _ = drawn(own, None)
    assert torch.equal(drawn(own, still)[0], plain)
    guided, _ = drawn(own, guide)
    assert (guided - plain).flatten(1).abs().amax(1).max() > 1e-4


def test_counting_guidance_is_its_formula(tiny_sd: Any, critic: Critic) -> None:
    own = context(tiny_sd, critic)

    def gradient(step: DenoiseStep) -> Tensor:
        leaf = step.latents.detach().requires_grad_()
        with torch.enable_grad():
            clean = step.predict_clean(step.denoise(leaf), leaf)
            soft = critic(tiny_sd.decode(clean), own.queries).soft
            # arXiv 2306.17567: ((count - N) / N)^2
            loss = ((soft - own.wanted) / own.wanted).square().sum()
            return torch.autograd.grad(loss, leaf)[0]

    plain, guided, grad = hooked(own, CountingGuidance(strength=0.2), 0, gradient)
    scheduler = type(tiny_sd.pipeline.scheduler).from_config(tiny_sd.pipeline.scheduler.config)
    scheduler.set_timesteps(own.plan.steps)
    sigma = float(scheduler.sigmas[0])
    towards = (sigma**2 / (1 + sigma**2)) ** 0.5  # sqrt(1 - alpha_bar) of the predicted noise
    for row in range(2):
        unit = grad[row] / grad[row].norm() * plain[row].norm()
        expected = plain[row] + 0.2 * towards * unit
        torch.testing.assert_close(guided[row], expected, rtol=1e-3, atol=1e-4)


def test_counting_guidance_lowers_the_loss_of_the_predicted_picture(
    generator: Any, critic: Critic
) -> None:
    own = context(generator, critic)
    guide, losses = CountingGuidance(strength=0.02), []

    def hook(step: DenoiseStep) -> Tensor:
        guided = around(step)
        for prediction in (step.denoise(step.latents), guided):
            images = generator.decode(step.predict_clean(prediction))
            losses.append(guide.objective(critic(images, own.queries), own.wanted))
        return guided

    around, _ = guide.around(own)
    with torch.no_grad():
        list(generator.trajectory(own.noise, own.conditioning, own.plan, hook))
    before, after = torch.stack(losses[::2]), torch.stack(losses[1::2])
    assert after.sum() < before.sum() and (after <= before).float().mean() > 0.6


def test_steering_moves_away_from_the_control_prompt_at_the_same_norm(
    tiny_sd: Any, critic: Critic
) -> None:
    own = context(tiny_sd, critic)
    texts = tiny_sd.encode(["red apples", "cats on grass"], own.plan)
    plain, guided, control = hooked(
        own, PromptSteering(weight=4.0), 0, lambda step: step.denoise(step.latents, texts)
    )
    # arXiv 2603.19676: e + weight * (e - e_control), with the norm of e.
    moved = plain + 4.0 * (plain - control)
    for row in range(2):
        expected = moved[row] / moved[row].norm() * plain[row].norm()
        torch.testing.assert_close(guided[row], expected, rtol=1e-4, atol=1e-6)
        assert guided[row].norm().item() == pytest.approx(plain[row].norm().item(), rel=1e-5)
        assert not torch.allclose(guided[row], plain[row], rtol=1e-3)


def test_only_the_first_steps_are_steered(tiny_sd: Any, critic: Critic) -> None:
    own = context(tiny_sd, critic, steps=5)
    for index, steered in enumerate((True, True, False, False, False)):
        plain, guided, _ = hooked(own, PromptSteering(end=0.4), index)
        assert torch.equal(plain, guided) is not steered
    plain, guided, _ = hooked(own, CountingGuidance(begin=0.4, end=0.6), 0)
    assert torch.equal(plain, guided)
    plain, guided, _ = hooked(own, CountingGuidance(begin=0.4, end=0.6), 2)
    assert not torch.equal(plain, guided)


def test_with_feedback_a_right_beginning_is_not_steered(pocket: CountGuidedPipeline) -> None:
    """What the critic counts in the predicted picture is the control's number; a right one needs none."""
    own = context(pocket.adapter, pocket.critic, ("two stars",), steps=8)
    *_, third = list(pocket.adapter.trajectory(own.noise, own.conditioning, own.plan))[:3]
    seen = int(pocket.critic(pocket.adapter.decode(third.clean), own.queries).hard[0, 0])
    words = {0: "zero", 1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
    same = context(pocket.adapter, pocket.critic, (f"{words[seen + 1]} stars",), steps=8)
    plain, _ = drawn(own, None)
    guided, _ = drawn(own, PromptSteering("feedback"))
    assert torch.equal(guided, plain) is (seen == 2)
    assert same.wanted.item() == seen + 1


def test_a_prompt_without_a_number_is_not_steered(tiny_sd: Any, critic: Critic) -> None:
    own = context(tiny_sd, critic, ("two cats on grass", "red apples"))
    plain, _ = drawn(own, None)
    guided, _ = drawn(own, PromptSteering())
    assert torch.equal(plain[1], guided[1]) and not torch.equal(plain[0], guided[0])


@pytest.mark.parametrize(
    ("name", "forwards", "backwards"),
    [
        (
            "counting-guidance",
            {"denoiser": 8, "decoder": 9, "critic": 9, "text_encoder": 1},
            {"denoiser": 8, "decoder": 8, "critic": 8},
        ),
        (
            "prompt-steering",
            {"denoiser": 10, "decoder": 1, "critic": 1, "text_encoder": 2},
            {},
        ),
        (
            "prompt-steering-feedback",
            {"denoiser": 13, "decoder": 2, "critic": 2, "text_encoder": 2},
            {},
        ),
    ],
)
def test_what_a_guide_runs_is_paid_for(
    name: str, forwards: dict[str, int], backwards: dict[str, int], pocket: CountGuidedPipeline
) -> None:
    found = pocket("seventeen dogs", guidance=name, budget=0, seed=1)
    counted = dict(found.cost.forwards)
    # Where the critic counts exactly, it looks once more, in the mirror.
    counted.pop("verifier", None)
    counted["critic"] -= sum(record.error == 0 for record in found.history[0])
    assert counted == forwards and dict(found.cost.backwards) == backwards
    flops = pocket.adapter.flops(pocket.adapter.plan())
    unit = 8 * flops["denoiser"].forward + flops["decoder"].forward
    own = {k: n for k, n in forwards.items() if k in ("denoiser", "decoder")}
    least = sum(n * flops[k].forward for k, n in own.items())
    least += sum(n * flops[k].backward for k, n in backwards.items() if k in own)
    assert least / unit < found.history[0][0].pre < least / unit + 1.5


def test_a_control_prompt_has_another_number_or_none() -> None:
    prompt = parse_prompt("a photo of seven cats and two dogs")
    assert control_prompt(prompt, None) == "a photo of cats and two dogs"
    assert control_prompt(prompt, 9) == "a photo of nine cats and two dogs"
    assert control_prompt(parse_prompt("cats"), None) == "cats"


@pytest.mark.parametrize("window", [(0.5, 0.5), (-0.1, 1.0), (0.0, 1.1), (0.6, 0.2)])
def test_windows_outside_of_the_steps_are_refused(window: tuple[float, float]) -> None:
    with pytest.raises(UsageError, match="0 <= begin < end <= 1"):
        CountingGuidance(begin=window[0], end=window[1])
    with pytest.raises(UsageError, match="fractions"):
        PromptSteering(end=0.0)
    assert find_method("counting-guidance").gradient and not find_method("prompt-steering").gradient
