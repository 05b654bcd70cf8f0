"""How sharp a reward's peak is: the run-time sign of a picture that games its reward."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def sharpness(
    reward: Callable[[Tensor], Tensor],
    images: Float[Tensor, "b 3 h w"],
    radius: float = 1e-2,
) -> Float[Tensor, " b"]:
    """How much reward each image loses by the worst step of a given length: r(x) - r(x - radius g / |g|).

    As published (RSA-FT, CVPR 2026, where it falls as the quality of pictures rises; radius 1e-2): g is the
    gradient of the reward at x, and |g| its Euclidean length over all values of that image. A high value says
    that the reward rests on a pattern which a tiny change destroys. Read it beside the values of plain
    pictures with the same critic; it has no scale of its own. Where the gradient is zero, it is 0.

    Args:
        reward: images -> (b,), larger is better, each value of its own image only; such as
            ``lambda x: -(critic(x, queries).soft - wanted).abs().sum(-1)``.
        images: in [0, 1]; the step may leave that range by as much as ``radius``.
        radius: length of the step, over pixel values.

    Returns:
        (b,) in the reward's units, without gradient.

    Raises:
        ValueError: the reward does not give one value an image, or the radius is not positive.
    """
    if radius <= 0:
        raise ValueError(f"the radius of a step must be positive, not {radius}")
    with torch.inference_mode(False), torch.enable_grad():
        start = images.detach().clone().requires_grad_()
        here = reward(start)
        if here.shape != images.shape[:1]:
            raise ValueError(
                f"a reward gives one value an image, shape {tuple(images.shape[:1])}, not {tuple(here.shape)}"
            )
        (grad,) = torch.autograd.grad(here.sum(), start)
    grad = grad.to(torch.promote_types(grad.dtype, torch.float32))
    # By the largest entry first: the squares of a tiny gradient would underflow, and it would have no length.
    largest = grad.abs().amax((1, 2, 3), keepdim=True)
    unit = grad / torch.where(largest > 0, largest, 1.0)
    unit = unit / unit.flatten(1).norm(dim=1).clamp_min(1)[:, None, None, None]
    with torch.no_grad():
        return here.detach() - reward(start.detach() - (radius * unit).to(start.dtype))
