"""Folders of pictures and annotations of every layout are read as they come, or told to be broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from countgen.errors import UsageError
from countgen.evaluation.folders import KnownNoun, find_pictures


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16)).save(path)
    return path


def written(path: Path, data: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


def known(noun: str, true: int) -> tuple[KnownNoun, ...]:
    return (KnownNoun(noun, true=true),)


def test_the_layout_of_geneval(tmp_path: Path) -> None:
    counting = {"tag": "counting", "include": [{"class": "clock", "count": 2}],
                "exclude": [{"class": "clock", "count": 3}], "prompt": "a photo of two clocks"}  # fmt: skip
    written(tmp_path / "00000/metadata.jsonl", counting)
    written(
        tmp_path / "00010/metadata.jsonl", {"tag": "x", "include": [{"class": "cat", "count": 1}]}
    )
    for name in ("00000/samples/00001.png", "00000/samples/00000.webp", "00010/samples/00000.jpg",
                 "00000/samples/grid.png", "00000/grid.png"):  # fmt: skip
        picture(tmp_path / name)
    written(tmp_path / "notes/metadata.jsonl", counting)
    found = find_pictures(tmp_path)
    assert found.layout == "geneval"
    assert [(p.id, p.image, p.path.name) for p in found.pictures] == [
        ("00000", 0, "00000.webp"), ("00000", 1, "00001.png"), ("00010", 0, "00000.jpg")
    ]  # fmt: skip
    assert found.pictures[0].nouns == (KnownNoun("clock", 2),)
    assert found.pictures[0].prompt == "a photo of two clocks"
    assert found.pictures[0].geneval == counting


def test_a_table_names_pictures_nouns_and_both_counts(tmp_path: Path) -> None:
    written(
        tmp_path / "pictures.csv",
        "picture,noun,count,true,prompt,id\n"
        'a.png,cats,3,2,"three cats, on grass",p0\n'
        'a.png,dog,,1,"three cats, on grass",p0\n'
        "b.png,cat,3,,,p0\n",
    )
    found = find_pictures(tmp_path)
    first, second = found.pictures
    assert first.nouns == (KnownNoun("cat", 3, 2), KnownNoun("dog", None, 1))
    assert first.prompt == "three cats, on grass" and (first.id, first.image) == ("p0", 0)
    assert second.nouns == (KnownNoun("cat", 3, None),) and (second.id, second.image) == ("p0", 1)
    assert not found.only_these


def test_a_table_with_prompts_alone_and_other_names_of_columns(tmp_path: Path) -> None:
    written(tmp_path / "metadata.jsonl", '{"file_name": "a.png", "prompt": "two cats and a dog"}\n')
    (only,) = find_pictures(tmp_path).pictures
    assert only.nouns == (KnownNoun("cat", 2), KnownNoun("dog", 1))
    assert only.path == tmp_path / "a.png" and only.id == "two cats and a dog"


def test_coco_counts_what_is_no_crowd_and_knows_what_is_absent(tmp_path: Path) -> None:
    truth = written(
        tmp_path / "instances.json",
        {
            "images": [{"id": 1, "file_name": "1.jpg"}, {"id": 2, "file_name": "2.jpg"}],
            "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "person"}],
            "annotations": [
                {"image_id": 1, "category_id": 3, "iscrowd": 0},
                {"image_id": 1, "category_id": 3, "iscrowd": 0},
                {"image_id": 1, "category_id": 5, "iscrowd": 1},
                {"image_id": 1, "category_id": 5, "iscrowd": 0},
            ],
        },
    )
    found = find_pictures(tmp_path, truth)
    (only,) = found.pictures
    assert found.layout == "coco" and found.only_these and "1 pictures" in found.notes[0]
    assert only.nouns == known("cat", 2) and only.unclear == ("person",)


def fsc147(tmp_path: Path) -> Path:
    written(tmp_path / "ImageClasses_FSC147.txt", "2.jpg\tsea shells\n3.jpg\tgeese\n")
    written(
        tmp_path / "Train_Test_Val_FSC_147.json", {"train": ["2.jpg"], "test": ["3.jpg", "4.jpg"]}
    )
    points = {"2.jpg": {"points": [[1, 2], [3, 4]]}, "3.jpg": {"points": [[1, 2]] * 5},
              "4.jpg": {"points": []}}  # fmt: skip
    return written(tmp_path / "annotation_FSC147_384.json", points)


def test_fsc147_counts_points_of_the_class_of_a_picture(tmp_path: Path) -> None:
    truth = fsc147(tmp_path)
    found = find_pictures(tmp_path, truth)
    assert [p.nouns for p in found.pictures] == [known("sea shell", 2), known("goose", 5)]
    assert "1 pictures without a class" in found.notes[0]
    (only,) = find_pictures(tmp_path, truth, "train").pictures
    assert only.path == tmp_path / "2.jpg"
    with pytest.raises(UsageError, match=r"no split 'dev'; there are train, test"):
        find_pictures(tmp_path, truth, "dev")
    (tmp_path / "pictures.csv").write_text("picture,noun,count\n2.jpg,goose,5\n")
    with pytest.raises(UsageError, match="--split is of FSC-147"):
        find_pictures(tmp_path, split="train")
    (tmp_path / "ImageClasses_FSC147.txt").unlink()
    with pytest.raises(UsageError, match=r"ImageClasses_FSC147\.txt"):
        find_pictures(tmp_path, truth)


def test_countbench_finds_the_noun_and_the_picture(tmp_path: Path) -> None:
    entries = [
        {"image_url": "x", "text": "Set of five red apples on a table", "number": 5},
        {"text": "a lovely card", "number": 3, "question": "How many candles are in the image?"},
        {"text": "a lovely card", "number": 3},
        {"text": "four dogs", "number": 4},
        {"text": "two cups", "number": 2, "file_name": "cups.png"},
    ]
    for name in ("0.jpg", "00001.png", "2.png"):
        picture(tmp_path / name)
    found = find_pictures(tmp_path, written(tmp_path / "CountBench.json", entries))
    assert [(p.path.name, p.nouns) for p in found.pictures] == [
        ("0.jpg", known("red apple", 5)), ("00001.png", known("candle", 3)), ("cups.png", known("cup", 2))
    ]  # fmt: skip
    assert any("1 entries whose text" in note for note in found.notes)
    assert any("1 entries without a picture" in note for note in found.notes)


def test_geckonum_takes_what_most_raters_counted(tmp_path: Path) -> None:
    header = "image_id,model,question_id,question,prompt,annot_id,raw_answer,answer\n"
    rows = [
        ("geckonum_00000_0", "dalle_3", "dogs", "3 dogs.", answer) for answer in ("3", "3", "2")
    ]
    rows += [("geckonum_00000_1", "dalle_3", "dogs", "3 dogs.", a) for a in ("2-3", "10+", "4")]
    rows += [("geckonum_00003_2", "dalle_3", "cats", "1 cat and 2 cups.", "0")] * 3
    rows += [
        ("geckonum_00003_2", "dalle_3", "cups", "1 cat and 2 cups.", a) for a in ("2", "3", "4")
    ]
    rows += [("geckonum_00009_0", "dalle_3", "fish", "1 fish.", "1")]
    lines = [
        f"{name},{model},0,How many {noun} are in the image?,{text},{k},{a},{a}\n"
        for k, (name, model, noun, text, a) in enumerate(rows)
    ]
    truth = written(tmp_path / "task_1_dalle_3.csv", header + "".join(lines))
    picture(tmp_path / "dalle_3/geckonum_00000_0.png")
    picture(tmp_path / "geckonum_00003_2.jpg")
    found = find_pictures(tmp_path, truth)
    first, second = found.pictures
    assert first.nouns == (KnownNoun("dog", 3, 3),)
    assert (first.id, first.image, first.path.parent.name) == ("geckonum_00000", 0, "dalle_3")
    assert second.nouns == (KnownNoun("cat", 1, 0),) and second.unclear == ("cup",)
    assert any("2 questions" in note for note in found.notes)
    assert any("1 pictures that are not in" in note for note in found.notes)


def clause(entry: Any) -> dict[str, Any]:
    return {"tag": "counting", "include": [entry]}


BROKEN: list[tuple[str, Any, str]] = [
    ("pictures.csv", "picture,count\na.png,3\n", "the column noun is missing"),
    ("pictures.csv", "noun,count\ncat,3\n", "the column picture is missing"),
    ("pictures.csv", "picture,noun,count\na.png,cat,3\na.png,cats,3\n", "line 3.*a second time"),
    ("pictures.csv", "picture,noun,count\na.png,cat,-3\n", "line 2.*count is '-3'"),
    ("pictures.csv", "picture,noun,count\na.png,cat,3.5\n", "line 2.*whole number"),
    ("pictures.csv", "picture,noun,count\na.png,cat,\n", "line 2.*neither count"),
    ("pictures.csv", "picture,noun,count\na.png,,3\n", "line 2.*noun is empty"),
    ("pictures.csv", "picture,noun,count\n,cat,3\n", "line 2.*names no picture"),
    ("pictures.csv", "picture,noun,count\n../../a.png,cat,3\n", "does not lie in the folder"),
    ("pictures.csv", "picture,noun,count\n/etc/a.png,cat,3\n", "does not lie in the folder"),
    ("pictures.csv", "picture,prompt\na.png,a cat\n", "line 2.*names no count"),
    ("pictures.csv", "picture,noun,count\n", "names no picture"),
    ("00000/metadata.jsonl", "{", "not JSON"),
    ("00000/metadata.jsonl", "[1]", "no object"),
    ("00000/metadata.jsonl", {"tag": "x"}, "includes and excludes nothing"),
    ("00000/metadata.jsonl", {"include": 3}, "must be a list"),
    ("00000/metadata.jsonl", clause({"class": "cat"}), "written"),
    ("00000/metadata.jsonl", clause({"class": 3, "count": 1}), "written"),
    ("00000/metadata.jsonl", clause({"class": "cat", "count": 1}), "has no samples"),
    ("run.json", "{}", "cannot be read"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "words"), BROKEN)
def test_what_is_broken_is_told(tmp_path: Path, name: str, content: Any, words: str) -> None:
    written(tmp_path / name, content)
    with pytest.raises(UsageError, match=words):
        find_pictures(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not JSON"),
        ([], "none of the annotations"),
        ({"a": 3}, "none of the annotations"),
        ({"images": [{}], "annotations": [], "categories": []}, "no 'id'"),
        ({"images": [], "annotations": [{"category_id": 7}], "categories": []}, "no 7"),
        ({"images": 3, "annotations": [], "categories": []}, "not as its format"),
    ],
)
def test_broken_annotations_are_told(tmp_path: Path, content: Any, words: str) -> None:
    truth = written(tmp_path / "truth.json", content)
    with pytest.raises(UsageError, match=words) as told:
        find_pictures(tmp_path, truth)
    assert str(truth) in str(told.value)


def test_nothing_to_be_found_is_told(tmp_path: Path) -> None:
    checks: list[tuple[Callable[[], object], str]] = [
        (lambda: find_pictures(tmp_path / "gone"), "no folder"),
        (lambda: find_pictures(tmp_path), "GenEval's layout"),
        (lambda: find_pictures(tmp_path, tmp_path / "gone.csv"), "no file"),
    ]
    for check, words in checks:
        with pytest.raises(UsageError, match=words):
            check()
