"""The pocket generator: a StableDiffusionXLPipeline of diffusers' own classes, trained by rectified flow.

One text encoder in the second place (CLIPTextModelWithProjection, trained along), a tokenizer of whole
words (unknown ones become <unk>), a UNet2DConditionModel that predicts the flow velocity
``noise - latents``, AutoencoderDC, and a DPMSolverMultistepScheduler with flow sigmas (it has the
``init_noise_sigma`` that the pipeline asks for, which FlowMatchEulerDiscreteScheduler lacks).
StableDiffusionPipeline would serve as well but for its ``vae.decode(generator=...)``, which AutoencoderDC
does not take.
Rectified flow: Liu et al., arXiv 2209.03003; timestep density and shift: Esser et al., arXiv 2403.03206.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers import (
    AutoencoderDC,
    DPMSolverMultistepScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, PreTrainedTokenizerFast

from countgen.learning.loop import Losses, TrainConfig, fit
from countgen.pocket.captions import caption, vocabulary
from countgen.pocket.scenes import compose, sample_spec
from countgen.pocket.train.autoencoder import LATENT_CHANNELS, STYLE
from countgen.pocket.world import SIZE

CONFIG = TrainConfig(steps=5000, batch=32, learning_rate=1.2e-3, warmup=100, ema=0.998)
GUIDED = TrainConfig(steps=400, batch=32, learning_rate=4e-4, warmup=50, ema=0.99, seed=5)
GUIDANCE, GUIDED_SPAN = 2.5, (0.1, 0.95)
TOKENS = 32
STEPS = 8
SHIFT = 1.0
DROP_CAPTION = 0.1


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Whole-word tokenizer over the captions' vocabulary."""
    specials = ["<pad>", "<start>", "<end>", "<unk>"]
    index = {word: i for i, word in enumerate([*specials, *vocabulary()])}
    core = Tokenizer(models.WordLevel(index, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Split(
        Regex(r"<[^>\s]+>|[^\W\d_]+|\d+|,"), behavior="removed", invert=True
    )
    core.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<start>",
        eos_token="<end>",
        unk_token="<unk>",
        model_max_length=TOKENS,
    )


def build_text_encoder(
    vocab_size: int, width: int = 128, layers: int = 4
) -> CLIPTextModelWithProjection:
    """The UNet attends to the last layer but one, as in every Stable Diffusion XL."""
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=vocab_size,
            hidden_size=width,
            intermediate_size=4 * width,
            projection_dim=width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def build_unet(text_width: int = 128) -> UNet2DConditionModel:
    """Attention at 8x8 and 4x4 only: at 16x16 it would cost three times the rest of a step on a CPU."""
    return UNet2DConditionModel(
        sample_size=SIZE // 4,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        layers_per_block=1,
        block_out_channels=(96, 128, 96),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=text_width,
        attention_head_dim=4,
        norm_num_groups=16,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=text_width + 6 * 8,
    )


def build_scheduler() -> DPMSolverMultistepScheduler:
    return DPMSolverMultistepScheduler(
        num_train_timesteps=1000,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=SHIFT,
        algorithm_type="dpmsolver++",
        solver_order=2,
        lower_order_final=True,
        final_sigmas_type="zero",
    )


def build_pipeline(
    vae: AutoencoderDC, unet: UNet2DConditionModel, text_encoder: CLIPTextModelWithProjection
) -> StableDiffusionXLPipeline:
    # What StableDiffusionXLPipeline reads of an autoencoder and AutoencoderDC does not have.
    vae.register_to_config(block_out_channels=(48, 48, 96), force_upcast=False)
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=None,
        text_encoder_2=text_encoder,
        tokenizer=None,
        tokenizer_2=build_tokenizer(),
        unet=unet,
        scheduler=build_scheduler(),
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )


class Batch(NamedTuple):
    """Noisy latents (b, c, h, w), times (b) in [0, 1], token ids (b, t), and the true velocity."""

    noisy: Tensor
    time: Tensor
    tokens: Tensor
    velocity: Tensor


class Denoiser(nn.Module):
    """Text encoder and UNet, trained as one."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.text_encoder = build_text_encoder(vocab_size)
        self.unet = build_unet()

    def forward(self, latents: Tensor, time: Tensor, tokens: Tensor) -> Tensor:
        text = self.text_encoder(tokens, output_hidden_states=True)
        side = (SIZE, SIZE, 0, 0, SIZE, SIZE)
        added = {
            "text_embeds": text.text_embeds,
            "time_ids": latents.new_tensor(side).expand(len(latents), 6),
        }
        hidden = text.hidden_states[-2]
        return self.unet(latents, time * 1000, hidden, added_cond_kwargs=added).sample


def train(
    work: Path,
    folder: Path,
    vae: AutoencoderDC,
    config: TrainConfig = CONFIG,
    device: str = "cpu",
    guided: TrainConfig = GUIDED,
) -> dict[str, float]:
    """Train text encoder and UNet on captions with right counts; nothing makes it miscount on purpose.

    Then guidance is distilled: the model learns to give at once what it gives with classifier-free
    guidance, so that pictures are as crisp and cost one pass a step (Meng et al., arXiv 2210.03142;
    no guidance near the ends of the path, Kynkaanniemi et al., arXiv 2404.07724).

    Writes the pipeline to ``folder``, the UNet in half precision.
    """
    torch.manual_seed(config.seed)
    tokenizer = build_tokenizer()
    model = Denoiser(len(tokenizer)).to(device)
    model.unet.to(memory_format=torch.channels_last)
    vae = vae.to(device).eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def draw(rng: np.random.Generator, noise: torch.Generator, drop: float) -> Batch:
        specs = [sample_spec(rng) for _ in range(config.batch)]
        texts = [caption(spec, rng) if rng.random() > drop else "" for spec in specs]
        drawn = [compose(spec, int(rng.integers(2**62)), STYLE) for spec in specs]
        pixels = np.stack([scene.image for scene in drawn])
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device).float() / 127.5 - 1
        with torch.no_grad():
            latents = vae.encode(images).latent
        tokens = tokenizer(
            texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
        ).input_ids.to(device)
        epsilon = torch.randn(latents.shape, generator=noise).to(device)
        # Half logit-normal, half uniform: few-step sampling leans on the ends of the path too.
        normal = torch.sigmoid(torch.randn(config.batch, generator=noise))
        uniform = torch.rand(config.batch, generator=noise)
        time = torch.where(torch.rand(config.batch, generator=noise) < 0.5, normal, uniform)
        time = time.to(device)
        mix = time[:, None, None, None]
        return Batch((1 - mix) * latents + mix * epsilon, time, tokens, epsilon - latents)

    def loss(rng: np.random.Generator, noise: torch.Generator) -> Losses:
        batch = draw(rng, noise, DROP_CAPTION)
        velocity = model(batch.noisy, batch.time, batch.tokens)
        return {"loss": (velocity - batch.velocity).square().mean()}

    def guided_loss(rng: np.random.Generator, noise: torch.Generator) -> Losses:
        batch = draw(rng, noise, 0.0)
        empty = empty_tokens.expand(len(batch.tokens), -1)
        with torch.no_grad():
            both = teacher(
                torch.cat([batch.noisy] * 2),
                torch.cat([batch.time] * 2),
                torch.cat([batch.tokens, empty]),
            )
            told, untold = both.chunk(2)
            low, high = GUIDED_SPAN
            inside = ((batch.time > low) & (batch.time < high))[:, None, None, None]
            aim = torch.where(inside, untold + GUIDANCE * (told - untold), told)
        velocity = model(batch.noisy, batch.time, batch.tokens)
        return {"loss": (velocity - aim).square().mean()}

    def look(model: nn.Module, step: int) -> str:
        pipeline = build_pipeline(vae, model.unet, model.text_encoder)
        pipeline.set_progress_bar_config(disable=True)
        sheet = sample_sheet(pipeline, SAMPLE_PROMPTS)
        name = f"{stage}-{step:06d}.png"
        sheet.save(work / name)
        return name

    stage = "samples"
    fit("generator", model, loss, config, work, look=look, look_every=400)
    with torch.no_grad():
        held_out = [
            loss(np.random.default_rng([10**6, i]), torch.Generator().manual_seed(i))
            for i in range(8)
        ]
    stage = "guided"
    teacher = copy.deepcopy(model).eval().requires_grad_(False)
    empty_tokens = tokenizer(
        [""], padding="max_length", max_length=TOKENS, return_tensors="pt"
    ).input_ids.to(device)
    fit("generator-guided", model, guided_loss, guided, work, look=look, look_every=200)
    save(build_pipeline(vae, model.unet, model.text_encoder), folder)
    return {"flow_loss": round(float(torch.stack([x["loss"] for x in held_out]).mean()), 4)}


def save(pipeline: StableDiffusionXLPipeline, folder: Path) -> None:
    """Write the pipeline's folder; half precision for the UNet alone, which is most of it."""
    pipeline.save_pretrained(folder, safe_serialization=True)
    half = copy.deepcopy(pipeline.unet).to(torch.float16, memory_format=torch.contiguous_format)
    half.save_pretrained(folder / "unet", safe_serialization=True)
    for path in folder.glob(
        "*/config.json"
    ):  # diffusers notes where a part came from: a local path
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)
        path.write_text(json.dumps(config, indent=2) + "\n")


SAMPLE_PROMPTS = (
    "seven red apples on a table",
    "three cats on grass",
    "five green apples on sand",
    "two birds in the sky",
    "ten donuts",
    "four cars on the road",
    "fifteen stars",
    "20 fish",
    "three dogs and two cats on a carpet",
    "four oranges and five bananas",
    "six penguins in the snow",
    "two cups, three mushrooms and four balls",
    "a flower on white paper",
    "twelve mushrooms on grass",
    "9 balls in a meadow",
    "eight red apples and eight green apples",
)


def sample_sheet(
    pipeline: StableDiffusionXLPipeline, prompts: tuple[str, ...], copies: int = 2, zoom: int = 2
) -> Image.Image:
    """Plain pictures of the prompts, a prompt every ``copies`` tiles, eight tiles a row."""
    generators = [torch.Generator().manual_seed(i) for i in range(copies * len(prompts))]
    images = pipeline(
        [p for p in prompts for _ in range(copies)],
        num_inference_steps=STEPS,
        guidance_scale=1.0,
        generator=generators,
    ).images
    side, across = images[0].width * zoom, 8
    sheet = Image.new("RGB", (across * side, -(-len(images) // across) * side))
    for i, image in enumerate(images):
        tile = image.resize((side, side), Image.Resampling.LANCZOS)
        sheet.paste(tile, (i % across * side, i // across * side))
    return sheet
