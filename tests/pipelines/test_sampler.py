"""Schedulers as pure functions: what they call clean is the clean picture, whatever they compute with."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from pipelines.sampler import Sampler, count_draws

VARIANCE_EXPLODING = {
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
}
"""Their latents are the picture plus sigma times noise; those of others are scaled to unit variance."""

SOLVERS: list[tuple[str, dict[str, Any]]] = [
    ("DEISMultistepScheduler", {}),
    ("DEISMultistepScheduler", {"prediction_type": "v_prediction"}),
    ("DPMSolverMultistepScheduler", {}),
    (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
    ),
    (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min", "solver_order": 3},
    ),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("DPMSolverMultistepScheduler", {"prediction_type": "v_prediction"}),
    (
        "DPMSolverMultistepScheduler",
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction"},
    ),
    ("DPMSolverSinglestepScheduler", {}),
    (
        "DPMSolverSinglestepScheduler",
        {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
    ),
    ("UniPCMultistepScheduler", {}),
    ("UniPCMultistepScheduler", {"predict_x0": False, "final_sigmas_type": "sigma_min"}),
    ("UniPCMultistepScheduler", {"prediction_type": "v_prediction"}),
    ("EulerDiscreteScheduler", {}),
    ("EulerDiscreteScheduler", {"prediction_type": "v_prediction"}),
    ("EulerAncestralDiscreteScheduler", {}),
    ("HeunDiscreteScheduler", {}),
    ("LMSDiscreteScheduler", {}),
    ("DDIMScheduler", {"clip_sample": False}),
    ("DDPMScheduler", {"clip_sample": False}),
    ("FlowMatchEulerDiscreteScheduler", {}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ("FlowMatchHeunDiscreteScheduler", {}),
    ("FlowMatchLCMScheduler", {}),
]


def sampler_of(name: str, settings: dict[str, Any], steps: int = 5) -> Sampler:
    scheduler = getattr(diffusers, name)(**settings)

    def set_timesteps(scheduler: Any) -> None:
        scheduler.set_timesteps(steps)

    draws = count_draws(scheduler, set_timesteps)
    noise = torch.randn(draws, 2, 4, 3, 3, dtype=torch.float64) if draws else None
    return Sampler(scheduler, set_timesteps, noise)


def ideal(name: str, kind: str, clean: Tensor, latents: Tensor, sigma: Tensor) -> Tensor:
    """What a perfect model of one picture says of latents at a noise level, by definition of its output."""
    if name.startswith("FlowMatch") or kind == "flow_prediction":
        return (latents - clean) / sigma
    if name in VARIANCE_EXPLODING:
        noise = (latents - clean) / sigma
        latents = latents / (1 + sigma**2).sqrt()
    alpha, beta = 1 / (1 + sigma**2).sqrt(), sigma / (1 + sigma**2).sqrt()
    if name not in VARIANCE_EXPLODING:
        noise = (latents - alpha * clean) / beta
    return noise if kind == "epsilon" else alpha * noise - beta * clean


def noise_level(sampler: Sampler, index: int) -> Tensor:
    scheduler = sampler._scheduler
    if hasattr(scheduler, "sigmas"):
        return scheduler.sigmas[index].double()
    kept = scheduler.alphas_cumprod[int(sampler.timesteps[index])].double()
    return ((1 - kept) / kept).sqrt()


@pytest.mark.parametrize(("name", "settings"), SOLVERS)
def test_the_clean_prediction_of_a_perfect_model_is_the_picture(
    name: str, settings: dict[str, Any]
) -> None:
    sampler = sampler_of(name, settings)
    kind = settings.get("prediction_type", "epsilon")
    clean = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    latents = torch.randn(2, 4, 3, 3, dtype=torch.float64) * sampler.init_noise_sigma
    for index, time in enumerate(sampler.timesteps):
        sigma = noise_level(sampler, index)
        if sigma == 0:
            break
        sampler.scale(latents, time)
        output = ideal(name, kind, clean, latents, sigma)
        drawn = sampler.drawn
        ahead = sampler.predict_clean(output, time, latents)
        assert sampler.drawn == drawn
        latents, found = sampler.step(output, time, latents)
        torch.testing.assert_close(ahead, found, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(found, clean, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize(("name", "settings"), SOLVERS)
def test_looking_ahead_changes_nothing(name: str, settings: dict[str, Any]) -> None:
    """The latents of a run that asks for the clean picture at every step, and of one that does not."""
    plain, asked = sampler_of(name, settings), sampler_of(name, settings)
    asked._noise = plain._noise
    outputs = torch.randn(len(plain.timesteps), 2, 4, 3, 3)
    start = torch.randn(2, 4, 3, 3) * plain.init_noise_sigma
    ends = []
    for sampler in (plain, asked):
        latents = start
        for output, time in zip(outputs, sampler.timesteps, strict=True):
            sampler.scale(latents, time)
            if sampler is asked:
                for other in (output, -output):
                    sampler.predict_clean(other, time, latents)
            latents, _ = sampler.step(output, time, latents)
        ends.append(latents)
    assert torch.equal(*ends)


@pytest.mark.parametrize(("name", "settings"), SOLVERS)
def test_rows_that_go_on_go_where_they_would_have_gone(name: str, settings: dict[str, Any]) -> None:
    """As many rows as timesteps and levels of noise, whose first dimension is then that of the latents."""
    steps = 5
    whole, fewer = sampler_of(name, settings, steps), sampler_of(name, settings, steps)
    rows = len(whole.timesteps)
    if whole._noise is not None:
        whole._noise = torch.randn(len(whole._noise), rows, 4, 3, 3)
        fewer._noise = whole._noise
    outputs = torch.randn(rows, rows, 4, 3, 3)
    latents = other = torch.randn(rows, 4, 3, 3) * whole.init_noise_sigma
    kept = list(range(rows))
    for index, time in enumerate(whole.timesteps):
        if index in (2, 3):
            keep = [2, 0] if index == 2 else [1]
            fewer.keep(keep, other.shape)
            other, kept = other[keep], [kept[row] for row in keep]
        whole.scale(latents, time)
        fewer.scale(other, time)
        latents, clean = whole.step(outputs[index], time, latents)
        other, predicted = fewer.step(outputs[index][kept], time, other)
        assert torch.equal(other, latents[kept]) and torch.equal(predicted, clean[kept])
    assert kept == [0]


@pytest.mark.parametrize("name", ["DEISMultistepScheduler", "DPMSolverMultistepScheduler"])
def test_gradients_flow_through_the_clean_prediction(name: str) -> None:
    """Of a later step too, when the solver remembers outputs that have a graph."""
    sampler = sampler_of(name, {})
    latents = torch.randn(1, 4, 3, 3, requires_grad=True)
    moved, weight = latents, torch.ones((), requires_grad=True)
    for time in sampler.timesteps[:3]:
        output = weight * moved
        clean = sampler.predict_clean(output, time, moved)
        grads = torch.autograd.grad(clean.sum(), (latents, weight), retain_graph=True)
        assert all(torch.isfinite(grad).all() and grad.abs().sum() > 0 for grad in grads)
        moved, _ = sampler.step(output, time, moved)
