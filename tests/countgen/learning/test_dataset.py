"""A dataset of verified pictures: every format reads back, and a run that was stopped goes on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from countgen.cli import main
from countgen.errors import UsageError
from countgen.learning.dataset import DatasetSettings, Made, make_dataset
from countgen.learning.prompted import folder_pictures, read_folder
from countgen.options import CounterOptions, DrawOptions

PROMPTS = ("two cats and a dog on grass", "two stars", "a fish and a cup", "a banana")
NOUNS = ["banana", "cat", "cup", "dog", "fish", "star"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    targets = [{"cat": 2, "dog": 1}, {"star": 2}, {"fish": 1, "cup": 1}, {"banana": 1}]
    lines = [
        {"id": f"p{i}", "prompt": text, "targets": [{"noun": n, "count": c} for n, c in t.items()]}
        for i, (text, t) in enumerate(zip(PROMPTS, targets, strict=True))
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def settings(prompts: Path, out: Path, **changes: object) -> DatasetSettings:
    draw = DrawOptions(budget=5, batch_size=8)
    return DatasetSettings(str(prompts), out, **{"method": "best-of-n", "draw": draw} | changes)


def contents(out: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != "rows.jsonl"
    }


def test_every_format_says_the_same_and_reads_back(prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    document = make_dataset(settings(prompts, out))
    assert document["tried"] == document["wanted"] == 4
    assert 2 <= document["verified"] <= 4

    found = json.loads((out / "annotations.json").read_text())
    names = {category["id"]: category["name"] for category in found["categories"]}
    assert list(names.values()) == NOUNS
    lines = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert len(lines) == len(found["images"]) == document["verified"]
    for line, image in zip(lines, found["images"], strict=True):
        with Image.open(out / line["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"]) == (64, 64)
        assert image["file_name"] == line["file_name"]
        assert image["caption"] == line["text"] in PROMPTS
        own = [a for a in found["annotations"] if a["image_id"] == image["id"]]
        counted = {t["noun"]: 0 for t in line["targets"]}
        for annotation in own:
            counted[names[annotation["category_id"]]] += 1
        # Every kept picture holds what was asked for, as its boxes say.
        assert counted == {t["noun"]: t["count"] for t in line["targets"]}
        assert [a["bbox"] for a in own] == line["objects"]["bbox"]
        labels = (out / "labels" / f"{Path(line['file_name']).stem}.txt").read_text().splitlines()
        for label, annotation in zip(labels, own, strict=True):
            kind, *numbers = label.split()
            x, y, w, h = annotation["bbox"]
            assert int(kind) == annotation["category_id"] - 1
            assert np.allclose(
                np.array(numbers, float) * 64, [x + w / 2, y + h / 2, w, h], atol=1e-3
            )
    assert '  4: "fish"' in (out / "dataset.yaml").read_text()
    # And what learns from captioned folders reads it, targets and boxes included.
    files = read_folder(out)
    drawn = folder_pictures(files, 64, 64)(np.random.default_rng(0), 3)
    assert {one.prompt.text for one in drawn} <= set(PROMPTS)
    assert all(sum(t.count for t in one.prompt.targets) == len(one.boxes) for one in drawn)


def test_a_stopped_run_goes_on_to_the_same_dataset(prompts: Path, tmp_path: Path) -> None:
    make_dataset(settings(prompts, tmp_path / "whole", limit=3))

    def interrupt(made: Made) -> None:
        if made.tried == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_dataset(settings(prompts, tmp_path / "cut", limit=3), progress=interrupt)
    # What was finished is a dataset already.
    kept = json.loads((tmp_path / "cut" / "annotations.json").read_text())["images"]
    assert len(kept) <= 1
    with (tmp_path / "cut" / "rows.jsonl").open("a") as file:
        file.write('{"id": "p3", "ima')  # as a kill leaves it
    seen: list[Made] = []
    make_dataset(settings(prompts, tmp_path / "cut", limit=3), progress=seen.append)
    assert len(seen) == 2
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_another_command_is_refused_and_the_dataset_stays(prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    make_dataset(settings(prompts, out, limit=1))
    before = contents(out)
    with pytest.raises(UsageError, match="method best-of-n, now edit"):
        make_dataset(settings(prompts, out, method="edit"))
    assert contents(out) == before
    with pytest.raises(UsageError, match="gives none; take a detector"):
        make_dataset(
            settings(
                prompts,
                tmp_path / "other",
                method="best-of-n",
                counters=CounterOptions("pocket-density", "pocket-detector-a"),
            )
        )
    assert not (tmp_path / "other").exists()


def test_pictures_of_another_list_of_that_name_are_told(prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    (out / "images").mkdir(parents=True)
    (out / "images" / "p0-0.png").touch()
    row = {"position": 0, "id": "p0", "image": 0, "verified": True, "pre": 1.0}
    row |= {"file": "images/p0-0.png", "boxes": {"penguin": [[0, 0, 9, 9]]}}
    (out / "rows.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UsageError, match="pictures of 'penguin', which no prompt"):
        make_dataset(settings(prompts, out, limit=1))
    assert not (out / "annotations.json").exists()


def test_the_command_prints_a_document(
    prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "set"
    arguments = ["dataset", "--prompts", str(prompts), "--out", str(out), "--limit", "1"]
    assert main([*arguments, "--method", "none", "--formats", "yolo", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["tried"] == 1 and document["files"] == ["dataset.yaml", "labels/"]
    assert not (out / "annotations.json").exists()
    assert main([*arguments, "--method", "none", "--formats", "yolo", "--limit", "0"]) == 2
