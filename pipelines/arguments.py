"""What a pipeline's call is told besides: checked by its own signature, and kept with the plan.

Whatever the wrapped Diffusers pipeline takes is taken, under its name, unless only the pipeline itself knows
what to do with it.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

OWN = (
    "self",
    "prompt",
    "height",
    "width",
    "num_inference_steps",
    "guidance_scale",
    "num_images_per_prompt",
    "generator",
    "latents",
    "output_type",
    "return_dict",
)
"""Arguments of a pipeline's call that have a place of their own in ours."""
CALLBACKS = (
    "callback_on_step_end",
    "callback_on_step_end_tensor_inputs",
    "callback",
    "callback_steps",
)
_SAMPLING = ("timesteps", "sigmas", "eta")
_REFUSED = {
    "ip_adapter": "images that the prompt is joined with",
    "control": "ControlNet images",
    "denoising_end": "unfinished pictures, which cannot be counted,",
    "skip_": "skipped layers",
}
"""By how a name begins, what it is for; with its place in the sentence that refuses it."""


class Arguments(Mapping[str, Any]):
    """Arguments of a call by name; equal and hashed by value, tensors and other objects by identity."""

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        self._values = dict(values or {})
        self._key = _key(self._values)

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Arguments) and self._key == other._key

    def __repr__(self) -> str:
        return f"Arguments({self._values!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Arguments, (self._values,)  # the key holds identities, which do not travel

    def single(self) -> Arguments:
        """The same for one empty prompt, without callbacks: what operations and memory depend on."""
        return Arguments(
            {name: _first(name, v) for name, v in self.items() if name not in CALLBACKS}
        )

    def for_prompts(
        self, count: int, names: Sequence[str], expand: Callable[[str], str] = str
    ) -> dict[str, Any]:
        """Those of these names, with a row for each of so many prompts where they belong to prompts.

        Args:
            expand: what is done to texts on the way.

        Raises:
            ValueError: rows that are not as many as the prompts.
        """
        return {
            name: _rows(name, value, count, expand) if _by_prompt(name) else value
            for name, value in self.items()
            if name in names
        }

    def lora_scale(self) -> float | None:
        """By how much LoRAs count, which stands among the arguments of attention; None for fully."""
        for name in ("cross_attention_kwargs", "joint_attention_kwargs", "attention_kwargs"):
            if name in self and self[name].get("scale") is not None:
                return float(self[name]["scale"])
        return None


def parameters(kind: type, name: str) -> Mapping[str, inspect.Parameter]:
    """Of a method, without self; none where a class has no such method of its own."""
    method = inspect.getattr_static(kind, name, None)
    found = inspect.signature(method).parameters if inspect.isfunction(method) else {}
    return {name: parameter for name, parameter in found.items() if name != "self"}


def checked(pipeline: Any, extra: Sequence[str], given: Mapping[str, Any]) -> Arguments:
    """Arguments for a pipeline's call, without those that say what it does anyway.

    Args:
        extra: names that the pipeline's family knows, beside those of prompts and sampling.

    Raises:
        ValueError: an argument that the pipeline does not take, that only it knows what to do with, or that
            is of the wrong type.
    """
    call = parameters(type(pipeline), "__call__")
    taken = [name for name, p in call.items() if p.kind is not p.VAR_KEYWORD]
    known = (*parameters(type(pipeline), "encode_prompt"), *_SAMPLING, *CALLBACKS, *extra)
    kept: dict[str, Any] = {}
    for name, value in given.items():
        if name not in taken or name in OWN:
            _refuse_unknown(type(pipeline).__name__, name, taken)
        default = call[name].default
        if value is default or (isinstance(value, str | int | float) and value == default):
            continue
        if name not in known:
            _refuse_special(name)
        _check_type(name, value, default)
        kept[name] = value
    return Arguments(kept)


def _refuse_unknown(kind: str, name: str, taken: Sequence[str]) -> None:
    near = difflib.get_close_matches(name, [other for other in taken if other not in OWN], 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"{kind} takes no {name}{hint}")


def _refuse_special(name: str) -> None:
    plain = name.removeprefix("negative_")
    what = next((text for start, text in _REFUSED.items() if plain.startswith(start)), "its effect")
    raise ValueError(
        f"{name} ({what}) is known to the pipeline's own call alone; leave it out, or wrap the pipeline as a "
        "black box, pipelines.blackbox.BlackBox(pipeline), which gives no gradient and passes it on"
    )


def _check_type(name: str, value: Any, default: Any) -> None:
    wrong = None
    if name.endswith("attention_kwargs"):
        wrong = None if isinstance(value, Mapping) else "a dictionary"
    elif _by_prompt(name) and not name.endswith(("embeds", "mask")):
        wrong = None if _is_texts(value) else "a text or a list of texts"
    elif _by_prompt(name):
        tensors = [value] if isinstance(value, Tensor) else value
        fits = isinstance(tensors, list) and all(isinstance(one, Tensor) for one in tensors)
        wrong = None if fits else "a tensor"
    elif name in ("timesteps", "sigmas"):
        numbers = [_is_number(one) for one in value] if hasattr(value, "__iter__") else []
        wrong = None if numbers and all(numbers) else "a list of numbers"
    elif name.startswith("callback") and name.endswith(("callback", "end")):
        wrong = None if callable(value) else "a function"
    elif isinstance(default, bool):
        wrong = None if isinstance(value, bool | int | float) else "True or False"
    elif isinstance(default, float):
        wrong = None if _is_number(value) else "a finite number"
    elif isinstance(default, int) or name == "clip_skip":
        whole = isinstance(value, int) and value >= (name != "clip_skip")
        wrong = None if whole else "a whole number above 0"
    if wrong:
        shown = f"{value!r}" if isinstance(value, str | int | float) else type(value).__name__
        raise ValueError(f"{name} must be {wrong}, not {shown}")


def _is_number(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def _is_texts(value: Any) -> bool:
    several = [value] if isinstance(value, str) else value
    return isinstance(several, list | tuple) and all(isinstance(one, str) for one in several)


def _by_prompt(name: str) -> bool:
    """Whether there is one for each prompt, or one for all."""
    return "prompt" in name


def _rows(name: str, value: Any, count: int, expand: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return [expand(value)] * count
    if len(value) == 1 and count > 1:
        return (
            value.expand(count, *value.shape[1:]) if isinstance(value, Tensor) else [*value] * count
        )
    if len(value) != count:
        raise ValueError(
            f"{count} prompts need as many of {name}, or one for all, not {len(value)}"
        )
    return value if isinstance(value, Tensor) else [_expanded(one, expand) for one in value]


def _expanded(value: Any, expand: Callable[[str], str]) -> Any:
    return expand(value) if isinstance(value, str) else value


def _first(name: str, value: Any) -> Any:
    if not _by_prompt(name):
        return value
    return "" if _is_texts(value) else value[:1]


def _key(value: Any) -> Hashable:
    """What stands for a value where values are compared."""
    if isinstance(value, Mapping):
        return tuple(sorted((str(name), _key(one)) for name, one in value.items()))
    if isinstance(value, list | tuple):
        return tuple(map(_key, value))
    if isinstance(value, str | bytes | int | float | bool) or value is None:
        return type(value).__name__, value
    return "object", id(value)
