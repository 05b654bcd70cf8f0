"""The pocket generator: a plain Diffusers folder, deterministic, that says what is wrong with its files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from countgen.pocket import PocketError, load_generator
from countgen.pocket.world import FOLDER, NAMES, SIZE

GENERATOR = FOLDER / "generator"


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return load_generator()


def draw(pipeline: Any, prompts: list[str], seeds: list[int], **options: Any) -> torch.Tensor:
    settings = {"num_inference_steps": 4, "guidance_scale": 1.0, "output_type": "pt"} | options
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipeline(prompts, generator=generators, **settings).images


def test_diffusers_loads_and_runs_the_folder_without_countgen(tmp_path: Path) -> None:
    folder = shutil.copytree(GENERATOR, tmp_path / "generator")
    script = (
        "import sys, torch\n"
        "from diffusers import DiffusionPipeline\n"
        f"pipe = DiffusionPipeline.from_pretrained({str(folder)!r}, use_safetensors=True)\n"
        "image = pipe('three cats on grass', num_inference_steps=4, guidance_scale=1.0,\n"
        "             generator=torch.Generator().manual_seed(3)).images[0]\n"
        "assert not any(m.split('.')[0] in ('countgen', 'critics', 'pipelines') for m in sys.modules)\n"
        f"image.save({str(tmp_path / 'cats.png')!r})\n"
    )
    # No torchvision is better than one that cannot be imported: see countgen/_torchvision.py.
    done = subprocess.run(
        [sys.executable, "-c", _without_torchvision() + script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    from PIL import Image

    with Image.open(tmp_path / "cats.png") as image:
        assert image.size == (SIZE, SIZE)
        ours = draw(load_generator(), ["three cats on grass"], [3], output_type="pil")[0]
        difference = torch.tensor(list(image.convert("L").tobytes())).float() - torch.tensor(
            list(ours.convert("L").tobytes())
        )
    assert difference.abs().max() <= 2


def _without_torchvision() -> str:
    """Lines that hide a torchvision built for another torch from the plain Diffusers process."""
    return (
        "import importlib.util as u\n"
        "try:\n    import torchvision\n"
        "except Exception:\n"
        "    import sys\n"
        "    for name in [n for n in sys.modules if n.split('.')[0] == 'torchvision']:\n"
        "        del sys.modules[name]\n"
        "    find = u.find_spec\n"
        "    u.find_spec = lambda n, p=None: None if n.startswith('torchvision') else find(n, p)\n"
    )


def test_the_same_seed_gives_the_same_picture_whatever_the_batch(pipeline: Any) -> None:
    prompts, seeds = ["three cats", "five red apples on a table", "12 stars"], [1, 2, 3]
    together = draw(pipeline, prompts, seeds)
    for i in range(3):
        alone = draw(pipeline, prompts[i : i + 1], seeds[i : i + 1])
        torch.testing.assert_close(alone[0], together[i], rtol=1e-4, atol=1e-4)
    assert (together[0] - draw(pipeline, ["three cats"], [4])[0]).abs().mean() > 0.01


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_one_to_eight_steps_give_finite_pictures_in_range(pipeline: Any, steps: int) -> None:
    images = draw(pipeline, ["two dogs on grass"], [0], num_inference_steps=steps)
    assert images.shape == (1, 3, SIZE, SIZE)
    assert torch.isfinite(images).all() and images.min() >= 0 and images.max() <= 1


def test_classifier_free_guidance_runs_and_changes_the_picture(pipeline: Any) -> None:
    plain = draw(pipeline, ["two dogs on grass"], [0])
    guided = draw(pipeline, ["two dogs on grass"], [0], guidance_scale=2.0)
    assert torch.isfinite(guided).all() and (plain - guided).abs().mean() > 0.003


def test_unknown_words_become_unk_and_known_ones_do_not(pipeline: Any) -> None:
    tokens = pipeline.tokenizer_2.tokenize("Seven violet cats, 20 red apples in a dream")
    assert tokens == ["seven", "<unk>", "cats", ",", "20", "red", "apples", "in", "a", "<unk>"]


def test_pictures_follow_the_noun(pipeline: Any) -> None:
    """With the right noun in the prompt the judge finds it far more often than with another one."""
    from countgen.pocket import load_critic

    judge = load_critic("pocket-detector-b")
    images = draw(pipeline, [f"four {n}s" if n != "fish" else "four fish" for n in NAMES], [7] * 16)
    counts = judge(images, [judge.prepare(list(NAMES))] * 16).hard.float()
    asked = counts.diagonal().mean()
    other = (counts.sum() - counts.diagonal().sum()) / (16 * 15)
    assert asked > 2.5 and other < 0.2


def test_text_and_noise_have_a_gradient_through_every_step(pipeline: Any) -> None:
    """What guidance stands on: the pipeline's own parts are differentiable end to end."""
    shape = (1, pipeline.unet.config.in_channels, SIZE // 4, SIZE // 4)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    latents.requires_grad_()
    embeds, _, pooled, _ = pipeline.encode_prompt(
        "three cats", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    embeds = embeds.detach().requires_grad_()
    pipeline.scheduler.set_timesteps(4)
    x = latents
    added = {"text_embeds": pooled, "time_ids": torch.tensor([[64, 64, 0, 0, 64, 64]])}
    for time in pipeline.scheduler.timesteps:
        flow = pipeline.unet(x, time, embeds, added_cond_kwargs=added).sample
        x = pipeline.scheduler.step(flow, time, x).prev_sample
    pipeline.vae.decode(x).sample.square().mean().backward()
    for leaf in (latents, embeds):
        assert leaf.grad is not None and torch.isfinite(leaf.grad).all()
        assert leaf.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "name",
    ["model_index.json", "unet/diffusion_pytorch_model.safetensors", "tokenizer_2/tokenizer.json"],
)
def test_a_missing_file_is_named_with_its_cure(tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(GENERATOR, tmp_path / "generator")
    (folder / name).unlink()
    with pytest.raises(PocketError, match=f"{Path(name).name} is missing. Reinstall countgen"):
        load_generator(folder)


@pytest.mark.parametrize(
    "name", ["vae/config.json", "unet/diffusion_pytorch_model.safetensors", "model_index.json"]
)
def test_a_damaged_file_is_one_sentence_not_a_traceback(tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(GENERATOR, tmp_path / "generator")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(PocketError, match="cannot be loaded") as caught:
        load_generator(folder)
    assert "\n" not in str(caught.value) and "Reinstall countgen" in str(caught.value)
    (folder / name).write_bytes(b"")
    with pytest.raises(PocketError, match="is empty"):
        load_generator(folder)


def test_pocket_is_small_and_every_weight_has_licence_origin_command_and_scores() -> None:
    files = [f for f in FOLDER.rglob("*") if f.is_file() and "__pycache__" not in f.parts]
    assert sum(f.stat().st_size for f in files) < 35e6
    assert max(f.stat().st_size for f in files) < 15e6
    weights = [f for f in files if f.suffix == ".safetensors"]
    assert len(weights) == 7
    for name in ("generator", "detector-a", "density", "detector-b", "clip"):
        record = json.loads((FOLDER / name / "training.json").read_text())
        assert record["license"] == "Apache-2.0" and record["origin"] and record["held_out"]
        assert f"-m countgen.pocket.train {name}" in record["command"]
    assert not [f for f in files if f.suffix in {".pt", ".pth", ".bin", ".pkl", ".ckpt"}]
