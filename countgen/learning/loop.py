"""One training loop for everything that is trained: seeded, resumable, with an average of the weights."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, distributed, nn

from countgen.errors import UsageError

MAX_SEED = 2**32 - 1
"""What numpy takes, and what steps and workers can be added to."""
Losses = Mapping[str, Tensor]
LossFunction = Callable[[np.random.Generator, torch.Generator], Losses]
"""Draws one batch from the two generators (pictures, noise) and returns its terms; "loss" is minimised."""


@dataclass(frozen=True)
class TrainConfig:
    """How long and how fast one model is trained.

    Attributes:
        steps: optimiser steps; the learning rate falls to zero along half a cosine.
        batch: pictures a step.
        learning_rate: peak of AdamW.
        warmup: steps of linear rise.
        ema: decay of the weight average that is saved; 0 saves the weights themselves.
        clip: largest gradient norm.
        seed: of weights, data and noise.
        held_out: scenes, each of few and of many objects, that a finished counter is scored on.
    """

    steps: int
    batch: int
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: int = 100
    ema: float = 0.998
    clip: float = 1.0
    seed: int = 0
    held_out: int = 1000

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < math.inf:
            raise UsageError(
                f"the learning rate must be positive and finite, not {self.learning_rate:g}"
            )
        if not 0 <= self.seed <= MAX_SEED:
            raise UsageError(
                f"the seed of a training must be from 0 to {MAX_SEED}, not {self.seed}"
            )


def rate(step: int, config: TrainConfig) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then half a cosine to zero."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    return 0.5 * (1 + math.cos(math.pi * (step - config.warmup) / (config.steps - config.warmup)))


def fit(
    name: str,
    model: nn.Module,
    loss_function: LossFunction,
    config: TrainConfig,
    work: Path,
    *,
    look: Callable[[nn.Module, int], str] | None = None,
    look_every: int = 500,
    stop_after: int | None = None,
    save_every: float = 60.0,
    at_step: Callable[[int], None] | None = None,
) -> nn.Module:
    """Train ``model`` in place, and leave it holding the averaged weights.

    The batch of a step depends on the seed and the step alone, so a run that was interrupted (Ctrl-C, a
    killed process) goes on from its last checkpoint in ``work`` as if nothing had happened. Several workers
    (torchrun) draw different pictures for the same step and average their gradients; the first one writes.

    Parameters that ask for no gradient (what a LoRA stands on) are neither trained nor kept.

    Args:
        name: of the checkpoint and the log.
        look: called with the averaged model every ``look_every`` steps; returns a line for the log
            (held-out scores) and may write samples.
        stop_after: end early at this step, on the same learning-rate curve, leaving a checkpoint.
        save_every: seconds between checkpoints.
        at_step: told the number of every step before its batch, for losses that change on the way.

    Raises:
        UsageError: the checkpoint in ``work`` is damaged, or of another config or model.
    """
    from countgen.cli import interrupts_raise

    work.mkdir(parents=True, exist_ok=True)
    rank, workers = worker()
    checkpoint, log = work / f"{name}.checkpoint", work / f"{name}.log.jsonl"
    device = next(model.parameters()).device
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(
        trained,
        config.learning_rate,
        (0.9, 0.99),
        weight_decay=config.weight_decay,
        fused=True,
    )
    average = {key: value.clone() for key, value in _own(model).items()}
    start = 0
    if checkpoint.exists():
        state = _read_checkpoint(checkpoint, device)
        _check_config(state["config"], config, checkpoint)
        if _shapes(state["model"]) != _shapes(average):
            raise UsageError(f"{checkpoint} is of a training of another model; take another folder")
        model.load_state_dict(state["model"], strict=False)
        optimiser.load_state_dict(state["optimiser"])
        average, start = state["average"], state["step"]

    def save(step: int) -> None:
        if rank > 0:
            return
        partial = checkpoint.with_suffix(".partial")
        state: dict[str, Any] = {"model": _own(model), "optimiser": optimiser.state_dict()}
        state |= {"average": average, "step": step, "config": asdict(config)}
        torch.save(state, partial)
        os.replace(partial, checkpoint)

    def look_now(step: int) -> None:
        if look is None or rank > 0:
            return
        own = {key: value.clone() for key, value in _own(model).items()}
        try:
            model.load_state_dict(average, strict=False)
            model.eval()
            with torch.no_grad():
                line = look(model, step)
        finally:  # an interrupted look must not leave the average to be saved as what is trained
            model.load_state_dict(own, strict=False)
            model.train()
        bar.console.print(f"{name} step {step}: {line}")

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} {task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True, quiet=rank > 0),
    )
    model.train()
    end = min(config.steps, stop_after or config.steps)
    saved = time.monotonic()
    done, whole = start, True  # steps that the state has, and whether it lies between two of them
    with interrupts_raise(), bar, log.open("a") as lines:
        task = bar.add_task(name, total=config.steps, completed=start, note="")
        try:
            for step in range(start, end):
                own = [rank] if rank else []
                numbers = np.random.default_rng([config.seed, step, *own])
                noise = torch.Generator().manual_seed(config.seed * 1_000_003 + step + rank * 2**40)
                if at_step is not None:
                    at_step(step)
                losses = loss_function(numbers, noise)
                optimiser.zero_grad(set_to_none=True)
                losses["loss"].backward()
                _average_gradients(model, workers)
                norm = nn.utils.clip_grad_norm_(trained, config.clip)
                for group in optimiser.param_groups:
                    group["lr"] = config.learning_rate * rate(step, config)
                whole = False
                if torch.isfinite(norm):
                    optimiser.step()
                _update_average(average, model, min(config.ema, (1 + step) / (10 + step)))
                done, whole = step + 1, True
                if step % 20 == 0 and rank == 0:
                    row = {key: round(float(value.detach()), 5) for key, value in losses.items()}
                    lines.write(json.dumps({"step": step} | row) + "\n")
                    lines.flush()
                    bar.update(task, note=" ".join(f"{k} {v:.3f}" for k, v in row.items()))
                bar.update(task, completed=step + 1)
                if time.monotonic() - saved > save_every:
                    save(step + 1)
                    saved = time.monotonic()
                if look and ((step + 1) % look_every == 0 or step + 1 == end):
                    look_now(step + 1)
        except KeyboardInterrupt:
            if whole:
                save(done)
            kept = f"at step {done}" if whole else f"within step {done + 1}"
            bar.console.print(f"{name}: interrupted {kept}; the same command goes on")
            raise
    save(max(start, end))
    if workers > 1:
        distributed.barrier()  # nobody starts the next stage before its checkpoint lies there
    model.load_state_dict(average, strict=False)
    return model.eval()


def _own(model: nn.Module) -> dict[str, Tensor]:
    """What training changes: the state without frozen parameters."""
    frozen = {key for key, value in model.named_parameters() if not value.requires_grad}
    return {k: v.detach() for k, v in model.state_dict().items() if k not in frozen}


def _read_checkpoint(checkpoint: Path, device: torch.device) -> dict[str, Any]:
    try:
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        if {"model", "optimiser", "average", "step", "config"} <= state.keys():
            return dict(state)
    except OSError:
        raise
    except Exception:  # pickles, archives and tensors each fail in their own way
        pass
    raise UsageError(
        f"{checkpoint} is damaged; remove it to train from the start, or take another folder"
    )


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in state.items()}


def _check_config(stored: dict[str, object], config: TrainConfig, checkpoint: Path) -> None:
    asked = asdict(config)
    other = [key for key, value in asked.items() if stored.get(key) != value]
    if other:
        was = ", ".join(f"{key} {stored.get(key)}, now {asked[key]}" for key in other)
        raise UsageError(
            f"{checkpoint} is of a training with other settings ({was}); take another folder, or the "
            "settings of before"
        )


def _update_average(average: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    for key, value in _own(model).items():
        if value.is_floating_point():
            average[key].lerp_(value, 1 - decay)
        else:
            average[key].copy_(value)


def worker() -> tuple[int, int]:
    """Rank of this process and the number of workers: (0, 1) unless started by torchrun."""
    if not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def _average_gradients(model: nn.Module, workers: int) -> None:
    if workers == 1:
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    distributed.all_reduce(flat)
    parts = flat.div_(workers).split([g.numel() for g in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))
