"""``countgen generate`` as a user starts it: pictures, JSON, exit codes, one sentence for every mistake."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_pipelines import sd_folder

from countgen.cli import main
from countgen.cli.generate import Generate, generate
from countgen.drawing import COLOURS
from countgen.engine.job import OUTCOMES
from countgen.guidance.names import LEARNT_NAMES, METHOD_NAMES
from countgen.options import DrawOptions


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["generate", *arguments])
    out, err = capsys.readouterr()
    return code, out, " ".join(err.split())


def test_a_picture_its_counts_and_its_settings_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(
        capsys, "two cats on grass", "--out", "pictures", "--num-images", "2", "--json"
    )
    report = json.loads(out)
    assert code == 0
    assert report["prompt"] == "two cats on grass"
    assert report["targets"] == [{"noun": "cat", "count": 2}]
    assert [row["path"] for row in report["images"]] == ["pictures/000.png", "pictures/001.png"]
    for row in report["images"]:
        assert set(row["counts"]) == {"critic", "verifier"} and row["outcome"] in OUTCOMES
        assert row["verified"] == all(c == {"cat": 2} for c in row["counts"].values())
        with Image.open(row["path"]) as image:
            assert image.size == (64, 64)
            settings = json.loads(image.text["countgen"])  # type: ignore[attr-defined]
        assert settings["prompt"] == report["prompt"] and settings["seed"] == row["seed"]
    assert len({row["seed"] for row in report["images"]}) == 2
    assert not list(Path("pictures").glob("*.partial"))


def drawn(prompt: str, out: Path, method: str = "none", **options: Any) -> None:
    generate(Generate(prompt, out=out, method=method, draw=DrawOptions(**options)))


def test_the_same_seed_gives_the_same_file(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        drawn("three stars", tmp_path / folder, seed=5)
    drawn("three stars", tmp_path / "c", seed=6)
    a, b, c = ((tmp_path / name / "000.png").read_bytes() for name in "abc")
    assert a == b != c


def test_a_comparison_shows_the_plain_and_the_guided_picture(tmp_path: Path) -> None:
    drawn("five oranges", tmp_path, "noise", seed=2)
    with Image.open(tmp_path / "000-compare.png") as image:
        assert image.width > 2 * image.height * 0.8
        settings = json.loads(image.text["countgen"])  # type: ignore[attr-defined]
        pixels = image.convert("RGB").getcolors(2**20)
    assert settings["method"] == "noise" and settings["pre"] > 1
    red = tuple(int(COLOURS[0][i : i + 2], 16) for i in (1, 3, 5))
    assert pixels and red in {colour for _, colour in pixels}, "no counted object is outlined"


def test_an_interrupted_run_keeps_what_was_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from countgen.files import PictureFolder

    keep: Callable[..., Path] = PictureFolder.keep

    def interrupting(self: PictureFolder, index: int, *data: bytes) -> Path:
        if any(tmp_path.glob("*.png")):
            raise KeyboardInterrupt
        return keep(self, index, *data)

    monkeypatch.setattr(PictureFolder, "keep", interrupting)
    code, out, err = run(
        capsys, "two cats", "--out", str(tmp_path), "--num-images", "2", "--method", "none"
    )
    assert code == 1 and "interrupted" in err and "kept" in err and not out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000-compare.png", "000.png"]


def test_a_later_run_goes_on_behind_the_last_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    quick = ("--out", ".", "--method", "none", "--json")
    run(capsys, "two cats", "--num-images", "2", *quick)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    _, out, _ = run(capsys, "a photo of grass", *quick)
    assert json.loads(out)["images"][0]["path"] == "002.png"
    assert before == {name: Path(name).read_bytes() for name in before}
    assert not Path("002-compare.png").exists()
    _, out, _ = run(capsys, "a photo of grass", *quick, "--overwrite")
    assert json.loads(out)["images"][0]["path"] == "000.png"
    assert Path("000.png").read_bytes() == Path("002.png").read_bytes()
    # The old side-by-side does not lie beside a picture that it does not show.
    assert not Path("000-compare.png").exists() and Path("001-compare.png").exists()


def test_the_settings_are_there_for_other_programs_too(tmp_path: Path) -> None:
    drawn("two cats on grass", tmp_path, seed=3)
    with Image.open(tmp_path / "000.png") as image:
        text: dict[str, str] = image.text  # type: ignore[attr-defined]
    seed = json.loads(text["countgen"])["seed"]
    prompt, line = text["parameters"].split("\n")
    assert prompt == "two cats on grass"
    found = dict(part.split(": ") for part in line.split(", "))
    assert found["Steps"] == "8" and found["Seed"] == str(seed) and found["Size"] == "64x64"
    assert found["Sampler"].endswith("Scheduler")
    assert found["Model"] == "pocket" and found["CFG scale"] == "1.0"


def test_the_method_that_draws_once_is_not_told_to_spend_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(
        capsys, "seventeen dogs", "--out", str(tmp_path), "--method", "none", "--num-images", "4"
    )
    assert code == 0 and "budget spent" in out
    assert "another method" in err and "aise the budget" not in err


def test_generate_takes_any_generator_and_any_counters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(
        capsys,
        *("two red apples", "--model", str(sd_folder(tmp_path / "model")), "--device", "cpu"),
        *(
            "--critic",
            "pocket-detector-a",
            "--verifier",
            "pocket-density",
            "--budget",
            "400",
            "--steps",
            "4",
        ),
        *("--memory", "low", "--out", str(tmp_path / "out"), "--json"),
    )
    (row,) = json.loads(out)["images"]
    assert code == 0 and Path(row["path"]).is_file() and set(row["counts"]) >= {"critic"}
    assert "memory plan low" in err and "<unk>" not in err


@pytest.mark.parametrize("kind", ["critics", "pipelines", "suites", "methods"])
def test_list_prints_cards(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", kind, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["items"]
    assert rows and all(row["name"] == row["name"].lower() and row["summary"] for row in rows)
    assert main(["list", kind]) == 0
    assert rows[0]["name"] in capsys.readouterr().out


def test_methods_that_need_a_file_are_listed_and_ask_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["list", "methods", "--json"])
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["items"]}
    assert rows.keys() == {*METHOD_NAMES, *LEARNT_NAMES}
    for name, command in LEARNT_NAMES.items():
        assert f"needs a file, {name}=FILE" in rows[name]["summary"]
        for given in (name, f"{name}=", f"engine+{name}"):
            code, _, err = run(capsys, "two cats", "--method", given, "--out", str(tmp_path))
            assert code == 2 and f"countgen learn {command}" in err and "=FILE" in err


def test_a_prompt_without_a_count_gives_a_plain_picture_and_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "cats on grass", "--out", str(tmp_path), "--json")
    row = json.loads(out)["images"][0]
    assert code == 0 and row["outcome"] == "no count in the prompt" and not row["verified"]
    assert "names no count" in err


def test_unknown_words_are_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, _, err = run(capsys, "two cats by moonlight", "--out", str(tmp_path), "--method", "none")
    assert "reads as <unk>: by, moonlight" in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["two unicorns"], 2, "cannot see 'unicorn'"),
        (["four apples"], 2, "green apple"),
        ([" "], 2, "empty"),
        (["200 cats"], 2, "200 objects"),
        (["two cats", "--num-images", "0"], 2, "from 1 to"),
        (["two cats", "--num-images", str(10**23)], 2, "10**23"),
        (["two cats", "--num-images", str(10**4000)], 2, "from 1 to"),
        (["two cats", "--seed", str(10**23)], 2, "seed"),
        (["two cats", "--batch-size", "-1"], 2, "from 1 to"),
        (["two cats", "--height", "100000"], 2, "height"),
        (["two cats", "--width", "0"], 2, "width"),
        (["two cats", "--steps", str(10**9)], 2, "steps"),
        (["two cats", "--guidance-scale", "nan"], 2, "finite"),
        (["two cats", "--budget", "-1"], 2, "from 0"),
        (["two cats", "--budget", "nan"], 2, "not nan"),
        (["two cats", "--budget", "1e300"], 2, "1,000,000"),
        (["two cats", "--budget", "inf"], 2, "1,000,000"),
        (["two cats", "--method", "nois"], 2, "noise"),
        (["two cats", "--model", "pockett"], 2, "pocket"),
        (["two cats", "--model", ""], 2, "no model"),
        (["two cats", "--device", "cuda:99"], 2, "cuda"),
        (["two cats", "--device", "cdua"], 2, "cdua"),
        (["two cats", "--device", "meta"], 2, "meta"),
        (["two cats", "--critic", "pocket-density", "--method", "edit"], 2, "boxes"),
        (["two cats", "--critic", "pocket-detectr"], 2, "pocket-detector-a"),
        (["two cats", "--verifier", "pocket-detector-a"], 2, "family"),
        (["two cats", "--dtype", "float16"], 2, "dtype"),
        (["two unicorns", "--model", "sdxl-turbo", "--critic", "detr"], 2, "unicorn"),
        (["two c\udcffats"], 2, "UTF-8"),
        (["two cats", "--model", "./nowhere"], 2, "no folder"),
        (["two cats", "--model", "sdxl"], 2, "no model 'sdxl'"),
        (["10000 cats"], 2, "10000 is too many"),
        (["-3 cats"], 2, "negative"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_no_folder(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    found = main(["generate", *arguments, "--out", str(tmp_path / "out")])
    out, err = capsys.readouterr()
    assert found == code and message in err and not out
    assert err.startswith("countgen: ") and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_what_is_refused_is_refused_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from countgen import presets

    def loading(*_: Any, **__: Any) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(presets, "load_critic", loading)
    monkeypatch.setattr(presets, "load_generator", loading)
    for arguments in (
        ["two unicorns"],
        ["two cats", "--device", "cuda:99"],
        ["two cats", "--seed", "9" * 30],
    ):
        assert main(["generate", *arguments, "--out", str(tmp_path / "out")]) == 2
    with pytest.raises(AssertionError, match="loaded"):
        main(["generate", "two cats", "--out", str(tmp_path / "out")])


@pytest.mark.parametrize("kind", ["below a file", "a file", "a dangling link", "too long a name"])
def test_a_folder_that_cannot_be_is_said_in_words(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("kept")
    os.symlink("nowhere", tmp_path / "link")
    out = {
        "below a file": tmp_path / "file" / "below",
        "a file": tmp_path / "file",
        "a dangling link": tmp_path / "link",
        "too long a name": tmp_path / ("x" * 300),
    }[kind]
    code, _, err = run(capsys, "two cats", "--out", str(out), "--method", "none")
    assert code == 1 and err.startswith("countgen: ") and "Errno" not in err
    assert (tmp_path / "file").read_text() == "kept" and os.readlink(tmp_path / "link") == "nowhere"
    assert sorted(os.listdir(tmp_path)) == ["file", "link"]


def test_strict_turns_an_inexact_picture_into_exit_code_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, "cats on grass", "--out", str(tmp_path), "--strict")
    assert code == 3 and err


@pytest.mark.parametrize("value", ["abc", "1.5", ""])
def test_a_seed_that_is_no_number_is_a_usage_error(
    value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["generate", "two cats", "--seed", value])
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and "seed" in err and not out


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["generate", "--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0 and "seven red apples" in out and "--num-images" in out


@pytest.mark.parametrize(
    "prompt",
    [
        "two cats " + "x" * 1_000_000,
        "two cats \x00\u202e [bold]\x1b[31m",
        "<script>two cats</script>",
        "two cats\nunder\r\na moon",
        "two cats 七只猫 \U0001f600",
        "two cats " + "\U0001f600" * 5000,
    ],
    ids=["long", "controls", "markup", "lines", "cjk", "emoji"],
)
def test_a_long_or_foreign_prompt_is_drawn_and_kept_in_the_file(
    prompt: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, prompt, "--out", str(tmp_path), "--method", "none", "--json")
    assert code == 0 and json.loads(out)["prompt"] == prompt and len(err) < 2000
    with Image.open(tmp_path / "000.png") as image:
        image.load()
        text: dict[str, str] = image.text  # type: ignore[attr-defined]
    assert json.loads(text["countgen"])["prompt"] == prompt
    with Image.open(tmp_path / "000-compare.png") as image:
        image.load()
