"""What Diffusers users try on a pipeline, and what becomes of it on ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from countgen.errors import UsageError
from pipelines.arguments import parameters
from pipelines.base import ImageSource, Plan

LONGEST_PROMPT = 512
"""Tokens that the text encoders without a limit of their own are given by Diffusers."""
_OFFLOADS = ("enable_sequential_cpu_offload", "enable_group_offload")
_OWN_ORDER = ("height", "width", "num_inference_steps", "guidance_scale")
"""Positional arguments after the prompt, for sources that have no pipeline to ask."""


def wrapped(source: Any) -> Any:
    """The Diffusers pipeline inside of a source of pictures; None where there is none."""
    return getattr(source, "pipeline", None)


def named(source: Any, values: Sequence[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with the positional arguments that follow the prompt, in the wrapped pipeline's own order.

    Raises:
        UsageError: more than it takes, or one given twice.
    """
    pipeline = wrapped(source)
    names = [*parameters(type(pipeline), "__call__")][1:] if pipeline is not None else [*_OWN_ORDER]
    if len(values) > len(names):
        raise UsageError(f"{len(values)} arguments after the prompt are more than it takes")
    found = dict(zip(names, values, strict=False))
    twice = sorted({*found} & {*options})
    if twice:
        raise UsageError(f"{twice[0]} was given twice, by its place and by its name")
    return {**{name: v for name, v in found.items() if v is not None}, **options}


def device_and_dtype(*given: Any) -> tuple[Any, torch.dtype | None]:
    """What ``to`` was told, in any order, as Diffusers' own takes it.

    Raises:
        UsageError: two devices or two precisions.
    """
    told = [one for one in given if one is not None]
    dtypes = [one for one in told if isinstance(one, torch.dtype)]
    devices = [one for one in told if not isinstance(one, torch.dtype)]
    if len(dtypes) > 1 or len(devices) > 1:
        raise UsageError("to() takes one device and one dtype")
    return next(iter(devices), None), next(iter(dtypes), None)


def handed(source: ImageSource, name: str, owner: Any) -> Any:
    """What an attribute that is not ours is on the wrapped pipeline.

    A method is handed on; whatever it changes inside of modules, such as loaded LoRAs, is priced anew.

    Args:
        owner: returned by methods that return the pipeline itself.

    Raises:
        AttributeError: the pipeline does not have it either.
        UsageError: when it is called: what only a black box can do.
    """
    pipeline = wrapped(source)
    if name.startswith("_") or pipeline is None or not hasattr(pipeline, name):
        raise AttributeError(f"{type(owner).__name__} has no attribute {name!r}", name=name)
    value = getattr(pipeline, name)
    if not callable(value) or isinstance(value, torch.nn.Module) or not hasattr(value, "__self__"):
        return value
    if hasattr(source, "trajectory"):
        if name == "enable_model_cpu_offload":
            return _offloaded(owner)
        if name in _OFFLOADS or name == "load_ip_adapter":
            return _only_boxed(name)

    def call(*args: Any, **options: Any) -> Any:
        result = value(*args, **options)
        forget = getattr(source, "forget", None)
        if forget is not None:
            forget()
        return owner if result is pipeline else result

    return call


def _offloaded(owner: Any) -> Callable[..., None]:
    def enable(gpu_id: int | None = None, device: Any = None) -> None:
        """In place of Diffusers' hooks, which gradients cannot cross: the memory plan that does the same."""
        owner.to((device or "cuda") if gpu_id is None else f"cuda:{gpu_id}")
        owner.adapter.set_memory_plan("low")

    return enable


def _only_boxed(name: str) -> Callable[..., None]:
    def refuse(*args: Any, **options: Any) -> None:
        raise UsageError(
            f"{name} is for pipelines that are called as a whole: call it on the Diffusers pipeline, and "
            "wrap that as a black box, CountGuidedPipeline(pipelines.blackbox.BlackBox(pipeline), ...)"
            + ('; or take memory="low" here' if name in _OFFLOADS else "")
        )

    return refuse


def longest_text(source: Any, plan: Plan) -> int:
    """Tokens of a prompt that are read at most, where the tokenizer itself has no limit."""
    call = parameters(type(wrapped(source)), "__call__")
    told = plan.arguments.get("max_sequence_length")
    if told is None and "max_sequence_length" in call:
        told = call["max_sequence_length"].default
    return told if isinstance(told, int) else LONGEST_PROMPT
