"""What the training loop keeps, and what it refuses to go on from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from countgen.errors import UsageError
from countgen.learning.loop import Losses, TrainConfig, fit

CONFIG = TrainConfig(steps=12, batch=8, learning_rate=1e-2, warmup=2, ema=0.9)


def half_frozen(
    work: Path, config: TrainConfig = CONFIG, stop_after: int | None = None
) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 1))
    model[0].requires_grad_(False)

    def loss(rng: np.random.Generator, noise: torch.Generator) -> Losses:
        x = torch.from_numpy(rng.normal(size=(config.batch, 3))).float()
        return {"loss": (model(x) - x.sum(1, keepdim=True)).square().mean()}

    return fit("half", model, loss, config, work, stop_after=stop_after)


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
