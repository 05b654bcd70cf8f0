"""Tiny random pipelines of classes that no family of ours wraps, or set up as none of ours may be."""

from __future__ import annotations

from typing import Any

import accelerate
import torch
from diffusers import (
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    ChromaPipeline,
    ChromaTransformer2DModel,
    ControlNetModel,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    Kandinsky3Pipeline,
    Kandinsky3UNet,
    KandinskyV22CombinedPipeline,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    PriorTransformer,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetPipeline,
    UnCLIPScheduler,
    VQModel,
)
from PIL import Image
from tiny_families import TEMPLATE, sdxl_unet
from tiny_pipelines import (
    aura_flow,
    clip_config,
    clip_text,
    deep_decoder,
    gemma_pieces,
    gemma_text,
    t5_pieces,
    t5_text,
    unet,
    vae,
    words,
)
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Qwen3Config,
    Qwen3Model,
)

SIZE = 32
BETAS: dict[str, Any] = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
}


def ready(pipeline: Any) -> Any:
    """In evaluation mode (T5 has dropout), and silent."""
    for part in vars(pipeline).values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn(seed: int = 0) -> Image.Image:
    """A picture of noise."""
    noise = torch.rand(SIZE, SIZE, 3, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray((noise * 255).byte().numpy())


def qwen_image() -> Any:
    """Latents are drawn with a frame, and packed; the text encoder is another one, with its own template."""
    tokenizer = gemma_pieces()
    return QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 2, 4],
            num_res_blocks=1,
            temperal_downsample=[False, True],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ),
        text_encoder=gemma_text(tokenizer),
        tokenizer=tokenizer,
        transformer=QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(8, 4, 4),
        ),
    )


def flux2() -> Any:
    tokenizer = words()
    tokenizer.chat_template = TEMPLATE
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=AutoencoderKLFlux2(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(4, 4),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=2,
            sample_size=16,
        ),
        text_encoder=Qwen3Model(
            Qwen3Config(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=2,
                head_dim=8,
            )
        ),
        tokenizer=tokenizer,
        transformer=Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        ),
    )


def sdxl_controlnet() -> Any:
    denoiser = sdxl_unet(seed=0)
    control = ControlNetModel.from_unet(denoiser, conditioning_embedding_out_channels=(8, 8))
    torch.nn.init.normal_(control.controlnet_mid_block.weight)  # they begin at zero
    return StableDiffusionXLControlNetPipeline(
        vae=vae(),
        text_encoder=clip_text(),
        text_encoder_2=clip_text(projection=True),
        tokenizer=words(),
        tokenizer_2=words(),
        unet=denoiser,
        controlnet=control,
        scheduler=EulerDiscreteScheduler(**BETAS),
        add_watermarker=False,
    )


def stable_diffusion(kind: type[Any] = StableDiffusionPipeline, **changes: Any) -> Any:
    parts: dict[str, Any] = dict(
        vae=vae(),
        text_encoder=clip_text(),
        tokenizer=words(),
        unet=unet(),
        scheduler=EulerDiscreteScheduler(**BETAS),
        safety_checker=None,
        feature_extractor=None,
    )
    return kind(**(parts | changes), requires_safety_checker=False)


def ip_adapter() -> Any:
    """The images' embeddings take the place of an image encoder."""
    pipeline = stable_diffusion()
    denoiser = pipeline.unet
    state: dict[str, torch.Tensor] = {}
    crossing = [n for n in denoiser.attn_processors if n.endswith("attn2.processor")]
    for number, name in enumerate(crossing):
        module = denoiser.get_submodule(name.removesuffix(".processor"))
        for letter, weight in (("k", module.to_k.weight), ("v", module.to_v.weight)):
            state[f"{2 * number + 1}.to_{letter}_ip.weight"] = torch.randn_like(weight)
    projection = {
        "proj.weight": torch.randn(4 * 16, 16),
        "proj.bias": torch.zeros(4 * 16),
        "norm.weight": torch.ones(16),
        "norm.bias": torch.zeros(16),
    }
    denoiser._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": state}])
    return pipeline


def lumina2() -> Any:
    tokenizer = gemma_pieces()
    return Lumina2Pipeline(
        transformer=Lumina2Transformer2DModel(
            sample_size=8,
            in_channels=4,
            hidden_size=16,
            num_layers=1,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            axes_dim_rope=(4, 2, 2),
            axes_lens=(600, 64, 64),
            cap_feat_dim=16,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae(
            block_out_channels=(8,) * 4,  # it takes 8 pixels a side for granted
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            shift_factor=0.1,
        ),
        text_encoder=gemma_text(tokenizer),
        tokenizer=tokenizer,
    )


def chroma() -> Any:
    return ChromaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae(shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=t5_text(),
        tokenizer=t5_pieces(),
        transformer=ChromaTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(4, 4, 8),
            approximator_num_channels=16,
            approximator_hidden_dim=16,
            approximator_layers=1,
        ),
    )


def movq(blocks: int = 2) -> VQModel:
    return VQModel(
        block_out_channels=(32,) * blocks,  # its spatial norm has 32 groups
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("AttnUpDecoderBlock2D",) * blocks,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        norm_type="spatial",
        num_vq_embeddings=8,
        vq_embed_dim=4,
    )


def kandinsky_2_2() -> Any:
    """A prior draws the embedding of a picture from the same generator before the decoder draws its noise."""
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=16,
    )
    prior = PriorTransformer(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        embedding_dim=16,
        num_embeddings=clip_config().max_position_embeddings,
    )
    prior.clip_std = torch.nn.Parameter(torch.ones_like(prior.clip_std))  # as diffusers does
    torch.nn.init.normal_(prior.proj_to_clip_embeddings.weight)
    return KandinskyV22CombinedPipeline(
        unet=unet(
            in_channels=4,
            out_channels=8,
            addition_embed_type="image",
            encoder_hid_dim=16,
            encoder_hid_dim_type="image_proj",
            resnet_time_scale_shift="scale_shift",
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            class_embed_type=None,
        ),
        scheduler=DDPMScheduler(thresholding=False, clip_sample=False),
        movq=movq(),
        prior_prior=prior,
        prior_image_encoder=CLIPVisionModelWithProjection(vision),
        prior_text_encoder=clip_text(projection=True),
        prior_tokenizer=words(),
        prior_scheduler=UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=5.0
        ),
        prior_image_processor=CLIPImageProcessor(crop_size=16, size=16),
    )


def kandinsky_3() -> Any:
    return Kandinsky3Pipeline(
        tokenizer=t5_pieces(),
        text_encoder=t5_text(),
        unet=Kandinsky3UNet(
            time_embedding_dim=8,
            groups=4,
            attention_head_dim=4,
            layers_per_block=2,
            block_out_channels=(8, 8, 16, 16),
            cross_attention_dim=16,
            encoder_hid_dim=16,
        ),
        scheduler=DDPMScheduler(clip_sample=False, beta_schedule="squaredcos_cap_v2"),
        movq=movq(blocks=4),  # it takes 8 pixels a side for granted, and draws 64 at least
    )


def sana() -> Any:
    tokenizer = words()
    return SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=gemma_text(tokenizer),
        vae=deep_decoder(),
        transformer=SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=1,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=16,
            sample_size=8,
        ),
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )


def image_to_image() -> Any:
    """Takes no latents: its picture's are drawn from the encoder's distribution, and then noise is added."""
    return stable_diffusion(StableDiffusionImg2ImgPipeline, scheduler=DDIMScheduler(**BETAS))


def perturbed_attention() -> Any:
    """Samples with noise at every step."""
    scheduler = EulerAncestralDiscreteScheduler(**BETAS)
    return stable_diffusion(StableDiffusionPAGPipeline, scheduler=scheduler)


def offloaded() -> Any:
    """Weights come to the device, here the CPU too, only while they are used."""
    pipeline = ready(stable_diffusion())
    for module in (pipeline.unet, pipeline.text_encoder, pipeline.vae):
        accelerate.cpu_offload(module, torch.device("cpu"))
    return pipeline


def quantised() -> Any:
    """Linear layers in 8 bits, by torch's dynamic quantisation."""
    pipeline = ready(stable_diffusion())
    pipeline.unet = torch.ao.quantization.quantize_dynamic(pipeline.unet, {torch.nn.Linear})
    return pipeline


def own_call() -> Any:
    """A class that its user derived, with a call that does something else."""

    class Brighter(StableDiffusionPipeline):
        @torch.no_grad()
        def __call__(self, prompt: Any, brightness: float = 0.5, **options: Any) -> Any:
            found = super().__call__(prompt, **options)
            found.images = found.images * (1 - brightness) + brightness
            return found

    return stable_diffusion(Brighter)


STEPS = {"num_inference_steps": 2}
SIZED = STEPS | {"height": SIZE, "width": SIZE}
MADE: dict[str, tuple[Any, dict[str, Any]]] = {
    "Qwen-Image": (qwen_image, SIZED | {"true_cfg_scale": 3.0, "negative_prompt": "red"}),
    "FLUX.2": (flux2, SIZED | {"text_encoder_out_layers": (0, 1), "max_sequence_length": 24}),
    "SDXL with ControlNet": (sdxl_controlnet, SIZED | {"image": drawn()}),
    "SD with IP-Adapter": (
        ip_adapter,
        SIZED | {"ip_adapter_image_embeds": [torch.ones(2, 1, 16)], "negative_prompt": "red"},
    ),
    "Lumina 2": (lumina2, SIZED),
    "Chroma": (chroma, SIZED),
    "AuraFlow": (aura_flow, SIZED | {"negative_prompt": "red"}),
    "Kandinsky 2.2": (kandinsky_2_2, SIZED | {"prior_num_inference_steps": 2}),
    "Kandinsky 3": (kandinsky_3, STEPS | {"height": 64, "width": 64}),
    "Sana": (
        sana,
        {**SIZED, "num_inference_steps": 20, "use_resolution_binning": False},
    ),
    "image to image": (image_to_image, {"num_inference_steps": 4, "image": drawn()}),
    "PAG": (perturbed_attention, SIZED | {"pag_scale": 2.0}),
    "offloaded": (offloaded, SIZED),
    "quantised": (quantised, SIZED),
    "own call": (own_call, SIZED | {"brightness": 0.25}),
}
"""Name -> how it is made, and what its call is told."""
