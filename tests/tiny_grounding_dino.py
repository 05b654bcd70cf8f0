"""Tiny random Grounding DINO models of the real classes, in folders as the hub lays them out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from critics.detectors.grounding_dino import DELIMITERS

WORDS = ("cat", "dog", "red", "apple", "##s", "a")
SHORT, LONG = 128, 224


def save_tokenizer(folder: Path) -> int:
    """BERT's, with the ids that the networks know at their places and few words; its size."""
    folder.mkdir(parents=True, exist_ok=True)
    places = {0: "[PAD]", 100: "[UNK]", 103: "[MASK]"} | {i: word for word, i in DELIMITERS.items()}
    places |= {1030 + i: word for i, word in enumerate(WORDS)}
    size = max(places) + 1
    (folder / "words.txt").write_text(
        "".join(places.get(i, f"[unused{i}]") + "\n" for i in range(size))
    )
    transformers.BertTokenizer(str(folder / "words.txt")).save_pretrained(folder)
    (folder / "words.txt").unlink()
    return size


def build(words: int, prefix: str = "", width: int = 32, heads: int = 4, **sizes: Any) -> Any:
    """A network; the Swin's first stage is half as wide as the rest, with one head."""
    swin = dict(model_type="swin", image_size=32, patch_size=4, window_size=4, embed_dim=width // 2)
    swin |= dict(depths=[1] * 4, num_heads=[1, 2, 4, 8], out_indices=[2, 3, 4])
    swin |= dict(out_features=["stage2", "stage3", "stage4"])
    bert = dict(model_type="bert", vocab_size=words, hidden_size=width, intermediate_size=37)
    bert |= dict(num_hidden_layers=2, num_attention_heads=heads, max_position_embeddings=64)
    config = getattr(transformers, f"{prefix}GroundingDinoConfig")(
        **dict(
            backbone_config=swin,
            text_config=bert,
            d_model=width,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=heads,
            decoder_attention_heads=heads,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            num_queries=10,
            encoder_n_points=2,
            decoder_n_points=2,
            max_text_len=16,
        )
        | sizes
    )
    torch.manual_seed(0)
    return getattr(transformers, f"{prefix}GroundingDinoForObjectDetection")(config)


def save(folder: Path, prefix: str = "", **sizes: Any) -> Path:
    """A folder in the hub's layout: weights, tokenizer and settings of the preprocessing."""
    network = build(save_tokenizer(folder), prefix, **sizes)
    if prefix:  # some of the logits above the threshold, as in a trained model
        for head in network.class_embed:
            head.bias.data.fill_(-0.5)
    network.save_pretrained(folder)
    edges = {"shortest_edge": SHORT, "longest_edge": LONG}
    transformers.GroundingDinoImageProcessorPil(size=edges).save_pretrained(folder)
    return folder
