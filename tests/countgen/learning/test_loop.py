"""What the training loop keeps, and what it refuses to go on from."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from countgen.errors import UsageError
from countgen.learning import loop
from countgen.learning.loop import Losses, TrainConfig, fit

CONFIG = TrainConfig(steps=12, batch=8, learning_rate=1e-2, warmup=2, ema=0.9)


def half_frozen(
    work: Path,
    config: TrainConfig = CONFIG,
    stop_after: int | None = None,
    look: Callable[[nn.Module, int], str] | None = None,
    break_in: int | None = None,
) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 1))
    model[0].requires_grad_(False)

    left = iter(range(config.steps))

    def loss(rng: np.random.Generator, noise: torch.Generator) -> Losses:
        if next(left) == break_in:
            raise KeyboardInterrupt
        x = torch.from_numpy(rng.normal(size=(config.batch, 3))).float()
        return {"loss": (model(x) - x.sum(1, keepdim=True)).square().mean()}

    return fit("half", model, loss, config, work, look=look, look_every=4, stop_after=stop_after)


def test_frozen_parameters_are_neither_trained_nor_kept(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first = nn.Linear(3, 8)
    whole = half_frozen(tmp_path / "whole")
    assert torch.equal(whole[0].weight, first.weight)
    kept = torch.load(tmp_path / "whole" / "half.checkpoint", weights_only=True)
    assert set(kept["model"]) == set(kept["average"]) == {"2.weight", "2.bias"}
    half_frozen(tmp_path / "cut", stop_after=5)
    assert torch.equal(half_frozen(tmp_path / "cut")[2].weight, whole[2].weight)


def test_a_checkpoint_of_other_settings_is_refused_and_stays(tmp_path: Path) -> None:
    half_frozen(tmp_path, stop_after=5)
    before = (tmp_path / "half.checkpoint").read_bytes()
    with pytest.raises(UsageError, match=r"learning_rate 0\.01, now 0\.02"):
        half_frozen(tmp_path, replace(CONFIG, learning_rate=0.02))
    assert (tmp_path / "half.checkpoint").read_bytes() == before


def test_what_was_interrupted_in_a_step_or_in_a_look_goes_on_to_the_same(tmp_path: Path) -> None:
    whole = half_frozen(tmp_path / "whole")

    def interrupted(model: nn.Module, step: int) -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half_frozen(tmp_path / "cut", break_in=3)
    assert torch.load(tmp_path / "cut" / "half.checkpoint", weights_only=True)["step"] == 3
    with pytest.raises(KeyboardInterrupt):
        half_frozen(tmp_path / "cut", look=interrupted)
    assert torch.load(tmp_path / "cut" / "half.checkpoint", weights_only=True)["step"] == 4
    assert torch.equal(half_frozen(tmp_path / "cut")[2].weight, whole[2].weight)


def test_an_interruption_between_weights_and_average_keeps_the_last_whole_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = half_frozen(tmp_path / "whole")
    half_frozen(tmp_path / "cut", stop_after=5)
    before = (tmp_path / "cut" / "half.checkpoint").read_bytes()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_update_average", interrupted)
        with pytest.raises(KeyboardInterrupt):
            half_frozen(tmp_path / "cut")
    assert (tmp_path / "cut" / "half.checkpoint").read_bytes() == before
    assert torch.equal(half_frozen(tmp_path / "cut")[2].weight, whole[2].weight)


def test_ctrl_c_saves_a_checkpoint_where_the_command_line_would_leave_at_once(
    tmp_path: Path,
) -> None:
    from countgen.cli import _leave

    def pressed(model: nn.Module, step: int) -> str:
        signal.raise_signal(signal.SIGINT)
        return ""

    before = signal.signal(signal.SIGINT, _leave)
    try:
        with pytest.raises(KeyboardInterrupt):
            half_frozen(tmp_path, look=pressed)
        assert signal.getsignal(signal.SIGINT) is _leave
    finally:
        signal.signal(signal.SIGINT, before)
    assert torch.load(tmp_path / "half.checkpoint", weights_only=True)["step"] == 4


@pytest.mark.parametrize("cut", [0, 7, 1000])
def test_a_damaged_checkpoint_is_told_and_stays(tmp_path: Path, cut: int) -> None:
    half_frozen(tmp_path, stop_after=5)
    path = tmp_path / "half.checkpoint"
    path.write_bytes(path.read_bytes()[:cut])
    before = path.read_bytes()
    with pytest.raises(UsageError, match="is damaged; remove it"):
        half_frozen(tmp_path)
    assert path.read_bytes() == before


def test_a_checkpoint_of_another_model_is_told(tmp_path: Path) -> None:
    half_frozen(tmp_path, stop_after=5)
    other = nn.Linear(3, 1)
    with pytest.raises(UsageError, match="of a training of another model"):
        fit("half", other, lambda rng, noise: {}, CONFIG, tmp_path)
