"""Tiny random parts of real pipelines, saved and loaded as from a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
from tokenizers import processors
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from countgen.pocket.train.generator import build_tokenizer


def words() -> Any:
    """A tokenizer of whole words, 24 tokens long; its end has the greatest number, as CLIP's has."""
    tokenizer, end = build_tokenizer(), "<|endoftext|>"
    tokenizer.add_special_tokens({"eos_token": end})
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"<start> $A {end}",
        special_tokens=[("<start>", 1), (end, tokenizer.eos_token_id)],
    )
    return tokenizer


def clip_config(width: int = 16) -> CLIPTextConfig:
    tokenizer = words()
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=16,
        eos_token_id=2,
    )


def clip_text(width: int = 16, *, projection: bool = False) -> CLIPTextModel:
    kind = CLIPTextModelWithProjection if projection else CLIPTextModel
    return kind(clip_config(width))


def unet(**options: Any) -> UNet2DConditionModel:
    """Latents of 8 x 8, 4 channels."""
    settings: dict[str, Any] = dict(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    return UNet2DConditionModel(**(settings | options))


def vae(channels: int = 4, **options: Any) -> AutoencoderKL:
    """Two pixels a latent."""
    settings: dict[str, Any] = dict(
        latent_channels=channels,
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=0.3,
        force_upcast=False,
    )
    return AutoencoderKL(**(settings | options))


def saved(pipeline: DiffusionPipeline, folder: Path) -> Path:
    """The pipeline's folder, in evaluation mode (T5 has dropout)."""
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    pipeline.save_pretrained(folder)
    return folder
