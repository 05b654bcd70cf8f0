"""The picture decoder of the pocket generator: diffusers' AutoencoderDC, 64x64 pixels to 16x16 latents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderDC
from torch import Tensor, nn
from torch.nn import functional as F

from countgen.learning.loop import Losses, TrainConfig, fit
from countgen.pocket.scenes import SceneStyle, compose, sample_spec

LATENT_CHANNELS = 8
CONFIG = TrainConfig(steps=2200, batch=16, learning_rate=3e-3, warmup=50, ema=0.99)

STYLE = SceneStyle(rotation=0.0, mirror=False, grid=2, jitter=0.08, contrast=0.03)
"""What the generator learns to draw: upright sprites on even pixels and of even sides. Fourteen times fewer
looks than all scenes have, which is what a CPU can afford."""


def build() -> AutoencoderDC:
    """An untrained autoencoder of residual blocks between pixel shuffles.

    Shuffles with shortcuts carry every pixel from the first step on; strided convolutions and nearest
    up-sampling (AutoencoderTiny, AutoencoderKL) were 3 dB behind after the same time.
    """
    return AutoencoderDC(
        in_channels=3,
        latent_channels=LATENT_CHANNELS,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(48, 48, 96),
        decoder_block_out_channels=(48, 48, 96),
        encoder_layers_per_block=(0, 1, 1),
        decoder_layers_per_block=(0, 2, 2),
        encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()),
        downsample_block_type="pixel_unshuffle",
        upsample_block_type="pixel_shuffle",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        decoder_conv_act_fn="silu",
        scaling_factor=1.0,
    )


def scenes(rng: np.random.Generator, batch: int) -> Tensor:
    """(batch, 3, 64, 64) pictures in [-1, 1], half of them in the generator's style, half in any."""
    images = [
        compose(sample_spec(rng), int(rng.integers(2**62)), STYLE if i % 2 else None).image
        for i in range(batch)
    ]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def train(
    work: Path, config: TrainConfig = CONFIG, device: str = "cpu"
) -> tuple[AutoencoderDC, dict[str, float]]:
    """Train encoder and decoder together.

    The latents are held near zero mean and unit variance a channel, and decoded with a little noise,
    so that the generator's small errors do not show.
    """
    torch.manual_seed(config.seed)
    model = build().to(device)
    held_out = scenes(np.random.default_rng(10**6), 64).to(device)

    def loss(rng: np.random.Generator, noise: torch.Generator) -> Losses:
        pixels = scenes(rng, config.batch).to(device)
        latents = model.encode(pixels).latent
        mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
        shape = mean.square().mean() + (std - 1).square().mean()
        jitter = 0.1 * torch.randn(latents.shape, generator=noise).to(device)
        out = model.decode(latents + jitter).sample
        near = (out - pixels).abs().mean()
        error = out - pixels
        edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        return {"loss": near + 0.5 * edges + 0.05 * shape, "l1": near, "shape": shape}

    def psnr(model: AutoencoderDC) -> float:
        out = model.decode(model.encode(held_out).latent).sample.clamp(-1, 1)
        return float(10 * torch.log10(4 / F.mse_loss(out, held_out)))

    def look(model: nn.Module, step: int) -> str:
        return f"held-out PSNR {psnr(model):.2f} dB"

    fit("autoencoder", model, loss, config, work, look=look, look_every=250)
    with torch.no_grad():
        return model, {"psnr_db": round(psnr(model), 2)}
