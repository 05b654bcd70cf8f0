"""Training of counters: readers, targets, what is new in each family, resuming, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from countgen.cli import main
from countgen.errors import UsageError
from countgen.learning import counters, refer
from countgen.learning.annotated import PocketPoints, Pointed, read_points
from countgen.learning.counters import CounterSettings, relative_local_loss, whole_anchors
from countgen.learning.loop import TrainConfig
from countgen.pocket.scenes import SceneSpec, compose
from critics.registry import load_critic

TRAIN = TrainConfig(steps=4, batch=4, warmup=1, learning_rate=1e-3, ema=0.5, held_out=8)


def annotated_folder(place: Path, layout: str, pictures: int = 6) -> Path:
    """Scenes of cats, 96x64 pixels, annotated as COCO or FSC-147 are."""
    place.mkdir()
    images: list[Any] = []
    boxes: list[Any] = []
    points = {}
    for i in range(pictures):
        scene = compose(SceneSpec((("cat", 1 + i),)), i)
        picture = Image.new("RGB", (96, 64))
        picture.paste(Image.fromarray(scene.image), (32, 0))
        picture.save(place / f"{i}.png")
        moved = scene.boxes + np.array([32, 0, 32, 0])
        images.append({"id": i, "file_name": f"{i}.png"})
        for x0, y0, x1, y1 in moved.tolist():
            box = [x0, y0, x1 - x0, y1 - y0]
            boxes.append({"image_id": i, "category_id": 3, "bbox": box, "iscrowd": 0})
        points[f"{i}.png"] = {"points": ((moved[:, :2] + moved[:, 2:]) / 2).tolist()}
    if layout == "coco":
        data: Any = {"images": images, "annotations": boxes}
        data["categories"] = [{"id": 3, "name": "Cat"}]
        (place / "instances.json").write_text(json.dumps(data))
    else:
        (place / "annotation_FSC147_384.json").write_text(json.dumps(points))
        lines = "\n".join(f"{i}.png\tcats" for i in range(pictures))
        (place / "ImageClasses_FSC147.txt").write_text(lines)
    return place


class TestReaders:
    @pytest.mark.parametrize("layout", ["coco", "fsc-147"])
    def test_points_lie_where_the_objects_are(self, tmp_path: Path, layout: str) -> None:
        folder = annotated_folder(tmp_path / "data", layout)
        data = read_points(folder, 64, seed=0)
        assert data.vocabulary == ("cat",) and len(data.apart) == 1 and len(data.kept) == 5
        every = [data.draw(np.random.default_rng(0), 8), data.held_out()]
        for batch in every:
            cells = batch.cells(data.vocabulary, 8)
            assert batch.images.shape[1:] == (3, 64, 64)
            true = [len(points["cat"]) for points in batch.points]
            assert cells.sum((1, 2, 3)).tolist() == true
            # The left third of every picture is empty.
            assert not cells[..., :2].any()

    def test_an_object_counts_in_the_cell_of_its_middle(self) -> None:
        points = [{"cat": [(0.0, 0.0), (0.99, 0.0), (1.0, 1.0)], "dog": [(0.5, 0.5)], "cup": []}]
        cells = Pointed(torch.zeros(1, 3, 32, 32), points).cells(["dog", "cat"], 8)
        assert cells.shape == (1, 2, 4, 4)
        assert cells[0, 1].nonzero().tolist() == [[0, 0], [0, 3], [3, 3]]
        assert cells[0, 0].nonzero().tolist() == [[2, 2]]

    def test_crowds_are_left_out_with_their_pictures(self, tmp_path: Path) -> None:
        folder = annotated_folder(tmp_path / "data", "coco")
        path = folder / "instances.json"
        data = json.loads(path.read_text())
        data["annotations"][0]["iscrowd"] = 1
        path.write_text(json.dumps(data))
        found = read_points(folder, 64, 0)
        assert all(record.path.name != "0.png" for record in [*found.kept, *found.apart])

    @pytest.mark.parametrize(
        ("write", "message"),
        [
            (lambda folder: (folder / "instances.json").unlink(), "no annotations with objects"),
            (lambda folder: (folder / "instances.json").write_text("{"), "is no JSON"),
            (
                lambda folder: (folder / "instances.json").write_text(
                    '{"images": [], "annotations": [{}], "categories": []}'
                ),
                "lacks or misstates",
            ),
        ],
    )
    def test_folders_that_cannot_be_read_are_told(
        self, tmp_path: Path, write: Any, message: str
    ) -> None:
        folder = annotated_folder(tmp_path / "data", "coco")
        write(folder)
        with pytest.raises(UsageError, match=message):
            read_points(folder, 64, 0)
        with pytest.raises(UsageError, match="there is no folder"):
            read_points(tmp_path / "none", 64, 0)

    def test_a_picture_outside_of_the_folder_is_refused(self, tmp_path: Path) -> None:
        folder = annotated_folder(tmp_path / "data", "fsc-147")
        path = folder / "annotation_FSC147_384.json"
        path.write_text(path.read_text().replace("0.png", "../0.png"))
        classes = folder / "ImageClasses_FSC147.txt"
        classes.write_text(classes.read_text().replace("0.png", "../0.png"))
        with pytest.raises(UsageError, match="does not lie in the folder"):
            read_points(folder, 64, 0)
        classes.unlink()
        with pytest.raises(UsageError, match="ImageClasses_FSC147"):
            read_points(folder, 64, 0)


class TestRelativeLocalLoss:
    def test_it_is_the_published_formula(self) -> None:
        """Nine regions and one noun: each triple of distant ranks by hand."""
        torch.manual_seed(0)
        maps = (torch.rand(2, 7, 1, 6, 6, dtype=torch.float64) * 100).requires_grad_()
        counts = torch.rand(2, 1, 6, 6, dtype=torch.float64)
        expected = 0.0
        for b in range(2):
            true = [counts[b, 0, y : y + 2, x : x + 2].sum() for y in (0, 2, 4) for x in (0, 2, 4)]
            for j in range(7):
                found = [
                    maps[b, j, 0, y : y + 2, x : x + 2].sum() / 100
                    for y in (0, 2, 4)
                    for x in (0, 2, 4)
                ]
                ranked = [f for _, f in sorted(zip(true, found, strict=True), key=lambda p: -p[0])]
                for start in range(3):
                    one, two, three = ranked[start::3]
                    d12, d13 = (one - two).item(), (one - three).item()
                    hinges = max(0.0, -d12) + max(0.0, -d13) + max(0.0, d12 - d13)
                    expected += 2 ** (j // 3) * hinges / 2
        assert relative_local_loss(maps, counts).item() == pytest.approx(expected)
        assert torch.autograd.gradcheck(lambda m: relative_local_loss(m, counts), (maps,))

    def test_what_is_ordered_or_absent_or_equal_costs_nothing(self) -> None:
        counts = torch.rand(1, 2, 8, 8)
        counts[:, 1] = 0
        maps = (counts * 100)[:, None].expand(-1, 7, -1, -1, -1).clone()
        assert relative_local_loss(maps, counts) == 0
        maps[:, :, 1] = torch.rand(1, 7, 8, 8)
        assert relative_local_loss(maps, counts) == 0
        assert relative_local_loss(torch.rand(1, 7, 1, 8, 8), torch.ones(1, 1, 8, 8)) == 0

    def test_only_the_hardest_nine_regions_take_part(self) -> None:
        counts = (
            torch.arange(16.0).reshape(1, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
        )
        maps = (counts * 100)[:, None].expand(-1, 7, -1, -1, -1).clone()
        maps[..., :2, :] += 300 * torch.arange(8.0).flip(0)
        maps.requires_grad_()
        relative_local_loss(maps, counts).backward()
        assert maps.grad is not None
        used = maps.grad.abs().sum((0, 1, 2)).unfold(0, 2, 2).unfold(1, 2, 2).sum((-2, -1)) > 0
        assert 0 < used.sum() <= 9 and used[0].any()


def test_the_last_anchor_is_the_mean_of_what_falls_into_its_bin() -> None:
    anchors = whole_anchors(PocketPoints(), TRAIN, batches=4)
    assert anchors[:3] == (0.0, 1.0, 2.0) and 3.0 <= anchors[3] < 4.0


@pytest.mark.parametrize("family", counters.FAMILIES)
def test_an_interrupted_training_ends_with_the_same_weights(
    tmp_path: Path, family: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = refer.held_out
    monkeypatch.setattr(counters, "PocketPoints", lambda: PocketPoints(8))
    monkeypatch.setattr(refer, "held_out", lambda count: held_out(4))
    settings = CounterSettings(TRAIN, family)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    results = counters.train(settings, whole)
    assert {"mae", "rmse", "exact"} <= set(results["all"])
    assert counters.train(settings, cut, stop_after=2) == {}
    assert counters.train(settings, cut) == results
    one, two = load_file(whole / "model.safetensors"), load_file(cut / "model.safetensors")
    assert all(torch.equal(one[key], two[key]) for key in one)
    critic = load_critic(family, whole)
    images = torch.rand(1, 3, 64, 64).requires_grad_()
    critic(images, [critic.prepare(["cat"])]).soft.sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0


@pytest.mark.parametrize("family", counters.FAMILIES)
def test_what_is_new_can_be_left_out(family: Any) -> None:
    """The loss is another one, on the same network and batch."""
    values = []
    for new in (True, False):
        torch.manual_seed(0)
        settings = CounterSettings(TRAIN, family, new=new)
        if family == "c-rex":
            lesson = counters._referring(settings)
        else:
            lesson = counters._LESSONS[family](settings, PocketPoints(8))
        lesson.network.train()
        losses = lesson.loss(np.random.default_rng(0), torch.Generator().manual_seed(0))
        losses["loss"].backward()
        values.append(float(losses["loss"].detach()))
    assert values[0] != values[1] and np.isfinite(values).all()


@pytest.mark.parametrize("layout", ["coco", "fsc-147"])
def test_a_folder_of_ones_own_trains_a_counter_of_its_nouns(
    tmp_path: Path, layout: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = annotated_folder(tmp_path / "data", layout)
    command = ["learn", "counter", "--family", "hmode", "--data", str(folder), "--steps", "2"]
    command += ["--batch", "2", "--json", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert set(json.loads(capsys.readouterr().out)["held_out"]) >= {"all"}
    assert load_critic("hmode", tmp_path / "out").card.vocabulary == ("cat",)


def test_what_cannot_be_trained_or_gone_on_with_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    settings = CounterSettings(TRAIN, "hmode")
    counters.train(settings, out, stop_after=1)
    before = (out / "work" / "hmode.checkpoint").read_bytes()
    with pytest.raises(UsageError, match=r"other settings \(new True, now False\)"):
        counters.train(replace(settings, new=False), out)
    assert (out / "work" / "hmode.checkpoint").read_bytes() == before
    with pytest.raises(UsageError, match="there are clip-ebc, hmode, c-rex"):
        CounterSettings(TRAIN, "yolo")  # type: ignore[arg-type]
    command = ["learn", "counter", "--family", "c-rex", "--data", str(tmp_path), "--out", str(out)]
    assert main(command) == 2
    assert "learns from expressions" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    command = ["learn", "counter", "--family", "hmode", "--data", str(tmp_path / "empty")]
    assert main([*command, "--out", str(tmp_path / "new")]) == 2
    assert "no annotations" in capsys.readouterr().err and not (tmp_path / "new").exists()
