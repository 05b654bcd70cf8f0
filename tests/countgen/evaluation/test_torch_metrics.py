"""The torchmetrics count what a plain loop counts, and add up over batches and processes."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch

from countgen.evaluation.torch_metrics import CountConfusion, CountError


def counts(seed: int, pictures: int = 40) -> tuple[torch.Tensor, ...]:
    random = torch.Generator().manual_seed(seed)
    wanted = torch.randint(0, 8, (pictures, 3), generator=random)
    found = (wanted + torch.randint(-2, 3, (pictures, 3), generator=random)).clamp_min(0)
    mask = torch.rand(pictures, 3, generator=random) < 0.6
    mask[:, 0] = True
    return found, wanted, mask


def reference(found: torch.Tensor, wanted: torch.Tensor, mask: torch.Tensor) -> dict[str, float]:
    off, exact = [], 0
    for row in range(len(wanted)):
        errors = [int(found[row, k] - wanted[row, k]) for k in range(3) if mask[row, k]]
        exact += not any(errors)
        off += errors
    return {
        "exact": exact / len(wanted),
        "within_one": sum(abs(e) <= 1 for e in off) / len(off),
        "mae": sum(map(abs, off)) / len(off),
        "rmse": math.sqrt(sum(e * e for e in off) / len(off)),
        "bias": sum(off) / len(off),
    }


def test_errors_are_those_of_a_plain_loop_whatever_the_batches() -> None:
    found, wanted, mask = counts(0)
    metric = CountError()
    for part in range(0, 40, 7):
        at = slice(part, part + 7)
        metric.update(found[at], wanted[at], mask[at])
    values = {name: float(value) for name, value in metric.compute().items()}
    assert values == pytest.approx(reference(found, wanted, mask), abs=1e-9)


def test_the_confusion_is_scikit_learns_kind_of_table() -> None:
    metric = CountConfusion(most=4)
    metric.update(torch.tensor([[1, 2], [9, 0]]), torch.tensor([[1, 3], [4, 0]]))
    table = metric.compute()
    assert table.sum() == 4 and table[1, 1] == table[3, 2] == table[4, 4] == table[0, 0] == 1


def test_wrong_shapes_and_sizes_are_told() -> None:
    with pytest.raises(ValueError, match="one shape"):
        CountError().update(
            torch.zeros(2, 1, dtype=torch.int64), torch.zeros(3, 1, dtype=torch.int64)
        )
    with pytest.raises(ValueError, match="at least 1"):
        CountConfusion(most=0)


def _process(rank: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    found, wanted, mask = counts(rank, 30 + 10 * rank)
    error, confusion = CountError(), CountConfusion(most=9)
    error.update(found, wanted, mask)
    confusion.update(found, wanted, mask)
    values = {name: float(value) for name, value in error.compute().items()}
    torch.save((values, confusion.compute()), os.path.join(folder, f"{rank}.pt"))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_have_the_figures_of_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_process, (str(tmp_path),), nprocs=2)
    parts = [counts(0, 30), counts(1, 40)]
    found, wanted, mask = (torch.cat(each) for each in zip(*parts, strict=True))
    confusion = CountConfusion(most=9)
    confusion.update(found, wanted, mask)
    for rank in range(2):
        values, table = torch.load(tmp_path / f"{rank}.pt")
        assert values == pytest.approx(reference(found, wanted, mask), abs=1e-9)
        assert torch.equal(table, confusion.compute())
