"""Prompt-free variation: what new pictures hold of the given ones, with and without the counting loss.

A part of ``benchmarks.learning_generator``. Given pictures are composed scenes that no training drew. Each is
varied by both trainings and drawn from its caption by the generator as it is, from the same noises. Detector
B judges both sides: new pictures should hold what it counts in the given one.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from countgen.evaluation.metrics import paired, role_summary
from countgen.evaluation.quality import compare, look
from countgen.evaluation.runs import Row, judged, picture_path, read_rows
from countgen.guidance.scores import pocket_score
from countgen.learning.draws import noise_of
from countgen.learning.prompted import Captioned, pocket_scenes
from countgen.learning.references import load_encoder
from countgen.learning.variation import (
    PRESETS,
    PictureTold,
    Variation,
    VariationConfig,
    train_variation,
)
from countgen.pipeline import to_pil
from countgen.pocket import ROLES, load_adapter, load_critic
from countgen.seeds import image_seed

TRAIN_SEED, GIVEN_SEED = 7, 10_007
TEXT = "text"
"""The generator as it is, told the given picture's caption."""
Draw = Callable[[Tensor, list[int]], Tensor]


def configs(steps: int | None = None) -> dict[str, VariationConfig]:
    """The two trainings; until the counting loss begins they are one."""
    config = PRESETS["pocket"]
    train = replace(config.lora.train, seed=TRAIN_SEED)
    if steps is not None:
        train = replace(train, steps=steps)
    lora = replace(config.lora, train=train, count_from=min(config.lora.count_from, train.steps))
    with_loss = replace(config, lora=lora)
    return {
        "diffusion": replace(config, lora=replace(lora, objective=None)),
        "counting": with_loss,
    }


def train(work: Path, steps: int | None = None) -> dict[str, float]:
    """Both trainings, whose first steps are shared; CPU seconds of each part."""
    seconds: dict[str, float] = {}

    def one(name: str, stop_after: int | None = None) -> None:
        folder = work / f"variation-{name}"
        if not (folder / "variation.safetensors").exists() or stop_after is None:
            begun = time.process_time()
            train_variation(
                load_adapter(),
                load_critic(ROLES["critic"]),
                pocket_scenes,
                load_encoder("pocket"),
                found[name],
                folder,
                stop_after=stop_after,
                samples=32,
            )
            key = f"{name}, to step {stop_after}" if stop_after else name
            seconds[key] = round(time.process_time() - begun)

    found = configs(steps)
    first, second = (work / f"variation-{name}" for name in ("diffusion", "counting"))
    one("diffusion", stop_after=found["counting"].lora.count_from)
    if not (second / "variation.checkpoint").exists():
        second.mkdir(parents=True, exist_ok=True)
        shutil.copy(first / "variation.checkpoint", second / "variation.checkpoint")
    for name in found:
        if not (work / f"{name}.done").exists():
            one(name)
            (work / f"{name}.done").touch()
    return seconds


def givens(number: int) -> list[Captioned]:
    """Scenes with objects."""
    rng = np.random.default_rng(GIVEN_SEED)
    found: list[Captioned] = []
    while len(found) < number:
        found += [one for one in pocket_scenes(rng, 1) if len(one.boxes)]
    return found


def draw(options: argparse.Namespace, run: Path, shown: list[Captioned]) -> None:
    """A row and a picture for every variation that is missing."""
    run.mkdir(parents=True, exist_ok=True)
    adapter, encoder = load_adapter(), load_encoder("pocket")
    told: dict[str, PictureTold] = {
        name: Variation.load(options.work / f"variation-{name}" / "variation.safetensors").on(
            adapter, encoder
        )
        for name in configs()
    }
    counters = {role: load_critic(ROLES[role]) for role in ("critic", "verifier")}
    done = {(row["method"], row["id"]) for row in read_rows(run / "rows.jsonl")}
    with (run / "rows.jsonl").open("a") as file:
        for number, given in enumerate(shown):
            name = f"given-{number}"
            to_pil(given.image).save(picture_path(run, "given", name, 0))
            targets = [target for target in given.prompt.targets if target.count]
            seeds = [image_seed(options.seed, name, i) for i in range(options.per_prompt)]
            for method in (TEXT, *told):
                if (method, name) in done:
                    continue
                plan = adapter.plan() if method == TEXT else told[method].plan()
                noise = noise_of(adapter, plan, seeds)
                if method == TEXT:
                    images = adapter.images(noise, [given.prompt.text] * len(seeds), plan)
                else:
                    reference = encoder(given.image, given.boxes)
                    images = told[method].images(noise, [reference] * len(seeds), plan)
                for i, image in enumerate(images):
                    to_pil(image).save(picture_path(run, method, name, i))
                nouns = [target.noun for target in targets]
                counts: dict[str, list[list[int]]] = {}
                with torch.no_grad():
                    for role, counter in counters.items():
                        queries = [counter.prepare(nouns)] * len(images)
                        counts[role] = counter(images, queries).hard.tolist()
                for i in range(len(images)):
                    row: Row = {"method": method, "id": name, "image": i, "nouns": nouns}
                    row |= {"wanted": [target.count for target in targets]}
                    row |= {"prompt": given.prompt.text}
                    row |= {role: found[i] for role, found in counts.items()}
                    file.write(json.dumps(row) + "\n")
                file.flush()


def measured(run: Path, number: int) -> dict[str, Any]:
    """Counts of new pictures against the judge's of the given ones, and how new pictures differ."""
    names = {f"given-{i}" for i in range(number)}
    rows = [row for row in read_rows(run / "rows.jsonl") if row["id"] in names]
    own = {row["id"]: row for row in rows}
    judge = load_critic(ROLES["judge"])
    asked = [row | {"method": "given", "image": 0} for row in own.values()]
    right = {row["id"]: row["judge"] for row in judged(asked, judge, run)}
    composed = sum(right[name] == row["wanted"] for name, row in own.items())
    rows = [row | {"wanted": right[row["id"]]} for row in judged(rows, judge, run)]
    for row in rows:
        row["verified"] = row["critic"] == row["verifier"] == row["wanted"]
        row["pre"] = 1.0
    score = pocket_score()
    methods = (TEXT, *configs())
    seen = {m: look([row for row in rows if row["method"] == m], run, score) for m in methods}
    given = look(asked, run, score)
    out: dict[str, Any] = {
        "given": {"n_images": len(own), "judge_finds_what_was_composed": composed / len(own)}
    }
    for method in methods:
        part = [row for row in rows if row["method"] == method]
        found = {role: role_summary(part, role) for role in ("judge", "critic", "verifier")}
        for role in found.values():
            for key in ("confusion", "by_count_ci95", "by_noun", "by_noun_ci95"):
                (role or {}).pop(key, None)
        nearness = [
            1 - float((seen[method][name].features @ given[name].features[0]).mean())
            for name in sorted(own)
        ]
        out[method] = {
            "n_images": len(part),
            **found,
            "distance_to_given": round(float(np.mean(nearness)), 4),
        }
        if method != TEXT:
            out[method]["minus_text"] = paired(rows, method, TEXT)
            compared = compare(seen[method], seen[TEXT])
            out[method]["against_text"] = {k: compared[k] for k in ("kernel_distance", "diversity")}
    out["counting"]["minus_diffusion"] = paired(rows, "counting", "diffusion")
    return out


def variation(options: argparse.Namespace) -> dict[str, Any]:
    """The part: trainings, pictures, figures."""
    seconds = train(options.work, options.variation_steps)
    run = options.work / "first-variation"
    draw(options, run, givens(options.givens))
    return {"cpu_seconds": seconds, **measured(run, options.givens)}
