"""A pipeline's own scheduler as a pure function: its noise is given, and nothing is remembered."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

Set = Callable[[Any], None]
"""Sets the timesteps of a scheduler."""


class Sampler:
    """One run over a scheduler's timesteps, on a copy of it.

    Schedulers draw their noise with diffusers' ``randn_tensor``. The copy's ``step`` looks that name up in
    globals of its own, where it is a function that hands out the given noise in the order of drawing, so
    that neither diffusers nor the user's scheduler is touched, and other threads see nothing of it.
    """

    def __init__(
        self, scheduler: Any, set_timesteps: Set, noise: Float[Tensor, "s b *shape"] | None
    ) -> None:
        self._scheduler = copy.deepcopy(scheduler)
        set_timesteps(self._scheduler)
        self._noise = noise
        self.drawn = 0
        step = type(self._scheduler).step
        own = {**step.__globals__, "randn_tensor": self._draw}
        changed = types.FunctionType(
            step.__code__, own, step.__name__, step.__defaults__, step.__closure__
        )
        changed.__kwdefaults__ = step.__kwdefaults__
        self._step = types.MethodType(changed, self._scheduler)

    @property
    def timesteps(self) -> Tensor:
        times = self._scheduler.timesteps
        # Consistency models' scheduler lists the end too, to which no step belongs.
        return times[:-1] if type(self._scheduler).__name__ == "SCMScheduler" else times

    @property
    def first_scale(self) -> float:
        """What a standard normal is multiplied with to be the first latents; flows have no such number."""
        return float(getattr(self._scheduler, "init_noise_sigma", 1.0))

    def scale(self, latents: Tensor, time: Tensor) -> Tensor:
        """Latents as the denoiser takes them."""
        scale = getattr(self._scheduler, "scale_model_input", None)
        return latents if scale is None else scale(latents, time)

    def step(self, output: Tensor, time: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        """The next latents, and the clean ones that were predicted.

        Raises:
            ValueError: a scheduler that does not tell its clean prediction in a known way.
        """
        index = getattr(self._scheduler, "step_index", None)
        stepped = self._step(output, time, latents)
        for name in ("pred_original_sample", "denoised"):
            clean = getattr(stepped, name, None)
            if clean is not None:
                return stepped.prev_sample, clean
        if getattr(self._scheduler, "model_outputs", None):  # DPM-Solver++ keeps it
            return stepped.prev_sample, self._scheduler.model_outputs[-1]
        if type(self._scheduler).__name__.startswith("FlowMatch"):
            sigma = self._scheduler.sigmas[index or 0]
            return stepped.prev_sample, latents - sigma.to(latents) * output
        raise ValueError(
            f"the scheduler {type(self._scheduler).__name__} is not supported: it does not tell the clean "
            "picture that it predicts; take the one that the model was published with"
        )

    def _draw(self, shape: Any, *args: Any, dtype: Any = None, **options: Any) -> Tensor:
        number, self.drawn = self.drawn, self.drawn + 1
        if self._noise is None:
            return torch.zeros(tuple(shape), device=options.get("device"), dtype=dtype)
        if number >= len(self._noise):
            raise ValueError(
                f"the scheduler draws noise {number + 1} times, but only {len(self._noise)} were given: "
                "this noise was made for another plan"
            )
        return self._noise[number].to(dtype=dtype or self._noise.dtype)


def count_draws(scheduler: Any, set_timesteps: Set) -> int:
    """How often a scheduler draws noise in one run, found by running it on nothing."""
    sampler = Sampler(scheduler, set_timesteps, None)
    latents = torch.zeros(1, 1, 8, 8, device=sampler.timesteps.device)
    with torch.no_grad():
        for time in sampler.timesteps:
            sampler.scale(latents, time)
            latents, _ = sampler.step(torch.zeros_like(latents), time, latents)
    return sampler.drawn
