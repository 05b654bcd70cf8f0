"""Kernel distance, diversity and fit see what they should, and nothing where there is nothing."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from countgen.errors import UsageError
from countgen.evaluation.library_scores import library_scores
from countgen.evaluation.quality import (
    Looks,
    check_unseen,
    compare,
    exact_plain,
    kernel_distance,
    mean_pairwise_distance,
    measured,
    polynomial_kernel,
    quality,
)
from countgen.evaluation.runs import load_picture, picture_path
from countgen.guidance.scores import pocket_score
from countgen.pocket import load_clip
from countgen.pocket.scenes import SceneSpec, compose
from critics.loading.checkpoint import CheckpointError


def looks(seed: int, shift: float = 0.0, prompts: int = 30, each: int = 4) -> dict[str, Looks]:
    """Random unit features, of which each prompt has its own mean."""
    random, means = np.random.default_rng(seed), np.random.default_rng(0)
    out = {}
    for number in range(prompts):
        mean = means.normal(size=16)
        found = mean + random.normal(size=(each, 16))
        found[:, 0] += shift
        found /= np.linalg.norm(found, axis=1, keepdims=True)
        out[f"p{number}"] = Looks(found, random.random(each))
    return out


def test_the_kernel_distance_is_the_mean_product_of_two_prompts_differences() -> None:
    first, second = looks(1, 0.5, 5, 3), looks(2, 0.0, 5, 2)

    def inner(p: str, q: str) -> float:
        def mean(a: Any, b: Any) -> float:
            values = [((x @ y) + 1) ** 3 for x in a[p].features for y in b[q].features]
            return sum(values) / len(values)

        return mean(first, first) + mean(second, second) - mean(first, second) - mean(second, first)

    expected = np.mean([inner(p, q) for p in first for q in first if p != q])
    assert kernel_distance(first, second)["value"] == pytest.approx(expected, abs=1e-6)


def test_the_kernel_is_that_of_torchmetrics() -> None:
    torch = pytest.importorskip("torch")
    kid = _torchmetrics_kid()
    x = np.random.default_rng(0).normal(size=(4, 8))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    tensor = torch.from_numpy(x)
    assert np.allclose(
        polynomial_kernel(x, x), kid.poly_kernel(tensor, tensor, gamma=1.0), atol=1e-9
    )


def _torchmetrics_kid() -> Any:
    from countgen.evaluation.torch_metrics import CountError  # loads torchmetrics as it must be

    assert CountError
    import torchmetrics.image.kid as kid

    return kid


def test_equal_distributions_are_near_and_shifted_ones_are_not() -> None:
    near, far = kernel_distance(looks(1), looks(2)), kernel_distance(looks(1, 3.0), looks(2))
    assert near["value_ci95"][0] < 0 < near["value_ci95"][1] and near["kept"]
    assert far["of_spread_ci95"][0] > 0.05 and far["kept"] is False


def test_without_a_partner_there_is_no_distance() -> None:
    one = {"a": looks(1)["p0"]}
    assert kernel_distance(one, one)["value"] is None
    found = compare({}, one)
    assert found["n_images"] == 0 and found["diversity"]["change"] is None
    single = {name: Looks(seen.features[:1], seen.fit[:1]) for name, seen in looks(1).items()}
    assert kernel_distance(single, single)["of_spread"] is None


def test_the_pairwise_distance_is_that_of_scipy() -> None:
    distance = pytest.importorskip("scipy.spatial.distance")
    features = looks(1, each=5)["p0"].features
    expected = distance.pdist(features, "cosine").mean()
    assert mean_pairwise_distance(features) == pytest.approx(expected, abs=1e-9)


def test_every_plain_draw_is_taken_once() -> None:
    def row(method: str, image: int, found: int) -> dict[str, Any]:
        return {"method": method, "id": "p", "image": image, "wanted": [2], "judge": [found]}

    rows = [row("none", 0, 2), row("none", 1, 3), row("best-of-n", 0, 2), row("edit", 0, 2)]
    assert [found["method"] for found in exact_plain(rows)] == ["best-of-n"]


def scene(folder: Path, method: str, number: int, image: int, blurred: bool) -> dict[str, Any]:
    picture = Image.fromarray(
        np.asarray(compose(SceneSpec((("star", number),), "grass"), 10 * number + image).image)
    )
    if blurred:
        picture = picture.filter(ImageFilter.GaussianBlur(3))
    prompt = f"p{number}"
    picture.save(picture_path(folder, method, prompt, image))
    return {
        "method": method, "id": prompt, "image": image, "prompt": f"{number} stars on grass",
        "nouns": ["star"], "wanted": [number], "judge": [number], "verified": True,
    }  # fmt: skip


def test_pictures_of_a_run_that_were_blurred_are_told_from_those_that_were_not(
    tmp_path: Path,
) -> None:
    rows = [
        scene(tmp_path, method, number, image + 5 * (method != "best-of-n"), method == "noise")
        for method in ("best-of-n", "edit", "noise")
        for number in range(2, 8)
        for image in range(3)
    ]
    found = quality(rows, tmp_path, pocket_score())
    assert set(found) == {"edit", "noise"}
    edit, noise = (found[name]["kernel_distance"] for name in ("edit", "noise"))
    assert noise["value"] > 0.05 and noise["value"] > 5 * abs(edit["value"])
    assert abs(found["edit"]["fit"]["change"]) < 0.05
    assert found["edit"]["n_images"] == 18 and found["edit"]["n_plain"] == 18
    with pytest.raises(UsageError, match="nothing to compare"):
        quality([row for row in rows if row["method"] == "edit"], tmp_path, pocket_score())


def test_methods_that_a_clip_guided_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from countgen.guidance.methods import METHODS

    check_unseen(METHODS)
    monkeypatch.setitem(METHODS, "noise", replace(METHODS["noise"], semantic=0.5))
    with pytest.raises(UsageError, match="noise is guided by a CLIP"):
        check_unseen(["edit", "noise"])


def run_of_scenes(folder: Path) -> list[dict[str, Any]]:
    return [
        scene(folder, method, number, image + 5 * (method != "best-of-n"), method == "noise")
        for method in ("best-of-n", "edit", "noise")
        for number in range(2, 8)
        for image in range(3)
    ]


def test_torchmetrics_scores_are_those_of_the_clip(tmp_path: Path) -> None:
    rows, score = run_of_scenes(tmp_path), pocket_score()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # whoever evaluates should read none of the library's
        found = library_scores(rows, tmp_path, score)
    assert set(found) == {"best-of-n", "edit", "noise"}
    own = [row for row in rows if row["method"] == "edit"]
    with torch.no_grad():
        pictures = torch.stack([load_picture(tmp_path, row) for row in own])
        fits = score(pictures, [score.prepare(row["prompt"]) for row in own])
    expected = (100 * (2 * fits - 1)).clamp_min(0).mean()
    assert found["edit"]["clip_score"] == pytest.approx(float(expected), abs=0.01)
    assert found["best-of-n"]["kid"] is None
    assert (found["noise"]["kid"] or 0) > 5 * abs(found["edit"]["kid"] or 0)
    assert library_scores(rows, tmp_path, score) == found


def test_another_model_is_measured_with_the_clip_that_is_named(tmp_path: Path) -> None:
    rows = run_of_scenes(tmp_path)
    assert "--clip" in measured(rows, tmp_path, "sdxl-turbo")
    clip = tmp_path / "clip"
    model, tokenizer = load_clip()
    model.save_pretrained(clip)
    tokenizer.save_pretrained(clip)
    found = measured(rows, tmp_path, "sdxl-turbo", str(clip))
    assert not isinstance(found, str)
    assert {"clip_score", "kid", "kernel_distance", "fit"} <= set(found["edit"])
    with pytest.raises(CheckpointError, match="nowhere"):
        measured(rows, tmp_path, "sdxl-turbo", str(tmp_path / "nowhere"))
