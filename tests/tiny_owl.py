"""Tiny OWL checkpoints in the hub's folder layout: random weights, real classes, a real CLIP tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers

WORDS = ["a", "photo", "of", "cat", "dog", "red", "green", "apple", "apples", "the", "left", "on"]


def clip_vocabulary(words: Iterable[str] = WORDS) -> tuple[dict[str, int], list[str]]:
    """Tokens and merges of a byte-pair tokenizer that knows every letter, and these words as one token."""
    # "!" is 0 and pads; the end of a text has the highest number, by which the text encoders find it.
    letters = ["!", *"\"'-.,0123456789abcdefghijklmnopqrstuvwxyz"]
    tokens = letters + [letter + "</w>" for letter in letters]
    merges = []
    for word in words:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merges.append(f"{parts[0]} {parts[1]}")
            parts[:2] = [parts[0] + parts[1]]
            tokens.append(parts[0])
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    return {token: i for i, token in enumerate(tokens)}, list(dict.fromkeys(merges))


def save_tokenizer(folder: Path, length: int = 16) -> int:
    """Write vocab.json, merges.txt and the rest as the OWL repositories have them; returns the size."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = clip_vocabulary()
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": length,
        "pad_token": "!",
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(vocabulary)


def build(
    name: str, vocabulary: int, side: int = 32, patch: int = 8, width: int = 32, layers: int = 2
) -> Any:
    """A random OWL model ("owl-vit" or "owlv2"); its heads are tame: logits about -2, boxes inside."""
    kind = {"owl-vit": "OwlViT", "owlv2": "Owlv2"}[name]
    body = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
    }
    text = body | {
        "vocab_size": vocabulary,
        "max_position_embeddings": 16,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": 0,
    }
    vision = body | {"image_size": side, "patch_size": patch}
    config = getattr(transformers, f"{kind}Config")(
        text_config=text, vision_config=vision, projection_dim=width
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForObjectDetection")(config)
    with torch.no_grad():
        for head in (model.class_head.logit_shift, model.class_head.logit_scale, model.box_head):
            for weight in head.parameters():
                weight.mul_(0.1)
        model.class_head.logit_scale.bias.fill_(3.0)
        model.class_head.logit_shift.bias.fill_(-1.0)
    return model


def save_model(folder: Path, name: str, model: Any) -> None:
    """Write config, weights and the preprocessor's settings beside the tokenizer."""
    model.save_pretrained(folder)
    processor = {"owl-vit": "OwlViTImageProcessorPil", "owlv2": "Owlv2ImageProcessorPil"}[name]
    side = model.config.vision_config.image_size
    size = {"height": side, "width": side}
    getattr(transformers, processor)(size=size).save_pretrained(folder)


def save(folder: Path, name: str, **options: Any) -> Path:
    """A whole random checkpoint."""
    save_model(folder, name, build(name, save_tokenizer(folder), **options))
    return folder
