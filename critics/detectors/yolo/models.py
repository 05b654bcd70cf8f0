"""Models of ultralytics from files and folders, rebuilt from their plans so that no pickled code is run."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from critics.detectors.yolo.library import TESTED, UPDATE, ultralytics_tasks, version
from critics.detectors.yolo.network import YoloNetwork
from critics.loading import checkpoint
from critics.loading.checkpoint import CheckpointError
from critics.loading.problems import one_line

_KIND = "ultralytics"
_CURE = (
    "Write the folder with critics.detectors.yolo.save_folder, or name a .pt file of ultralytics."
)
_DOWNLOADS = "https://github.com/ultralytics/assets/releases"

# Class of the last layer -> critic, and class of the model around it.
_HEADS = {
    "Detect": ("yolo", "DetectionModel"),
    "v10Detect": ("yolo", "DetectionModel"),
    "Segment": ("yolo", "SegmentationModel"),
    "Segment26": ("yolo", "SegmentationModel"),
    "WorldDetect": ("yolo-world", "WorldModel"),
    "YOLOEDetect": ("yoloe", "YOLOEModel"),
    "YOLOESegment": ("yoloe", "YOLOESegModel"),
    "YOLOESegment26": ("yoloe", "YOLOESegModel"),
}


def save_folder(model: Any, folder: str | Path, side: int = 640) -> None:
    """Write an ultralytics model so that ``load`` reads it: ``config.json`` and safetensors, no pickle.

    The weights keep their licence: those that ultralytics published or trained are under AGPL-3.0.

    Args:
        model: ``YOLO(...).model``, as trained: not fused, and with no vocabulary fixed in it.
        side: in pixels, of the pictures it was trained on.

    Raises:
        CheckpointError: no detection model, or one that was changed since it was built.
    """
    config, fresh = _rebuilt(ultralytics_tasks(), model, type(model).__name__)
    checkpoint.save(Path(folder), config | {"kind": _KIND, "side": side}, fresh, half=False)


def read_model(
    tasks: Any, name: str, source: str | Path | None, allow_pickle: bool
) -> tuple[Any, list[str], int]:
    """Model, names of its classes, and side in pixels of the pictures that it was trained on."""
    if source is None:
        raise CheckpointError(
            f"{name} is fetched from nowhere, since its published weights are pickles: download a .pt file "
            f'from {_DOWNLOADS} and give its path, load_critic("{name}", "file.pt", allow_pickle=True), or a '
            "folder from critics.detectors.yolo.save_folder"
        )
    source = Path(source)
    if source.is_dir():
        saved = checkpoint.read_config(source, _KIND, _CURE)
        config: dict[str, Any] = {
            "names": list(saved.get("names", tuple[str, ...])),
            "model": saved.get("model", dict[str, Any]),
        }
        side = saved.get("side", int)
        model = _build(tasks, config, saved.path)
        checkpoint.load_weights(source, model, _CURE)
    else:
        if source.suffix != ".pt" or not source.is_file():
            checkpoint.check_folder(source, _CURE)
        trained, side = _read_pickle(tasks, source, allow_pickle)
        config, model = _rebuilt(tasks, trained, str(source))
    if config["critic"] != name:
        raise CheckpointError(
            f'{source} holds a model for the critic "{config["critic"]}", not for "{name}"; load it by its '
            "own name"
        )
    return model, config["names"], side if isinstance(side, int) else 640


def _read_pickle(tasks: Any, path: Path, allowed: bool) -> tuple[Any, Any]:
    if not allowed:
        raise CheckpointError(
            f"{path} is a pickle, which could run code when read; if you trust where it comes from, pass "
            "allow_pickle=True (even then only known parts of models are made of it)"
        )
    if tuple(map(int, re.findall(r"\d+", version())[:3])) < TESTED:
        raise CheckpointError(
            f"ultralytics {version()} may run code that it finds in {path}; run {UPDATE}, or name a folder "
            "from critics.detectors.yolo.save_folder"
        )
    try:
        found, _ = tasks.torch_safe_load(path, safe_only=True)
    except (
        TypeError,
        RuntimeError,
        ImportError,
        AssertionError,
        EOFError,
        pickle.UnpicklingError,
    ) as error:
        raise CheckpointError(
            f"ultralytics {version()} cannot read {path} without running its code "
            f"({one_line(error)}); download it again, or update ultralytics"
        ) from None
    model = found.get("ema") or found.get("model")
    if not isinstance(model, nn.Module):
        raise CheckpointError(f"{path} holds no model of ultralytics under 'ema' or 'model'")
    return model, (found.get("train_args") or {}).get("imgsz")


def _rebuilt(tasks: Any, model: Any, what: str) -> tuple[dict[str, Any], Any]:
    """A config, and a model that was built from it and filled with the weights of another.

    Of a model that others made, nothing but its plan, its names and its tensors is used.
    """
    plan, names = getattr(model, "yaml", None), getattr(model, "names", None)
    if not isinstance(plan, Mapping) or not isinstance(names, Mapping):
        raise CheckpointError(
            f"{what} is no model of ultralytics with a plan (.yaml) and names (.names); of a YOLO object "
            "take its .model"
        )
    try:
        pure = json.loads(json.dumps({k: v for k, v in plan.items() if k != "yaml_file"}))
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"the plan of {what} holds more than words and numbers ({error})"
        ) from None
    config: dict[str, Any] = {
        "names": [str(names[key]) for key in sorted(names)],
        "model": pure,
    }
    fresh = _build(tasks, config, what)
    try:
        fresh.load_state_dict({key: value.float() for key, value in model.state_dict().items()})
    except RuntimeError as error:
        raise CheckpointError(
            f"the weights of {what} do not fit the plan that it names, since it was fused, or its vocabulary "
            f"fixed ({one_line(error)}); take the model as it was trained"
        ) from None
    return config, fresh.eval().requires_grad_(False)


def _build(tasks: Any, config: dict[str, Any], what: str | Path) -> Any:
    """The model of a config, which then has the name of the critic it is for under "critic".

    Raises:
        CheckpointError: the config names what is no layer, or plans what cannot be built.
    """
    try:
        plan = deepcopy(config["model"])
        kinds = [str(kind) for _, _, kind, _ in [*plan["backbone"], *plan["head"]]]
        activation = str(plan.get("activation") or "nn.SiLU()")
        names, classes = [str(name) for name in config["names"]], int(plan["nc"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{what} lacks or misstates a field of a plan of layers ({error!r}). {_CURE}"
        ) from None
    # ultralytics looks these words up among all that it has imported, and calls or evaluates what it finds.
    strange = [kind for kind in kinds if not _is_layer(tasks, kind)]
    if not _ACTIVATION.fullmatch(activation):
        strange.append(activation)
    if strange:
        raise CheckpointError(
            f"{what} names what is no layer of ultralytics {version()} or torch.nn: {', '.join(strange[:3])}"
        )
    if kinds[-1] not in _HEADS:
        raise CheckpointError(
            f"{what} ends in {kinds[-1]}, which finds no boxes that could be counted here; take a model for "
            "detection or segmentation (for RT-DETR there is the critic rt-detrv2)"
        )
    config["critic"], kind = _HEADS[kinds[-1]]
    try:
        model = getattr(tasks, kind)(plan, ch=3, nc=classes, verbose=False)
    except Exception as error:  # whatever a plan can make the many classes of layers raise
        raise CheckpointError(
            f"ultralytics {version()} cannot build what {what} plans ({one_line(error)})"
        ) from error
    model.names = dict(enumerate(names))
    return model.eval().requires_grad_(False)


_ARGUMENT = r"([a-z_]+=)?(True|False|-?[0-9][0-9.e-]*)"
_ACTIVATION = re.compile(rf"(torch\.)?nn\.[A-Za-z0-9]+\(({_ARGUMENT}(, ?{_ARGUMENT})*)?\)")


def _is_layer(tasks: Any, name: str) -> bool:
    own = name.startswith("nn.")
    found = getattr(nn, name[3:], None) if own else getattr(tasks, name, None)
    home = "torch.nn.modules." if own else "ultralytics.nn.modules."
    return (
        isinstance(found, type)
        and issubclass(found, nn.Module)
        and found.__module__.startswith(home)
        and name != "TorchVision"  # which fetches weights
    )


def check_gradient(network: YoloNetwork) -> None:
    """Refuse a model that has no gradient to the picture in this version of ultralytics.

    Raises:
        CheckpointError: naming version and cure.
    """
    weights = next(network.model.parameters())
    side = 2 * network.stride
    pixels = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    pixels = pixels.to(weights).requires_grad_()
    text = None
    if network.text is not None:
        text = weights.new_ones(1, 1, network.width) / network.width**0.5
    try:
        with torch.enable_grad():
            logits, _ = network(pixels, text)
            (grad,) = torch.autograd.grad(logits.float().sum(), pixels, allow_unused=True)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise CheckpointError(
            f"ultralytics {version()} answers in a form that is not known here ({error!r}); run {UPDATE}"
        ) from error
    except RuntimeError as error:
        if "does not require grad" not in str(error):
            raise
        grad = None
    if grad is None or not grad.isfinite().all() or not grad.any():
        branch = ", or take a model without a one-to-one branch, such as YOLO11" * network.single
        raise CheckpointError(
            f"ultralytics {version()} blocks this model's gradient between its scores and the picture, so "
            f"that it cannot guide; run {UPDATE}{branch}"
        )
