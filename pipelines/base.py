"""What every source of pictures is: text and noise in, images out; and what an adapter adds, the gradient.

Both wrap a Diffusers pipeline without changing it, and know nothing of counting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol, TypeGuard, runtime_checkable

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from pipelines.arguments import Arguments
from pipelines.memory import MemoryPlan
from pipelines.tokens import Tokens


@dataclass(frozen=True)
class ComponentOverride:
    """Weights of a component that a preset takes from another place than the pipeline's own repository.

    Attributes:
        component: of the pipeline.
        hub_id: repository, or local folder.
        kind: "folder": the component in the hub's layout; "weights": a safetensors file with its state;
            "lora": a LoRA, which is fused into its weights.
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
        guidance_scale: as Diffusers' argument of this name; for most families no classifier-free guidance
            at 1 or less.
        size: side in pixels that it was trained on; of pictures that are no squares the height.
        width: of pictures that are no squares.
        license_code, license_weights: names of the licences.
        commercial: whether the weights' licence allows commercial use without further terms.
        hub_id, revision: where the weights are; a revision only where it was verified.
        timesteps: in place of the scheduler's own, for models distilled at certain ones.
        arguments: further ones of the pipeline's call that the model is meant for.
        overrides: what replaces or changes components of the pipeline at ``hub_id``.
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
    arguments: Mapping[str, Any] = field(default_factory=dict)
    overrides: tuple[ComponentOverride, ...] = ()
    scheduler: tuple[str, Mapping[str, Any]] | None = None
    citation: str = ""
    width: int | None = None


@dataclass(frozen=True)
class Plan:
    """How pictures are sampled.

    Attributes:
        steps: as Diffusers' ``num_inference_steps``.
        evaluations: of the denoiser, one picture: as many as steps, more with second-order samplers; 0 where
            nobody looks into the pipeline, and a call is the smallest thing to be counted.
        height, width: in pixels.
        latent_shape: (channels, height, width) of one picture's noise.
        arguments: what the pipeline's call is told besides, such as a negative prompt.
        places: whether the noise's height and width are those of the picture, so that noise can be changed
            where something is seen.
    """

    steps: int
    evaluations: int
    guidance_scale: float
    height: int
    width: int
    latent_shape: tuple[int, int, int]
    arguments: Arguments = field(default_factory=Arguments)
    places: bool = True

    def measured(self) -> Plan:
        """The plan without what neither operations nor memory depend on: texts and callbacks."""
        return replace(self, arguments=self.arguments.single())


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts; rows can be picked and joined.

    Attributes:
        hidden: (b, t, d) token states that the denoiser attends to.
        pooled: (b, p) pooled text embedding, None for models without.
        mask: (b, t) True where a token is, None for models that attend to padding as well.
        unconditional: the other half of classifier-free guidance, where the plan uses it; as many rows.
    """

    hidden: Float[Tensor, "b t d"]
    pooled: Float[Tensor, "b p"] | None = None
    mask: Bool[Tensor, "b t"] | None = None
    unconditional: Conditioning | None = None

    def __len__(self) -> int:
        return len(self.hidden)

    def pick(self, rows: Sequence[int]) -> Conditioning:
        """These rows, in this order; a row may come more than once."""
        index = torch.as_tensor(list(rows), device=self.hidden.device, dtype=torch.int64)
        return Conditioning(
            self.hidden[index],
            None if self.pooled is None else self.pooled[index],
            None if self.mask is None else self.mask[index],
            None if self.unconditional is None else self.unconditional.pick(rows),
        )

    def tensors(self) -> tuple[Tensor, ...]:
        """All that it consists of."""
        own = [t for t in (self.hidden, self.pooled, self.mask) if t is not None]
        return (*own, *(self.unconditional.tensors() if self.unconditional else ()))

    def detach(self) -> Conditioning:
        """The same rows without gradient."""
        return Conditioning(
            self.hidden.detach(),
            None if self.pooled is None else self.pooled.detach(),
            self.mask,
            None if self.unconditional is None else self.unconditional.detach(),
        )

    @staticmethod
    def join(parts: Sequence[Conditioning]) -> Conditioning:
        """All rows of all parts, the shorter texts padded where there are masks.

        Raises:
            ValueError: parts of different models or plans.
        """
        for name in ("pooled", "mask", "unconditional"):
            if len({getattr(part, name) is None for part in parts}) > 1:
                raise ValueError(f"conditionings with and without {name} cannot be joined")
        longest = max(part.hidden.shape[1] for part in parts)
        if parts[0].mask is None and any(part.hidden.shape[1] != longest for part in parts):
            raise ValueError("conditionings of different lengths need masks to be joined")
        pooled = [part.pooled for part in parts if part.pooled is not None]
        masks = [_pad(part.mask, longest) for part in parts if part.mask is not None]
        halves = [part.unconditional for part in parts if part.unconditional is not None]
        return Conditioning(
            torch.cat([_pad(part.hidden, longest) for part in parts]),
            torch.cat(pooled) if pooled else None,
            torch.cat(masks) if masks else None,
            Conditioning.join(halves) if halves else None,
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
        states: (b, n) of each picture's generator when the pipeline is called, where the pipeline draws from
            it what is no noise of the latents' shape; None elsewhere.
    """

    latents: Float[Tensor, "b c h w"]
    step_noise: Float[Tensor, "s b c h w"] | None = None
    states: UInt8[Tensor, "b n"] | None = None

    def __len__(self) -> int:
        return len(self.latents)

    def to(self, device: torch.device | str) -> Noise:
        """The same elsewhere; states of CPU generators stay on the CPU."""
        moved = None if self.step_noise is None else self.step_noise.to(device)
        return Noise(self.latents.to(device), moved, self.states)

    def detach(self) -> Noise:
        """The same without gradient."""
        steps = None if self.step_noise is None else self.step_noise.detach()
        return Noise(self.latents.detach(), steps, self.states)

    def pick(self, row: int) -> Noise:
        """One picture's, copied: a view would hold the whole batch for as long as one picture is kept."""
        rows = slice(row, row + 1)
        return Noise(
            self.latents[rows].clone(),
            None if self.step_noise is None else self.step_noise[:, rows].clone(),
            None if self.states is None else self.states[rows].clone(),
        )

    @staticmethod
    def join(parts: Sequence[Noise]) -> Noise:
        """All pictures of all parts."""
        steps = [part.step_noise for part in parts if part.step_noise is not None]
        states = [part.states for part in parts if part.states is not None]
        if any(some and len(some) != len(parts) for some in (steps, states)):
            raise ValueError("noises with and without step noise cannot be joined")
        return Noise(
            torch.cat([part.latents for part in parts]),
            torch.cat(steps, 1) if steps else None,
            torch.cat(states) if states else None,
        )


class TrajectoryStep(NamedTuple):
    """One step of sampling.

    Attributes:
        step: its number, from 0.
        latents: (b, c, h, w) after it.
        clean: (b, c, h, w) the clean latents that were predicted at it.
        evaluations: pictures that passed through the denoiser, b unless an ``around`` asked for others; both
            halves of classifier-free guidance count as one.
        grad_evaluations: those of them whose graph was kept for a backward pass.
    """

    step: int
    latents: Tensor
    clean: Tensor
    evaluations: int
    grad_evaluations: int


class Denoise(Protocol):
    """The denoiser at one step, as ``DenoiseStep.denoise``."""

    def __call__(
        self, latents: Float[Tensor, "b c h w"], conditioning: Conditioning | None = None
    ) -> Float[Tensor, "b c h w"]: ...


class PredictClean(Protocol):
    """Clean latents at one step, as ``DenoiseStep.predict_clean``."""

    def __call__(
        self,
        prediction: Float[Tensor, "b c h w"],
        latents: Float[Tensor, "b c h w"] | None = None,
    ) -> Float[Tensor, "b c h w"]: ...


@dataclass(frozen=True)
class DenoiseStep:
    """What guidance of a single step is given; see ``PipelineAdapter.trajectory``.

    Attributes:
        index: number of the step, from 0.
        time: the scheduler's, a scalar.
        latents: (b, c, h, w) before the step.
        conditioning: of the trajectory, b rows.
        denoise: (latents, conditioning=None) -> the denoiser's prediction, with classifier-free guidance as
            planned, in the scheduler's terms (noise, velocity or picture). Another conditioning needs a row
            for each of the latents. Gradients flow wherever they are enabled.
        predict_clean: (prediction, latents=None) -> the clean latents that a prediction stands for at this
            step; the trajectory does not move.
    """

    index: int
    time: Tensor
    latents: Float[Tensor, "b c h w"]
    conditioning: Conditioning
    denoise: Denoise
    predict_clean: PredictClean


Around = Callable[[DenoiseStep], Float[Tensor, "b c h w"]]
"""Guidance of single steps: gives the prediction that the scheduler goes on with."""


Keep = Callable[[TrajectoryStep], Sequence[int] | None]
"""Asked after every step which of its rows go on, in order; None for all."""


class Flops(NamedTuple):
    """Floating-point operations of one picture's pass through a module, and of the gradient back."""

    forward: float
    backward: float


@runtime_checkable
class ImageSource(Protocol):
    """Whatever makes pictures of text and noise; one call for one picture is one plain render."""

    card: PipelineCard

    @property
    def memory(self) -> MemoryPlan: ...

    @property
    def device(self) -> torch.device: ...

    def to(
        self, device: str | torch.device | None = None, dtype: torch.dtype | None = None
    ) -> ImageSource:
        """Move it, and cast its weights."""
        ...

    def unpacked(self, latents: Tensor, plan: Plan) -> Float[Tensor, "b c h w"]:
        """Latents as the wrapped pipeline's users hold them.

        Raises:
            ValueError: they are of another shape.
        """
        ...

    def modules(self) -> tuple[torch.nn.Module, ...]:
        """Whatever of the pipeline has weights; none of a function whose inside nobody knows."""
        ...

    def plan(
        self,
        steps: int | None = None,
        guidance_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        **arguments: Any,
    ) -> Plan:
        """A checked plan; what is None comes from the card, or from the pipeline's own defaults.

        Args:
            arguments: further ones of the wrapped pipeline's call, by their names there.

        Raises:
            ValueError: steps, a guidance scale or a size that model or memory cannot take, or an argument
                that the wrapped pipeline does not take.
        """
        ...

    def noise(self, generators: Sequence[torch.Generator], plan: Plan) -> Noise:
        """The noise that the wrapped pipeline would draw from one CPU generator an image."""
        ...

    def images(
        self, noise: Noise, prompts: Sequence[str], plan: Plan
    ) -> Float[Tensor, "b 3 hh ww"]:
        """Images in [0, 1], equal to the wrapped pipeline's, without gradient; not a number where it withheld
        a picture."""
        ...

    def flops(self, plan: Plan) -> dict[str, Flops] | None:
        """Operations of one picture by module: "text_encoder", "denoiser" (one step) and "decoder", or
        "pipeline" where only calls are counted. None where operations cannot be counted."""
        ...

    def remarks(self, plan: Plan) -> tuple[str, ...]:
        """What whoever asked for the pictures should know, a sentence each."""
        ...

    def set_memory_plan(self, name: str) -> None:
        """Go on with another memory plan (``pipelines.memory.PLANS``).

        Raises:
            ValueError: unknown name, or a source that takes none.
        """
        ...

    def reduce_memory(self) -> str | None:
        """Go on with the next memory plan, which needs less, and return its name.

        None where there is none, or where the user chose the plan.
        """
        ...


@runtime_checkable
class PipelineAdapter(ImageSource, Protocol):
    """A Diffusers pipeline seen as a differentiable function of its noise and its conditioning."""

    def to(
        self, device: str | torch.device | None = None, dtype: torch.dtype | None = None
    ) -> PipelineAdapter: ...

    def encode(
        self, prompts: Sequence[str], plan: Plan, tokens: Tokens | None = None
    ) -> Conditioning:
        """Prompts as the denoiser takes them; with gradient to the embeddings of new ``tokens``, if given."""
        ...

    def trajectory(
        self,
        noise: Noise,
        conditioning: Conditioning,
        plan: Plan,
        around: Around | None = None,
        grad_steps: int | None = None,
        keep: Keep | None = None,
    ) -> Iterator[TrajectoryStep]:
        """Sampling, step by step.

        Args:
            around: replaces the prediction of every step, given a ``DenoiseStep``; one that returns
                ``step.denoise(step.latents)`` changes nothing.
            keep: says after every step which of its rows go on; the others are dropped, and the next step has
                fewer rows. Without any left sampling ends.
            grad_steps: how many of the last steps have a graph; None for all. The gradient that reaches the
                first of them is passed on to the noise as it is (a straight-through estimate).

        Raises:
            ValueError: conditioning or ``grad_steps`` that do not fit the plan.
            torch.OutOfMemoryError: the graph cannot fit on the device.
        """
        ...

    def decode(
        self, latents: Float[Tensor, "b c h w"], plan: Plan | None = None
    ) -> Float[Tensor, "b 3 hh ww"]:
        """Images in [0, 1]; of a plan's size where one is given, else as large as the latents tell."""
        ...

    def render(
        self,
        noise: Noise,
        conditioning: Conditioning,
        plan: Plan,
        grad_steps: int | None = None,
    ) -> Float[Tensor, "b 3 hh ww"]:
        """The last step of the trajectory decoded: images in [0, 1], equal to the wrapped pipeline's.

        They have a gradient to noise and conditioning.
        """
        ...

    def flops(self, plan: Plan) -> dict[str, Flops]:
        """Operations of one picture through "text_encoder", "denoiser" (one step) and "decoder"."""
        ...

    def estimate_bytes(self, plan: Plan, batch: int = 1, grad_steps: int | None = None) -> int:
        """Bytes that the weights and the graph of a batch take; what kernels need meanwhile comes on top."""
        ...


def has_gradient(source: ImageSource) -> TypeGuard[PipelineAdapter]:
    """Whether a source is an adapter, which looks into its pipeline, and gives gradients."""
    return hasattr(source, "trajectory")
