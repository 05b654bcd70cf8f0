"""What a CLIP can do: say the number, find pictures by number, match nouns and places as before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from countgen.pocket.scenes import SceneSpec, compose
from countgen.pocket.train.clip import scores as matching_scores
from countgen.pocket.train.scenery import pixels
from countgen.pocket.train.scoring import HELD_OUT
from countgen.pocket.world import NAMES, SIZE
from critics.contrastive.count_clip import CountClip
from critics.parts.preprocess import normalise, resize


@dataclass(frozen=True)
class HeldOut:
    """Scenes that no training draws.

    Attributes:
        images: (n, 3, h, w) in [0, 1].
        nouns: which kind is asked for in each.
        counts: how many of it there are.
    """

    images: Float[Tensor, "n 3 h w"]
    nouns: list[str]
    counts: list[int]


def held_out(numbers: range, per_number: int, first_seed: int = HELD_OUT + 900_000) -> HeldOut:
    """``per_number`` scenes of each kind and number; where there is none of it, another kind is."""
    nouns: list[str] = []
    counts: list[int] = []
    scenes, seed = [], first_seed
    for position, noun in enumerate(NAMES):
        other = NAMES[(position + 5) % len(NAMES)]
        for number in numbers:
            for turn in range(per_number):
                crowd = 1 + (seed + turn) % 10 if number == 0 else 0
                scenes.append(compose(SceneSpec(((noun, number), (other, crowd))), seed))
                nouns.append(noun)
                counts.append(number)
                seed += 1
    return HeldOut(pixels(scenes, SIZE), nouns, counts)


def counting(critic: CountClip, held: HeldOut, batch: int = 64) -> dict[str, Any]:
    """Share of pictures with the right number, within one, mean error; and the share by number."""
    found: list[int] = []
    queries = {noun: critic.prepare([noun]) for noun in dict.fromkeys(held.nouns)}
    device = next(critic.network.parameters()).device
    for start in range(0, len(held.nouns), batch):
        asked = [queries[noun] for noun in held.nouns[start : start + batch]]
        images = held.images[start : start + batch].to(device)
        found += critic(images, asked).hard[:, 0].tolist()
    off = np.abs(np.array(found) - held.counts)
    by = {
        str(n): float((off[np.array(held.counts) == n] == 0).mean())
        for n in sorted(set(held.counts))
    }
    return {
        "accuracy": float((off == 0).mean()),
        "within_one": float((off <= 1).mean()),
        "mae": float(off.mean()),
        "by_number": by,
    }


def retrieval(critic: CountClip, held: HeldOut, batch: int = 64) -> dict[str, float]:
    """ "four cats" among the pictures that the noun was asked of: is the first right, and average precision.

    Averages over all nouns and numbers; a random order has about one over the number of numbers.
    """
    device = next(critic.network.parameters()).device
    seen = []
    network: Any = critic.network
    side = network.config.vision_config.image_size
    for start in range(0, len(held.nouns), batch):
        images = resize(held.images[start : start + batch].to(device), (side, side), "bicubic")
        inputs = normalise(images, critic.statistics)
        found = network.get_image_features(pixel_values=inputs).pooler_output
        seen.append(torch.nn.functional.normalize(found.float(), dim=-1))
    every = torch.cat(seen)
    first, precision = [], []
    for noun in dict.fromkeys(held.nouns):
        rows = [i for i, name in enumerate(held.nouns) if name == noun]
        captions = critic.prepare([noun]).text["captions"][0]
        likeness = captions.to(device) @ every[rows].T
        counts = torch.tensor([held.counts[i] for i in rows])
        for number, row in zip(critic.numbers, likeness.cpu(), strict=True):
            hits = (counts == number)[row.argsort(descending=True)].float()
            if not hits.any():
                continue
            first.append(float(hits[0]))
            ranks = torch.arange(1, len(hits) + 1)
            precision.append(float((hits * hits.cumsum(0) / ranks).sum() / hits.sum()))
    return {
        "first_right": float(np.mean(first)),
        "average_precision": float(np.mean(precision)),
    }


def matching(model: Any, tokenizer: Any, count: int) -> dict[str, float]:
    """Held-out accuracy of the noun among all nouns and the place among all, as pocket's CLIP is scored."""
    return matching_scores(model, tokenizer, count)
