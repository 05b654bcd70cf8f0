"""What Diffusers users try on a pipeline does on ours what it does on theirs."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler

from countgen import CountGuidedPipeline
from countgen.errors import UsageError
from pipelines.adapter import DiffusersAdapter

PLAIN: dict[str, Any] = {"guidance": "none", "output_type": "pt", "targets": [("cat", 2)]}


@pytest.fixture
def sd(tiny_sd: DiffusersAdapter, pocket: CountGuidedPipeline) -> Iterator[CountGuidedPipeline]:
    """A Stable Diffusion of random weights under pocket's critic, without a verifier."""
    scheduler = tiny_sd.pipeline.scheduler
    yield CountGuidedPipeline(tiny_sd, pocket.critic)
    tiny_sd.pipeline.scheduler = scheduler


def own(sd: CountGuidedPipeline, *prompts: str, **options: Any) -> torch.Tensor:
    """Of the wrapped pipeline itself."""
    seeds = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    return sd.adapter.pipeline(
        list(prompts), generator=seeds, output_type="pt", num_inference_steps=2, **options
    ).images


def test_arguments_are_those_of_the_wrapped_pipeline(sd: CountGuidedPipeline) -> None:
    prompts = ["two cats on grass", "two red cats"]
    seeds = [torch.Generator().manual_seed(seed) for seed in range(2)]
    told = {"negative_prompt": ["red", "grass"], "guidance_scale": 4.0, "guidance_rescale": 0.7}
    found = sd(prompts, num_inference_steps=2, generator=seeds, **told, **PLAIN)
    torch.testing.assert_close(found.images, own(sd, *prompts, **told), atol=1e-5, rtol=0)


def test_what_follows_the_prompt_may_be_told_by_its_place(sd: CountGuidedPipeline) -> None:
    """Height, width and steps, in the order of StableDiffusionPipeline."""
    seed = [torch.Generator().manual_seed(0)]
    found = sd(
        "two cats", 16, 32, 2, generator=seed, guidance_scale=1.0, return_dict=False, **PLAIN
    )
    assert isinstance(found, tuple) and found[0].shape == (1, 3, 16, 32)
    expected = own(sd, "two cats", height=16, width=32, guidance_scale=1.0)
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=0)
    with pytest.raises(UsageError, match="height was given twice"):
        sd("two cats", 16, height=16)
    with pytest.raises(UsageError, match="more than it takes"):
        sd("two cats", *range(40))


def test_diffusers_own_callback_is_called_for_every_step_of_every_picture(
    sd: CountGuidedPipeline,
) -> None:
    seen: list[tuple[int, str]] = []

    def callback(pipe: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append((step, type(pipe).__name__))
        return tensors

    options = {"num_images_per_prompt": 2, "callback_on_step_end": callback, **PLAIN}
    sd("two cats", num_inference_steps=2, **options)
    kind = type(sd.adapter.pipeline).__name__
    assert seen == [(0, kind), (0, kind), (1, kind), (1, kind)]


def test_components_are_found_and_exchanged_on_the_wrapped_pipeline(
    sd: CountGuidedPipeline,
) -> None:
    wrapped = sd.adapter.pipeline
    assert sd.components is not None and sd.unet is wrapped.unet
    assert sd.device == wrapped.device and sd.dtype == torch.float32
    sd.scheduler = EulerAncestralDiscreteScheduler.from_config(sd.scheduler.config)
    assert wrapped.scheduler is sd.scheduler
    seed = [torch.Generator().manual_seed(0)]
    found = sd("two cats", num_inference_steps=2, generator=seed, guidance_scale=1.0, **PLAIN)
    torch.testing.assert_close(
        found.images, own(sd, "two cats", guidance_scale=1.0), atol=1e-5, rtol=0
    )


def test_methods_are_handed_to_the_wrapped_pipeline(sd: CountGuidedPipeline) -> None:
    block = sd.adapter.pipeline.unet.up_blocks[0]
    sd.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    assert block.s1 == 0.9
    sd.disable_freeu()
    assert block.s1 is None
    with pytest.raises(AttributeError, match="has no attribute 'enable_wings'"):
        sd.enable_wings()
    for name in ("enable_sequential_cpu_offload", "load_ip_adapter"):
        with pytest.raises(UsageError, match=f"{name} .*BlackBox"):
            getattr(sd, name)()
    with pytest.raises(UsageError, match="cuda"):
        sd.enable_model_cpu_offload(device="cuda:99")


def test_loras_are_loaded_into_the_wrapped_pipeline_and_priced(sd: CountGuidedPipeline) -> None:
    pytest.importorskip("peft")
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    layer = dict(sd.unet.named_modules())[name]
    plan = sd.adapter.plan(1)
    before = sd.adapter.flops(plan)["denoiser"]
    lora = {
        f"unet.{name}.lora_A.weight": torch.randn(2, layer.in_features),
        f"unet.{name}.lora_B.weight": torch.randn(layer.out_features, 2),
    }
    sd.load_lora_weights(lora)
    try:
        assert sd.adapter.flops(plan)["denoiser"].forward > before.forward
    finally:
        sd.unload_lora_weights()
    assert sd.adapter.flops(plan)["denoiser"] == before


def test_to_takes_devices_and_precisions_as_diffusers_does(sd: CountGuidedPipeline) -> None:
    try:
        assert sd.to("cpu", torch.float64) is sd and sd.dtype == torch.float64
        assert sd.to(torch.float32).dtype == torch.float32
        assert sd.to(device="cpu", dtype=torch.float32).device == torch.device("cpu")
    finally:
        sd.adapter.to(dtype=torch.float32)
    with pytest.raises(UsageError, match="one device and one dtype"):
        sd.to("cpu", "cpu")
    with pytest.raises(UsageError, match="nowhere"):
        sd.to("nowhere")


def test_it_can_still_be_copied_and_pickled(sd: CountGuidedPipeline) -> None:
    assert copy.copy(sd).adapter is sd.adapter
    assert pickle.loads(pickle.dumps(sd)).critic.card == sd.critic.card


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"negativ_prompt": "red"}, "takes no negativ_prompt; did you mean negative_prompt"),
        ({"ip_adapter_image": object()}, "ip_adapter_image .*BlackBox"),
        ({"negative_prompt": ["a", "b", "c"], "guidance_scale": 4.0}, "1 prompts need as many"),
        ({"prompt": None, "prompt_embeds": torch.zeros(1, 4, 4)}, "prompt beside prompt_embeds"),
        ({"prompt": None}, "prompt is empty"),
    ],
)
def test_mistakes_are_one_sentence(
    sd: CountGuidedPipeline, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        sd(**({"prompt": "two cats", "num_inference_steps": 1} | options))


def test_a_safety_checker_that_is_skipped_is_told(sd: CountGuidedPipeline) -> None:
    sd.adapter.pipeline.safety_checker = torch.nn.Identity()
    try:
        run = sd.stream("two cats", num_inference_steps=1, targets=[("cat", 2)])
        assert any("safety checker" in note for note in run.notes)
    finally:
        sd.adapter.pipeline.safety_checker = None
    assert not sd.stream("two cats", num_inference_steps=1, targets=[("cat", 2)]).notes
