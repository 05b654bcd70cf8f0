"""What every adapter is: text and noise in, images out, with gradient.

An adapter wraps a Diffusers pipeline without changing it, and knows nothing of counting.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pipelines.memory import MemoryPlan
from pipelines.tokens import Tokens


@dataclass(frozen=True)
class Part:
    """Weights that a preset takes from another place than the pipeline's own repository.

    Attributes:
        component: of the pipeline.
        hub_id: repository, or local folder.
        kind: "folder": the component in the hub's layout; "weights": a safetensors file with its state;
            "lora": low-rank changes to it, which are added to its weights.
        subfolder: of the component, for folders.
        filename: of the weights.
    """

    component: str
    hub_id: str
    kind: Literal["folder", "weights", "lora"]
    subfolder: str = ""
    filename: str = ""


@dataclass(frozen=True)
class PipelineCard:
    """What a user must know of a generator.

    Attributes:
        family: name of the adapter's family.
        steps: sampling steps that it is meant for.
        guidance_scale: as Diffusers' argument of this name; 1 or less does not guide.
        size: side in pixels that it was trained on.
        license_code, license_weights: names of the licences.
        commercial: whether the weights' licence allows commercial use without further terms.
        hub_id, revision: where the weights are; a revision only where it was verified.
        timesteps: in place of the scheduler's own, for models distilled at certain ones.
        parts: what replaces or changes components of the pipeline at ``hub_id``.
        scheduler: name of a Diffusers class in place of the pipeline's own, and its settings.
    """

    name: str
    family: str
    summary: str
    steps: int
    guidance_scale: float
    size: int
    license_code: str
    license_weights: str
    commercial: bool = True
    hub_id: str = ""
    revision: str = ""
    timesteps: tuple[int, ...] | None = None
    parts: tuple[Part, ...] = ()
    scheduler: tuple[str, Mapping[str, Any]] | None = None
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
        pooled: (b, p) pooled text embedding, None for models without.
        mask: (b, t) True where a token is, None for models that attend to padding as well.
        negative: what guidance steers away from, where the plan guides; as many rows.
    """

    hidden: Float[Tensor, "b t d"]
    pooled: Float[Tensor, "b p"] | None = None
    mask: Bool[Tensor, "b t"] | None = None
    negative: Conditioning | None = None

    def __len__(self) -> int:
        return len(self.hidden)

    def pick(self, rows: Sequence[int]) -> Conditioning:
        """These rows, in this order; a row may come more than once."""
        index = torch.as_tensor(list(rows), device=self.hidden.device, dtype=torch.int64)
        return Conditioning(
            self.hidden[index],
            None if self.pooled is None else self.pooled[index],
            None if self.mask is None else self.mask[index],
            None if self.negative is None else self.negative.pick(rows),
        )

    @staticmethod
    def join(parts: Sequence[Conditioning]) -> Conditioning:
        """All rows of all parts, the shorter texts padded where there are masks.

        Raises:
            ValueError: parts of different models or plans.
        """
        for name in ("pooled", "mask", "negative"):
            if len({getattr(part, name) is None for part in parts}) > 1:
                raise ValueError(f"conditionings with and without {name} cannot be joined")
        longest = max(part.hidden.shape[1] for part in parts)
        if parts[0].mask is None and any(part.hidden.shape[1] != longest for part in parts):
            raise ValueError("conditionings of different lengths need masks to be joined")
        pooled = [part.pooled for part in parts if part.pooled is not None]
        masks = [_pad(part.mask, longest) for part in parts if part.mask is not None]
        negatives = [part.negative for part in parts if part.negative is not None]
        return Conditioning(
            torch.cat([_pad(part.hidden, longest) for part in parts]),
            torch.cat(pooled) if pooled else None,
            torch.cat(masks) if masks else None,
            Conditioning.join(negatives) if negatives else None,
        )


def _pad(tensor: Tensor, length: int) -> Tensor:
    """Zeros behind the second dimension, up to a length."""
    missing = tensor.new_zeros(len(tensor), length - tensor.shape[1], *tensor.shape[2:])
    return torch.cat([tensor, missing], 1)


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

    def to(self, device: torch.device | str) -> Noise:
        moved = None if self.step_noise is None else self.step_noise.to(device)
        return Noise(self.latents.to(device), moved)

    @staticmethod
    def join(parts: Sequence[Noise]) -> Noise:
        """All pictures of all parts."""
        steps = [part.step_noise for part in parts if part.step_noise is not None]
        if steps and len(steps) != len(parts):
            raise ValueError("noises with and without step noise cannot be joined")
        return Noise(
            torch.cat([part.latents for part in parts]), torch.cat(steps, 1) if steps else None
        )


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
    memory: MemoryPlan

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

    def encode(
        self, prompts: Sequence[str], plan: Plan, tokens: Tokens | None = None
    ) -> Conditioning:
        """Prompts as the denoiser takes them; with gradient to the embeddings of new ``tokens``, if given."""
        ...

    def noise(self, generators: Sequence[torch.Generator], plan: Plan) -> Noise:
        """The noise that the wrapped pipeline would draw from one CPU generator an image."""
        ...

    def trajectory(
        self, noise: Noise, conditioning: Conditioning, plan: Plan
    ) -> Iterator[TrajectoryStep]: ...

    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 hh ww"]:
        """Images in [0, 1]."""
        ...

    def use(self, name: str) -> None:
        """Go on with another memory plan (``pipelines.memory.PLANS``)."""
        ...

    def relieve(self) -> str | None:
        """Take the next more sparing memory plan, and return its name; None where there is none."""
        ...

    def render(
        self, noise: Noise, conditioning: Conditioning, plan: Plan
    ) -> Float[Tensor, "b 3 hh ww"]:
        """Images in [0, 1], equal to the wrapped pipeline's, with gradient to noise and conditioning."""
        ...

    def flops(self, plan: Plan) -> dict[str, Flops]:
        """Operations of one picture by module; ``denoiser`` is one step."""
        ...
