"""``countgen count``: what counters see in any picture, as a table, as JSON and drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from countgen.cli import main
from countgen.drawing import COLOURS, png
from countgen.pocket.scenes import SceneSpec, compose

CRITIC = ("--critic", "pocket-detector-a")
BOTH = (*CRITIC, "--critic", "pocket-density")


def scene(path: Path, seed: int = 0, settings: dict[str, Any] | None = None, **counts: int) -> str:
    image = Image.fromarray(compose(SceneSpec(tuple(counts.items()), "grass"), seed).image)
    if settings is None:
        image.save(path)
    else:
        path.write_bytes(png(image, settings))
    return str(path)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["count", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_table_has_a_line_for_each_picture_and_noun(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    scene(Path("a.png"), 1, star=3, cat=1)
    scene(Path("b.jpg"), 2, star=5)
    code, out, err = run(capsys, "a.png", "b.jpg", "--noun", "stars", "--noun", "cat", *BOTH)
    assert code == 0, err
    lines = [line.split() for line in out.splitlines()]
    assert lines == [
        ["picture", "noun", "pocket-detector-a", "pocket-density"],
        ["a.png", "star", "3", "3"], ["a.png", "cat", "1", "1"],
        ["b.jpg", "star", "5", "5"], ["b.jpg", "cat", "0", "0"],
    ]  # fmt: skip


def test_bad_pictures_are_named_and_the_others_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = scene(tmp_path / "a.png", 1, star=3), tmp_path / "bad.png"
    bad.write_text("no picture")
    pictures = (str(bad), good, str(tmp_path / "gone.png"))
    code, out, err = run(capsys, *pictures, "--noun", "star", *CRITIC, "--json")
    assert code == 1 and "Traceback" not in err
    document = json.loads(out)
    assert document["nouns"] == ["star"] and document["critics"] == ["pocket-detector-a"]
    first, second, third = document["images"]
    assert second["counts"] == {"pocket-detector-a": {"star": 3}} and second["size"] == [64, 64]
    assert second["error"] == "" and second["boxes"] is None
    assert 0 < second["confidence"]["pocket-detector-a"]["star"] <= 1
    for row, path in ((first, bad), (third, tmp_path / "gone.png")):
        assert str(path) in row["error"] and row["counts"] == {} and str(path) in err


def test_boxes_are_drawn_and_what_is_there_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = scene(tmp_path / "a.png", 1, star=3, cat=1)
    folder = tmp_path / "boxes"
    folder.mkdir()
    (folder / "000.png").write_bytes(b"mine")
    flags = ("--noun", "star", "--noun", "cat", *BOTH, "--boxes", str(folder), "--json")
    code, out, err = run(capsys, picture, *flags)
    assert code == 0, err
    assert (folder / "000.png").read_bytes() == b"mine"
    (row,) = json.loads(out)["images"]
    with Image.open(Path.cwd() / row["boxes"]) as file:
        assert file.size == (2 * 384 + 8, 384 + 52)
        pixels = np.asarray(file.convert("RGB"))
    # The detector's side has boxes of both nouns, the density counter's has none.
    for colour in COLOURS[:2]:
        here = (pixels == [int(colour[k : k + 2], 16) for k in (1, 3, 5)]).all(-1)
        assert here[:, :384].sum() > 200 and not here[:, 392:].any()


def test_counters_are_those_of_the_model_that_made_the_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = scene(tmp_path / "a.png", 1, {"model": "pocket"}, star=4)
    code, out, err = run(capsys, picture, "--noun", "star")
    assert code == 0, err
    assert out.split()[2:4] == ["pocket-detector-a", "pocket-density"]
    assert out.split()[-2:] == ["4", "4"]


@pytest.mark.parametrize(
    ("settings", "name"),
    [(None, "owlv2"), ({"model": "no-such"}, "owlv2"), ({"model": "/etc"}, "owlv2"), ({"model": 3}, "owlv2"),
     ({"model": "sdxl-turbo"}, "owlv2")],
)  # fmt: skip
def test_other_pictures_are_counted_by_a_counter_that_sees_any_noun(
    tmp_path: Path, settings: dict[str, Any] | None, name: str
) -> None:
    from countgen.cli.count import _default_critics

    scene(tmp_path / "a.png", 1, settings, star=1)
    assert _default_critics(tmp_path / "a.png", ["star"])[0] == name
    assert _default_critics(tmp_path / "gone.png", ["star"]) == ["owlv2"]


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        ((), "--noun"),
        (("--noun", " "), "empty"),
        (("--noun", "cat", "--noun", "cats"), "twice"),
        (("--noun", "cat", "--critic", "owlv3"), "owlv2"),
        (("--noun", "cat", *CRITIC, *CRITIC), "twice"),
        (("--noun", "cat", *CRITIC, "--batch-size", "0"), "at least 1"),
        (("--noun", "cat", *CRITIC, "--device", "abacus"), "abacus"),
        (("--noun", "unicorn", *CRITIC), "unicorn"),
    ],
)
def test_requests_that_cannot_be_met_are_usage_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], word: str
) -> None:
    code, out, err = run(capsys, scene(tmp_path / "a.png", star=1), *flags)
    assert code == 2 and not out and word in err and "Traceback" not in err
    assert len(err.strip().splitlines()) == 1


def test_no_picture_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--noun", "cat")[0] == 2
