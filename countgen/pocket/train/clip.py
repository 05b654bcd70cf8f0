"""The small CLIP of pocket: transformers' CLIPModel on composed scenes and their captions.

It serves the semantic terms (does the picture show what the prompt says?), not the counting: it is trained
like any CLIP, by the symmetric contrastive loss over a batch (Radford et al., arXiv 2103.00020).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from countgen.learning.loop import Losses, TrainConfig, fit
from countgen.pocket.captions import caption
from countgen.pocket.scenes import Scene, SceneSpec, compose, sample_spec
from countgen.pocket.train.generator import TOKENS, build_tokenizer
from countgen.pocket.train.scenery import Renderer, Scenery, pixels, plain_style
from countgen.pocket.train.scoring import HELD_OUT
from countgen.pocket.world import BACKGROUNDS, NOUNS, SIZE, noun_index

CONFIG = TrainConfig(steps=1000, batch=64, learning_rate=1e-3, warmup=100, ema=0.995, seed=4)


def build(vocab_size: int, width: int = 128, layers: int = 3) -> CLIPModel:
    """Patches of 8 pixels, four heads, a joint space of 64 dimensions."""
    shared = {
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
    }
    text = CLIPTextConfig(
        vocab_size=vocab_size,
        max_position_embeddings=TOKENS,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **shared,
    )
    vision = CLIPVisionConfig(image_size=SIZE, patch_size=8, **shared)
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))


def train(
    work: Path,
    folder: Path,
    renderer: Renderer | None,
    config: TrainConfig = CONFIG,
    device: str = "cpu",
) -> dict[str, Any]:
    """Train, save as ``CLIPModel`` with its tokenizer, and score what was saved."""
    torch.manual_seed(config.seed)
    tokenizer = build_tokenizer()
    model = build(len(tokenizer)).to(device)
    scenery = Scenery(plain_style, SIZE, renderer, device)

    def tokens(texts: list[str]) -> torch.Tensor:
        return tokenizer(
            texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
        ).input_ids.to(device)

    def loss(rng: np.random.Generator, noise: torch.Generator) -> Losses:
        specs, _, images = scenery(rng, noise, config.batch)
        texts = [caption(spec, rng) if rng.random() < 0.5 else kinds_only(spec) for spec in specs]
        out = model(input_ids=tokens(texts), pixel_values=images * 2 - 1)
        target = torch.arange(config.batch, device=device)
        logits = out.logits_per_image
        value = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        return {"loss": value, "scale": model.logit_scale.exp()}

    def look(model: nn.Module, step: int) -> str:
        result = scores(model, tokenizer, count=200)
        return ", ".join(f"{key} {value:.1%}" for key, value in result.items())

    fit("clip", model, loss, config, work, look=look)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return scores(CLIPModel.from_pretrained(folder).eval(), tokenizer, config.held_out)


def kinds_only(spec: SceneSpec) -> str:
    """What a scene shows without how many: half of the texts, so that kinds weigh against counts."""
    names = [NOUNS[noun_index(noun)].plural for noun, count in spec.counts if count]
    text = "a photo of " + " and ".join(names)
    return f"{text} {BACKGROUNDS[spec.background][0]}" if spec.background else text


def scores(model: Any, tokenizer: Any, count: int) -> dict[str, float]:
    """Held-out accuracy: the noun among all nouns (place given), the place among all (noun given)."""
    rng = np.random.default_rng(HELD_OUT + 1)
    scenes: list[Scene] = []
    nouns: list[int] = []
    while len(scenes) < count:
        spec = sample_spec(rng, max_kinds=1)
        if spec.total:
            scenes.append(compose(spec, int(rng.integers(2**62))))
            nouns.append(noun_index(spec.counts[0][0]))
    places = list(BACKGROUNDS)
    texts = [f"a photo of {n.plural} {BACKGROUNDS[p][0]}" for n in NOUNS for p in places]
    batch = tokenizer(texts, padding="max_length", max_length=TOKENS, return_tensors="pt")
    with torch.no_grad():
        pictures = (pixels(scenes, SIZE) * 2 - 1).to(model.device)
        ids = batch.input_ids.to(model.device)
        logits = model(input_ids=ids, pixel_values=pictures).logits_per_image
    grid = logits.cpu().unflatten(1, (len(NOUNS), len(places)))
    rows, true_noun = torch.arange(count), torch.tensor(nouns)
    true_place = torch.tensor([places.index(scene.background) for scene in scenes])
    by_noun = grid[rows, :, true_place].argmax(1)
    by_place = grid[rows, true_noun].argmax(1)
    return {
        "noun": float((by_noun == true_noun).float().mean()),
        "background": float((by_place == true_place).float().mean()),
    }
