"""Guidance of single sampling steps: no variable is optimised, a step's prediction is changed.

A guide is priced like everything else: what it runs beside the trajectory is counted by itself.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from countgen.engine.cost import Passes
from countgen.errors import UsageError
from countgen.guidance.base import Objective, per_row
from countgen.guidance.objectives import SoftCount
from countgen.guidance.prompt_tokens import place_token
from countgen.prompts import CountPrompt, number_word
from critics.base import Critic, Query
from pipelines.base import Around, Conditioning, DenoiseStep, Noise, PipelineAdapter, Plan


@dataclass(frozen=True)
class StepContext:
    """What a guide may use, for a batch of pictures."""

    adapter: PipelineAdapter
    plan: Plan
    critic: Critic
    queries: Sequence[Query]
    prompts: Sequence[CountPrompt]
    wanted: Int64[Tensor, "b k"]
    noise: Noise
    conditioning: Conditioning


class StepGuide(Protocol):
    """Guidance of single steps: a frozen dataclass with its own settings."""

    @property
    def gradient(self) -> bool:
        """Whether it takes gradients through the denoiser."""
        ...

    def around(self, context: StepContext) -> tuple[Around, Callable[[], Passes]]:
        """The hook of a trajectory, and what each picture went through beside the denoiser's own passes."""
        ...


@dataclass(frozen=True)
class CountingGuidance:
    """At every step the predicted clean picture is counted, and the gradient corrects the prediction.

    After Counting Guidance (Kang et al., arXiv 2306.17567): universal guidance with the square of
    (count - N) / N. The published correction adds strength * sqrt(1 - alpha_bar) * gradient to the predicted
    noise; here the gradient has the norm of the prediction, so that one strength serves every loss and model.

    Attributes:
        strength: of the correction, as a share of the prediction's norm.
        begin, end: the part of the steps that is guided, as fractions.
    """

    strength: float = 0.2
    begin: float = 0.0
    end: float = 1.0
    objective: Objective = field(default_factory=lambda: SoftCount("relative"))
    gradient: bool = True

    def __post_init__(self) -> None:
        _check_window(self.begin, self.end)
        _check_finite("strength", self.strength)

    def around(self, context: StepContext) -> tuple[Around, Callable[[], Passes]]:
        guided = _guided(context.plan, self.begin, self.end)
        ran: Counter[str] = Counter()

        def hook(step: DenoiseStep) -> Tensor:
            if step.index not in guided:
                return step.denoise(step.latents)
            with torch.enable_grad():
                latents = step.latents.detach().requires_grad_()
                prediction = step.denoise(latents)
                images = context.adapter.decode(step.predict_clean(prediction, latents))
                loss = self.objective(context.critic(images, context.queries), context.wanted)
                (grad,) = torch.autograd.grad(loss.sum(), latents)
            ran.update({"decoder": 1, "critic": 1})
            prediction = prediction.detach()
            return prediction + self.strength * _towards(step, prediction) * _scaled(
                grad, prediction
            )

        return hook, lambda: Passes(Counter(ran), Counter(ran))


@dataclass(frozen=True)
class PromptSteering:
    """The first steps are moved away from what a control prompt with another number says.

    After ATHENA (arXiv 2603.19676): e + weight * (e - e_control), scaled back to the norm of e. The control
    prompt is the prompt without its number ("static"), or with the number that the critic sees in the
    predicted clean picture of an unsteered beginning ("feedback"); where that number is right, nothing is
    steered.

    Attributes:
        weight: published 4 (SDXL 5).
        end: steered part of the steps, as a fraction; published the first 5 to 10 of 50.
        look: of "feedback": after which part of the steps the picture is counted; published 20 of 50.
    """

    control: Literal["static", "feedback"] = "static"
    weight: float = 4.0
    end: float = 0.2
    look: float = 0.4
    gradient: bool = False

    def __post_init__(self) -> None:
        _check_window(0.0, self.end)
        _check_window(0.0, self.look)
        _check_finite("weight", self.weight)
        if self.control not in ("static", "feedback"):
            raise UsageError(f"a control prompt is static or feedback, not {self.control!r}")

    def around(self, context: StepContext) -> tuple[Around, Callable[[], Passes]]:
        ran: Counter[str] = Counter({"text_encoder": 1})
        counts: list[int | None] = [None] * len(context.prompts)
        if self.control == "feedback":
            counts = self._seen(context, ran)
        texts = [
            control_prompt(prompt, count)
            for prompt, count in zip(context.prompts, counts, strict=True)
        ]
        control = context.adapter.encode(texts, context.plan)
        # Where the number is right already there is nothing to move away from.
        steered = torch.tensor(
            [
                bool(prompt.targets) and count != prompt.targets[0].count
                for prompt, count in zip(context.prompts, counts, strict=True)
            ]
        ).to(context.wanted.device)
        guided = _guided(context.plan, 0.0, self.end)

        def hook(step: DenoiseStep) -> Tensor:
            plain = step.denoise(step.latents)
            if step.index not in guided:
                return plain
            away = plain - step.denoise(step.latents, control)
            moved = plain + self.weight * away
            norm = plain.flatten(1).norm(dim=1) / moved.flatten(1).norm(dim=1).clamp_min(1e-12)
            return torch.where(
                steered.reshape(-1, *[1] * (plain.ndim - 1)), moved * per_row(norm, moved), plain
            )

        return hook, lambda: Passes(Counter(ran))

    def _seen(self, context: StepContext, ran: Counter[str]) -> list[int | None]:
        """What the critic counts of each first target in the predicted clean picture of a plain beginning."""
        last = max(_guided(context.plan, 0.0, self.look))
        clean = None
        trajectory = context.adapter.trajectory(context.noise, context.conditioning, context.plan)
        for step in trajectory:
            clean = step.clean
            ran.update({"denoiser": 1})
            if step.step >= last:
                break
        assert clean is not None
        hard = context.critic(context.adapter.decode(clean), context.queries).hard
        ran.update({"decoder": 1, "critic": 1})
        return [
            int(hard[row, 0]) if prompt.targets else None
            for row, prompt in enumerate(context.prompts)
        ]


def control_prompt(prompt: CountPrompt, count: int | None) -> str:
    """The prompt without the number of its first target, or with another one.

    >>> from countgen import parse_prompt
    >>> control_prompt(parse_prompt("a photo of seven cats"), None)
    'a photo of cats'
    >>> control_prompt(parse_prompt("a photo of seven cats"), 9)
    'a photo of nine cats'
    """
    mark = "\x00"
    text, number = place_token(prompt, mark, "instead")
    if not number:
        return prompt.text
    word = "" if count is None else number_word(count)
    return re.sub(r"\s+", " ", text.replace(mark, word)).strip()


def _guided(plan: Plan, begin: float, end: float) -> range:
    """Numbers of the steps in a window of fractions; at least one."""
    first = min(int(begin * plan.steps), plan.steps - 1)
    return range(first, max(round(end * plan.steps), first + 1))


def _towards(step: DenoiseStep, prediction: Tensor) -> float:
    """What a change of the prediction is multiplied with to lower the loss of the clean picture.

    sqrt(1 - alpha_bar) where noise is predicted, as published; the same of other predictions: with a the
    factor by which the clean latents follow the prediction, -a / sqrt(1 + a^2).
    """
    with torch.no_grad():
        unit = torch.ones_like(prediction)
        follows = step.predict_clean(prediction + unit) - step.predict_clean(prediction)
        factor = float(follows.mean())
    return -factor / (1 + factor**2) ** 0.5


def _scaled(grad: Float[Tensor, b * s], like: Float[Tensor, b * s]) -> Float[Tensor, b * s]:
    """The gradient with the norm of a prediction, picture by picture; 0 where there is none."""
    length = grad.flatten(1).norm(dim=1)
    usable = length.isfinite() & (length > 0)
    factor = torch.where(usable, like.flatten(1).norm(dim=1) / length.clamp_min(1e-20), 0.0)
    return torch.where(
        usable.reshape(-1, *[1] * (grad.ndim - 1)), grad * per_row(factor, grad), 0.0
    )


def _check_finite(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise UsageError(f"the {name} of a guide must be finite, not {value}")


def _check_window(begin: float, end: float) -> None:
    if not 0 <= begin < end <= 1:
        raise UsageError(
            f"the steps that are guided lie between fractions of them, 0 <= begin < end <= 1, not {begin} "
            f"and {end}"
        )
