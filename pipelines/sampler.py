"""A pipeline's own scheduler as a pure function: its noise is given, and nothing is remembered."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

SetTimesteps = Callable[[Any], None]
"""Sets the timesteps of a scheduler, in place."""


class Sampler:
    """One run over a scheduler's timesteps, on a copy of it.

    Schedulers draw their noise with diffusers' ``randn_tensor``. The copy's ``step`` looks that name up in
    globals of its own, where it is a function that hands out the given noise in the order of drawing, so
    that neither diffusers nor the user's scheduler is touched, and other threads see nothing of it.
    """

    def __init__(
        self,
        scheduler: Any,
        set_timesteps: SetTimesteps,
        noise: Float[Tensor, "s b *shape"] | None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """``options``: what the scheduler's ``step`` is told besides, such as ``eta``."""
        self._scheduler = copy.deepcopy(scheduler)
        set_timesteps(self._scheduler)
        self._noise, self._options = noise, dict(options or {})
        self.drawn = 0

    @property
    def timesteps(self) -> Tensor:
        """One for every evaluation of the denoiser: second-order samplers have more of them than steps."""
        times = self._scheduler.timesteps
        # Consistency models' scheduler lists the end too, to which no step belongs.
        return times[:-1] if type(self._scheduler).__name__ == "SCMScheduler" else times

    @property
    def init_noise_sigma(self) -> float:
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
        return _step(self._scheduler, self._draw, output, time, latents, self._options)

    def predict_clean(self, output: Tensor, time: Tensor, latents: Tensor) -> Tensor:
        """The clean latents that ``step`` would predict; the run stays where it is.

        Raises:
            ValueError: as ``step``.
        """
        ahead = copy.copy(self._scheduler)
        for name, value in vars(ahead).items():
            if isinstance(value, list):  # multistep solvers write what they predicted into lists
                setattr(ahead, name, list(value))
            elif isinstance(value, Tensor):  # or add to tensors in place
                setattr(ahead, name, value.clone())
        return _step(ahead, _zeros, output, time, latents, self._options)[1]

    def keep(self, rows: Sequence[int], shape: Sequence[int]) -> None:
        """Go on with these rows alone.

        Args:
            rows: numbers of rows, in the order that they shall have.
            shape: of the latents so far, by which what solvers remember of them is told from all else.
        """
        index = list(rows)

        def kept(value: Any) -> Any:
            if isinstance(value, Tensor) and value.shape == tuple(shape):
                return value[index]
            return [kept(part) for part in value] if isinstance(value, list) else value

        for name, value in vars(self._scheduler).items():
            setattr(self._scheduler, name, kept(value))
        if self._noise is not None:
            self._noise = self._noise[:, index]

    def _draw(self, shape: Any, *args: Any, dtype: Any = None, **options: Any) -> Tensor:
        number, self.drawn = self.drawn, self.drawn + 1
        if self._noise is None:
            return _zeros(shape, dtype=dtype, **options)
        if number >= len(self._noise):
            raise ValueError(
                f"the scheduler draws noise {number + 1} times, but only {len(self._noise)} were given: "
                "this noise was made for another plan"
            )
        return self._noise[number].to(dtype=dtype or self._noise.dtype)


def _zeros(shape: Any, *args: Any, dtype: Any = None, device: Any = None, **options: Any) -> Tensor:
    return torch.zeros(tuple(shape), device=device, dtype=dtype)


def _step(
    scheduler: Any,
    draw: Callable[..., Tensor],
    output: Tensor,
    time: Tensor,
    latents: Tensor,
    options: Mapping[str, Any],
) -> tuple[Tensor, Tensor]:
    """A scheduler's step with noise from ``draw``: the next latents and the clean ones."""
    step = type(scheduler).step
    changed = types.FunctionType(
        step.__code__,
        {**step.__globals__, "randn_tensor": draw},
        step.__name__,
        step.__defaults__,
        step.__closure__,
    )
    changed.__kwdefaults__ = step.__kwdefaults__
    stepped = changed(scheduler, output, time, latents, **options)
    return stepped.prev_sample, _predicted_clean(scheduler, stepped, output, time, latents)


def _predicted_clean(
    scheduler: Any, stepped: Any, output: Tensor, time: Tensor, latents: Tensor
) -> Tensor:
    """The clean latents that an output stands for, as a scheduler understands it after its step."""
    for name in ("pred_original_sample", "denoised"):
        clean = getattr(stepped, name, None)
        if clean is not None:
            return clean
    name = type(scheduler).__name__
    if hasattr(scheduler, "_sigma_to_alpha_sigma_t"):  # DPM-Solver, DEIS, UniPC, SA-Solver
        return _from_sigma(scheduler, output, latents)
    if getattr(scheduler, "model_outputs", None):  # solvers in EDM's terms keep it
        return scheduler.model_outputs[-1]
    if name.startswith("FlowMatch"):
        return latents - scheduler.sigmas[scheduler.step_index - 1].to(latents) * output
    if hasattr(scheduler, "alphas_cumprod") and hasattr(
        scheduler.config, "prediction_type"
    ):  # PNDM, TCD
        kept = scheduler.alphas_cumprod[int(time)]
        return _from_alpha(scheduler, kept.sqrt(), (1 - kept).sqrt(), output, latents)
    raise ValueError(f"the scheduler {name} does not tell the clean picture that it predicts")


def _from_sigma(scheduler: Any, output: Tensor, latents: Tensor) -> Tensor:
    """Whichever of noise and picture the solver itself goes on with."""
    level = scheduler.sigmas[scheduler.step_index - 1]
    if scheduler.config.prediction_type == "flow_prediction":
        return _cut(scheduler, latents - level.to(latents) * output)
    alpha, sigma = scheduler._sigma_to_alpha_sigma_t(level)
    return _from_alpha(scheduler, alpha, sigma, output, latents)


def _from_alpha(
    scheduler: Any, alpha: Tensor, sigma: Tensor, output: Tensor, latents: Tensor
) -> Tensor:
    """By the definition of the prediction type, where latents are alpha * picture + sigma * noise."""
    alpha, sigma = alpha.to(latents), sigma.to(latents)
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        clean = (latents - sigma * output) / alpha
    elif kind == "sample":
        clean = output
    else:  # v_prediction; the schedulers themselves refuse all others
        clean = alpha * latents - sigma * output
    return _cut(scheduler, clean)


def _cut(scheduler: Any, clean: Tensor) -> Tensor:
    return scheduler._threshold_sample(clean) if scheduler.config.get("thresholding") else clean


def count_draws(
    scheduler: Any, set_timesteps: SetTimesteps, options: Mapping[str, Any] | None = None
) -> int:
    """How often a scheduler draws noise in one run, found by running it on zeros.

    Raises:
        ValueError: as ``Sampler.step``.
    """
    sampler = Sampler(scheduler, set_timesteps, None, options)
    latents = torch.zeros(1, 1, 8, 8, device=sampler.timesteps.device, dtype=torch.float32)
    with torch.no_grad():
        for time in sampler.timesteps:
            sampler.scale(latents, time)
            latents, _ = sampler.step(torch.zeros_like(latents), time, latents)
    return sampler.drawn
