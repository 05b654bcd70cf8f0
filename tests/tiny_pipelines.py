"""Tiny random parts of real pipelines, saved and loaded as from a hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderDC,
    AutoencoderKL,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from tokenizers import processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    T5EncoderModel,
    T5Tokenizer,
    UMT5EncoderModel,
)

from countgen.pocket.train.generator import build_tokenizer
from pipelines.adapter import DiffusersAdapter
from pipelines.registry import find_card, load_adapter

WORDS = ("two", "three", "seven", "red", "cats", "apples", "on", "grass")
"""What the tiny tokenizers that cut words into pieces know as a whole."""


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


def t5_pieces() -> T5Tokenizer:
    """A real T5 tokenizer of a few words, and letters for all others."""
    marks = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    letters = [(chr(code), -9.0) for code in (0x2581, *range(33, 127))]
    return T5Tokenizer(vocab=[*marks, *letters, *((f"▁{w}", -1.0) for w in WORDS)], extra_ids=0)


def t5_text(width: int = 16, kind: Any = T5EncoderModel) -> Any:
    """T5, or another kind of it."""
    settings: dict[str, Any] = dict(
        d_model=width,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        # T5 does not scale its attention: at its usual size, random weights magnify every rounding.
        initializer_factor=0.1,
    )
    return kind(kind.config_class(vocab_size=len(t5_pieces()), **settings))


def gemma_pieces(more: Sequence[str] = ()) -> GemmaTokenizer:
    """A real Gemma tokenizer of a few words and more, and letters for all others."""
    marks = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    letters = [chr(code) for code in (0x2581, *range(33, 127))]
    # Every word grows letter by letter, from the space before it.
    starts = [f"▁{word[:n]}" for word in (*WORDS, *more) for n in range(1, len(word) + 1)]
    grown = list(dict.fromkeys(starts))
    return GemmaTokenizer(
        vocab={piece: i for i, piece in enumerate([*marks, *letters, *grown])},
        merges=[(piece[:-1], piece[-1]) for piece in grown],
    )


def gemma_text(tokenizer: GemmaTokenizer, width: int = 16) -> Gemma2Model:
    return Gemma2Model(
        Gemma2Config(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
        )
    )


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


def sd_folder(folder: Path, scheduler: Any = EulerDiscreteScheduler, **decoder: object) -> Path:
    torch.manual_seed(0)
    pipeline = StableDiffusionPipeline(
        vae=vae(**decoder),
        text_encoder=clip_text(),
        tokenizer=words(),
        unet=unet(),
        scheduler=scheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            timestep_spacing="trailing",
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return saved(pipeline, folder)


def sd3_folder(folder: Path, *, dual: tuple[int, ...] = (), **scheduler: Any) -> Path:
    torch.manual_seed(0)
    pipeline = StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=40,
            caption_projection_dim=16,
            pooled_projection_dim=32,
            pos_embed_max_size=32,
            dual_attention_layers=dual,
            qk_norm="rms_norm",
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(**scheduler),
        vae=vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06),
        text_encoder=clip_text(projection=True),
        tokenizer=words(),
        text_encoder_2=clip_text(projection=True),
        tokenizer_2=words(),
        text_encoder_3=t5_text(40),
        tokenizer_3=t5_pieces(),
    )
    return saved(pipeline, folder)


def aura_flow() -> AuraFlowPipeline:
    return AuraFlowPipeline(
        tokenizer=t5_pieces(),
        text_encoder=t5_text(kind=UMT5EncoderModel),
        vae=vae(),
        transformer=AuraFlowTransformer2DModel(
            sample_size=8,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            caption_projection_dim=16,
            pos_embed_max_size=256,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
    )


def aura_flow_folder(folder: Path) -> Path:
    torch.manual_seed(0)
    return saved(aura_flow(), folder)


def deep_decoder() -> AutoencoderDC:
    """Four pixels a latent, one stage of each kind."""
    kinds = ("ResBlock", "ResBlock", "EfficientViTBlock")
    return AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=kinds,
        decoder_block_types=kinds,
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), (3,)),
        decoder_qkv_multiscales=((), (), (3,)),
        scaling_factor=0.4,
    )


def tiny(name: str, folder: Path, size: int = 16, **changes: object) -> DiffusersAdapter:
    """A preset with the weights of a folder, at the folder's size."""
    return load_adapter(replace(find_card(name), hub_id=str(folder), size=size, **changes))
