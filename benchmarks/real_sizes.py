"""Generators at their published sizes, with random weights and without text encoders.

Sizes come from the configuration files that the models are published with; a model's speed and memory do not
depend on what its weights are. The text encoders run once a prompt and can rest, so that prompts are random
tensors of their shapes here.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from pipelines.base import Conditioning

KL = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "force_upcast": False,
}
TINY_KL = KL | {
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
DEEP = {
    "encoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
    "decoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
    "encoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
    "decoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
    "encoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
    "decoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
    "encoder_layers_per_block": (2, 2, 2, 3, 3, 3),
    "decoder_layers_per_block": (3, 3, 3, 3, 3, 3),
    "downsample_block_type": "conv",
    "upsample_block_type": "interpolate",
    "scaling_factor": 0.41407,
}
TINY_DEEP = DEEP | {
    "encoder_block_types": ("ResBlock", "EfficientViTBlock"),
    "decoder_block_types": ("ResBlock", "EfficientViTBlock"),
    "encoder_qkv_multiscales": ((), (5,)),
    "decoder_qkv_multiscales": ((), (5,)),
    "encoder_block_out_channels": (16, 32),
    "decoder_block_out_channels": (16, 32),
    "encoder_layers_per_block": (1, 1),
    "decoder_layers_per_block": (1, 1),
    "attention_head_dim": 8,
}


@dataclass(frozen=True)
class Model:
    """What a pipeline is built of; names of Diffusers classes, and their settings.

    Attributes:
        text: (tokens, width) of the prompt's states.
        pooled: width of the pooled embedding, 0 for none.
        masked: whether the prompt has a mask.
        parameters: of the published denoiser, in millions.
        tiny: settings and shapes that replace those of the published size in tests.
    """

    pipeline: str
    denoiser: tuple[str, Mapping[str, Any]]
    vae: tuple[str, Mapping[str, Any]]
    scheduler: tuple[str, Mapping[str, Any]]
    text: tuple[int, int]
    pooled: int
    masked: bool
    parameters: float
    tiny: Mapping[str, Any]
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def component(self) -> str:
        return "unet" if self.denoiser[0].startswith("UNet") else "transformer"

    def shape(self, tiny: bool) -> tuple[int, int, int]:
        """Tokens and width of the prompt, and width of the pooled embedding."""
        if tiny:
            return self.tiny["text"]
        return (*self.text, self.pooled)

    def modules(self, tiny: bool) -> tuple[nn.Module, nn.Module]:
        """Denoiser and autoencoder, on the default device."""
        import diffusers

        name, settings = self.denoiser
        vae_name, vae = self.vae
        changes = self.tiny if tiny else {}
        small = {"AutoencoderKL": TINY_KL, "AutoencoderDC": TINY_DEEP}[vae_name]
        shape = {k: v for k, v in vae.items() if k not in KL and k not in DEEP}
        return (
            getattr(diffusers, name)(**(dict(settings) | changes.get("denoiser", {}))),
            getattr(diffusers, vae_name)(**(small | shape if tiny else vae)),
        )

    def build(self, tiny: bool, device: str, dtype: torch.dtype) -> Any:
        """The pipeline, in evaluation, on the device, always with the same weights."""
        import diffusers

        torch.manual_seed(0)
        before = torch.get_default_dtype()
        # In their own precision from the start: the largest would not fit twice.
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                denoiser, vae = self.modules(tiny)
        finally:
            torch.set_default_dtype(before)
        scheduler = getattr(diffusers, self.scheduler[0])(**self.scheduler[1])
        kind = getattr(diffusers, self.pipeline)
        # Whatever else it would like to have, text encoders above all.
        nothing = {
            name: None
            for name, parameter in inspect.signature(kind.__init__).parameters.items()
            if name != "self" and parameter.default is inspect.Parameter.empty
        }
        parts = {self.component: denoiser.to(dtype).eval(), "vae": vae.to(dtype).eval()}
        pipeline = kind(**(nothing | parts | {"scheduler": scheduler} | dict(self.extra)))
        for part in (denoiser, vae):
            part.requires_grad_(False)
        return pipeline

    def conditioning(
        self, pictures: int, tiny: bool, device: str, dtype: torch.dtype
    ) -> Conditioning:
        """Random prompts."""
        generator = torch.Generator().manual_seed(1)
        tokens, width, pooled = self.shape(tiny)
        hidden = torch.randn(pictures, tokens, width, generator=generator)
        return Conditioning(
            hidden.to(device, dtype),
            torch.randn(pictures, pooled, generator=generator).to(device, dtype)
            if pooled
            else None,
            torch.ones(pictures, tokens, dtype=torch.bool, device=device) if self.masked else None,
        )


def _unet(**settings: Any) -> tuple[str, dict[str, Any]]:
    return "UNet2DConditionModel", {"sample_size": 64, "use_linear_projection": True} | settings


_TINY_UNET = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
    "transformer_layers_per_block": 1,
}
_EULER = (
    "EulerAncestralDiscreteScheduler",
    {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "timestep_spacing": "trailing",
    },
)
_SAFETY = {"safety_checker": None, "requires_safety_checker": False}
_FLOW_VAE = KL | {
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}

MODELS: dict[str, Model] = {
    "sd-turbo": Model(
        "StableDiffusionPipeline",
        _unet(
            block_out_channels=(320, 640, 1280, 1280),
            attention_head_dim=(5, 10, 20, 20),
            cross_attention_dim=1024,
        ),
        ("AutoencoderKL", KL | {"scaling_factor": 0.18215}),
        _EULER,
        (77, 1024),
        0,
        False,
        865.9,
        {"denoiser": _TINY_UNET, "text": (12, 16, 0)},
        _SAFETY,
    ),
    "sdxl-turbo": Model(
        "StableDiffusionXLPipeline",
        _unet(
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(5, 10, 20),
            transformer_layers_per_block=(1, 2, 10),
            cross_attention_dim=2048,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        ),
        ("AutoencoderKL", KL | {"scaling_factor": 0.13025}),
        _EULER,
        (77, 2048),
        1280,
        False,
        2567.5,
        {
            "denoiser": _TINY_UNET
            | {"addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 40},
            "text": (12, 16, 16),
        },
        {"add_watermarker": False},
    ),
    "pixart-dmd": Model(
        "PixArtAlphaPipeline",
        (
            "PixArtTransformer2DModel",
            {"sample_size": 64, "caption_channels": 4096, "use_additional_conditions": False},
        ),
        ("AutoencoderKL", KL | {"scaling_factor": 0.18215}),
        ("DDPMScheduler", {"beta_start": 0.0001, "beta_end": 0.02}),
        (120, 4096),
        0,
        True,
        610.9,
        {
            "denoiser": {
                "sample_size": 8,
                "num_layers": 1,
                "num_attention_heads": 2,
                "attention_head_dim": 8,
                "cross_attention_dim": 16,
                "caption_channels": 16,
            },
            "text": (12, 16, 0),
        },
    ),
    "sana-sprint": Model(
        "SanaSprintPipeline",
        (
            "SanaTransformer2DModel",
            {
                "num_layers": 28,
                "num_attention_heads": 36,
                "attention_head_dim": 32,
                "num_cross_attention_heads": 16,
                "cross_attention_head_dim": 72,
                "cross_attention_dim": 1152,
                "guidance_embeds": True,
                "qk_norm": "rms_norm_across_heads",
                "timestep_scale": 1000.0,
            },
        ),
        ("AutoencoderDC", DEEP),
        ("SCMScheduler", {"prediction_type": "trigflow", "sigma_data": 0.5}),
        (300, 2304),
        0,
        True,
        590.0,
        {
            "denoiser": {
                "sample_size": 8,
                "num_layers": 1,
                "num_attention_heads": 2,
                "attention_head_dim": 8,
                "num_cross_attention_heads": 2,
                "cross_attention_head_dim": 8,
                "cross_attention_dim": 16,
                "caption_channels": 16,
            },
            "text": (12, 16, 0),
        },
    ),
    "sd3.5-medium": Model(
        "StableDiffusion3Pipeline",
        (
            "SD3Transformer2DModel",
            {
                "sample_size": 128,
                "num_layers": 24,
                "num_attention_heads": 24,
                "attention_head_dim": 64,
                "caption_projection_dim": 1536,
                "pos_embed_max_size": 384,
                "dual_attention_layers": tuple(range(13)),
                "qk_norm": "rms_norm",
            },
        ),
        ("AutoencoderKL", _FLOW_VAE | {"scaling_factor": 1.5305, "shift_factor": 0.0609}),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        (333, 4096),
        2048,
        False,
        2240.0,
        {
            "denoiser": {
                "sample_size": 8,
                "num_layers": 1,
                "num_attention_heads": 2,
                "attention_head_dim": 8,
                "caption_projection_dim": 16,
                "joint_attention_dim": 16,
                "pooled_projection_dim": 16,
                "dual_attention_layers": (),
            },
            "text": (12, 16, 16),
        },
    ),
    "flux-schnell": Model(
        "FluxPipeline",
        ("FluxTransformer2DModel", {}),
        ("AutoencoderKL", _FLOW_VAE | {"scaling_factor": 0.3611, "shift_factor": 0.1159}),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 1.0}),
        (256, 4096),
        768,
        False,
        11891.2,
        {
            "denoiser": {
                "num_layers": 1,
                "num_single_layers": 1,
                "num_attention_heads": 2,
                "attention_head_dim": 8,
                "joint_attention_dim": 16,
                "pooled_projection_dim": 16,
                "axes_dims_rope": (4, 2, 2),
            },
            "text": (12, 16, 16),
        },
    ),
    "z-image-turbo": Model(
        "ZImagePipeline",
        ("ZImageTransformer2DModel", {}),
        ("AutoencoderKL", _FLOW_VAE | {"scaling_factor": 0.3611, "shift_factor": 0.1159}),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        (64, 2560),
        0,
        True,
        6154.9,
        {
            "denoiser": {
                "n_layers": 1,
                "n_refiner_layers": 1,
                "dim": 32,
                "n_heads": 2,
                "n_kv_heads": 2,
                "cap_feat_dim": 16,
                "axes_dims": [8, 4, 4],
                "axes_lens": [64, 64, 64],
            },
            "text": (12, 16, 0),
        },
    ),
}
