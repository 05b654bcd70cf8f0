"""What every adapter is: text and noise in, images out, with gradient.

An adapter wraps a Diffusers pipeline without changing it, and knows nothing of counting.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class PipelineCard:
    """What a user must know of a generator.

    Attributes:
        steps: sampling steps that it is meant for.
        size: side in pixels that it was trained on.
    """

    name: str
    family: str
    summary: str
    steps: int
    guidance_scale: float
    size: int
    license_code: str
    license_weights: str
    hub_id: str = ""
    revision: str = ""
    citation: str = ""


@dataclass(frozen=True)
class Plan:
    """How pictures are sampled.

    Attributes:
        latent_shape: (channels, height, width) of one picture's noise.
    """

    steps: int
    guidance_scale: float
    height: int
    width: int
    latent_shape: tuple[int, int, int]


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts; rows can be picked and joined.

    Attributes:
        hidden: (b, t, d) token states that the denoiser attends to.
        pooled: (b, p) pooled text embedding.
        negative: what guidance steers away from, where the plan guides; as many rows.
    """

    hidden: Float[Tensor, "b t d"]
    pooled: Float[Tensor, "b p"]
    negative: Conditioning | None = None

    def __len__(self) -> int:
        return len(self.hidden)

    def pick(self, rows: Sequence[int]) -> Conditioning:
        """These rows, in this order; a row may come more than once."""
        index = torch.as_tensor(list(rows), device=self.hidden.device, dtype=torch.int64)
        negative = self.negative.pick(rows) if self.negative else None
        return Conditioning(self.hidden[index], self.pooled[index], negative)

    @staticmethod
    def join(parts: Sequence[Conditioning]) -> Conditioning:
        """All rows of all parts; either all parts have a negative or none."""
        negatives = [part.negative for part in parts if part.negative is not None]
        if negatives and len(negatives) != len(parts):
            raise ValueError("conditionings with and without a negative cannot be joined")
        return Conditioning(
            torch.cat([part.hidden for part in parts]),
            torch.cat([part.pooled for part in parts]),
            Conditioning.join(negatives) if negatives else None,
        )


@dataclass(frozen=True)
class Noise:
    """All randomness of a batch of pictures.

    Attributes:
        latents: (b, c, h, w) float32, drawn from a standard normal.
        step_noise: (s, b, c, h, w) what the sampler itself adds at each step, None if it adds nothing.
    """

    latents: Float[Tensor, "b c h w"]
    step_noise: Float[Tensor, "s b c h w"] | None = None

    def __len__(self) -> int:
        return len(self.latents)


class TrajectoryStep(NamedTuple):
    """One step of sampling: its number, the latents after it, and the clean latents predicted at it."""

    step: int
    latents: Tensor
    clean: Tensor


class Flops(NamedTuple):
    """Floating-point operations of one picture's pass through a module, and of the gradient back."""

    forward: float
    backward: float


@runtime_checkable
class PipelineAdapter(Protocol):
    """A Diffusers pipeline seen as a differentiable function of its noise and its conditioning."""

    card: PipelineCard

    @property
    def device(self) -> torch.device: ...

    def to(self, device: str | torch.device) -> PipelineAdapter: ...

    def modules(self) -> tuple[torch.nn.Module, ...]:
        """Whatever of the pipeline has weights."""
        ...

    def plan(
        self,
        steps: int | None = None,
        guidance_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> Plan:
        """A checked plan; what is None comes from the card.

        Raises:
            ValueError: steps or a size that the model cannot take.
        """
        ...

    def encode(self, prompts: Sequence[str], plan: Plan) -> Conditioning: ...

    def noise(self, generators: Sequence[torch.Generator], plan: Plan) -> Noise:
        """The noise that the wrapped pipeline would draw from one CPU generator an image."""
        ...

    def trajectory(
        self, noise: Noise, conditioning: Conditioning, plan: Plan
    ) -> Iterator[TrajectoryStep]: ...

    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 hh ww"]:
        """Images in [0, 1]."""
        ...

    def render(
        self, noise: Noise, conditioning: Conditioning, plan: Plan
    ) -> Float[Tensor, "b 3 hh ww"]:
        """Images in [0, 1], equal to the wrapped pipeline's, with gradient to noise and conditioning."""
        ...

    def flops(self, plan: Plan) -> dict[str, Flops]:
        """Operations of one picture by module; ``denoiser`` is one step."""
        ...
