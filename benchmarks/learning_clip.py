"""What count-aware CLIP gains: pocket's CLIP goes on learning with and without each counting loss.

python -m benchmarks.learning_clip --json

Every training starts from the same weights and sees the same pictures and captions in the same order, for
as many steps; only the loss beside CLIP's own differs. Scored on scenes that no training drew: the number
in single-kind pictures (as the critic ``count-clip`` reads it), retrieval by number, and nouns and places
as pocket's CLIP was scored before. Trainings are kept in ``--work``; the same command goes on where it was
stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from countgen.evaluation.statistics import wilson
from countgen.learning import clip
from countgen.learning.clip_losses import VARIANTS
from countgen.learning.clip_scores import HeldOut, held_out
from countgen.learning.loop import TrainConfig
from countgen.pocket.train.scoring import HELD_OUT

NONE = "none"


def settings(loss: str, seed: int, options: argparse.Namespace) -> clip.ClipSettings:
    """A training; "none" is the same without a counting loss."""
    rate, steps, batch = 1.5e-3, options.steps, options.batch
    train = TrainConfig(steps, batch, rate, warmup=25, ema=0.98, seed=seed)
    weight = 0.0 if loss == NONE else 1.0
    name: Any = VARIANTS[0] if loss == NONE else loss
    numbers = (0, options.highest)
    return clip.ClipSettings(train, loss=name, weight=weight, share=options.share, numbers=numbers)


def run(options: argparse.Namespace, loss: str, seed: int, held: HeldOut) -> dict[str, Any]:
    """One training, scored; what was done already is read."""
    out = options.work / f"{loss}-{seed}"
    kept = out / "scores.json"
    if kept.is_file():
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    asked = settings(loss, seed, options)
    start = time.monotonic()
    clip.train(asked, out)
    seconds = time.monotonic() - start
    student = clip.load_student(str(out), asked.range, "cpu")
    row = {"loss": loss, "seed": seed, "seconds": round(seconds)}
    row |= clip.scores(student, held, options.matching)
    kept.write_text(json.dumps(row))
    return row


def compared(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of every loss against none, seed by seed: the share of what was missing that it made up."""
    plain = {row["seed"]: row for row in rows if row["loss"] == NONE}
    result = {}
    for loss in dict.fromkeys(row["loss"] for row in rows if row["loss"] != NONE):
        pairs = [(plain[r["seed"]], r) for r in rows if r["loss"] == loss and r["seed"] in plain]
        if not pairs:
            continue

        def made_up(part: str, name: str, pairs: Any = pairs) -> float:
            shares = [(b[part][name] - a[part][name]) / (1 - a[part][name]) for a, b in pairs]
            return round(float(np.mean(shares)), 4)

        def change(part: str, name: str, pairs: Any = pairs) -> float:
            return round(float(np.mean([b[part][name] - a[part][name] for a, b in pairs])), 4)

        result[loss] = {
            "seeds": len(pairs),
            "accuracy_made_up": made_up("counting", "accuracy"),
            "average_precision_made_up": made_up("retrieval", "average_precision"),
            "noun_change": change("matching", "noun"),
            "background_change": change("matching", "background"),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--work", type=Path, default=Path("learning-clip"))
    parser.add_argument("--losses", nargs="+", default=[NONE, *VARIANTS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--highest", type=int, default=4, help="numbers from zero to this")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--share", type=float, default=0.75)
    parser.add_argument("--per-number", type=int, default=8, help="held-out pictures")
    parser.add_argument("--matching", type=int, default=1000, help="held-out pictures of matching")
    options = parser.parse_args()
    torch.set_num_threads(1)
    asked = settings(NONE, 0, options)
    held = held_out(asked.range, options.per_number, HELD_OUT + 1_500_000)
    rows = [run(options, loss, seed, held) for seed in options.seeds for loss in options.losses]
    base = clip.scores(clip.load_student(clip.POCKET, asked.range, "cpu"), held, options.matching)
    for row in (base, *rows):
        share = row["counting"]["accuracy"]
        row["counting"]["accuracy_ci95"] = wilson(round(share * len(held.nouns)), len(held.nouns))
    document = {
        "settings": asdict(asked) | {"seeds": options.seeds},
        "held_out": {"counting": len(held.nouns), "matching": options.matching},
        "before": base,
        "runs": rows,
        "against_none": compared(rows),
    }
    if options.json:
        print(json.dumps(document))
        return
    for row in rows:
        print(row["loss"], row["seed"], f"{row['counting']['accuracy']:.1%}")


if __name__ == "__main__":
    main()
