"""The contract of every adapter, on pocket and on tiny random pipelines of the real classes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from countgen.engine import frozen
from countgen.pocket import load_adapter
from countgen.pocket.train.generator import build_tokenizer
from pipelines.base import Conditioning, Noise, PipelineAdapter, PipelineCard
from pipelines.sdxl import SDXLAdapter

PROMPTS = ["two cats on grass", "seven red apples"]


def tiny_sdxl(folder: Path) -> StableDiffusionXLPipeline:
    """Both text encoders, an AutoencoderKL, an Euler scheduler; saved and loaded as from a hub."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=16,
        eos_token_id=2,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=4,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=16 + 6 * 4,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=0.3,
        force_upcast=False,
    )
    StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=EulerDiscreteScheduler(timestep_spacing="trailing"),
        add_watermarker=False,
    ).save_pretrained(folder)
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module", params=["pocket", "sdxl", "sdxl-guided"])
def adapter(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> SDXLAdapter:
    if request.param == "pocket":
        return load_adapter()
    scale = 3.0 if request.param == "sdxl-guided" else 1.0
    card = PipelineCard(request.param, "sdxl", "tiny", 2, scale, 16, "Apache-2.0", "none")
    return SDXLAdapter(tiny_sdxl(tmp_path_factory.mktemp(request.param)), card)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def rendered(adapter: SDXLAdapter, latents: Tensor, prompts: list[str]) -> Tensor:
    plan = adapter.plan()
    return adapter.render(Noise(latents), adapter.encode(prompts, plan), plan)


def test_it_is_an_adapter(adapter: SDXLAdapter) -> None:
    assert isinstance(adapter, PipelineAdapter)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_render_equals_the_wrapped_pipeline(adapter: SDXLAdapter, steps: int) -> None:
    plan = adapter.plan(steps)
    expected = adapter.pipeline(
        PROMPTS,
        num_inference_steps=steps,
        guidance_scale=plan.guidance_scale,
        height=plan.height,
        width=plan.width,
        generator=generators(3, 4),
        output_type="pt",
    ).images
    with torch.no_grad():
        noise = adapter.noise(generators(3, 4), plan)
        found = adapter.render(noise, adapter.encode(PROMPTS, plan), plan)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_gradients_reach_noise_and_conditioning(adapter: SDXLAdapter) -> None:
    plan = adapter.plan()
    latents = adapter.noise(generators(1, 2), plan).latents.requires_grad_()
    encoded = adapter.encode(PROMPTS, plan)
    hidden, pooled = (t.clone().requires_grad_() for t in (encoded.hidden, encoded.pooled))
    images = adapter.render(Noise(latents), Conditioning(hidden, pooled, encoded.negative), plan)
    for slope in torch.autograd.grad(images.square().sum(), (latents, hidden, pooled)):
        assert torch.isfinite(slope).all() and (slope.flatten(1).norm(dim=1) > 0).all()


def test_the_gradient_is_the_slope(adapter: SDXLAdapter) -> None:
    """Against a central difference in float64."""
    pipeline = adapter.pipeline
    for module in adapter.modules():
        module.double()
    try:
        plan = adapter.plan()
        encoded = adapter.encode(PROMPTS[:1], plan)
        latents = adapter.noise(generators(5), plan).latents.double()
        weight = torch.randn(1, 3, plan.height, plan.width, dtype=torch.float64)

        def value(x: Tensor) -> Tensor:
            *_, last = adapter.trajectory(Noise(x), encoded, plan)
            # Before the clamp to [0, 1], which has no slope at its ends.
            scale = pipeline.vae.config.scaling_factor
            image = pipeline.vae.decode(last.latents.double() / scale).sample
            return (image * weight).sum()

        leaf = latents.clone().requires_grad_()
        (slope,) = torch.autograd.grad(value(leaf), leaf)
        # Along the slope itself, where it is largest: diffusers' solvers round to float32 in between.
        way = slope / slope.norm()
        with torch.no_grad():
            h = 1e-2
            difference = (value(latents + h * way) - value(latents - h * way)) / (2 * h)
        torch.testing.assert_close((slope * way).sum(), difference, rtol=1e-2, atol=0)
    finally:
        for module in adapter.modules():
            module.float()


def test_a_picture_does_not_depend_on_its_company(adapter: SDXLAdapter) -> None:
    plan = adapter.plan()
    with torch.no_grad():
        latents = adapter.noise(generators(1, 2), plan).latents
        together = rendered(adapter, latents, PROMPTS)
        alone = rendered(adapter, latents[1:], PROMPTS[1:])
    torch.testing.assert_close(together[1:], alone, atol=2e-5, rtol=0)


def test_rows_of_a_conditioning_are_picked_and_joined(adapter: SDXLAdapter) -> None:
    plan = adapter.plan()
    both = adapter.encode(PROMPTS, plan)
    swapped = Conditioning.join([both.pick([1]), both.pick([0])])
    assert len(swapped) == 2
    torch.testing.assert_close(swapped.hidden, both.hidden.flip(0))
    torch.testing.assert_close(swapped.pooled, both.pick([1, 0]).pooled)
    if both.negative:
        assert swapped.negative is not None and len(swapped.negative) == 2


def test_the_trajectory_ends_in_its_own_prediction(adapter: SDXLAdapter) -> None:
    plan = adapter.plan()
    with torch.no_grad():
        noise = adapter.noise(generators(1), plan)
        steps = list(adapter.trajectory(noise, adapter.encode(PROMPTS[:1], plan), plan))
    assert [s.step for s in steps] == list(range(plan.steps))
    torch.testing.assert_close(steps[-1].latents, steps[-1].clean, atol=1e-4, rtol=1e-4)


def test_the_wrapped_pipeline_is_left_as_it_was(adapter: SDXLAdapter) -> None:
    scheduler = adapter.pipeline.scheduler
    before = {k: v.clone() for m in adapter.modules() for k, v in m.state_dict().items()}
    flags = [p.requires_grad for m in adapter.modules() for p in m.parameters()]
    modes = [m.training for m in adapter.modules()]
    timesteps = scheduler.timesteps.clone()
    with frozen(adapter.modules()):
        assert not any(p.requires_grad for m in adapter.modules() for p in m.parameters())
        plan = adapter.plan(3)
        rendered(adapter, adapter.noise(generators(1, 2), plan).latents, PROMPTS)
    assert flags == [p.requires_grad for m in adapter.modules() for p in m.parameters()]
    assert modes == [m.training for m in adapter.modules()]
    torch.testing.assert_close(scheduler.timesteps, timesteps)
    after = {k: v for m in adapter.modules() for k, v in m.state_dict().items()}
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_operations_grow_with_the_picture(adapter: SDXLAdapter) -> None:
    with frozen(adapter.modules()):
        small, large = adapter.plan(), adapter.plan(height=2 * adapter.card.size)
        one, two = adapter.flops(small), adapter.flops(large)
    assert set(one) == {"text_encoder", "denoiser", "decoder"}
    assert two["decoder"].forward == pytest.approx(2 * one["decoder"].forward, rel=0.2)
    # Frozen weights: going back to the noise costs about one pass, not two.
    assert 0.8 < one["denoiser"].backward / one["denoiser"].forward < 1.6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "between 1 and 8, not 0"),
        ({"steps": 50}, "between 1 and 8, not 50"),
        ({"height": 33}, "multiples of"),
    ],
)
def test_impossible_plans_are_refused(
    adapter: SDXLAdapter, options: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        adapter.plan(**options)


def test_schedulers_that_add_noise_are_refused() -> None:
    adapter = load_adapter()
    pipeline = adapter.pipeline
    pipeline.scheduler = EulerAncestralDiscreteScheduler()
    with pytest.raises(ValueError, match="EulerAncestralDiscreteScheduler draws noise"):
        SDXLAdapter(pipeline, adapter.card)
    pipeline.scheduler = DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++")
    with pytest.raises(ValueError, match="draws noise"):
        SDXLAdapter(pipeline, adapter.card)
