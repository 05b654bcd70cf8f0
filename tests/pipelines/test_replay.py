"""Scripts draw what adapters draw: run here, in this process, for every kind of pipeline."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import PixArtSigmaPipeline
from PIL import Image
from safetensors.torch import save_file
from tiny_pipelines import sd3_folder, sd_folder

from pipelines.adapter import DiffusersAdapter
from pipelines.base import ComponentOverride, PipelineCard
from pipelines.registry import find_card, load_adapter
from pipelines.replay import Call, call_of, script

PROMPT = "two cats on grass"


def own_folder(module: str, name: str) -> Callable[..., Path]:
    """A maker of tiny pipelines that stands beside the tests of its family."""
    path = Path(__file__).parent / "families" / f"{module}.py"
    return runpy.run_path(str(path))[name]


def card(name: str, folder: Path, size: int = 16, **changes: Any) -> PipelineCard:
    return replace(find_card(name), hub_id=str(folder), size=size, **changes)


def furthest(folder: Path, adapter: DiffusersAdapter, own: PipelineCard) -> int:
    """How far the script's picture is from the adapter's, in 255ths."""
    plan = adapter.plan()
    noise = adapter.noise([torch.Generator().manual_seed(5)], plan)
    with torch.no_grad():
        ours = adapter.render(noise, adapter.encode([PROMPT], plan), plan)[0]
    tensors = {"latents": noise.latents}
    if noise.step_noise is not None:
        tensors["step_noise"] = noise.step_noise
    save_file(tensors, folder / "noise.safetensors")
    text = script(
        own.hub_id,
        call_of(adapter.pipeline, own, plan),
        PROMPT,
        card=own,
        step_noise=noise.step_noise is not None,
    )
    assert len(text.splitlines()) < 50
    (folder / "draw.py").write_text(text, encoding="utf-8")
    runpy.run_path(str(folder / "draw.py"))
    with Image.open(folder / "again.png") as picture:
        found = np.asarray(picture).astype(float)
    expected = ours.permute(1, 2, 0).numpy() * 255
    assert expected.std() > 1
    return round(float(np.abs(found - expected).max()))


@pytest.fixture(autouse=True)
def randn_tensor_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """The script hands out noise by changing the scheduler's module, which here lives on."""
    from diffusers.schedulers import scheduling_lcm, scheduling_scm

    for module in (scheduling_lcm, scheduling_scm):
        monkeypatch.setattr(module, "randn_tensor", module.randn_tensor)


FOLDERS: dict[str, tuple[Callable[[Path], Path], int]] = {
    "sd-turbo": (sd_folder, 16),
    "sdxl-turbo": (lambda folder: own_folder("test_sdxl", "sdxl_folder")(folder), 16),
    "pixart-sigma": (
        lambda folder: own_folder("test_pixart", "pixart_folder")(folder, PixArtSigmaPipeline),
        16,
    ),
    "sana-sprint": (lambda folder: own_folder("test_sana", "sana_folder")(folder), 32),
    "sd3.5-medium": (sd3_folder, 16),
    "flux-schnell": (lambda folder: own_folder("test_flux", "flux_folder")(folder, told=False), 16),
    "z-image-turbo": (lambda folder: own_folder("test_z_image", "z_image_folder")(folder), 16),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_the_pipeline_itself_draws_it(name: str, tmp_path: Path) -> None:
    make, size = FOLDERS[name]
    own = card(name, make(tmp_path / "model"), size, steps=2)
    assert furthest(tmp_path, load_adapter(own), own) <= 1


def test_components_and_scheduler_of_a_preset_are_taken_from_their_places(tmp_path: Path) -> None:
    """A UNet from a file, another scheduler, and times of its own."""
    folder = own_folder("test_sdxl", "sdxl_folder")(tmp_path / "model")
    own = card("sdxl-lightning", folder, overrides=(), scheduler=None)
    base = load_adapter(own)
    torch.manual_seed(7)
    other = type(base.pipeline.unet).from_config(base.pipeline.unet.config)
    (tmp_path / "student").mkdir()
    other.save_pretrained(tmp_path / "student" / "unet")
    student = ComponentOverride("unet", str(tmp_path / "student"), "folder", subfolder="unet")
    own = replace(
        own, overrides=(student,), scheduler=("LCMScheduler", {}), timesteps=(800, 400), steps=2
    )
    assert furthest(tmp_path, load_adapter(own), own) <= 1


def test_every_preset_has_a_script_that_is_python(tmp_path: Path) -> None:
    import ast

    from pipelines.registry import cards

    for own in cards():
        text = script(own.hub_id, Call("A", {"num_inference_steps": 1}), PROMPT, card=own)
        tree = ast.parse(text)
        called = {ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
        assert {"DiffusionPipeline.from_pretrained", "pipe", "image.save"} <= called
        if any(one.kind == "weights" for one in own.overrides):
            assert {"hf_hub_download", "pipe.unet.load_state_dict"} <= called
        if own.scheduler:
            assert f"diffusers.{own.scheduler[0]}.from_config" in called
