"""The small choices that a way of guiding is made of; each published method is one of every kind.

Whatever is optimised is a dictionary of tensors whose first dimension is the picture, so that batching is
cat and split, and no picture's numbers ever touch another's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from countgen.prompts import CountPrompt
from critics.base import CountEstimate
from pipelines.base import Conditioning, Noise, PipelineAdapter, Plan

if TYPE_CHECKING:
    from countgen.guidance.tokens import LearnedToken

Rows = dict[str, Tensor]
"""Name -> (b, ...), one row a picture."""

Needs = Literal["soft", "candidates", "density"]
"""What of a critic's estimate an objective reads."""


@dataclass(frozen=True)
class Start:
    """What a climb begins with, for a batch of pictures.

    Attributes:
        noise: as it was drawn or edited.
        conditioning: of the prompts; as many rows.
        prompts: of each picture.
        seeds: of each picture, for variables that begin at random.
    """

    noise: Noise
    conditioning: Conditioning
    prompts: tuple[CountPrompt, ...]
    seeds: tuple[int, ...]
    adapter: PipelineAdapter
    plan: Plan


class Variable(Protocol):
    """What is optimised."""

    @property
    def modules(self) -> tuple[str, ...]:
        """Modules that it runs beside the denoiser, forward and backward, to be priced."""
        ...

    @property
    def latents(self) -> bool:
        """Whether its rows are themselves noise (``rows["latents"]``), which priors can project."""
        ...

    def init(self, start: Start) -> Rows:
        """Rows under which ``apply`` changes nothing, or as little as the method allows."""
        ...

    def apply(self, rows: Rows, start: Start) -> tuple[Noise, Conditioning]:
        """Noise and conditioning with gradient to the rows."""
        ...


class Objective(Protocol):
    """What is minimised: a frozen dataclass with its own settings. Its least value is 0."""

    @property
    def needs(self) -> Needs: ...

    def __call__(
        self, estimate: CountEstimate, wanted: Int64[Tensor, "b k"]
    ) -> Float[Tensor, " b"]: ...


class Prior(Protocol):
    """What keeps a noise a noise."""

    @property
    def projects(self) -> bool:
        """Whether ``project`` does anything; it needs a variable whose rows are noise."""
        ...

    def penalty(self, noise: Noise, rows: Rows) -> Float[Tensor, " b"]:
        """Added to the objective; of the noise that the variable made, and of its rows."""
        ...

    def project(self, rows: Rows, first: Rows) -> Rows:
        """After every step, given the rows with which the climb began."""
        ...


class Optimizer(Protocol):
    """Functional and per picture, after the manner of optax."""

    def init(self, rows: Rows) -> Rows: ...

    def update(
        self, grads: Rows, state: Rows, rows: Rows, loss: Float[Tensor, " b"]
    ) -> tuple[Rows, Rows]:
        """The next rows, and the next state."""
        ...


class FirstNoise(Protocol):
    """What makes a fresh noise a better one before anything is drawn from it; learnt (``countgen learn``)."""

    @property
    def name(self) -> str: ...

    def __call__(self, start: Start, draws: Sequence[int]) -> Noise:
        """The noises to draw from, one for each of ``start.noise``.

        Args:
            draws: of every picture the number of this draw among its own, for further noises: with
                ``start.seeds`` they depend neither on the batch nor on the other pictures.
        """
        ...

    def flops(self, adapter: PipelineAdapter, plan: Plan, kinds: int) -> float:
        """Operations for one draw of a prompt with so many nouns, to be priced."""
        ...


class Words(Protocol):
    """What is told of prompts in place of their texts alone: with count tokens, fitted or learnt."""

    def encode(
        self, adapter: PipelineAdapter, prompts: Sequence[CountPrompt], plan: Plan
    ) -> Conditioning:
        """A row for each prompt, without gradient.

        Raises:
            UsageError: another generator than the tokens were made for.
        """
        ...

    def token_for(self, adapter: PipelineAdapter, prompt: CountPrompt) -> LearnedToken | None:
        """The token in one prompt, so that a picture can be drawn again with it; None where there is none."""
        ...


class Score(Protocol):
    """A differentiable image-text score, as an objective beside the count."""

    @property
    def name(self) -> str: ...

    def prepare(self, text: str) -> Tensor:
        """What the score knows of one prompt, encoded once."""
        ...

    def __call__(
        self, images: Float[Tensor, "b 3 h w"], texts: Sequence[Tensor]
    ) -> Float[Tensor, " b"]:
        """How well each image fits its text, larger is better, in [0, 1]."""
        ...

    def to(self, device: str | torch.device) -> Score: ...


def row_norms(rows: Rows) -> Float[Tensor, " b"]:
    """Euclidean norm of all that belongs to each picture."""
    squares = [tensor.flatten(1).square().sum(1) for tensor in rows.values()]
    return torch.stack(squares).sum(0).sqrt()


def per_row(values: Float[Tensor, " b"], like: Tensor) -> Tensor:
    """(b,) as it multiplies a tensor of b rows."""
    return values.reshape(-1, *[1] * (like.ndim - 1)).to(like.dtype)


def pick(rows: Rows, index: int) -> Rows:
    """The rows of one picture, copied, so that they do not hold the batch's memory."""
    return {name: tensor[index : index + 1].clone() for name, tensor in rows.items()}


def join(rows: Sequence[Rows]) -> Rows:
    """All pictures of all parts."""
    return {name: torch.cat([part[name] for part in rows]) for name in rows[0]} if rows else {}


def move(rows: Rows, device: str | torch.device) -> Rows:
    return {name: tensor.to(device) for name, tensor in rows.items()}


def detach(rows: Rows) -> Rows:
    return {name: tensor.detach() for name, tensor in rows.items()}
