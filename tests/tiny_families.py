"""Tiny random pipelines of the families that need parts of their own, saved as on a hub."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tiny_pipelines import (
    clip_text,
    deep_decoder,
    gemma_pieces,
    gemma_text,
    saved,
    t5_pieces,
    t5_text,
    unet,
    vae,
    words,
)
from transformers import Qwen3Config, Qwen3Model

TEMPLATE = "{% for message in messages %}<start> {{ message['content'] }} <end>{% endfor %}"


def lcm_folder(folder: Path) -> Path:
    torch.manual_seed(0)
    pipeline = LatentConsistencyModelPipeline(
        vae=vae(),
        text_encoder=clip_text(),
        tokenizer=words(),
        unet=unet(time_cond_proj_dim=8),
        scheduler=LCMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return saved(pipeline, folder)


def sdxl_unet(seed: int) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    return unet(
        cross_attention_dim=32,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=16 + 6 * 4,
    )


def sdxl_folder(
    folder: Path,
    scheduler: type = EulerAncestralDiscreteScheduler,
    timestep_spacing: str = "trailing",
) -> Path:
    """Both text encoders."""
    torch.manual_seed(0)
    pipeline = StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=clip_text(),
        text_encoder_2=clip_text(projection=True),
        tokenizer=words(),
        tokenizer_2=words(),
        unet=sdxl_unet(seed=0),
        scheduler=scheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            timestep_spacing=timestep_spacing,
        ),
        add_watermarker=False,
    )
    return saved(pipeline, folder)


def pixart_transformer(sample_size: int = 8) -> PixArtTransformer2DModel:
    return PixArtTransformer2DModel(
        sample_size=sample_size,
        num_attention_heads=3,
        attention_head_dim=8,
        num_layers=2,
        cross_attention_dim=24,
        caption_channels=16,
    )


def pixart_folder(
    folder: Path,
    kind: type = PixArtAlphaPipeline,
    scheduler: type = DPMSolverMultistepScheduler,
    sample_size: int = 8,
    sides: int = 2,
) -> Path:
    """``sides``: blocks of the decoder, each of which doubles the side but for the last."""
    torch.manual_seed(0)
    blocks = {
        "block_out_channels": (8,) * sides,
        "down_block_types": ("DownEncoderBlock2D",) * sides,
        "up_block_types": ("UpDecoderBlock2D",) * sides,
    }
    pipeline = kind(
        tokenizer=t5_pieces(),
        text_encoder=t5_text(),
        vae=vae(**blocks),
        transformer=pixart_transformer(sample_size),
        scheduler=scheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear"),
    )
    return saved(pipeline, folder)


def instruction() -> list[str]:
    """What the pipeline says before every prompt."""
    call = inspect.signature(SanaSprintPipeline.__call__)
    return call.parameters["complex_human_instruction"].default


def sana_folder(folder: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = gemma_pieces("\n".join(instruction()).split())
    pipeline = SanaSprintPipeline(
        tokenizer=tokenizer,
        text_encoder=gemma_text(tokenizer),
        vae=deep_decoder(),
        transformer=SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=16,
            sample_size=8,
            qk_norm="rms_norm_across_heads",
            guidance_embeds=True,
        ),
        scheduler=SCMScheduler(sigma_data=0.5),
    )
    return saved(pipeline, folder)


def flux_folder(folder: Path, *, told: bool, **scheduler: Any) -> Path:
    """``told``: the transformer embeds the guidance scale."""
    torch.manual_seed(0)
    pipeline = FluxPipeline(
        vae=vae(shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip_text(),
        tokenizer=words(),
        text_encoder_2=t5_text(),
        tokenizer_2=t5_pieces(),
        transformer=FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            pooled_projection_dim=16,
            guidance_embeds=told,
            axes_dims_rope=(2, 2, 4),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(**scheduler),
    )
    return saved(pipeline, folder)


def z_image_folder(folder: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = words()
    tokenizer.chat_template = TEMPLATE
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    # Padding is made of these, and a trained model's are not zero.
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(token)
    pipeline = ZImagePipeline(
        vae=vae(shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=Qwen3Model(
            Qwen3Config(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=8,
            )
        ),
        tokenizer=tokenizer,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    return saved(pipeline, folder)
