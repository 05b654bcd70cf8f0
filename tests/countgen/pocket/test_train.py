"""The recipe: it starts, can be interrupted, and goes on as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from countgen.learning.loop import Losses, TrainConfig, fit, rate
from countgen.pocket import ROLES, load_clip, load_critic, load_generator
from countgen.pocket.captions import caption
from countgen.pocket.scenes import SceneSpec, compose
from countgen.pocket.train import counters, scenery, targets
from countgen.pocket.train.__main__ import STAGES
from countgen.pocket.train.autoencoder import STYLE
from countgen.pocket.world import FOLDER, NAMES
from critics.detectors.base import DetectionCritic
from critics.detectors.heatmap import heatmap_loss


def line_fit(work: Path, *, stop_after: int | None = None) -> nn.Module:
    """A small regression whose batches depend on seed and step, as pocket's do."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.SiLU(), nn.Linear(8, 1))

    def loss(rng: np.random.Generator, noise: torch.Generator) -> Losses:
        x = torch.from_numpy(rng.normal(size=(16, 3))).float()
        y = x.sum(1, keepdim=True) + 0.1 * torch.randn(16, 1, generator=noise)
        return {"loss": (model(x) - y).square().mean()}

    config = TrainConfig(steps=40, batch=16, learning_rate=1e-2, warmup=5, ema=0.9)
    return fit("line", model, loss, config, work, stop_after=stop_after)


def test_a_run_cut_in_two_ends_in_the_same_weights(tmp_path: Path) -> None:
    whole = line_fit(tmp_path / "whole").state_dict()
    line_fit(tmp_path / "cut", stop_after=17)
    resumed = line_fit(tmp_path / "cut").state_dict()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_training_learns_and_writes_its_log(tmp_path: Path) -> None:
    line_fit(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "line.log.jsonl").read_text().splitlines()]
    assert rows[0]["step"] == 0 and rows[-1]["loss"] < rows[0]["loss"] / 2


def test_the_learning_rate_rises_then_falls_to_zero() -> None:
    config = TrainConfig(steps=100, batch=1, warmup=10)
    values = [rate(step, config) for step in range(101)]
    assert values[0] == pytest.approx(0.1) and max(values) == values[10] == 1
    assert values[100] == pytest.approx(0) and values[55] == pytest.approx(0.5)


def test_a_non_finite_gradient_skips_the_step(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)

    def loss(rng: np.random.Generator, noise: torch.Generator) -> Losses:
        scale = float("nan") if rng.random() < 0.5 else 1.0
        return {"loss": (model(torch.ones(1, 1)) * scale).sum()}

    fit("nan", model, loss, TrainConfig(steps=20, batch=1, warmup=1), tmp_path)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_targets_hold_every_object_once() -> None:
    spec = SceneSpec((("cat", 7), ("star", 4)))
    scenes = [compose(spec, seed) for seed in range(4)]
    peaks, _, mask, total = targets.heatmap_targets(scenes, 64)
    assert total == 44 and int(mask.sum()) == 44
    assert (peaks == 1).sum((0, 2, 3))[[NAMES.index("cat"), NAMES.index("star")]].tolist() == [
        28,
        16,
    ]
    blocks = targets.block_counts(scenes, 64)
    assert blocks.sum((2, 3))[:, NAMES.index("cat")].tolist() == [7] * 4
    assert blocks.sum() == 44
    classes, sides, ignore = targets.dense_targets(scenes, 96)
    positive = classes.amax(1) > 0
    assert (classes.sum(1) <= 1).all() and not (positive & ignore).any()
    assert (sides.movedim(1, -1)[positive] > -2).all()


def test_every_object_keeps_a_positive_cell_in_crowded_scenes() -> None:
    """The judge can only learn objects that its targets hold."""
    for seed in range(20):
        scene = compose(SceneSpec((("dog", 12), ("ball", 8))), seed)
        classes, _, _ = targets.dense_targets([scene], 96)
        for box, label in zip(scene.boxes * 1.5, scene.labels, strict=True):
            x0, y0, x1, y1 = (box / 4).round().astype(int)
            assert classes[0, label, y0:y1, x0:x1].any()


def recipe(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "countgen.pocket.train", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


@pytest.mark.slow
def test_every_stage_of_the_recipe_writes_files_that_load(tmp_path: Path) -> None:
    done = recipe("all", "--work", "runs", "--steps", "2", "--held-out", "16", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [line["stage"] for line in lines] == list(STAGES)
    out = tmp_path / "runs" / "pocket"
    assert load_generator(out / "generator")("two cats", num_inference_steps=1).images
    load_clip(out / "clip")
    for name in ROLES.values():
        load_critic(name, out / name.removeprefix("pocket-"))
    assert json.loads((out / "density" / "training.json").read_text())["config"]["steps"] == 2


@pytest.mark.slow
def test_two_workers_share_a_batch_and_end_in_the_same_weights(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\n"
        "import torch\n"
        "from torch import distributed\n"
        "from test_train import line_fit\n"
        "distributed.init_process_group('gloo')\n"
        "model = line_fit(Path('work'))\n"
        "flat = torch.cat([p.detach().flatten() for p in model.parameters()])\n"
        "both = [torch.empty_like(flat) for _ in range(2)]\n"
        "distributed.all_gather(both, flat)\n"
        "assert torch.equal(*both)\n"
        "distributed.barrier()\n"
        "distributed.destroy_process_group()\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, "--nproc-per-node", "2", str(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    # One log and one checkpoint, written by the first worker alone.
    steps = [json.loads(row)["step"] for row in (tmp_path / "work/line.log.jsonl").open()]
    assert steps == [0, 20]
    alone = line_fit(tmp_path / "alone").state_dict()
    shared = torch.load(tmp_path / "work/line.checkpoint", weights_only=True)["average"]
    assert any(not torch.equal(alone[key], shared[key]) for key in alone)


def test_redrawn_scenes_keep_their_objects() -> None:
    """What the generator redraws is still counted as composed: its labels stay true."""
    renderer = scenery.Renderer.load(FOLDER / "generator", "cpu")
    judge = load_critic(ROLES["judge"])
    rng, noise = np.random.default_rng(3), torch.Generator().manual_seed(3)
    specs = [SceneSpec((("star", 4), ("ball", 3)), "grass") for _ in range(12)]
    scenes = [compose(spec, i, STYLE) for i, spec in enumerate(specs)]
    images = scenery.pixels(scenes, 64)
    start = torch.full((12,), 0.5)
    epsilon = torch.randn(
        12, *renderer.pipeline.vae.encode(images).latent.shape[1:], generator=noise
    )
    drawn = renderer.redraw(images, [caption(s, rng) for s in specs], start, epsilon, 3)
    assert drawn.shape == images.shape and 0.01 < (drawn - images).abs().mean() < 0.2
    found = judge(drawn, [judge.prepare(["star", "ball"])] * 12).hard.float()
    assert (found - torch.tensor([4.0, 3.0])).abs().mean() < 0.5


def test_scenery_is_a_function_of_its_seeds() -> None:
    renderer = scenery.Renderer.load(FOLDER / "generator", "cpu")
    draw = scenery.Scenery(scenery.judge_style, scenery.JUDGE_SIZE, renderer, "cpu")
    draws = [
        draw(np.random.default_rng(seed), torch.Generator().manual_seed(seed), 12)
        for seed in (1, 1, 2)
    ]
    assert torch.equal(draws[0][2], draws[1][2]) and not torch.equal(draws[0][2], draws[2][2])
    assert draws[0][2].shape == (12, 3, 96, 96) and draws[0][2].aminmax().max <= 1


def test_counted_pictures_come_with_their_numbers_and_are_still_counted_so() -> None:
    """Mirrored, shifted and in other light: the critic, which ended its training on them, agrees."""
    pictures = scenery.CountedPictures.load("search")
    critic = load_critic(ROLES["critic"])
    images, nouns, wanted = pictures(np.random.default_rng(1), 48)
    again = pictures(np.random.default_rng(1), 48)
    assert torch.equal(images, again[0]) and nouns == again[1] and torch.equal(wanted, again[2])
    assert images.shape == (48, 3, 64, 64) and images.aminmax().max <= 1
    assert wanted.shape == (48, max(map(len, nouns))) and wanted.sum() > 100
    found = critic(images, [critic.prepare(some) for some in nouns]).hard
    assert (found == wanted).all(1).float().mean() > 0.85


def test_the_norms_are_held_while_a_counter_settles(tmp_path: Path) -> None:
    critic = load_critic(ROLES["critic"])
    assert isinstance(critic, DetectionCritic)
    critic.network.requires_grad_(True)
    draw = scenery.Scenery(scenery.plain_style, 64, None, "cpu")

    def scene_loss(rng: np.random.Generator, noise: torch.Generator, batch: int) -> Losses:
        _, scenes, images = draw(rng, noise, batch)
        peaks, *_, total = targets.heatmap_targets(scenes, 64)
        return {"loss": heatmap_loss(critic.network(images)[0], peaks, total)}

    before = {key: value.clone() for key, value in critic.network.state_dict().items()}
    counters.settle(
        "settled",
        critic,
        scene_loss,
        counters.margin_loss,
        scenery.CountedPictures.load("search"),
        TrainConfig(steps=2, batch=4, warmup=0, ema=0.0),
        tmp_path,
    )
    after = critic.network.state_dict()
    changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert changed and not any("running" in key or "batches" in key for key in changed)


def test_a_stage_without_the_autoencoder_says_what_to_run(tmp_path: Path) -> None:
    done = recipe("generator", "--work", "runs", cwd=tmp_path)
    assert done.returncode == 1
    assert "run `python -m countgen.pocket.train autoencoder`" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_teaches_the_stages(tmp_path: Path) -> None:
    done = recipe("--help", cwd=tmp_path)
    assert done.returncode == 0
    for word in ("autoencoder", "detector-b", "the judge", "Ctrl-C", "four hours"):
        assert word in done.stdout


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_and_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "countgen.pocket.train", "autoencoder", "--work", "runs"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that starts jobs in the background lets them ignore Ctrl-C; a terminal does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    log = tmp_path / "runs" / "autoencoder.log.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (log.exists() and log.read_text()):
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "the same command goes on" in errors and "Traceback" not in errors
    assert (tmp_path / "runs" / "autoencoder.checkpoint").exists()
