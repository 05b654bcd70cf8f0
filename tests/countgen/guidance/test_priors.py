"""Priors: penalties against closed forms, and what projections keep."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from countgen.errors import UsageError
from countgen.guidance.base import Prior
from countgen.guidance.priors import (
    KL,
    ChiNorm,
    Free,
    Moments,
    Renormalise,
    Spectrum,
    norms,
    renormalise,
    whitened,
)
from pipelines.base import Noise

PENALTIES: dict[str, Prior] = {
    "chi": ChiNorm(0.01),
    "chi to a power": ChiNorm(0.5, power=3.0),
    "kl": KL(2.0),
    "moments": Moments(0.1),
}


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def rows_of(noise: Tensor) -> dict[str, Tensor]:
    return {"mean": noise * 0.3, "log_variance": noise.flip(-1) * 0.5}


# -- penalties ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.2, 1.0, 1.7])
def test_chi_is_renos_term_up_to_its_constant(scale: float) -> None:
    noise = scale * random(3, 4, 5, 6)
    entries, found = 4 * 5 * 6, ChiNorm(0.01).penalty(Noise(noise), {})
    # arXiv 2406.04312: 0.01 * (r^2 / 2 - (d - 1) ln r), least at r = sqrt(d - 1).
    radius = noise.flatten(1).norm(dim=1)
    published = 0.01 * (0.5 * radius**2 - (entries - 1) * radius.log())
    least = 0.01 * (0.5 * (entries - 1) - (entries - 1) * 0.5 * math.log(entries - 1))
    torch.testing.assert_close(found, published - least, rtol=1e-9, atol=1e-12)


def test_chi_is_0_at_its_mode_and_its_gradient_is_the_published_one() -> None:
    noise = random(2, 4, 8, 8)
    mode = math.sqrt(noise[0].numel() - 1)
    on_shell = renormalise(noise, torch.full((2,), mode, dtype=torch.float64))
    assert ChiNorm(1.0).penalty(Noise(on_shell), {}).abs().max() < 1e-9
    leaf = (1.3 * noise).requires_grad_()
    (grad,) = torch.autograd.grad(ChiNorm(0.01).penalty(Noise(leaf), {}).sum(), leaf)
    radius = norms(leaf.detach())[:, None, None, None]
    expected = 0.01 * (radius - (noise[0].numel() - 1) / radius) * leaf.detach() / radius
    torch.testing.assert_close(grad, expected)


def test_chi_is_exact_in_float32_for_large_noises() -> None:
    noise = 1.01 * random(1, 4, 64, 64)
    exact = ChiNorm(0.01).penalty(Noise(noise), {})
    found = ChiNorm(0.01).penalty(Noise(noise.float()), {})
    assert exact.item() > 0
    torch.testing.assert_close(found, exact.float(), rtol=1e-3, atol=0)


def test_a_higher_power_is_steeper_and_does_not_overflow() -> None:
    noise, entries = random(1, 4, 8, 8), 4 * 8 * 8
    radius = 1.2 * math.sqrt(entries)
    off = renormalise(noise, torch.tensor([radius], dtype=torch.float64))
    excess = (
        (entries - 1) / 2 * (radius**2 / (entries - 1) - 1 - math.log(radius**2 / (entries - 1)))
    )
    found = ChiNorm(0.01, power=10.0).penalty(Noise(off), {}).item()
    assert found == pytest.approx(0.01 * ((1 + excess / entries) ** 10 - 1), rel=1e-9)
    assert torch.isfinite(ChiNorm(0.01, power=10.0).penalty(Noise(1e6 * noise), {})).all()
    assert found > ChiNorm(0.01, power=2.0).penalty(Noise(off), {}).item()


def test_kl_is_the_closed_form() -> None:
    rows = rows_of(random(3, 2, 4, 4))
    found = KL(2.0).penalty(Noise(random(3, 2, 4, 4)), rows)
    ours = torch.distributions.Normal(rows["mean"], (rows["log_variance"] / 2).exp())
    one = torch.distributions.Normal(torch.zeros(()).double(), torch.ones(()).double())
    expected = torch.distributions.kl_divergence(ours, one).flatten(1).mean(1)
    torch.testing.assert_close(found, 2.0 * expected)
    zeros = {name: torch.zeros_like(row) for name, row in rows.items()}
    assert not KL().penalty(Noise(random(3, 2, 4, 4)), zeros).any()


def test_kl_of_a_noise_is_half_the_mean_of_its_squares_beyond_1() -> None:
    noise = 1.5 * random(2, 2, 8, 8)
    expected = 0.5 * (noise.flatten(1).square().mean(1) - 1)
    torch.testing.assert_close(KL().penalty(Noise(noise), {}), expected)
    assert not KL().penalty(Noise(0.5 * noise), {}).any()


def test_moments_are_those_of_a_normal() -> None:
    prior, noise = Moments(1.0), random(400, 1, 16, 16)
    # Of a true noise each of the four terms is a squared standard score: its mean is 1.
    assert 3.2 < prior.penalty(Noise(noise), {}).mean() < 4.8
    base = prior.penalty(Noise(noise), {})
    wrong: dict[str, Tensor] = {
        "mean": noise + 0.5,
        "variance": noise * 1.3,
        "skewness": (noise.square() - 1) / math.sqrt(2),
        "kurtosis": noise.sign(),
    }
    for name, other in wrong.items():
        assert prior.penalty(Noise(other), {}).mean() > 2.5 * base.mean(), name


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_are_differentiable_and_a_batch_is_its_pictures_alone(name: str) -> None:
    prior = PENALTIES[name]
    noise = 1.2 * random(3, 2, 3, 4)

    def value(leaf: Tensor) -> Tensor:
        return prior.penalty(Noise(leaf), rows_of(leaf) if name == "kl" else {})

    assert torch.autograd.gradcheck(value, (noise.requires_grad_(),))
    together = value(noise)
    alone = torch.cat([value(noise[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=0)
    assert (together > 0).all()


# -- projections ----------------------------------------------------------------------------------


@given(st.integers(1, 4), st.floats(0.1, 50.0), st.integers(0, 2**31))
def test_renormalised_noise_has_its_norm_and_direction(
    images: int, radius: float, seed: int
) -> None:
    noise = random(images, 2, 3, 3, seed=seed)
    wanted = torch.linspace(radius, 2 * radius, images, dtype=torch.float64)
    found = renormalise(noise, wanted)
    torch.testing.assert_close(norms(found), wanted)
    cosine = torch.cosine_similarity(found.flatten(1), noise.flatten(1))
    torch.testing.assert_close(cosine, torch.ones(images, dtype=torch.float64))


def test_renormalise_goes_back_to_the_norm_of_the_climbs_beginning() -> None:
    first = {"latents": random(2, 2, 4, 4)}
    moved = {"latents": first["latents"] * 1.7 + 0.3, "other": torch.ones(2)}
    found = Renormalise().project(moved, first)
    torch.testing.assert_close(norms(found["latents"]), norms(first["latents"]))
    assert found["other"] is moved["other"]
    assert not torch.allclose(norms(moved["latents"]), norms(first["latents"]), rtol=0.1)


def band_powers(noise: Tensor, bands: int) -> Tensor:
    """(b, c, bands) power of the whole spectrum, from the plain two-dimensional transform."""
    height, width = noise.shape[-2:]
    y, x = torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None]
    frequency = (y.square() + x.square()).sqrt()
    half = (y.square() + torch.fft.rfftfreq(width)[None].square()).sqrt()
    band = (frequency / half.max() * bands).long().clamp_max(bands - 1)
    power = torch.fft.fft2(noise, norm="ortho").abs().square()
    return torch.stack([power[..., band == n].sum(-1) for n in range(bands)], -1)


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 9), st.integers(3, 9), st.integers(1, 8), st.integers(0, 2**31))
def test_the_spectrum_keeps_the_power_of_every_band(
    height: int, width: int, bands: int, seed: int
) -> None:
    first = random(2, 2, height, width, seed=seed)
    moved = first + 0.8 * random(2, 2, height, width, seed=seed + 1).cumsum(-1)
    found = Spectrum(bands).project({"latents": moved}, {"latents": first})["latents"]
    torch.testing.assert_close(
        band_powers(found, bands), band_powers(first, bands), rtol=1e-6, atol=1e-9
    )
    torch.testing.assert_close(norms(found), norms(first))
    assert not torch.allclose(found, first) and not torch.allclose(found, moved)


def test_a_noise_whose_bands_are_right_is_left_as_it_is() -> None:
    noise = random(2, 3, 8, 8)
    torch.testing.assert_close(whitened(noise, noise, 8), noise)
    torch.testing.assert_close(whitened(2.5 * noise, noise, 8), noise)


@pytest.mark.parametrize("prior", [Free(), ChiNorm(), KL(), Moments()])
def test_what_does_not_project_says_so(prior: Any) -> None:
    rows, first = {"latents": random(1, 1, 4, 4)}, {"latents": random(1, 1, 4, 4, seed=1)}
    assert not prior.projects and prior.project(rows, first) is rows
    assert Renormalise().projects and Spectrum().projects


@pytest.mark.parametrize("prior", [Free(), Renormalise(), Spectrum()])
def test_what_only_projects_has_no_penalty(prior: Any) -> None:
    assert prior.penalty(Noise(random(2, 1, 4, 4) * 9), {}).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("options", [{"weight": -1.0}, {"power": 0.5}])
def test_a_chi_prior_out_of_range_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=r"weight|power"):
        ChiNorm(**options)
