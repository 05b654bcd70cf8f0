"""What keeps an optimised noise a noise.

A Gaussian noise of d entries lies on a thin shell of radius sqrt(d), has no favourite frequency, and its
entries have mean 0 and variance 1. A prior holds some of that, as a penalty or by projecting after each step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from countgen.errors import UsageError
from countgen.guidance.base import Rows, per_row
from pipelines.base import Noise


def norms(noise: Float[Tensor, b * shape]) -> Float[Tensor, " b"]:
    """Euclidean norm of each image's noise."""
    return noise.flatten(1).norm(dim=1)


def renormalise(
    noise: Float[Tensor, b * shape], radius: Float[Tensor, " b"]
) -> Float[Tensor, b * shape]:
    """Each image's noise scaled to its radius."""
    return noise * per_row(radius / norms(noise).clamp_min(1e-12), noise)


@dataclass(frozen=True)
class Free:
    """No prior."""

    projects: bool = False

    def penalty(self, noise: Noise, rows: Rows) -> Float[Tensor, " b"]:
        return noise.latents.new_zeros(len(noise))

    def project(self, rows: Rows, first: Rows) -> Rows:
        return rows


@dataclass(frozen=True)
class Renormalise:
    """After every step the noise is scaled back to the norm that it began with (as DOODL, 2303.13703)."""

    projects: bool = True

    def penalty(self, noise: Noise, rows: Rows) -> Float[Tensor, " b"]:
        return noise.latents.new_zeros(len(noise))

    def project(self, rows: Rows, first: Rows) -> Rows:
        return rows | {"latents": renormalise(rows["latents"], norms(first["latents"]))}


@dataclass(frozen=True)
class ChiNorm:
    """The negative log-density of the noise's norm, which is chi-distributed; 0 at its mode.

    e = r^2 / 2 - (d - 1) ln r less its least value, for a norm r of d entries. With power 1 it is weight * e,
    as in ReNO (arXiv 2406.04312, up to the constant that makes its least value 0). D2D (2510.19278) is said
    to raise a norm term to the power 10; its form is not public, so weight * ((1 + e / d)^power - 1) is a
    reconstruction, which means the same for every size of noise.
    """

    weight: float = 0.01
    power: float = 1.0
    projects: bool = False

    def __post_init__(self) -> None:
        _check_weight(self.weight)
        if not 1 <= self.power < math.inf:
            raise UsageError(f"the power of a norm prior must be at least 1, not {self.power}")

    def penalty(self, noise: Noise, rows: Rows) -> Float[Tensor, " b"]:
        latents = noise.latents
        entries = latents[0].numel()
        mode = max(entries - 1, 1)
        # The same as r^2 / 2 - (d - 1) ln r less its least value, without the difference of large numbers.
        beyond = latents.flatten(1).square().sum(1).clamp_min(1e-24) / mode - 1
        excess = mode / 2 * (beyond - beyond.log1p())
        if self.power == 1:
            return self.weight * excess
        # Far from the shell a high power overflows; beyond ten times the scale it grows no further.
        scaled = 1 + (excess.clamp_min(0) / entries).clamp_max(10.0)
        return self.weight * (scaled**self.power - 1)

    def project(self, rows: Rows, first: Rows) -> Rows:
        return rows


@dataclass(frozen=True)
class KL:
    """weight * KL(N(mean, variance) || N(0, 1)), averaged over entries (InitNO, arXiv 2404.04650).

    Of rows "mean" and "log_variance"; of a noise itself, 0.5 * weight * mean of squares less its expectation,
    the closed form for a change of the noise (HyperNoise, arXiv 2508.09968) where there are no such rows.
    """

    weight: float = 1.0
    projects: bool = False

    def __post_init__(self) -> None:
        _check_weight(self.weight)

    def penalty(self, noise: Noise, rows: Rows) -> Float[Tensor, " b"]:
        if "log_variance" not in rows:
            return self.weight * 0.5 * (noise.latents.flatten(1).square().mean(1) - 1).clamp_min(0)
        mean, log_variance = rows["mean"].flatten(1), rows["log_variance"].flatten(1)
        return self.weight * 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean(1)

    def project(self, rows: Rows, first: Rows) -> Rows:
        return rows


@dataclass(frozen=True)
class Moments:
    """weight * squared distance of mean, variance, skewness and kurtosis from a normal's, times the entries.

    ReNO's norm term and kurtosis terms are special cases of such moments (arXiv 2509.07027). Multiplied by
    the number of entries, since the moments of a true noise scatter with its inverse.
    """

    weight: float = 0.01
    projects: bool = False

    def __post_init__(self) -> None:
        _check_weight(self.weight)

    def penalty(self, noise: Noise, rows: Rows) -> Float[Tensor, " b"]:
        entries = noise.latents.flatten(1)
        off = [entries.mean(1), entries.square().mean(1) - 1]
        off += [entries.pow(3).mean(1), entries.pow(4).mean(1) - 3]
        # Variances of the four moments' estimates, times the entries: 1, 2, 15, 96.
        scale = entries.new_tensor([1.0, 2.0, 15.0, 96.0])
        return self.weight * entries.shape[1] * (torch.stack(off, 1).square() / scale).sum(1)

    def project(self, rows: Rows, first: Rows) -> Rows:
        return rows


@dataclass(frozen=True)
class Spectrum:
    """After every step the noise is made white again, band by band (after arXiv 2602.08646; reconstructed).

    The power of each channel's noise in bands of equal spatial frequency is scaled to what it was when the
    climb began, phases untouched: no band can be filled or emptied, and where energy lies in the picture is
    left free.
    """

    bands: int = 8
    projects: bool = True

    def __post_init__(self) -> None:
        if self.bands < 1:
            raise UsageError(f"a spectrum has at least one band, not {self.bands}")

    def penalty(self, noise: Noise, rows: Rows) -> Float[Tensor, " b"]:
        return noise.latents.new_zeros(len(noise))

    def project(self, rows: Rows, first: Rows) -> Rows:
        return rows | {"latents": whitened(rows["latents"], first["latents"], self.bands)}


def _check_weight(weight: float) -> None:
    if not 0 <= weight < math.inf:
        raise UsageError(f"the weight of a prior must be finite and at least 0, not {weight}")


def whitened(
    noise: Float[Tensor, "b c h w"], first: Float[Tensor, "b c h w"], bands: int
) -> Float[Tensor, "b c h w"]:
    """The noise with the power that ``first`` has in every band of spatial frequency."""
    height, width = noise.shape[-2:]
    frequency = (
        torch.fft.fftfreq(height, device=noise.device)[:, None].square()
        + torch.fft.rfftfreq(width, device=noise.device)[None, :].square()
    ).sqrt()
    band = (frequency / frequency.max().clamp_min(1e-12) * bands).long().clamp_max(bands - 1)
    spectrum = torch.fft.rfft2(noise, norm="ortho")
    # The half that is left out mirrors all columns but the first, and the last of an even width.
    twice = torch.full_like(frequency, 2.0)
    twice[:, 0] = 1.0
    if width % 2 == 0:
        twice[:, -1] = 1.0
    power = spectrum.abs().square() * twice
    wanted = torch.fft.rfft2(first, norm="ortho").abs().square() * twice
    factor = torch.ones_like(wanted)
    for number in range(bands):
        inside = band == number
        if inside.any():
            now = power[..., inside].sum(-1, keepdim=True)
            before = wanted[..., inside].sum(-1, keepdim=True)
            factor[..., inside] = (
                (before / now.clamp_min(1e-20)).sqrt().expand_as(factor[..., inside])
            )
    return torch.fft.irfft2(spectrum * factor, s=(height, width), norm="ortho")
