"""What generators learn from critics: counting reward, screening, amortised guidance, a dataset, variation.

python -m benchmarks.learning_generator --json --work DIR --parts lora screening noise token-network

Each part trains what is not in --work yet (the same command goes on where it was stopped), then draws the
first picture of the same prompts and noises with and without it. Detector B judges, and has no part in
training. A picture's price is what its first draw costs in plain renders, the critic's look included.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.learning_dataset import dataset
from benchmarks.learning_variation import variation
from benchmarks.pocket_methods import draw
from countgen import CountGuidedPipeline
from countgen.evaluation.metrics import paired, ratio_of_par2, summary
from countgen.evaluation.quality import quality
from countgen.evaluation.runs import Row, judged, read_rows
from countgen.guidance.methods import Method, find_method
from countgen.guidance.objectives import OBJECTIVES
from countgen.guidance.scores import pocket_score
from countgen.learning.draws import draw as draw_boxes
from countgen.learning.draws import noise_of, pocket_prompt
from countgen.learning.loop import TrainConfig
from countgen.learning.lora import (
    PRESETS,
    LoraConfig,
    counting_loss,
    exact_share,
    train_lora,
)
from countgen.learning.noise import PRESETS as NOISE
from countgen.learning.noise import gather_successes, train_noise
from countgen.learning.prompted import pocket_scenes
from countgen.learning.screening import Examples, Screening, held_out_scores, train_screening
from countgen.learning.token_network import CONFIG as TOKENS
from countgen.learning.token_network import train_token_network
from countgen.pocket import ROLES, load_adapter, load_critic
from countgen.pocket.suites import suite

DRAWS = 23_664
TRAIN_SEED = 7
"""Of prompts and draws that are learnt from; evaluations use other seeds."""
_SMALL = TrainConfig(steps=160, batch=8, learning_rate=2e-3, warmup=10, ema=0.97)
_LONG = TrainConfig(steps=1300, batch=8, learning_rate=5e-4, warmup=20, ema=0.98)
_WIDE = TrainConfig(steps=360, batch=16, learning_rate=1e-3, warmup=10, ema=0.97)
LORAS: dict[str, LoraConfig] = {
    # The gradient of the last picture through all eight steps.
    "two-sided, 8 steps": replace(
        PRESETS["pocket"], train=_SMALL, rank=16, where="attention", weight=0.5
    ),
    # Eight times as many steps, and every layer.
    "two-sided, 8 steps, long": replace(PRESETS["pocket"], train=_LONG, rank=16, weight=1.0),
    # The picture that is predicted at noised scenes, as published, with either loss.
    "two-sided, predicted": replace(
        PRESETS["pocket"], train=_WIDE, rank=8, weight=0.2, grad_steps=0, count_batch=16
    ),
    "one-sided, predicted": replace(
        PRESETS["pocket"],
        train=_WIDE,
        rank=8,
        objective="counting-reward",
        weight=2.0,
        grad_steps=0,
        count_batch=16,
    ),
}
"""Two-sided and one-sided (as published) counting losses."""


def first_pictures(
    options: argparse.Namespace, name: str, pipeline: CountGuidedPipeline, method: Method, run: Path
) -> None:
    """Draw the first picture of every prompt, under this name."""
    run.mkdir(parents=True, exist_ok=True)
    asked = argparse.Namespace(
        run=run, per_prompt=options.per_prompt, seed=options.seed, budget=0.0, batch=16, chunk=64
    )
    prompts = [prompt for each in options.suites for prompt in suite(each)]
    prompts = list({prompt.id: prompt for prompt in prompts}.values())
    draw(pipeline, prompts, replace(method, name=name), asked)


def compared(
    options: argparse.Namespace, names: Sequence[str], run: Path, with_quality: bool = False
) -> dict[str, Any]:
    """Every suite: the names' figures, and the difference of each from plain pictures."""
    rows = judged(read_rows(run / "rows.jsonl"), load_critic(ROLES["judge"]), run)
    out: dict[str, Any] = {}
    for each in options.suites:
        ids = {prompt.id for prompt in suite(each)}
        own = [row for row in rows if row["id"] in ids and row["method"] in ("none", *names)]
        out[each] = {
            name: _figures([row for row in own if row["method"] == name])
            for name in ("none", *names)
        }
        for name in names:
            out[each][name]["minus_plain"] = paired(own, name, "none")
    if with_quality:
        out["quality"] = quality(rows, run, pocket_score())
    return out


def _figures(rows: list[Row]) -> dict[str, Any]:
    found = summary(rows)
    kept = {role: found[role] for role in ("judge", "critic", "verifier") if role in found}
    for role in kept.values():
        role.pop("confusion", None)
    return {"n_images": len(rows), **kept, "pre_mean": found["cost"]["pre_mean"]}


# -- parts -------------------------------------------------------------------------------------------


def lora(options: argparse.Namespace) -> dict[str, Any]:
    run, critic = options.work / "first-lora", load_critic(ROLES["critic"])
    seconds: dict[str, float] = {}
    for name in options.loras:
        folder = options.work / f"lora-{_slug(name)}"
        if not (folder / "pytorch_lora_weights.safetensors").exists():
            begun = time.process_time()
            train_lora(load_adapter(), critic, pocket_scenes, LORAS[name], folder, samples=96)
            seconds[name] = round(time.process_time() - begun)
        pipeline = CountGuidedPipeline.from_pretrained("pocket")
        pipeline.load_lora_weights(folder)
        first_pictures(options, _slug(name), pipeline, find_method("none"), run)
    plain = CountGuidedPipeline.from_pretrained("pocket")
    first_pictures(options, "none", plain, find_method("none"), run)
    found = compared(options, [_slug(name) for name in options.loras], run, with_quality=True)
    return {"cpu_seconds": seconds, "plain_losses": plain_losses(), **found}


def plain_losses(number: int = 96, batch: int = 16) -> dict[str, float]:
    """What either counting loss says of plain pictures: where it is 0, nothing is learnt."""
    adapter, critic = load_adapter(), load_critic(ROLES["critic"])
    plan, exact = adapter.plan(), 0.0
    values: dict[str, list[float]] = {"counting-reward": [], "hinge": []}
    with torch.no_grad():
        for start in range(0, number, batch):
            rows = range(start, start + batch)
            prompts = [pocket_prompt(TRAIN_SEED + 2, row) for row in rows]
            noise = noise_of(adapter, plan, [10**6 + row for row in rows])
            images = adapter.images(noise, [prompt.text for prompt in prompts], plan)
            exact += exact_share(critic, images, prompts) * batch / number
            for name, losses in values.items():
                losses += counting_loss(OBJECTIVES[name], critic, images, prompts).tolist()
    out = {"n_images": number, "critic_exact": round(exact, 4)}
    for name, losses in values.items():
        out[f"{name} mean"] = round(sum(losses) / number, 5)
        out[f"{name} zero"] = round(sum(loss < 1e-6 for loss in losses) / number, 4)
    return out


def screening(options: argparse.Namespace) -> dict[str, Any]:
    run, folder = options.work / "first-screening", options.work / "screening"
    file, path = folder / "screening.safetensors", folder / "draws.jsonl"
    adapter = load_adapter()
    rows = draw_boxes(
        adapter,
        load_critic(ROLES["critic"]),
        partial(pocket_prompt, TRAIN_SEED),
        DRAWS,
        path,
        seed=TRAIN_SEED,
    )[:DRAWS]
    if not file.exists():
        train_screening(adapter, rows, folder)
    network = Screening.load(file).network
    held_out = rows[-500:]
    scores = held_out_scores(network, Examples(adapter, held_out), range(len(held_out)))
    found = _with_first(options, {"screening": find_method(f"screening={file}")}, run)
    return {"held_out": {k: round(v, 4) for k, v in scores.items()}, **found}


def noise(options: argparse.Namespace) -> dict[str, Any]:
    run, critic, methods = options.work / "first-noise", load_critic(ROLES["critic"]), {}
    about: dict[str, Any] = {}
    prompts = partial(pocket_prompt, TRAIN_SEED + 1)
    for source in ("critic", "successes"):
        folder = options.work / f"noise-{source}"
        file = folder / "noise.safetensors"
        if not file.exists():
            config = replace(NOISE["pocket"], source=source)
            gathered = None
            if source == "successes":
                steps = replace(config.train, steps=400)
                config = replace(config, train=steps)
                pipeline = CountGuidedPipeline.from_pretrained("pocket")
                gathered = gather_successes(pipeline, prompts, options.successes, budget=12.0)
                about["successes"] = {
                    "asked": options.successes,
                    "exact": len(gathered.seeds),
                    "changed": int((gathered.changes.flatten(1).abs().amax(1) > 0).sum()),
                    "mean_square": round(float(gathered.changes.square().mean()), 4),
                }
                (options.work / "successes.json").write_text(json.dumps(about["successes"]))
            train_noise(load_adapter(), critic, prompts, config, folder, successes=gathered)
        methods[f"amortised-{source}"] = find_method(f"amortised={file}")
    kept = options.work / "successes.json"
    if kept.exists():
        about["successes"] = json.loads(kept.read_text())
    return {**about, **_with_first(options, methods, run)}


def token_network(options: argparse.Namespace) -> dict[str, Any]:
    """First pictures of prompts as they are, and with the tokens of a network."""
    run, folder = options.work / "first-token-network", options.work / "token-network"
    file = folder / "token-network.safetensors"
    begun = time.process_time()
    if not file.exists():
        prompts = partial(pocket_prompt, TRAIN_SEED + 3)
        critic = load_critic(ROLES["critic"])
        train_token_network(load_adapter(), critic, prompts, TOKENS, folder)
    seconds = round(time.process_time() - begun)
    method = find_method(f"token-network={file}")
    return {"cpu_seconds": seconds, **_with_first(options, {"token-network": method}, run)}


def engine(options: argparse.Namespace) -> dict[str, Any]:
    """The engine alone and with screened first noises, on part of the hard third, at the usual cap."""
    run, file = options.work / "engine", options.work / "screening" / "screening.safetensors"
    run.mkdir(parents=True, exist_ok=True)
    pipeline = CountGuidedPipeline.from_pretrained("pocket")
    asked = argparse.Namespace(
        run=run, per_prompt=1, seed=options.seed, budget=64.0, batch=16, chunk=64
    )
    prompts = list(suite("pocket-hard"))[:: options.every]
    methods = {"engine": "engine", "engine-screening": f"engine+screening={file}"}
    for name, method in methods.items():
        draw(pipeline, prompts, replace(find_method(method), name=name), asked)
    ids = {prompt.id for prompt in prompts}
    drawn = [row for row in read_rows(run / "rows.jsonl") if row["id"] in ids]
    rows = judged(drawn, load_critic(ROLES["judge"]), run)
    out = {name: summary([row for row in rows if row["method"] == name]) for name in methods}
    for found in out.values():
        for role in ("judge", "critic", "verifier"):
            found.get(role, {}).pop("confusion", None)
    ratio = ratio_of_par2(rows, "engine-screening", "engine", 64.0)
    return {"n_prompts": len(prompts), **out, "par2_ratio": ratio}


def _with_first(
    options: argparse.Namespace, methods: dict[str, Method], run: Path
) -> dict[str, Any]:
    """First pictures of plain noises and of learnt ones."""
    pipeline = CountGuidedPipeline.from_pretrained("pocket")
    for name, method in {"none": find_method("none"), **methods}.items():
        first_pictures(options, name, pipeline, method, run)
    return compared(options, list(methods), run)


def _slug(name: str) -> str:
    return name.replace(",", "").replace(" ", "-")


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "lora": lora,
    "screening": screening,
    "noise": noise,
    "engine": engine,
    "token-network": token_network,
    "dataset": dataset,
    "variation": variation,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--work", type=Path, default=Path("runs/learning_generator"))
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument(
        "--suites", nargs="+", default=["pocket-small", "pocket-dense", "pocket-hard"]
    )
    parser.add_argument("--per-prompt", type=int, default=3, help="pictures of each prompt")
    parser.add_argument("--seed", type=int, default=0, help="run seed of the evaluation")
    parser.add_argument("--loras", nargs="+", default=list(LORAS), choices=list(LORAS))
    parser.add_argument("--successes", type=int, default=300, help="pictures to be made exact")
    parser.add_argument("--givens", type=int, default=60, help="pictures to be varied")
    parser.add_argument(
        "--variation-steps", type=int, help="of both trainings; by default the preset's"
    )
    parser.add_argument("--every", type=int, default=2, help="of the hard third, for the engine")
    parser.add_argument("--scenes", type=int, default=60, help="of the detector's small data")
    parser.add_argument("--detector-steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3, help="of the detector")
    parser.add_argument("--held-out", type=int, default=400, help="scenes that score the detector")
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    options.work.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {
        "command": f"python -m benchmarks.learning_generator --json --parts {' '.join(options.parts)} "
        f"--suites {' '.join(options.suites)} --per-prompt {options.per_prompt} --seed {options.seed} "
        f"--every {options.every} --givens {options.givens}",
    }
    for part in options.parts:
        report[part] = PARTS[part](options)
    print(json.dumps(report, indent=None if options.json else 1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
