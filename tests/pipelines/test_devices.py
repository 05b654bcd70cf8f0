"""Devices that are not there, and memory that does not suffice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_pipelines import sd_folder

from pipelines.devices import (
    check_device,
    free_bytes,
    is_out_of_memory,
    out_of_memory_errors,
    readable_bytes,
)
from pipelines.registry import load_adapter


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), "cpu:0"])
def test_a_device_that_is_there(device: str | torch.device) -> None:
    assert check_device(device).type == "cpu"


@pytest.mark.parametrize(
    ("device", "told"),
    [
        ("cud", "no device 'cud'.* cuda, mps or cpu"),
        ("", "no device ''"),
        ("cpu:3", "only one"),
        ("meta", "'meta' is not supported"),
        ("cuda:99", "cuda"),
    ],
)
def test_a_device_that_is_not_there_is_refused_before_anything_loads(
    device: str, told: str
) -> None:
    for call in (check_device, lambda d: load_adapter("someone/not-there", device=d)):
        with pytest.raises(ValueError, match=told) as error:
            call(device)
        assert "\n" not in str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_cuda_is_not_available() -> None:
    with pytest.raises(ValueError, match=r"cuda is not available here; take .*cpu"):
        check_device("cuda")


def test_the_cpu_can_run_out_of_memory_too() -> None:
    """By a real allocation that no machine can serve."""
    with pytest.raises(RuntimeError) as plain:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(plain.value)
    with pytest.raises(torch.OutOfMemoryError), out_of_memory_errors():
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(torch.OutOfMemoryError), out_of_memory_errors():
        raise torch.OutOfMemoryError("as it came")
    assert is_out_of_memory(MemoryError())
    with pytest.raises(RuntimeError, match="shapes") as other, out_of_memory_errors():
        torch.zeros(2, 3) @ torch.zeros(2, 3)
    assert not is_out_of_memory(other.value)


def test_free_memory_is_less_than_all_there_is() -> None:
    free = free_bytes(torch.device("cpu"))
    assert 2**20 < free < 2**50
    assert readable_bytes(free).split()[1] in ("MiB", "GiB", "TiB")
    assert [readable_bytes(n) for n in (5, 1536, 2**41)] == ["5 bytes", "1.5 KiB", "2.0 TiB"]


def test_a_graph_that_cannot_fit_is_refused_before_it_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device that has room for a third of what was estimated."""
    adapter = load_adapter(sd_folder(tmp_path), memory_plan="fast")
    plan = adapter.plan(6, height=16, width=16)
    encoded = adapter.encode(["two cats"], plan)
    noise = adapter.noise([torch.Generator().manual_seed(0)], plan)
    weights = sum(t.nbytes for m in adapter.modules() for t in m.state_dict().values())
    room = (adapter.estimate_bytes(plan) - weights) // 3
    monkeypatch.setattr("pipelines.measures.free_bytes", lambda device: room)
    noise.latents.requires_grad_()
    with pytest.raises(torch.OutOfMemoryError, match=r"gradient through 6 steps .* grad_steps"):
        adapter.render(noise, encoded, plan)
    adapter.render(noise, encoded, plan, grad_steps=1).sum().backward()
    with torch.no_grad():
        assert torch.isfinite(adapter.render(noise, encoded, plan)).all()


def test_many_steps_are_drawn_without_a_gradient(tmp_path: Path) -> None:
    adapter = load_adapter(sd_folder(tmp_path))
    plan = adapter.plan(50, height=16, width=16)
    noise = adapter.noise([torch.Generator().manual_seed(0)], plan)
    with torch.no_grad():
        found = adapter.render(noise, adapter.encode(["two cats"], plan), plan)
        expected = adapter.pipeline(
            "two cats",
            height=16,
            width=16,
            num_inference_steps=50,
            guidance_scale=plan.guidance_scale,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        ).images
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_gradients_are_the_same_when_autocast_has_ended(tmp_path: Path) -> None:
    """The plan that recomputes does so in the precision of the forward pass."""
    adapter = load_adapter(sd_folder(tmp_path))
    plan = adapter.plan(2, height=16, width=16)
    encoded = adapter.encode(["two cats"], plan)
    noise = adapter.noise([torch.Generator().manual_seed(0)], plan)
    noise.latents.requires_grad_()
    grads = []
    for name in ("fast", "low"):
        adapter.set_memory_plan(name)
        with torch.autocast("cpu", torch.bfloat16):
            images = adapter.render(noise, encoded, plan)
        grads += torch.autograd.grad(images.square().sum(), noise.latents)
    torch.testing.assert_close(grads[0], grads[1], atol=1e-3, rtol=1e-2)
