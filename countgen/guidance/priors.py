"""What keeps an optimised noise a noise."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def norms(noise: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    """Euclidean norm of each image's noise."""
    return noise.flatten(1).norm(dim=1)


def renormalise(
    noise: Float[Tensor, "b c h w"], radius: Float[Tensor, " b"]
) -> Float[Tensor, "b c h w"]:
    """Each image's noise scaled to its radius; a Gaussian noise lies on a thin shell, and so stays there."""
    return noise * (radius / norms(noise).clamp_min(1e-12))[:, None, None, None]
