"""What a critic costs above its bare network: the same modules forward and backward, and nothing else.

python -m benchmarks.critics --json                     critics at their published sizes, random weights
python -m benchmarks.critics --json --critics sam3      chosen ones; sam3, the largest, only if chosen
python -m benchmarks.critics --json --size tiny         the same code on models of a few thousand weights

The bare side is what nobody can leave out: the critic's differentiable preprocessing, the network, the sum of
its raw logits or density, and the backward pass to the pixels. Read-outs are to cost at most 5% on top where
the bare side takes 100 ms or more, and at most 5 ms where it takes less (``within_mark``).
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics as stats
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.hub_models import Size, save_model, user_network
from countgen.engine.cost import peak_bytes
from countgen.pocket import ROLES
from countgen.pocket import load_critic as load_pocket
from critics.base import Critic, Query
from critics.contrastive.count_clip import CountClip
from critics.density.blockwise import BlockwiseCounter
from critics.density.cardinality import CardinalityCounter, letterbox
from critics.density.clip_count import SIDE, WINDOW, ClipCount
from critics.density.clip_ebc.critic import ClipEbc
from critics.density.dmcount_ebc import STRIDE, DMCountEbc
from critics.density.hmode import CELL, Hmode
from critics.detectors.c_rex import Referrer
from critics.detectors.countgd import CountGD
from critics.detectors.dense import DenseDetector
from critics.detectors.detr import SetPredictor
from critics.detectors.grounding_dino import GroundingDino
from critics.detectors.heatmap import HeatmapDetector
from critics.detectors.mask2former import SIZE_MULTIPLE, InstanceSegmenter
from critics.detectors.owl import OwlDetector, pad_to_square, resize_bicubic, resize_blurred
from critics.detectors.sam3 import STATISTICS, Sam3
from critics.parts.convnet import resize as resize_square
from critics.parts.preprocess import CLIP, IMAGENET, fit_sides, normalise, resize
from critics.parts.tiling import fit, starts
from critics.registry import FAMILIES, load_critic

NAMES = (
    *ROLES.values(),
    *(name for name in FAMILIES if FAMILIES[name] != "critics.detectors.yolo"),
)
"""All but those of the extra yolo."""
NOUNS = ("cat", "dog")
NOUNS_OF = {"clip-ebc": ("person",), "dmcount-ebc": ("person",), "countgd": ("cat",)}
FORWARD_ONLY = ("mask2former",)
"""Made to judge: nobody asks for its gradient."""
LONG, SHARE, EXTRA = 0.1, 1.05, 0.005
"""The mark: from ``LONG`` seconds on a share of the bare side, below it seconds on top."""
Bare = Callable[[Any, Tensor, Query], Tensor]


# -- the bare sides: preprocessing and network of each family, and the sum of what comes out ----------------


def _owl(detector: OwlDetector, images: Tensor, query: Query) -> Tensor:
    seen = pad_to_square(images) if detector.square else images
    shrink = resize_blurred if detector.square else resize_bicubic
    network = detector.network
    features = network.image_embedder(normalise(shrink(seen, detector.side), CLIP))[0]
    features = features.flatten(1, 2)
    return network.class_predictor(features, query.text["owl"][None])[0].sum()


def _set_predictor(detector: SetPredictor, images: Tensor, query: Query) -> Tensor:
    return detector.network(pixel_values=detector.preprocessing(images)).logits.sum()


def _grounding_dino(detector: GroundingDino, images: Tensor, query: Query) -> Tensor:
    ids = query.text["input_ids"].to(images.device)[None]
    pixels = detector.preprocess(images)
    found = detector.network(
        pixel_values=pixels, input_ids=ids, attention_mask=torch.ones_like(ids)
    )
    return found.logits[..., : ids.shape[1]].sum()  # -inf beyond


def _countgd(detector: CountGD, images: Tensor, query: Query) -> Tensor:
    (caption,) = query.members
    return _grounding_dino(detector.reader, images, caption)


def _dmcount_ebc(model: DMCountEbc, images: Tensor, query: Query) -> Tensor:
    config = model.network.config
    pixels = normalise(fit(images, config.side, max(STRIDE, config.block)), IMAGENET)
    return model.network(pixels).sum()


def _sam3(detector: Sam3, images: Tensor, query: Query) -> Tensor:
    """The picture is encoded once and decoded for each of its nouns."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    side, network = detector.network.config.image_size, detector.network
    seen = network.get_vision_features(normalise(resize(images, (side, side)), STATISTICS))
    text, real = query.text["features"], query.text["real"].to(images.device)
    pairs = type(seen)(
        fpn_hidden_states=tuple(x.expand(len(text), -1, -1, -1) for x in seen.fpn_hidden_states),
        fpn_position_encoding=tuple(
            x.expand(len(text), -1, -1, -1) for x in seen.fpn_position_encoding
        ),
    )
    found = network(
        vision_embeds=pairs,
        text_embeds=BaseModelOutputWithPooling(pooler_output=text),
        attention_mask=real,
    )
    return found.pred_logits.sum() + found.presence_logits.sum()


def _mask2former(detector: InstanceSegmenter, images: Tensor, query: Query) -> Tensor:
    height, width = fit_sides(images.shape[-2], images.shape[-1], *detector.sides)
    pixels = normalise(resize(images, (height, width)), IMAGENET)
    pixels = torch.nn.functional.pad(
        pixels, (0, -width % SIZE_MULTIPLE, 0, -height % SIZE_MULTIPLE)
    )
    found = detector.network(pixel_values=pixels)
    return found.class_queries_logits.sum() + found.masks_queries_logits.sum()


def _windows(images: Tensor, window: int, cell: int) -> Tensor:
    """Those of ``critics.parts.tiling`` side by side."""
    images = fit(images, window, cell)
    rows, columns = (starts(length, window, window) for length in images.shape[-2:])
    return torch.cat([images[..., y : y + window, x : x + window] for y in rows for x in columns])


def _clip_ebc(model: ClipEbc, images: Tensor, query: Query) -> Tensor:
    config = model.network.config
    pixels = normalise(_windows(images, config.window, config.block), IMAGENET)
    return model.network(pixels, query.text["bins"].expand(len(pixels), -1, -1, -1)).sum()


def _hmode(model: Hmode, images: Tensor, query: Query) -> Tensor:
    return model.network(normalise(_windows(images, model.window, CELL), IMAGENET))[:, -1].sum()


def _clip_count(model: ClipCount, images: Tensor, query: Query) -> Tensor:
    """Of a square picture, which is one window."""
    pixels = normalise(resize(resize(images, (WINDOW, WINDOW)), (SIDE, SIDE)), CLIP)
    text = query.text["nouns"]
    return model.network.density(pixels.expand(len(text), -1, -1, -1), text).sum()


def _cardinality(model: CardinalityCounter, images: Tensor, query: Query) -> Tensor:
    text = query.text["nouns"]
    pixels = letterbox(images, model.side).expand(len(text), -1, -1, -1)
    return model.network.cardinality(pixels, text)[0].sum()


def _count_clip(critic: CountClip, images: Tensor, query: Query) -> Tensor:
    network: Any = critic.network
    side = network.config.vision_config.image_size
    pixels = normalise(resize(images, (side, side), "bicubic"), CLIP)
    return network.get_image_features(pixel_values=pixels).pooler_output.sum()


def _pocket(detector: HeatmapDetector | DenseDetector, images: Tensor, query: Query) -> Tensor:
    return detector.network(resize_square(images, detector.side))[0].sum()


def _c_rex(referrer: Referrer, images: Tensor, query: Query) -> Tensor:
    network, said = referrer.network, query.text["said"]
    tokens = network.see(resize_square(images, referrer.side)).expand(len(said), -1, -1, -1)
    return network.detect(network.refer(tokens, said))[0].sum()


def _blockwise(critic: BlockwiseCounter, images: Tensor, query: Query) -> Tensor:
    """Two looks, at the picture and at its mirror image: a part of that counter's definition."""
    pixels = resize_square(images, critic.card.input_size)
    return critic.network(pixels).sum() + critic.network(pixels.flip(-1)).sum()


BARE: dict[type, Bare] = {
    BlockwiseCounter: _blockwise,
    CardinalityCounter: _cardinality,
    ClipCount: _clip_count,
    ClipEbc: _clip_ebc,
    CountClip: _count_clip,
    CountGD: _countgd,
    DMCountEbc: _dmcount_ebc,
    DenseDetector: _pocket,
    GroundingDino: _grounding_dino,
    HeatmapDetector: _pocket,
    Hmode: _hmode,
    InstanceSegmenter: _mask2former,
    OwlDetector: _owl,
    Referrer: _c_rex,
    Sam3: _sam3,
    SetPredictor: _set_predictor,
}


# -- measuring ------------------------------------------------------------------------------------------


def load(name: str, size: Size, device: torch.device) -> Critic:
    """The critic by its own loading code, from a folder that is gone when this returns."""
    if name in ROLES.values():
        critic: Any = load_pocket(name)
        return critic.to(device)
    options: dict[str, Any] = {}
    network = user_network(name, size)
    with tempfile.TemporaryDirectory() as place:
        folder: Path | None = None
        if network is None:
            folder = Path(place)
            save_model(name, folder, size)
        else:
            options["network"] = network
        if size == "tiny":
            options |= {"yolo-count": {"side": 64}, "mask2former": {"sides": (64, 112)}}.get(
                name, {}
            )
        critic = load_critic(name, folder, **options)
    return critic.to(device)


def measure(name: str, size: Size, device: torch.device, repeats: int) -> dict[str, Any]:
    """Both sides in turn, so that the machine's moods fall on both; medians of times and of ratios."""
    critic: Any = load(name, size, device)
    part = getattr(critic, "detector", None) or getattr(critic, "model", None) or critic
    bare, backward = BARE[type(part)], name not in FORWARD_ONLY
    query = critic.prepare(NOUNS_OF.get(name, NOUNS))
    side = 64 if size == "tiny" else 512
    pixels = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)

    def run(count: Callable[[Tensor], Tensor]) -> float:
        images = pixels.clone().requires_grad_(backward)
        _wait(device)
        begun = time.perf_counter()
        with torch.set_grad_enabled(backward):
            total = count(images)
        if backward:
            total.backward()
        _wait(device)
        return time.perf_counter() - begun

    sides: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda images: critic(images, [query]).soft.sum(),
        lambda images: bare(part, images, query),
    )
    run(sides[1])
    _reset_peak(device)
    run(sides[0])
    peak = _peak(device)
    times = []
    for turn in range(repeats):
        order = (0, 1) if turn % 2 else (1, 0)
        taken = {which: run(sides[which]) for which in order}
        times.append((taken[0], taken[1]))
    floor = stats.median(b for _, b in times)
    ratio, extra = _spread([a / b for a, b in times]), _spread([a - b for a, b in times])
    return {
        "ratio_to_bare": ratio[0],
        "ratio_min": ratio[1],
        "ratio_max": ratio[2],
        "overhead_seconds": extra[0],
        "overhead_min": extra[1],
        "overhead_max": extra[2],
        "seconds": round(stats.median(a for a, _ in times), 5),
        "bare_seconds": round(floor, 5),
        "within_mark": ratio[0] <= SHARE if floor >= LONG else extra[0] <= EXTRA,
        "backward": backward,
        "parameters": sum(weight.numel() for weight in critic.network.parameters()),
        "peak_bytes": peak,
    }


def _spread(values: list[float]) -> tuple[float, float, float]:
    return round(stats.median(values), 5), round(min(values), 5), round(max(values), 5)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


# -- memory ---------------------------------------------------------------------------------------------

PEAK = {
    "cuda": "most that torch had allocated on the device during one call, weights included",
    "other": "largest resident set of the process during one call, weights included; where the system cannot "
    "forget an earlier peak (all but Linux), during the run so far",
}


def _reset_peak(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            (_PROC / "clear_refs").write_text("5")  # Linux: the peak so far is forgotten


def _peak(device: torch.device) -> int:
    if device.type == "cuda" or not _PROC.exists():
        return peak_bytes(device)
    lines = (_PROC / "status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


_PROC = Path("/proc/self")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    usual = [name for name in NAMES if name != "sam3"]
    parser.add_argument("--critics", nargs="+", choices=NAMES, default=usual, metavar="NAME")
    parser.add_argument("--size", choices=("tiny", "full"), default="full")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--repeats", type=int, default=9, help="timings of each side")
    options = parser.parse_args(arguments)
    torch.set_flush_denormal(True)
    # Random weights find objects everywhere, more of them than there are candidates.
    warnings.filterwarnings("ignore", ".* objects of a kind at most, and has counted as many")
    # Not before countgen, which hides a torchvision that transformers could not load.
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    report: dict[str, Any] = {
        "command": "python -m benchmarks.critics --json "
        f"--size {options.size} --device {options.device} --repeats {options.repeats} "
        f"--critics {' '.join(options.critics)}",
        "device": str(options.device),
        "threads": torch.get_num_threads(),
        "peak": PEAK["cuda" if options.device.type == "cuda" else "other"],
        "critics": {},
    }
    for name in options.critics:
        print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
        found = measure(name, options.size, options.device, options.repeats)
        report["critics"][name] = found
        print(
            f"{found['seconds']:.3f} s, {found['ratio_to_bare']:.3f} times the bare network",
            file=sys.stderr,
        )
        gc.collect()
    print(json.dumps(report, indent=None if options.json else 1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
