"""Verified pictures as a dataset: what one costs, and what they add where few annotated pictures are there.

A part of ``benchmarks.learning_generator``. A small detector (that of ``countgen.pocket.train``, without its
last steps on pictures counted by eye) learns from a few composed scenes alone, and from the same scenes and
the pictures of ``countgen dataset``: same steps, same batch, several seeds. Its threshold is set on other
composed scenes. Scored on held-out scenes, and on pictures of the generator that were counted by eye
(``benchmarks/labels``). The boxes of the pictures are detector A's, which has seen far more scenes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import pocket_labels
from countgen.evaluation.statistics import bootstrap_by_prompt
from countgen.learning.dataset import DatasetSettings, make_dataset
from countgen.learning.loop import Losses, TrainConfig, fit
from countgen.learning.prompted import folder_pictures, read_folder
from countgen.options import DrawOptions
from countgen.pipeline import to_pil
from countgen.pocket import ROLES, load_critic
from countgen.pocket.scenes import Scene
from countgen.pocket.train import counted
from countgen.pocket.train.calibration import THRESHOLDS
from countgen.pocket.train.scenery import pixels
from countgen.pocket.train.scoring import HELD_OUT, held_out_scenes
from countgen.pocket.train.targets import heatmap_targets
from countgen.pocket.world import NAMES, SIZE
from critics.base import CriticCard
from critics.detectors import heatmap

SEED = 3
CALIBRATION = 5_000_000
ARMS = ("scenes", "scenes + dataset")
Test = tuple[list[dict[str, int]], Tensor]
"""What every picture truly holds, and the pictures (n, 3, h, w)."""


def dataset(options: argparse.Namespace) -> dict[str, Any]:
    """The part: pictures, their price and the judge's word, and a detector with and without them."""
    folder = options.work / "dataset"
    draw = DrawOptions(seed=SEED, num_images_per_prompt=options.per_prompt)
    begun = time.process_time()
    document = make_dataset(DatasetSettings("pocket-dev", folder, draw=draw))
    drawn = time.process_time()
    verified = _scenes_of(folder)
    own = composed(options.scenes)
    tests = {"held_out_scenes": _held_out(options.held_out), "pictures_counted_by_eye": _labelled()}
    runs = []
    for seed in range(options.seeds):
        for arm in ARMS:
            pools = [own] if arm == "scenes" else [own, verified]
            out = options.work / f"detector-{arm.replace(' ', '')}-{seed}"
            critic = train(pools, options.detector_steps, seed, out)
            found = {name: right(critic, *test) for name, test in tests.items()}
            runs.append({"arm": arm, "seed": seed, "right": found})
    return {
        "verified": document["verified"],
        "tried": document["tried"],
        "objects": sum(document["objects"].values()),
        "pre_a_verified_picture": round(document["pre"] / max(document["verified"], 1), 2),
        "judge_exact": _judged(folder),
        "cpu_seconds": {
            "pictures": round(drawn - begun),
            "detectors": round(time.process_time() - drawn),
        },
        "detector": {
            "scenes": len(own),
            "objects_in_scenes": sum(len(scene.labels) for scene in own),
            "steps": options.detector_steps,
            "seeds": options.seeds,
            **{name: compared(runs, name) for name in tests},
        },
    }


def compared(runs: Sequence[dict[str, Any]], test: str) -> dict[str, Any]:
    """Shares of pictures counted exactly, the mean of the seeds; intervals over pictures."""
    by_arm = {
        arm: np.mean([run["right"][test] for run in runs if run["arm"] == arm], axis=0)
        for arm in ARMS
    }
    gain = by_arm[ARMS[1]] - by_arm[ARMS[0]]
    return {
        "n_images": len(gain),
        **{
            arm: {
                "exact": round(float(values.mean()), 4),
                "by_seed": [
                    round(float(np.mean(run["right"][test])), 4)
                    for run in runs
                    if run["arm"] == arm
                ],
            }
            for arm, values in by_arm.items()
        },
        "gain": round(float(gain.mean()), 4),
        "gain_ci95": [round(x, 4) for x in bootstrap_by_prompt([[x] for x in gain.tolist()])],
    }


def composed(number: int) -> list[Scene]:
    """The few scenes, of up to 20 objects."""
    few, many = (
        held_out_scenes(n, 4_000_000, total)
        for n, total in ((number - number // 2, (1, 10)), (number // 2, (11, 20)))
    )
    return [scene for _, scene in few + many]


def train(pools: Sequence[Sequence[Scene]], steps: int, seed: int, out: Path) -> Any:
    """A detector of as many pictures of each pool a batch."""
    torch.manual_seed(seed)
    network = heatmap.HeatmapNetwork(len(NAMES)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    card = CriticCard(
        name="small-data",
        family="pocket-heatmap",
        summary="peaks of class heatmaps",
        license_code="Apache-2.0",
        license_weights="Apache-2.0",
        input_size=SIZE,
        vocabulary=NAMES,
        parameters=sum(p.numel() for p in network.parameters()),
        citation="arXiv 1904.07850",
    )
    critic = heatmap.critic(network, card, NAMES, 0.4)
    config = TrainConfig(steps, 16, 2e-3, warmup=min(50, steps // 4), ema=0.99, seed=seed)

    def loss(rng: np.random.Generator, noise: torch.Generator) -> Losses:
        share = config.batch // len(pools)
        scenes = [
            _varied(pool[int(i)], rng)
            for pool in pools
            for i in rng.integers(len(pool), size=share)
        ]
        peaks, target, mask, total = heatmap_targets(scenes, SIZE)
        images = pixels(scenes, SIZE).to(memory_format=torch.channels_last)
        logits, sides = network(images)
        focal = heatmap.heatmap_loss(logits, peaks, total)
        box = ((sides - target).abs().mean(1) * mask).sum() / max(total, 1)
        return {"loss": focal + 0.2 * box, "focal": focal, "box": box}

    fit("detector", network, loss, config, out)
    network.eval()
    _set_threshold(critic)
    return critic


def _varied(scene: Scene, rng: np.random.Generator) -> Scene:
    """Mirrored or not, and in other light."""
    image, boxes = scene.image, scene.boxes
    if rng.random() < 0.5:
        width = image.shape[1]
        image = np.ascontiguousarray(image[:, ::-1])
        boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
    light = image * rng.uniform(0.85, 1.15) + rng.uniform(-12, 12)
    return Scene(light.clip(0, 255).astype(np.uint8), boxes, scene.labels, scene.background)


def _set_threshold(critic: Any) -> None:
    scenes = held_out_scenes(120, CALIBRATION, (1, 20))
    test = [dict(spec.counts) for spec, _ in scenes], pixels([s for _, s in scenes], SIZE)
    shares = {}
    for threshold in THRESHOLDS:
        critic.read_out = critic.read_out.changed(threshold=threshold)
        shares[threshold] = float(np.mean(right(critic, *test)))
    best = [t for t, share in shares.items() if share >= max(shares.values()) - 0.002]
    critic.read_out = critic.read_out.changed(threshold=best[len(best) // 2])


def right(critic: Any, truths: Sequence[dict[str, int]], images: Tensor) -> list[float]:
    """1 for every picture of which each noun is counted exactly, else 0."""
    found = []
    with torch.no_grad():
        for start in range(0, len(truths), 64):
            part = truths[start : start + 64]
            queries = [critic.prepare(list(truth)) for truth in part]
            hard = critic(images[start : start + 64], queries).hard
            for row, truth in zip(hard.tolist(), part, strict=True):
                found.append(float(row[: len(truth)] == list(truth.values())))
    return found


def _held_out(number: int) -> Test:
    scenes = held_out_scenes(number, HELD_OUT, (1, 20))
    return [dict(spec.counts) for spec, _ in scenes], pixels([s for _, s in scenes], SIZE)


def _labelled() -> Test:
    rows, pictures = pocket_labels.load()
    use = counted.sayable(rows)
    return [rows[i]["counts"] for i in use], pictures[use]


def _scenes_of(folder: Path) -> list[Scene]:
    """The pictures of a dataset with the boxes that it says."""
    data = json.loads((folder / "annotations.json").read_text())
    names = {category["id"]: category["name"] for category in data["categories"]}
    boxes: dict[int, list[list[float]]] = {image["id"]: [] for image in data["images"]}
    labels: dict[int, list[int]] = {image["id"]: [] for image in data["images"]}
    for one in data["annotations"]:
        x, y, width, height = one["bbox"]
        boxes[one["image_id"]].append([x, y, x + width, y + height])
        labels[one["image_id"]].append(NAMES.index(names[one["category_id"]]))
    pictures = [np.asarray(to_pil(one.image)) for one in _pictures(folder)]
    return [
        Scene(
            picture,
            np.array(boxes[image["id"]], np.float32).reshape(-1, 4),
            np.array(labels[image["id"]], np.int64),
            "",
        )
        for image, picture in zip(data["images"], pictures, strict=True)
    ]


def _pictures(folder: Path) -> list[Any]:
    first: Callable[[], Any] = lambda: np.random.default_rng(0)  # noqa: E731
    return [folder_pictures([file], SIZE, SIZE)(first(), 1)[0] for file in read_folder(folder)]


def _judged(folder: Path) -> float:
    """Of the dataset's pictures the share in which the judge counts what the dataset says."""
    judge, pictures = load_critic(ROLES["judge"]), _pictures(folder)
    truths = [{t.noun: t.count for t in one.prompt.targets} for one in pictures]
    images = torch.stack([one.image for one in pictures])
    return round(float(np.mean(right(judge, truths, images))), 4)
