"""What can be chosen when a generator is loaded and when it draws: every default and every limit, once.

``CountGuidedPipeline`` takes these as keyword arguments, the command line as flags.
"""

from __future__ import annotations

import math
import numbers
import operator
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from countgen.errors import UsageError

DEFAULT_MODEL = "pocket"
DEFAULT_METHOD = "engine"
MAX_IMAGES = 10_000
"""Most pictures of one prompt in one call."""
MAX_BUDGET = 1e6
"""Most plain renders that one picture may cost."""
MAX_SIDE = 8192
"""Longest side of a picture in pixels."""
MAX_STEPS = 10_000
"""Most sampling steps."""
MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class CounterOptions:
    """Which counters take part."""

    critic: str | None = None
    """Counter that steers (see: countgen list critics), or NAME=SOURCE with a hub id or folder of weights."""
    verifier: str | None = None
    """Counter of another family that checks the result, named as the critic is."""


@dataclass(frozen=True)
class LoadOptions:
    """How a generator is loaded."""

    device: str | None = None
    """cuda, mps or cpu; by default the best there is, and the CPU for pocket."""
    memory: Literal["auto", "fast", "balanced", "low"] = "auto"
    """How sparing to be with the device's memory; slower the lower."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of the weights; by default bfloat16 on CUDA devices and float32 elsewhere. Not for pocket."""
    variant: str | None = None
    """Of the weight files, such as fp16. Not for pocket."""
    revision: str | None = None
    """Branch, tag or commit of the hub repository. Not for pocket."""
    local_files_only: bool = False
    """Load what is there already, and ask no hub."""
    tiny_decoder: str | None = None
    """Hub id or folder of an AutoencoderTiny for the gradient alone, such as madebyollin/taesdxl. Not for
    pocket."""
    text_encoder: str | None = None
    """Hub id or folder of a CLIP whose text half takes the place of the model's own, such as countgen learn
    clip writes; of the same shapes and words. Not for pocket."""
    compile: bool = False
    """Compile denoiser and decoder with torch.compile. Not for pocket."""


@dataclass(frozen=True)
class DrawOptions:
    """What is drawn, and what it may cost."""

    seed: int = 0
    """The same seed and prompt give the same pictures."""
    num_images_per_prompt: Annotated[
        int, tyro.conf.arg(name="num-images", aliases=["--images-per-prompt"])
    ] = 1
    """How many pictures to make."""
    budget: float = 64.0
    """Most that one picture may cost, in plain renders (a guided step costs about two)."""
    height: int | None = None
    """Of the picture in pixels; by default what the model was made for."""
    width: int | None = None
    """Of the picture in pixels; by default what the model was made for."""
    num_inference_steps: Annotated[int | None, tyro.conf.arg(name="steps")] = None
    """Sampling steps; by default what the model was made for."""
    guidance_scale: float | None = None
    """Of classifier-free guidance; by default what the model was made for."""
    batch_size: int = 16
    """Most pictures drawn at once; the result does not depend on it."""

    def checked(self) -> DrawOptions:
        """These options, if they can be met at all; asked before anything is loaded.

        Raises:
            UsageError: a number out of its range, named with the range.
        """
        _within("the seed", self.seed, -MAX_SEED - 1, MAX_SEED)
        _within("the number of images", self.num_images_per_prompt, 1, MAX_IMAGES)
        _within("the batch size", self.batch_size, 1, MAX_IMAGES)
        for name in ("height", "width"):
            value = getattr(self, name)
            if value is not None:
                _within(f"the {name}", value, 1, MAX_SIDE)
        if self.num_inference_steps is not None:
            _within("the number of steps", self.num_inference_steps, 1, MAX_STEPS)
        if not isinstance(self.budget, numbers.Real):
            raise UsageError(f"the budget must be a number of plain renders, not {self.budget!r}")
        if not 0 <= self.budget <= MAX_BUDGET:
            raise UsageError(
                f"the budget must be a number of plain renders, from 0 (the plain picture) to "
                f"{MAX_BUDGET:,.0f}, not {self.budget:g}"
            )
        if self.guidance_scale is not None and not math.isfinite(self.guidance_scale):
            raise UsageError(f"the guidance scale must be finite, not {self.guidance_scale}")
        return self


def _within(name: str, value: int, low: int, high: int) -> None:
    try:
        operator.index(value)
    except TypeError:
        raise UsageError(f"{name} must be a whole number, not {value!r}") from None
    if not low <= value <= high:
        shown = str(value) if abs(value) < 10**15 else f"about 10**{len(str(abs(value))) - 1}"
        raise UsageError(f"{name} must be from {low} to {high}, not {shown}")
