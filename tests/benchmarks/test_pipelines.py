"""The benchmark of generators: its document, and that its models have the published sizes."""

from __future__ import annotations

import json
import math

import pytest
import torch

from benchmarks import pipelines as benchmark
from benchmarks.real_sizes import MODELS
from pipelines.memory import NAMES


@pytest.mark.parametrize("name", MODELS)
def test_full_models_have_as_many_parameters_as_the_published_ones(name: str) -> None:
    model = MODELS[name]
    with torch.device("meta"):
        denoiser, vae = model.modules(tiny=False)
    millions = sum(p.numel() for p in denoiser.parameters()) / 1e6
    assert millions == pytest.approx(model.parameters, rel=0.01)
    assert 80 < sum(p.numel() for p in vae.parameters()) / 1e6 < 320


def test_every_model_is_timed_with_every_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--json", "--repeats", "1", "--batches", "1"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["size"] == "tiny" and set(document["pipelines"]) == set(MODELS)
    for plans in document["pipelines"].values():
        assert tuple(plans) == NAMES
        for plan in plans.values():
            for thing in ("forward", "graph", "backward"):
                assert math.isfinite(plan["1"][thing]["seconds"]) and plan["1"][thing]["min"] > 0
        kept = [plans[name]["1"]["graph_bytes"] for name in NAMES]
        assert kept[0] > kept[1] >= kept[2] > 0


def test_the_guided_loop_is_timed_beside_its_bare_modules(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--json", "--pipelines", "sdxl-turbo", "--critic", "owlv2"]
    assert benchmark.main([*arguments, "--repeats", "1", "--batches", "1", "2"]) == 0
    (guided,) = json.loads(capsys.readouterr().out)["guided"]
    assert guided["pipeline"] == "sdxl-turbo" and guided["critic"] == "owlv2"
    for found in guided["by_batch"].values():
        assert found["ratio_to_floor"] > 0 and found["seconds"] > 0
