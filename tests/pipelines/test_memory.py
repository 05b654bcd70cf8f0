"""What happens when a device's memory runs out, and how a memory plan is chosen.

There is no small device at hand: a hook on the denoiser refuses what would not fit, by torch's own error.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_pipelines import sd_folder, tiny
from torch import nn

from countgen.engine.policy import DrawThenImprove
from countgen.errors import MemoryShortage
from countgen.guidance.methods import find_method
from countgen.pipeline import CountGuidedPipeline
from countgen.pocket import load_adapter, load_critic
from pipelines import memory
from pipelines.adapter import DiffusersAdapter
from pipelines.registry import load_adapter as load_by_name

GIB = 2**30


@contextmanager
def room_for(adapter: DiffusersAdapter, pictures: int, plan: str | None = None) -> Iterator[None]:
    """As on a device that holds so many pictures, with the plan if one is named, none otherwise."""

    def refuse(module: nn.Module, args: Any, kwargs: Any) -> None:
        latents = args[0] if args else kwargs["sample"]
        if len(latents) > pictures or (plan is not None and adapter.memory.name != plan):
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = adapter.pipeline.unet.register_forward_pre_hook(refuse, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


@pytest.fixture(scope="module")
def tiny_adapter(tmp_path_factory: pytest.TempPathFactory) -> DiffusersAdapter:
    return tiny("sd-turbo", sd_folder(tmp_path_factory.mktemp("sd")))


def test_a_batch_that_does_not_fit_is_drawn_in_parts(caplog: pytest.LogCaptureFixture) -> None:
    adapter = load_adapter()  # its memory plan is fixed
    pipeline = CountGuidedPipeline(
        adapter, load_critic("pocket-detector-a"), load_critic("pocket-density")
    )
    options: dict[str, Any] = {"num_images_per_prompt": 5, "seed": 3, "output_type": "pt"}
    whole = pipeline("four cats", guidance="none", **options)
    with room_for(adapter, 2), caplog.at_level(logging.WARNING, "countgen"):
        parts = pipeline("four cats", guidance="none", **options)
    torch.testing.assert_close(parts.images, whole.images, atol=2e-5, rtol=0)
    assert parts.counts == whole.counts and parts.outcomes == whole.outcomes
    assert "with 5 pictures at once; going on with 2" in caplog.text
    mirrored = sum(history[0].error == 0 for history in parts.history)
    assert parts.cost.forwards["critic"] == 5 + mirrored


def test_a_plan_that_needs_less_is_taken_and_paid_for(
    tiny_adapter: DiffusersAdapter, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = CountGuidedPipeline(tiny_adapter, load_critic("pocket-detector-a"))
    climb = replace(find_method("noise"), policy=DrawThenImprove(draws=1, steps=2, candidates=1))
    prompt, options = "three cats", {"seed": 1, "budget": 1e6, "guidance": climb}
    assert tiny_adapter.memory.name == "fast"
    plan = tiny_adapter.plan()
    before = tiny_adapter.flops(plan)["denoiser"].backward
    with room_for(tiny_adapter, 8, "balanced"), caplog.at_level(logging.WARNING, "countgen"):
        found = pipeline(prompt, **options)
    assert found.images and tiny_adapter.memory.name == "balanced"
    assert "out of memory with the plan fast; going on with balanced" in caplog.text
    assert tiny_adapter.flops(plan)["denoiser"].backward > before
    tiny_adapter.set_memory_plan("fast")


def test_what_cannot_fit_is_one_sentence(tmp_path: Path) -> None:
    critic = load_critic("pocket-detector-a")
    folder = sd_folder(tmp_path)
    for chosen, cure in (("auto", "take a smaller size"), ("fast", "take memory=low")):
        adapter = load_by_name(folder, memory_plan=chosen)
        with room_for(adapter, 0), pytest.raises(MemoryShortage, match=cure):
            CountGuidedPipeline(adapter, critic)("three cats")


@given(st.integers(1, 40), st.integers(0, 20), st.integers(1, 100))
def test_more_memory_never_means_a_slower_plan(core: int, encoders: int, free: int) -> None:
    order = memory.NAMES
    now = memory.choose_plan(free * GIB, core * GIB, encoders * GIB)
    more = memory.choose_plan((free + 8) * GIB, core * GIB, encoders * GIB)
    assert order.index(more.name) <= order.index(now.name)


def test_the_choice_follows_what_is_free() -> None:
    # SDXL in half precision: 5.3 GB of denoiser and decoder, 1.6 GB of text encoders.
    core, encoders = int(5.3e9), int(1.6e9)
    names = [memory.choose_plan(free * GIB, core, encoders).name for free in (6, 10, 24)]
    assert names == ["low", "balanced", "fast"]


def test_the_tiny_decoder_gives_the_gradient_and_the_full_one_the_picture(tmp_path: Path) -> None:
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    small = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    small.save_pretrained(tmp_path / "tiny")
    folder = sd_folder(tmp_path / "sd")
    exact, rough = (
        load_by_name(folder, tiny_decoder=decoder) for decoder in (None, tmp_path / "tiny")
    )
    plan = exact.plan(1, height=16, width=16)
    noise = exact.noise([torch.Generator().manual_seed(0)], plan)
    noise.latents.requires_grad_()
    pictures, grads = [], []
    for adapter in (exact, rough):
        picture = adapter.render(noise, adapter.encode(["two cats"], plan), plan)
        pictures.append(picture)
        grads += torch.autograd.grad(picture.square().sum(), noise.latents)
    torch.testing.assert_close(pictures[1], pictures[0], atol=1e-6, rtol=0)
    assert grads[1].abs().sum() > 0 and not torch.allclose(grads[0], grads[1])
    with torch.no_grad():
        plain = rough.render(noise, rough.encode(["two cats"], plan), plan)
    torch.testing.assert_close(plain, pictures[0], atol=1e-6, rtol=0)


def test_a_decoder_that_overflows_in_half_precision_is_copied_to_float32(tmp_path: Path) -> None:
    adapter = load_by_name(sd_folder(tmp_path, force_upcast=True), dtype=torch.float16)
    kinds = {next(module.parameters()).dtype for module in adapter.modules()}
    assert adapter.pipeline.vae.dtype == torch.float16 and torch.float32 in kinds
    assert torch.isfinite(adapter.decode(torch.randn(1, 4, 8, 8))).all()


def test_compiled_modules_draw_the_same(tmp_path: Path) -> None:
    """What torch.compile itself makes of them is not run here, which would take minutes."""
    folder = sd_folder(tmp_path)
    plain, compiled = (load_by_name(folder, compile=flag) for flag in (False, True))
    plan = plain.plan(2)
    noise = plain.noise([torch.Generator().manual_seed(0)], plan)
    noise.latents.requires_grad_()
    grads = []
    with torch.compiler.set_stance("force_eager"):
        for adapter in (plain, compiled):
            picture = adapter.render(noise, adapter.encode(["two cats"], plan), plan)
            grads += torch.autograd.grad(picture.square().sum(), noise.latents)
    torch.testing.assert_close(grads[0], grads[1])
    assert not isinstance(compiled.pipeline.unet, torch._dynamo.OptimizedModule)
