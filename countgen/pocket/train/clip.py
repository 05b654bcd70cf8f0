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

from countgen.pocket.captions import caption
from countgen.pocket.scenes import Scene, SceneSpec, compose, sample_spec
from countgen.pocket.train.counters import HELD_OUT, pixels, plain_style, weather
from countgen.pocket.train.generator import TOKENS, build_tokenizer
from countgen.pocket.train.loop import Losses, TrainConfig, fit
from countgen.pocket.world import BACKGROUNDS, NAMES, NOUNS, SIZE, noun_index

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
    work: Path, folder: Path, config: TrainConfig = CONFIG, device: str = "cpu"
) -> dict[str, Any]:
    """Train, save as ``CLIPModel`` with its tokenizer, and score what was saved."""
    torch.manual_seed(config.seed)
    tokenizer = build_tokenizer()
    model = build(len(tokenizer)).to(device)

    def tokens(texts: list[str]) -> torch.Tensor:
        return tokenizer(
            texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
        ).input_ids.to(device)

    def loss(rng: np.random.Generator, noise: torch.Generator) -> Losses:
        specs = [sample_spec(rng) for _ in range(config.batch)]
        texts = [caption(spec, rng) if rng.random() < 0.5 else kinds_only(spec) for spec in specs]
        scenes = [compose(spec, int(rng.integers(2**62)), plain_style(rng)) for spec in specs]
        images = weather(pixels(scenes, SIZE), rng, noise, None).to(device)
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
    return scores(CLIPModel.from_pretrained(folder).eval(), tokenizer)


def kinds_only(spec: SceneSpec) -> str:
    """What a scene shows without how many: half of the texts, so that kinds weigh against counts."""
    names = [NOUNS[noun_index(noun)].plural for noun, count in spec.counts if count]
    text = "a photo of " + " and ".join(names)
    return f"{text} {BACKGROUNDS[spec.background][0]}" if spec.background else text


def scores(model: Any, tokenizer: Any, count: int = 600) -> dict[str, float]:
    """Held-out zero-shot accuracy: the noun among all nouns, the background among all backgrounds."""
    rng = np.random.default_rng(HELD_OUT + 1)
    images: list[Scene] = []
    nouns: list[int] = []
    grounds: list[int] = []
    places = list(BACKGROUNDS)
    while len(images) < count:
        spec = sample_spec(rng, max_kinds=1)
        if spec.total:
            scene = compose(spec, int(rng.integers(2**62)))
            images.append(scene)
            nouns.append(NAMES.index(spec.counts[0][0]))
            grounds.append(places.index(scene.background))

    def embed_texts(texts: list[str]) -> torch.Tensor:
        batch = tokenizer(texts, padding="max_length", max_length=TOKENS, return_tensors="pt")
        ids = batch.input_ids.to(model.device)
        return F.normalize(model.get_text_features(ids).pooler_output, dim=-1)

    with torch.no_grad():
        pictures = model.get_image_features(
            (pixels(images, SIZE) * 2 - 1).to(model.device)
        ).pooler_output
        by_noun = pictures @ embed_texts([f"a photo of {noun.plural}" for noun in NOUNS]).T
        by_place = pictures @ embed_texts([BACKGROUNDS[place][0] for place in places]).T
    return {
        "noun": float(
            (by_noun.argmax(1) == torch.tensor(nouns, device=model.device)).float().mean()
        ),
        "background": float(
            (by_place.argmax(1) == torch.tensor(grounds, device=model.device)).float().mean()
        ),
    }
