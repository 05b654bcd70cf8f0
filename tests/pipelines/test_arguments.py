"""Arguments of the wrapped pipelines' calls: pictures equal Diffusers' own; others are refused by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_contract import PROMPTS, generators, in_memory
from diffusers import (
    AuraFlowPipeline,
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PNDMScheduler,
    StableDiffusionPipeline,
    TCDScheduler,
)
from diffusers.callbacks import SDCFGCutoffCallback, SDXLCFGCutoffCallback
from tiny_families import (
    flux_folder,
    lcm_folder,
    pixart_folder,
    sana_folder,
    sdxl_folder,
    z_image_folder,
)
from tiny_pipelines import aura_flow_folder, sd3_folder, sd_folder, tiny, unet, vae

from pipelines.adapter import DiffusersAdapter
from pipelines.arguments import Arguments, parameters
from pipelines.base import Plan
from pipelines.registry import wrap

Load = Callable[[str], DiffusersAdapter]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """An adapter of a family, loaded once."""
    made: dict[str, Callable[[Path], DiffusersAdapter]] = {
        "sd": lambda path: tiny("sd-turbo", sd_folder(path)),
        "lcm": lambda path: tiny("lcm-dreamshaper", lcm_folder(path)),
        "sdxl": lambda path: tiny("sdxl-turbo", sdxl_folder(path, EulerDiscreteScheduler)),
        "pixart": lambda path: tiny("pixart-sigma", pixart_folder(path, PixArtSigmaPipeline)),
        "sana": lambda path: tiny("sana-sprint", sana_folder(path), size=32),
        "sd3": lambda path: tiny("sd3.5-medium", sd3_folder(path)),
        "flux": lambda path: tiny("flux-schnell", flux_folder(path, told=True), arguments={}),
        "z-image": lambda path: tiny("z-image-turbo", z_image_folder(path)),
        "generic": lambda path: wrap(AuraFlowPipeline.from_pretrained(aura_flow_folder(path))),
    }

    @cache
    def loaded(name: str) -> DiffusersAdapter:
        adapter = made[name](tmp_path_factory.mktemp(name))
        adapter.pipeline.set_progress_bar_config(disable=True)
        return adapter

    return loaded


@pytest.fixture
def sd(load: Load) -> Iterator[DiffusersAdapter]:
    """A Stable Diffusion whose parts a test may exchange."""
    adapter = load("sd")
    before = dict(adapter.pipeline.components)
    yield adapter
    for name in ("scheduler", "unet", "vae"):
        setattr(adapter.pipeline, name, before[name])


def own_pictures(adapter: DiffusersAdapter, plan: Plan, **arguments: Any) -> torch.Tensor:
    """What the pipeline itself returns, for the seeds 3 and 4."""
    texts: dict[str, Any] = {"prompt": list(PROMPTS)}
    return adapter.pipeline(
        **({} if "prompt_embeds" in arguments else texts),
        height=plan.height,
        width=plan.width,
        num_inference_steps=plan.steps,
        guidance_scale=plan.guidance_scale,
        generator=generators(3, 4),
        output_type="pt",
        **arguments,
    ).images


def pictures(adapter: DiffusersAdapter, plan: Plan) -> torch.Tensor:
    with torch.no_grad():
        noise = adapter.noise(generators(3, 4), plan)
        return adapter.render(noise, adapter.encode(PROMPTS, plan), plan)


OTHERS = ["red apples", "on grass"]
LONG = {"max_sequence_length": 32}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("sd", {"negative_prompt": "red apples"}),
    ("sd", {"negative_prompt": OTHERS, "guidance_rescale": 0.7}),
    ("sd", {"clip_skip": 1}),
    ("sd", {"timesteps": [901, 401, 101]}),
    ("sd", {"sigmas": [9.0, 3.0, 1.0]}),
    ("lcm", {"original_inference_steps": 30}),
    ("lcm", {"timesteps": [901, 401, 101], "clip_skip": 1}),
    ("sdxl", {"prompt_2": "red cats", "negative_prompt": OTHERS, "negative_prompt_2": "grass"}),
    ("sdxl", {"clip_skip": 1, "guidance_rescale": 0.5}),
    ("sdxl", {"original_size": (8, 32), "crops_coords_top_left": (2, 4), "target_size": (32, 8)}),
    ("sdxl", {"negative_original_size": (8, 8), "negative_target_size": (64, 64)}),
    ("pixart", {"negative_prompt": OTHERS}),
    ("pixart", {"max_sequence_length": 12}),
    ("sana", {"max_timesteps": 1.4, "intermediate_timesteps": 1.1}),
    ("sana", {"max_sequence_length": 40, "complex_human_instruction": ["red:"]}),
    ("sd3", {"prompt_2": OTHERS, "prompt_3": "seven cats", "clip_skip": 1}),
    ("sd3", {"negative_prompt": "red", "negative_prompt_2": OTHERS, "negative_prompt_3": "on"}),
    ("sd3", LONG | {"sigmas": [1.0, 0.6, 0.2]}),
    ("flux", {"prompt_2": OTHERS} | LONG),
    ("flux", {"negative_prompt": OTHERS, "true_cfg_scale": 3.0} | LONG),
    ("flux", {"sigmas": [1.0, 0.5, 0.2], "negative_prompt_2": "unused without a first"} | LONG),
    ("z-image", {"negative_prompt": OTHERS}),
    ("z-image", {"cfg_normalization": True}),
    ("z-image", {"cfg_truncation": 0.3, "sigmas": [1.0, 0.6, 0.2]}),
    ("generic", {"negative_prompt": OTHERS, "max_sequence_length": 24}),
]
CHANGES_NOTHING_ELSE = {"use_resolution_binning": False, "clean_caption": False}


@pytest.mark.parametrize(("family", "arguments"), CASES, ids=[f"{f}-{[*a]}" for f, a in CASES])
def test_pictures_equal_the_pipelines_own(
    load: Load, family: str, arguments: dict[str, Any]
) -> None:
    adapter = load(family)
    steps = 2 if family == "sana" else 3
    plan = adapter.plan(steps, 4.0, **arguments)
    named = parameters(type(adapter.pipeline), "__call__")
    beside = {n: v for n, v in CHANGES_NOTHING_ELSE.items() if n in named}
    found = pictures(adapter, plan)
    torch.testing.assert_close(
        found, own_pictures(adapter, plan, **arguments, **beside), atol=1e-5, rtol=0
    )
    plain = pictures(adapter, adapter.plan(steps, 4.0))
    assert (found - plain).abs().max() > 1e-5


def test_flux_reads_512_tokens_as_diffusers_does_by_default(load: Load) -> None:
    adapter = load("flux")
    plan = adapter.plan(1)
    assert adapter.encode(PROMPTS, plan).hidden.shape[1] == 512
    torch.testing.assert_close(
        pictures(adapter, plan), own_pictures(adapter, plan), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3"])
def test_states_of_prompts_may_be_given(load: Load, family: str) -> None:
    """As weighted prompts are; the prompt beside them is what is counted."""
    adapter = load(family)
    plain = adapter.plan(2, 4.0)
    encoded = adapter.encode(["seven red cats", "two apples"], plain)
    half = encoded.unconditional
    assert half is not None
    given = {"prompt_embeds": encoded.hidden, "negative_prompt_embeds": half.hidden}
    if encoded.pooled is not None:
        given |= {"pooled_prompt_embeds": encoded.pooled}
        given |= {"negative_pooled_prompt_embeds": half.pooled}
    plan = adapter.plan(2, 4.0, **given)
    torch.testing.assert_close(
        pictures(adapter, plan), own_pictures(adapter, plan, **given), atol=1e-5, rtol=0
    )
    assert adapter.flops(plan)["denoiser"] == adapter.flops(plain)["denoiser"]


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (PNDMScheduler, {}),
        (PNDMScheduler, {"skip_prk_steps": True}),
        (TCDScheduler, {}),
        (DDIMScheduler, {}),
        (EulerAncestralDiscreteScheduler, {}),
        (LCMScheduler, {}),
    ],
)
def test_a_scheduler_exchanged_after_wrapping_is_followed(
    sd: DiffusersAdapter, kind: Any, arguments: dict[str, Any]
) -> None:
    """Its noise, its number of evaluations, and eta where it knows that."""
    before = sd.plan(4, 4.0)
    noise = sd.noise(generators(1), before)
    sd.pipeline.scheduler = kind.from_config(sd.pipeline.scheduler.config, **arguments)
    told = {"eta": 0.6} if kind in (TCDScheduler, DDIMScheduler) else {}
    plan = sd.plan(4, 4.0, **told)
    torch.testing.assert_close(
        pictures(sd, plan), own_pictures(sd, plan, **told), atol=1e-5, rtol=0
    )
    if kind is not DDIMScheduler or told:
        drawn = sd.noise(generators(1), plan).step_noise
        if plan.evaluations != before.evaluations or drawn is not None:
            with pytest.raises(ValueError, match="another scheduler"):
                next(sd.trajectory(noise, sd.encode(PROMPTS[:1], before), before))


def test_modules_exchanged_after_wrapping_are_used(sd: DiffusersAdapter) -> None:
    plan = sd.plan(2, 4.0)
    before, price = pictures(sd, plan), sd.flops(plan)
    torch.manual_seed(5)
    sd.pipeline.unet = unet(layers_per_block=2).eval()
    middle = pictures(sd, plan)
    sd.pipeline.vae = vae(layers_per_block=2).eval()
    after = pictures(sd, plan)
    torch.testing.assert_close(after, own_pictures(sd, plan), atol=1e-5, rtol=0)
    assert not torch.allclose(before, middle) and not torch.allclose(middle, after)
    now = sd.flops(plan)
    assert all(now[name].forward > price[name].forward for name in ("denoiser", "decoder"))


def test_eta_counts_its_noise(sd: DiffusersAdapter) -> None:
    sd.pipeline.scheduler = DDIMScheduler.from_config(sd.pipeline.scheduler.config)
    assert sd.noise(generators(1), sd.plan(3)).step_noise is None
    drawn = sd.noise(generators(1), sd.plan(3, eta=1.0)).step_noise
    assert drawn is not None and drawn.shape[0] == 3


def test_a_scheduler_that_cannot_be_followed_is_told_when_it_is_wrapped(
    sd: DiffusersAdapter,
) -> None:
    class Odd(DDIMScheduler):  # type: ignore[misc]
        def step(self, *args: Any, **options: Any) -> Any:
            raise RuntimeError("it needs two pictures")

    sd.pipeline.scheduler = Odd.from_config(sd.pipeline.scheduler.config)
    with pytest.raises(ValueError, match=r"Odd cannot be followed.*two pictures.*DPMSolver"):
        wrap(sd.pipeline)


@pytest.mark.parametrize(
    ("family", "arguments", "message"),
    [
        ("sd", {"negativ_prompt": "red"}, r"takes no negativ_prompt; did you mean negative_prompt"),
        (
            "lcm",
            {"negative_prompt": "red"},
            "LatentConsistencyModelPipeline takes no negative_prompt",
        ),
        ("flux", {"clip_skip": 1}, "FluxPipeline takes no clip_skip"),
        ("sd", {"ip_adapter_image": object()}, r"ip_adapter_image .*BlackBox"),
        ("sdxl", {"denoising_end": 0.5}, "denoising_end .*unfinished"),
        ("sd3", {"skip_guidance_layers": [1]}, "skip_guidance_layers .*layers"),
        ("sd", {"eta": "much"}, "eta must be a finite number, not 'much'"),
        ("sd", {"clip_skip": 0.5}, "clip_skip must be a whole number"),
        ("sd", {"cross_attention_kwargs": 0.5}, "cross_attention_kwargs must be a dictionary"),
        ("sd", {"timesteps": [1, 2], "sigmas": [1.0]}, "takes no timesteps and sigmas"),
        ("sd", {"timesteps": "soon"}, "timesteps must be a list of numbers"),
        ("sd3", {"mu": 1e400}, "takes no mu|must be"),
        ("sd", {"negative_prompt": 3}, "negative_prompt must be a text or a list of texts, not 3"),
        ("sd", {"callback_on_step_end": 3}, "callback_on_step_end must be a function"),
        (
            "sd",
            {"callback_on_step_end": print, "callback_on_step_end_tensor_inputs": ["noise"]},
            "can be handed latents, .*not noise",
        ),
        ("sana", {"use_resolution_binning": True}, "no sizes to choose among"),
    ],
)
def test_arguments_that_cannot_be_taken_are_refused_by_name(
    load: Load, family: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load(family).plan(2, 4.0, **arguments)


def test_what_does_not_fit_the_prompts_is_told_when_they_are_encoded(load: Load) -> None:
    adapter = load("sd")
    with pytest.raises(ValueError, match=r"2 prompts need as many of negative_prompt.* not 3"):
        adapter.encode(PROMPTS, adapter.plan(2, 4.0, negative_prompt=["a", "b", "c"]))
    with pytest.raises(ValueError, match="cannot be encoded with clip_skip"):
        adapter.encode(PROMPTS, adapter.plan(2, 4.0, clip_skip=9))


def test_arguments_are_compared_by_value_and_objects_by_identity() -> None:
    one, other = torch.zeros(2), torch.zeros(2)
    assert Arguments({"a": [1, 2]}) == Arguments({"a": (1, 2)}) != Arguments({"a": [1, 2.0]})
    assert Arguments({"a": one}) == Arguments({"a": one}) != Arguments({"a": other})
    assert len({Arguments({"a": {"b": 1}}), Arguments({"a": {"b": 1}})}) == 1


class Recorder:
    """A callback as Diffusers calls it: keeps what it saw, and halves the latents after the first step."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def __call__(self, pipe: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        self.seen.append((step, float(time), pipe.num_timesteps, shapes))
        if step == 0:
            tensors["latents"] = tensors["latents"] / 2
        return tensors


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("sd", ["latents", "prompt_embeds"]),
        ("lcm", ["latents", "denoised"]),
        ("sdxl", ["latents", "prompt_embeds", "add_text_embeds", "add_time_ids"]),
        ("sana", ["latents", "prompt_embeds"]),
        ("sd3", ["latents", "pooled_prompt_embeds"]),
        ("flux", ["latents"]),
        ("z-image", ["latents"]),
    ],
)
def test_a_callback_sees_and_changes_what_diffusers_own_would(
    load: Load, family: str, names: list[str]
) -> None:
    """Of one picture: both ask it for the same steps, with tensors of the same shapes."""
    adapter, mine, theirs = load(family), Recorder(), Recorder()
    inputs = {"callback_on_step_end_tensor_inputs": names}
    plan = adapter.plan(2, 4.0, callback_on_step_end=mine, **inputs)
    beside = {"use_resolution_binning": False} if family == "sana" else {}
    expected = adapter.pipeline(
        PROMPTS[:1],
        height=plan.height,
        width=plan.width,
        num_inference_steps=2,
        guidance_scale=4.0,
        generator=generators(3),
        output_type="pt",
        callback_on_step_end=theirs,
        **inputs,
        **beside,
    ).images
    with torch.no_grad():
        noise = adapter.noise(generators(3), plan)
        found = adapter.render(noise, adapter.encode(PROMPTS[:1], plan), plan)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert mine.seen == theirs.seen and len(mine.seen) == 2


@pytest.mark.parametrize(
    ("family", "kind"), [("sd", SDCFGCutoffCallback), ("sdxl", SDXLCFGCutoffCallback)]
)
def test_guidance_ends_where_diffusers_own_callback_ends_it(
    load: Load, family: str, kind: Any
) -> None:
    adapter = load(family)
    callback = kind(cutoff_step_ratio=None, cutoff_step_index=1)
    plan = adapter.plan(4, 4.0, callback_on_step_end=callback)
    found = pictures(adapter, plan)
    for i, prompt in enumerate(PROMPTS):  # in a batch, Diffusers' own knows one prompt only
        expected = adapter.pipeline(
            prompt,
            height=plan.height,
            width=plan.width,
            num_inference_steps=4,
            guidance_scale=4.0,
            generator=generators(3 + i),
            output_type="pt",
            callback_on_step_end=callback,
        ).images
        torch.testing.assert_close(found[i : i + 1], expected, atol=1e-5, rtol=0)
    assert (found - pictures(adapter, adapter.plan(4, 4.0))).abs().max() > 1e-4


def test_a_callback_can_stop_one_picture_and_not_its_neighbour(load: Load) -> None:
    adapter = load("sd")

    def stop(pipe: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = bool(step == 1 and tensors["latents"].mean() > middle)
        return tensors

    plain = adapter.plan(4)
    with torch.no_grad():
        noise, encoded = adapter.noise(generators(3, 4), plain), adapter.encode(PROMPTS, plain)
        steps = list(adapter.trajectory(noise, encoded, plain))
        middle = steps[1].latents.mean()
        plan = adapter.plan(4, callback_on_step_end=stop)
        found = list(adapter.trajectory(noise, encoded, plan))[-1].latents
    higher = int(steps[1].latents[1].mean() > middle)
    torch.testing.assert_close(found[higher], steps[1].latents[higher], atol=1e-6, rtol=0)
    torch.testing.assert_close(found[1 - higher], steps[-1].latents[1 - higher], atol=1e-5, rtol=0)
    assert not adapter.pipeline.__dict__.get("_interrupt", False)


def test_the_older_callback_is_called_too(load: Load) -> None:
    adapter = load("pixart")
    seen: list[tuple[int, tuple[int, ...]]] = []
    plan = adapter.plan(
        3, callback=lambda step, time, latents: seen.append((step, tuple(latents.shape)))
    )
    pictures(adapter, plan)
    shape = (1, *plan.latent_shape)
    assert seen == [(step, shape) for step in range(3) for _ in PROMPTS]


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), [(256, 256), (200, 300)])
def test_pixart_draws_the_nearest_size_in_training_as_diffusers_does(
    height: int, width: int, tmp_path: Path
) -> None:
    folder = pixart_folder(tmp_path, sample_size=32, sides=4)
    pipeline = PixArtAlphaPipeline.from_pretrained(folder)
    adapter = wrap(pipeline)
    arguments = {"clean_caption": False}
    plan = adapter.plan(2, 1.0, height, width, **arguments)
    found = pictures(adapter, plan)
    assert found.shape[-2:] == (height, width)
    expected = own_pictures(adapter, plan, **arguments)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    exact = adapter.plan(2, 1.0, 200, 304, use_resolution_binning=False)
    assert exact.latent_shape[1:] == (25, 38)


def test_sizes_that_are_no_squares_are_the_default(tmp_path: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(sd_folder(tmp_path))
    pipeline.unet.register_to_config(sample_size=(8, 16))
    adapter = wrap(pipeline)
    plan = adapter.plan(1)
    assert (plan.height, plan.width) == (16, 32)
    torch.testing.assert_close(
        pictures(adapter, plan), own_pictures(adapter, plan), atol=1e-5, rtol=0
    )


def test_what_is_left_out_is_said(sd: DiffusersAdapter) -> None:
    plan = sd.plan(1)
    assert sd.remarks(plan) == ()
    sd.pipeline.watermark = object()
    try:
        assert any("watermark" in text for text in sd.remarks(plan))
    finally:
        del sd.pipeline.watermark


def test_loras_count_by_their_scale_in_the_way_back_too(load: Load, tmp_path: Path) -> None:
    """Recomputed parts of the denoiser run outside of its forward pass, where the scale is set."""
    peft = pytest.importorskip("peft")
    adapter = tiny("sd-turbo", sd_folder(tmp_path))
    torch.manual_seed(3)
    config = peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    adapter.pipeline.unet.add_adapter(config)
    plans = [adapter.plan(2, 3.0, cross_attention_kwargs={"scale": scale}) for scale in (1.0, 0.3)]
    torch.testing.assert_close(
        pictures(adapter, plans[1]),
        own_pictures(adapter, plans[1], cross_attention_kwargs={"scale": 0.3}),
        atol=1e-5,
        rtol=0,
    )
    for parameter in adapter.pipeline.unet.parameters():
        parameter.requires_grad_(False)
    grads = {}
    for name in ("fast", "balanced", "low"):
        with in_memory(adapter, name):
            noise = adapter.noise(generators(3), plans[1])
            leaf = noise.latents.clone().requires_grad_()
            encoded = adapter.encode(PROMPTS[:1], plans[1])
            images = adapter.render(replace(noise, latents=leaf), encoded, plans[1])
            (grads[name],) = torch.autograd.grad(images.square().sum(), leaf)
    for name in ("balanced", "low"):
        torch.testing.assert_close(grads[name], grads["fast"], atol=1e-6, rtol=1e-4)
    assert (pictures(adapter, plans[0]) - pictures(adapter, plans[1])).abs().max() > 1e-5
