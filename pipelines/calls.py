"""Pipelines and functions as something to be called for pictures: what they take, and what they return."""

from __future__ import annotations

import copy
import difflib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor, nn

from pipelines.arguments import OWN, parameters
from pipelines.devices import is_out_of_memory
from pipelines.problems import one_line

SIGNATURE = ("prompt", "latents", "generator")
"""What a function of the user's own takes."""
_TASK_INPUTS = ("image", "video", "audio", "embeds")
_ROUNDING = 1e-3


class CallError(ValueError):
    """A call that was made for pictures went wrong; the message is one sentence for whoever set it up."""


def is_pipeline(source: Any) -> bool:
    """Whether something is a loaded Diffusers pipeline, a subclass with code of its own included."""
    kind = type(source)
    return callable(source) and not isinstance(source, type) and hasattr(kind, "components")


def unusable(kind: type) -> str | None:
    """Why pipelines of a class give no pictures of text, as far as the signature of their call tells."""
    call = parameters(kind, "__call__")
    everything = any(p.kind is p.VAR_KEYWORD for p in call.values())
    if any("num_frames" in name or "video" in name for name in call):
        return "it makes videos, and only pictures are counted"
    if any(name.startswith("audio") for name in call):
        return "it makes sound, and only pictures are counted"
    if not everything:
        for name in ("prompt", "generator"):
            if name not in call:
                return f"its call takes no {name}"
    return None


class Caller:
    """A pipeline that stays as it is, or a function, by the signature of its call.

    Attributes:
        pipeline: None for functions.
    """

    def __init__(self, source: Any) -> None:
        """Take a pipeline or a function.

        Raises:
            ValueError: it is neither, or its signature is another.
        """
        self.source, self.pipeline = source, source if is_pipeline(source) else None
        if self.pipeline is not None:
            self.name = type(source).__name__
            self._parameters: Mapping[str, inspect.Parameter] = parameters(type(source), "__call__")
            reason = unusable(type(source))
            if reason:
                raise ValueError(f"{self.name} cannot be wrapped: {reason}")
        else:
            self.name = getattr(source, "__name__", type(source).__name__)
            self._parameters = _parameters_of(source, self.name)
        self._takes_all = any(p.kind is p.VAR_KEYWORD for p in self._parameters.values())
        if self.pipeline is not None and _is_of_diffusers(type(source)):
            self._takes_all = False  # what is left over there is deprecated, or silently ignored

    def takes(self, name: str) -> bool:
        return self._takes_all or name in self._parameters

    def default(self, name: str) -> Any:
        """Of an argument; None where there is none."""
        found = self._parameters.get(name)
        return None if found is None or found.default is found.empty else found.default

    def check(self, given: Mapping[str, Any], others: Mapping[str, Any]) -> None:
        """Refuse what the call does not take.

        Args:
            given: arguments that have a place of their own in ours.
            others: all others.

        Raises:
            ValueError: one that it does not take, with the nearest that it does, or that is ours to give.
        """
        for name in others:
            if name in OWN:
                raise ValueError(f"{name} is given to {self.name} by countgen; leave it out")
        for name in (*given, *others):
            if not self.takes(name):
                open_to = [other for other in self._parameters if other not in OWN]
                near = difflib.get_close_matches(name, open_to, 1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise ValueError(f"{self.name} takes no {name}{hint}")

    def check_needs(self, arguments: Mapping[str, Any]) -> None:
        """Refuse a call that lacks something.

        Raises:
            ValueError: names it.
        """
        lacking = [
            name
            for name, p in self._parameters.items()
            if p.default is p.empty
            and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
            and name not in (*SIGNATURE, *arguments)
        ]
        if lacking:
            raise ValueError(
                f"{self.name} needs {', '.join(lacking)}; give it by name where the prompt is given, as "
                "to the pipeline itself"
            )

    def __call__(
        self,
        prompts: Sequence[str],
        generators: Sequence[torch.Generator],
        latents: Tensor | None,
        arguments: Mapping[str, Any],
        *,
        alone: bool,
    ) -> Float[Tensor, "b 3 h w"]:
        """Pictures of the prompts in [0, 1], float32; not a number where one was withheld.

        Args:
            generators: one for each prompt.
            latents: (b, ...) where the call is given its noise, None where it draws it.
            alone: one picture, whose prompt and generator are given as they are and not in lists.

        Raises:
            CallError: it fails, or returns something else than a picture of each prompt.
            torch.OutOfMemoryError: and whatever else says that memory ran out.
        """
        given: dict[str, Any] = dict(arguments)
        if alone:
            given |= {"prompt": prompts[0], "generator": generators[0]}
        else:
            given = {name: _rows(name, one, len(prompts)) for name, one in given.items()}
            given |= {"prompt": list(prompts), "generator": list(generators)}
        if latents is not None or (self.pipeline is None and "latents" in self._parameters):
            given["latents"] = latents
        call = self.source
        if self.pipeline is not None:
            call = view_of(self.pipeline)
            if self.takes("output_type"):
                given["output_type"] = (
                    "np"  # by "pt" some mean values before they are clamped to [0, 1]
                )
        try:
            output = call(**given)
        except CallError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise CallError(f"{self.name} failed: {one_line(error)}{self._hint(given)}") from error
        return self._pictures(output, len(prompts))

    def _hint(self, given: Mapping[str, Any]) -> str:
        """What a call that failed may have lacked: inputs of its task that default to none."""
        names = [
            name
            for name, p in self._parameters.items()
            if p.default is None
            and name.endswith(_TASK_INPUTS)
            and "prompt" not in name
            and name not in given
        ]
        return f" (it was given no {' and no '.join(names)})" if names else ""

    def _pictures(self, output: Any, count: int) -> Float[Tensor, "b 3 h w"]:
        """What a call returned.

        Raises:
            CallError: it is not so many pictures of one size.
        """
        if getattr(output, "frames", None) is not None:
            raise CallError(f"{self.name} returns videos, and only pictures are counted")
        found = getattr(output, "images", output)
        flagged = getattr(output, "nsfw_content_detected", None)
        if isinstance(found, tuple):  # as with return_dict=False
            flagged = found[1] if len(found) > 1 and isinstance(found[1], list) else flagged
            found = found[0] if found and not isinstance(found[0], Image) else list(found)
        several = list(found) if isinstance(found, list) else [found]
        parts = [self._tensor(one) for one in several]
        if len({part.shape[1:] for part in parts}) != 1:
            raise CallError(f"{self.name} returns pictures of several sizes at once")
        pictures = torch.cat(parts)
        if len(pictures) != count:
            raise CallError(f"{self.name} returns {len(pictures)} pictures for {count} prompts")
        low, high = pictures.nan_to_num(0.0, 0.0, 0.0).aminmax()
        if low < -_ROUNDING or high > 1 + _ROUNDING:
            raise CallError(
                f"{self.name} returns values from {low:.3g} to {high:.3g}, and those of pictures lie in [0, "
                '1] (or are bytes); take output_type="pt" of a Diffusers pipeline'
            )
        pictures = pictures.clamp(0, 1)
        withheld = (pictures == 0).flatten(1).all(1).cpu()
        for row, flag in enumerate(flagged or ()):
            withheld[row] |= bool(flag)
        pictures[withheld] = torch.nan
        return pictures

    def _tensor(self, found: Any) -> Float[Tensor, "b 3 h w"]:
        """One picture or several, whatever they are held in."""
        if isinstance(found, Image):
            found = np.array(found.convert("RGB"))
        if isinstance(found, np.ndarray):
            if found.dtype.kind not in "fu":
                raise CallError(f"{self.name} returns an array of {found.dtype}, not of pictures")
            batch = found if found.ndim == 4 else found[None]
            found = torch.from_numpy(np.ascontiguousarray(batch)).movedim(-1, 1)
        if not isinstance(found, Tensor):
            kind = type(found).__name__
            raise CallError(f"{self.name} returns {kind}, and pictures are PIL images or arrays")
        tensor = found.detach() if found.ndim == 4 else found.detach()[None]
        if tensor.ndim != 4 or tensor.shape[1] != 3 or 0 in tensor.shape:
            raise CallError(
                f"{self.name} returns a tensor of the shape {tuple(found.shape)}, and pictures have the "
                "shape (b, 3, height, width); if these are latents, let it decode them"
            )
        return tensor.float() / 255 if tensor.dtype == torch.uint8 else tensor.float()


def _is_of_diffusers(kind: type) -> bool:
    """Whether the call of a pipeline class is one of diffusers' own."""
    owner = next(base for base in kind.__mro__ if "__call__" in vars(base))
    return owner.__module__.startswith("diffusers.")


def _parameters_of(source: Any, name: str) -> Mapping[str, inspect.Parameter]:
    """Of a function of the user's own.

    Raises:
        ValueError: it is none, or it takes something else.
    """
    if isinstance(source, type) or not callable(source):
        kind = source if isinstance(source, type) else type(source)
        what = "the class" if isinstance(source, type) else "an object of the class"
        raise ValueError(
            f"{what} {kind.__name__} cannot be wrapped: take a loaded Diffusers pipeline, or a function of "
            f"{', '.join(SIGNATURE[:-1])} and {SIGNATURE[-1]}"
        )
    try:
        found = inspect.signature(source).parameters
    except (TypeError, ValueError):
        raise ValueError(f"{name} does not tell what it takes; put a function around it") from None
    by_name = [n for n, p in found.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    everything = any(p.kind is p.VAR_KEYWORD for p in found.values())
    if not everything and not set(SIGNATURE) <= set(by_name):
        raise ValueError(
            f"a function that draws takes prompt, latents and generator by these names, and {name} takes "
            f"{', '.join(found) or 'nothing'}"
        )
    return found


def _rows(name: str, value: Any, count: int) -> Any:
    """Texts beside the prompt, one for each prompt: some pipelines refuse one text beside a list."""
    return [value] * count if isinstance(value, str) and "prompt" in name else value


def view_of(pipeline: Any) -> Any:
    """A pipeline with the same weights, which can be called without a trace on the first.

    Its schedulers are copies, and of all other parts without weights the top is, since some pipelines change
    the side on which their tokenizers pad.
    """
    view = copy.copy(pipeline)
    for name, part in vars(pipeline).items():
        if isinstance(part, nn.Module) or name.startswith("_"):
            continue
        if is_pipeline(part):  # of pipelines that are made of several
            view.__dict__[name] = view_of(part)
        elif hasattr(part, "set_timesteps"):
            view.__dict__[name] = copy.deepcopy(part)
        elif hasattr(part, "padding_side"):
            view.__dict__[name] = copy.copy(part)
    view.__dict__["_progress_bar_config"] = {"disable": True}
    return view


def modules_of(pipeline: Any) -> tuple[nn.Module, ...]:
    """Whatever of a pipeline has weights, and of the pipelines that it is made of; none of None."""
    found: dict[int, nn.Module] = {}
    for part in vars(pipeline).values() if pipeline is not None else ():
        parts = modules_of(part) if is_pipeline(part) else (part,)
        found |= {id(module): module for module in parts if isinstance(module, nn.Module)}
    return tuple(found.values())


def set_up_elsewhere(pipeline: Any) -> str | None:
    """In words, whether a pipeline's weights are moved about or packed by others; None if they are not."""
    if getattr(pipeline, "hf_device_map", None):
        return "is spread over devices by a device_map"
    for module in modules_of(pipeline):
        for part in module.modules():
            if hasattr(part, "_hf_hook") or hasattr(part, "_diffusers_hook"):
                return "is offloaded"
            if type(part).__module__.startswith("torch.ao.nn.quantized"):
                return "is quantised"
        if getattr(module, "hf_quantizer", None) is not None:
            return "is quantised"
    return None
