"""``python -m countgen.pocket.train``: make the trained files of pocket again."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from countgen.learning.loop import TrainConfig, worker
from countgen.pocket.world import FOLDER

STAGES = ("autoencoder", "generator", "detector-a", "density", "detector-b", "clip")
HELP = """Make the trained files of pocket again, from a seed, with nothing but this package.

Stages, in their order:
  autoencoder   pictures to latents and back; the next stages need it
  generator     the text-to-image pipeline
  detector-a    the critic: peaks of heatmaps
  density       the verifier: blockwise density
  detector-b    the judge: dense boxes, trained on other scenes at another resolution
  clip          a small CLIP for semantic terms
  all           all of the above, one after the other

Held-out scores appear as training goes on; samples, logs and checkpoints land in the work folder.
Ctrl-C is safe: the same command goes on from the last checkpoint. Everything together takes under
four hours on two CPU cores. Several workers share a batch when started by torchrun, which bears other work
on the machine better than threads do:
torchrun --nproc-per-node 2 -m countgen.pocket.train STAGE --threads 1"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m countgen.pocket.train",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", choices=(*STAGES, "all"), metavar="STAGE")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/pocket"), help="checkpoints and logs"
    )
    parser.add_argument(
        "--out", type=Path, default=None, help="finished files (default: WORK/pocket)"
    )
    parser.add_argument("--steps", type=int, default=None, help="train for fewer or more steps")
    parser.add_argument(
        "--held-out", type=int, default=None, help="scenes to score on (default: 1000)"
    )
    parser.add_argument(
        "--device", default=None, help="cuda or cpu (default: cuda where there is one)"
    )
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: all cores)")
    options = parser.parse_args(arguments)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        torch.distributed.init_process_group("gloo")
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    out = options.out or options.work / "pocket"
    if out.resolve() == FOLDER:
        parser.error(
            "--out is the installed package itself; train into another folder and compare first"
        )
    if worker()[0] > 0:  # only the first worker's files are kept
        out = Path(tempfile.mkdtemp(prefix="countgen-worker-"))
    if options.threads:
        torch.set_num_threads(options.threads)
    # Weight averages fade into denormal numbers, which a CPU computes a hundred times slower.
    torch.set_flush_denormal(True)
    for stage in STAGES if options.stage == "all" else (options.stage,):
        try:
            run(stage, options.work, out, device, options.steps, options.held_out)
        except KeyboardInterrupt:
            return 1
        except FileNotFoundError as error:
            print(f"{stage}: {error}", file=sys.stderr)
            return 1
    return 0


def run(
    stage: str,
    work: Path,
    out: Path,
    device: str,
    steps: int | None = None,
    held_out: int | None = None,
) -> dict[str, Any]:
    """Train one stage, write its finished folder below ``out`` and its scores beside it."""
    from countgen.pocket.train import autoencoder, clip, counters, generator

    started = time.monotonic()
    scores: dict[str, Any]
    guided: TrainConfig | None = None
    settling: TrainConfig | None = None
    if stage == "autoencoder":
        config = _shared(autoencoder.CONFIG, steps)
        model, scores = autoencoder.train(work, config, device)
        folder = (work if worker()[0] == 0 else out) / "autoencoder"
        model.save_pretrained(folder)
    else:
        if stage == "generator":
            vae = _autoencoder(work)
            config = _shared(generator.CONFIG, steps)
            guided = _shared(generator.GUIDED, steps and -(-steps // 4))
            folder = out / "generator"
            scores = generator.train(work, folder, vae, config, device, guided)
        elif stage == "clip":
            config = _shared(clip.CONFIG, steps, held_out)
            folder = out / "clip"
            scores = clip.train(work, folder, _renderer(out, device), config, device)
        else:
            config, train = {
                "detector-a": (counters.DETECTOR_A, counters.train_detector_a),
                "density": (counters.DENSITY, counters.train_density),
                "detector-b": (counters.DETECTOR_B, counters.train_detector_b),
            }[stage]
            config, settling = _shared(config, steps, held_out), counters.SETTLING
            folder = out / stage
            scores = train(work, folder, _renderer(out, device), config, device)
    record = {
        "command": f"python -m countgen.pocket.train {stage}",
        "config": dataclasses.asdict(config),
        **({"guided": dataclasses.asdict(guided)} if guided else {}),
        **({"settling": dataclasses.asdict(settling)} if settling else {}),
        "torch": torch.__version__.split("+")[0],
        "workers": worker()[1],
        "cores": os.cpu_count() if device == "cpu" else 0,
        "seconds_of_last_run": round(time.monotonic() - started),
        "held_out": scores,
        "license": "Apache-2.0",
        "origin": "trained from scratch on scenes composed by countgen.pocket.scenes",
    }
    if worker()[0] > 0:
        return scores
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    if stage == "generator":
        shutil.copy(work / "autoencoder" / "training.json", folder / "vae" / "training.json")
    print(json.dumps({"stage": stage, "folder": str(folder), "held_out": scores}))
    return scores


def _shared(config: TrainConfig, steps: int | None, held_out: int | None = None) -> TrainConfig:
    """The configuration of one worker: its part of the batch, and other numbers where asked for."""
    return dataclasses.replace(
        config,
        steps=steps or config.steps,
        held_out=held_out or config.held_out,
        batch=max(1, config.batch // worker()[1]),
    )


def _autoencoder(work: Path) -> Any:
    from diffusers import AutoencoderDC

    folder = work / "autoencoder"
    if not (folder / "config.json").exists():
        raise FileNotFoundError(
            f"{folder} is missing; first run `python -m countgen.pocket.train autoencoder` with the "
            "same work folder"
        )
    return AutoencoderDC.from_pretrained(folder, use_safetensors=True).eval().requires_grad_(False)


def _renderer(out: Path, device: str) -> Any:
    from countgen.pocket.train.scenery import Renderer

    folder = out / "generator"
    if not (folder / "model_index.json").exists():
        raise FileNotFoundError(
            f"{folder} is missing; first run `python -m countgen.pocket.train generator` with the same "
            "folders"
        )
    return Renderer.load(folder, device)


if __name__ == "__main__":
    raise SystemExit(main())
