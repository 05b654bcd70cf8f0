"""The parts in the guide are run as they stand there."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from countgen import CountGuidedPipeline, Method
from countgen.engine.policy import DrawThenImprove
from critics.base import CountEstimate

GUIDE = Path(__file__).parents[3] / "docs" / "contributing" / "add-to-guidance.md"


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    template, _ = re.findall(
        r"^```python\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.M | re.S
    )
    path = tmp_path_factory.mktemp("guidance") / "parts_of_the_guide.py"
    path.write_text(template, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their annotations up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def methods(parts: ModuleType) -> dict[str, Method]:
    _, usage = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.M | re.S)
    names: dict[str, Any] = {**vars(parts), "DrawThenImprove": DrawThenImprove}
    exec(usage, names)
    return {name: names[name] for name in ("mirror", "bright")}


def test_the_objective_is_its_formula_and_has_a_gradient(parts: ModuleType) -> None:
    wanted = torch.tensor([[3, 1]])

    def value(soft: torch.Tensor) -> torch.Tensor:
        mask = torch.tensor([[True, False]])
        return parts.LogRatio()(CountEstimate(soft, soft.detach().long(), mask), wanted)

    soft = torch.tensor([[7.0, 5.0]], dtype=torch.float64, requires_grad=True)
    assert value(soft).item() == pytest.approx(torch.log(torch.tensor(2.0)).item() ** 2, rel=1e-6)
    assert torch.autograd.gradcheck(value, soft)


def test_the_parts_guide_pictures(pocket: CountGuidedPipeline, methods: dict[str, Method]) -> None:
    prompts = ["nine cups on grass", "eight dogs"]
    options: dict[str, Any] = {"seed": 3, "budget": 12, "num_images_per_prompt": 2}
    mirrored = pocket(prompts, guidance=methods["mirror"], **options)
    edits = [r for history in mirrored.history for r in history if r.move == "edit"]
    assert edits and all(r.changes[0].kind == "mirror" for r in edits)
    assert not mirrored.cost.backwards
    moved = pocket(prompts, guidance=methods["bright"], **options)
    climbs = [r for history in moved.history for r in history if r.move == "improve" and r.step]
    assert climbs and all(r.drift > 0 for r in climbs)
    kept = [rows["offset"] for rows in moved.rows if rows is not None]
    assert len(moved.rows) == 4 and any(offset.any() for offset in kept)


def test_an_unknown_change_is_refused_by_name(
    pocket: CountGuidedPipeline, parts: ModuleType
) -> None:
    lost = Method("lost", "asks for what nobody makes", parts.DrawThenMirror())
    found = pocket(
        ["nine cups on grass"] * 4, guidance=lost, seed=3, budget=12, prompt_ids=list("abcd")
    )
    failed = [job for job in found.jobs if job.outcome == "failed"]
    assert failed and all("mirror" in str(job.error) for job in failed)
