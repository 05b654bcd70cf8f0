"""Pictures drawn again from what their files carry, where countgen cannot be imported."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler
from PIL import Image
from tiny_pipelines import sd_folder

from countgen import CountGuidedPipeline
from countgen.cli import main
from countgen.errors import UsageError
from countgen.export import export
from countgen.guidance.methods import METHODS
from countgen.pipeline import to_pil
from countgen.provenance import Provenance, png, provenance_of, read
from pipelines.registry import load_adapter

WITHOUT_COUNTGEN = """
import runpy, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("countgen", "critics", "pipelines"):
            raise ModuleNotFoundError(f"{name} is not here")

sys.meta_path.insert(0, Absent())
try:  # one that was built for another device takes all of Diffusers with it
    import torchvision
except ImportError:
    pass
except RuntimeError:
    sys.modules["torchvision"] = None
for name in ("countgen", "critics", "pipelines"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{name} can be imported")
for script in sys.argv[1:]:
    runpy.run_path(script, run_name="__main__")
"""


def drawn_again(*folders: Path) -> None:
    """Runs the scripts of exports in a process that has no countgen and no network."""
    command = [sys.executable, "-I", "-c", WITHOUT_COUNTGEN, *(str(f / "draw.py") for f in folders)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def furthest(one: Path, other: Path) -> int:
    """Greatest difference of two pictures, in 255ths."""
    with Image.open(one) as a, Image.open(other) as b:
        return int(np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).max())


def kept(
    pipeline: CountGuidedPipeline, prompt: str, method: str, folder: Path, model: str = "pocket"
) -> Path:
    """A guided picture in a file, moved by its method away from the plain one."""
    run = pipeline.stream(prompt, guidance=METHODS[method], budget=12, seed=2)
    for _ in run:
        pass
    (job,) = run.jobs
    made = provenance_of(job, pipeline, pipeline.adapter.plan(), METHODS[method], model=model)
    assert job.best is not None
    path = folder / f"{method}.png"
    path.write_bytes(png(to_pil(job.best.image), made))
    return path


@pytest.mark.slow
def test_pictures_are_drawn_again_without_countgen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], pocket: CountGuidedPipeline
) -> None:
    """An edited or improved one of the command, one with a count token, one whose sampler adds noise."""
    out, token_folder, noisy_folder = tmp_path / "out", tmp_path / "token", tmp_path / "noisy"
    command = ["generate", "eleven dogs and four cats", "--method", "engine", "--budget", "12"]
    assert main([*command, "--out", str(out), "--seed", "3"]) == 0
    capsys.readouterr()
    assert main(["export", str(out / "000.png"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert Path(report["script"]).name == "draw.py"
    moves = read(out / "000.png").settings["moves"]
    assert moves[0] == "draw" and len(moves) > 1, "nothing but a plain draw was kept"

    token = kept(pocket, "seven cats on grass", "count-token", tmp_path)
    assert main(["export", str(token), "--out", str(token_folder)]) == 0
    assert (token_folder / "token.safetensors").is_file()

    model = sd_folder(tmp_path / "model", EulerAncestralDiscreteScheduler)
    other = CountGuidedPipeline(load_adapter(model), pocket.critic)
    noisy = kept(other, "two cats", "hill-climbing", tmp_path, str(model))
    assert read(noisy).tensors["step_noise"].shape[0] > 1
    export(read(noisy), noisy_folder)

    drawn_again(out / "000-export", token_folder, noisy_folder)
    assert furthest(out / "000.png", out / "000-export" / "again.png") <= 1
    assert furthest(token, token_folder / "again.png") <= 1
    assert furthest(noisy, noisy_folder / "again.png") <= 1


def test_a_picture_without_its_noise_is_refused_with_the_reason(
    tmp_path: Path, pocket: CountGuidedPipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    guided = kept(pocket, "two cats on grass", "prompt-steering", tmp_path)
    assert main(["export", str(guided)]) == 2
    assert "guides the single steps" in capsys.readouterr().err
    plain = kept(pocket, "two cats on grass", "none", tmp_path)
    with pytest.raises(UsageError, match="side-by-side"):
        export(Provenance(read(plain).settings), tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("kind", ["missing", "text", "plain", "cut"])
def test_files_that_are_no_pictures_of_ours_are_told(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], pocket: CountGuidedPipeline
) -> None:
    path = tmp_path / "a.png"
    if kind == "text":
        path.write_text("no picture")
    if kind == "plain":
        Image.new("RGB", (8, 8)).save(path)
    if kind == "cut":
        whole = kept(pocket, "two cats", "none", tmp_path).read_bytes()
        path.write_bytes(whole[: len(whole) // 3])
    code = main(["export", str(path)])
    err = capsys.readouterr().err
    assert code in (1, 2) and err.startswith("countgen: ") and "a.png" in err
    assert err.count("\n") == 1 and [p.suffix for p in tmp_path.iterdir()].count("") == 0


HOSTILE = 'x"\n"""\nimport os; os.system("touch pwned")\n'


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": HOSTILE},
        {"model": HOSTILE},
        {"dtype": "float32); import os; (1"},
        {"dtype": "nn"},
        {"load": {"variant": HOSTILE}},
        {"diffusers": {"kind": HOSTILE, "arguments": {}}},
        {"diffusers": {"kind": "A", "arguments": {"a=1); import os; b": 1}}},
        {"diffusers": {"kind": "A", "arguments": {"height": HOSTILE}}},
        {"diffusers": {"kind": "A", "arguments": {"height": float("nan")}}},
        {"diffusers": {"arguments": 3}},
        {"diffusers": None},
        {"token": {"text": HOSTILE, "prompt": HOSTILE}},
        {"token": 3},
    ],
    ids=str,
)
def test_a_strangers_picture_puts_no_code_into_the_script(
    change: dict[str, object], tmp_path: Path, pocket: CountGuidedPipeline
) -> None:
    """What is written is a script whose only calls are those of the honest one."""
    import ast

    made = read(kept(pocket, "two cats", "none", tmp_path))
    changed = replace(made, settings={**made.settings, **change})
    try:
        script = export(changed, tmp_path / "x")[0]
    except UsageError as error:
        assert "damaged" in str(error)
        assert not (tmp_path / "x").exists()
        return
    honest = export(made, tmp_path / "y")[0]

    def calls(path: Path) -> list[str]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = [ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)]
        return names + [ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Import)]

    assert calls(script) == calls(honest)


def test_noise_that_is_no_noise_is_refused(tmp_path: Path, pocket: CountGuidedPipeline) -> None:
    made = read(kept(pocket, "two cats", "none", tmp_path))
    latents = made.tensors["latents"]
    for tensors in (
        {"latents": latents[0]},
        {"latents": latents * torch.nan},
        {"latents": latents, "step_noise": torch.zeros(2, 1, 3, 3, 3)},
        {"other": latents},
    ):
        with pytest.raises(UsageError, match="noise of the picture is damaged"):
            export(replace(made, tensors=tensors), tmp_path / "x")


def test_the_file_carries_how_the_picture_came_about(
    tmp_path: Path, pocket: CountGuidedPipeline
) -> None:
    path = kept(pocket, "eleven dogs and four cats", "engine", tmp_path)
    made = read(path)
    assert made.settings["moves"][0] == "draw" and made.settings["method"] == "engine"
    assert made.settings["targets"] == [{"noun": "dog", "count": 11}, {"noun": "cat", "count": 4}]
    again = pocket(
        "eleven dogs and four cats", latents=made.tensors["latents"], guidance="none"
    ).images[0]
    with Image.open(path) as picture:
        assert np.abs(np.asarray(again).astype(int) - np.asarray(picture)).max() <= 1
