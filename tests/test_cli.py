"""``countgen generate`` as a user starts it: pictures, JSON, exit codes, one sentence for every mistake."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from test_pipeline_sd import sd_folder

from countgen.cli import main
from countgen.engine import OUTCOMES
from countgen.errors import UsageError
from countgen.generate import COLOURS, generate, read_prompt


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


def test_the_same_seed_gives_the_same_file(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        generate("three stars", tmp_path / folder, seed=5, method="none")
    generate("three stars", tmp_path / "c", seed=6, method="none")
    a, b, c = ((tmp_path / name / "000.png").read_bytes() for name in "abc")
    assert a == b != c


def test_a_comparison_shows_the_plain_and_the_guided_picture(tmp_path: Path) -> None:
    generate("five oranges", tmp_path, seed=2)
    with Image.open(tmp_path / "000-compare.png") as image:
        assert image.width > 2 * image.height * 0.8
        settings = json.loads(image.text["countgen"])  # type: ignore[attr-defined]
        pixels = image.convert("RGB").getcolors(2**20)
    assert settings["method"] == "noise" and settings["gradient_steps"] >= 0
    red = tuple(int(COLOURS[0][i : i + 2], 16) for i in (1, 3, 5))
    assert pixels and red in {colour for _, colour in pixels}, "no counted object is outlined"


def test_an_interrupted_run_keeps_what_was_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from countgen import generate as module

    keep, kept = module._keep, []

    def interrupting(*arguments: Any) -> dict[str, Any]:
        if kept:
            raise KeyboardInterrupt
        kept.append(keep(*arguments))
        return kept[0]

    monkeypatch.setattr(module, "_keep", interrupting)
    code, out, err = run(
        capsys, "two cats", "--out", str(tmp_path), "--num-images", "2", "--method", "none"
    )
    assert code == 1 and "interrupted; finished pictures are kept" in err and not out
    assert [p.name for p in tmp_path.glob("*.png") if "compare" not in p.name] == ["000.png"]


def test_a_full_disk_is_said_and_nothing_half_written_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Image.Image, path: Path, **_: Any) -> None:
        Path(path).write_bytes(b"half a picture")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    code, _, err = run(capsys, "two cats", "--out", str(tmp_path), "--method", "none")
    assert code == 1 and "No space left" in err and "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_generate_takes_any_generator_and_any_counters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(
        capsys,
        *("two red apples", "--model", str(sd_folder(tmp_path / "model")), "--device", "cpu"),
        *("--critic", "pocket-detector-a", "--verifier", "pocket-density", "--budget", "400"),
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
        (["four apples"], 2, "the nearest are red apple, green apple"),
        ([" "], 2, "the prompt is empty"),
        (["200 cats"], 2, "200 objects are more than"),
        (["two cats", "--num-images", "0"], 2, "must be at least 1"),
        (["two cats", "--budget", "0"], 2, "must be a positive number"),
        (["two cats", "--method", "nois"], 2, "did you mean noise"),
        (["two cats", "--model", "sdxl"], 2, "there is no model 'sdxl'"),
        (["10000 cats"], 2, "10000 is too many for 'cat'"),
        (["-3 cats"], 2, "a count cannot be negative"),
        (["two puppies"], 2, "the nearest are dog"),
        (["two cats", "--target", "cat=many"], 2, "written NOUN=NUMBER"),
        (["two cats", "--target", "cat=2", "--target", "cats=3"], 2, "names 'cat' twice"),
        (["two cats", "--target", "cat=1001"], 2, "between 0 and 1000"),
    ],
)
def test_mistakes_are_one_sentence_and_a_usage_error(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    found, out, err = run(capsys, *arguments, "--out", str(tmp_path))
    assert found == code and message in err and "Traceback" not in err and not out


@pytest.mark.parametrize(
    "arguments",
    [[" "], ["-3 cats"], ["200 cats"], ["cats", "--target", "x"], ["cats", "--budget", "0"]],
)
def test_usage_errors_do_not_wait_for_torch(tmp_path: Path, arguments: list[str]) -> None:
    code = (
        "import sys; from countgen.cli import main;"
        f"code = main(['generate', *{arguments!r}, '--out', {str(tmp_path)!r}]);"
        "print(code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2 False"


def test_targets_win_over_the_prompt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(
        capsys,
        *("three cats and some stars", "--target", "cats=1", "--target", "star=2"),
        *("--method", "none", "--json", "--out", str(tmp_path)),
    )
    assert code == 0
    wanted = [{"noun": "cat", "count": 1}, {"noun": "star", "count": 2}]
    assert json.loads(out)["targets"] == wanted
    assert "names no count" not in err


@pytest.mark.parametrize("prompt", ["a park bench - 3 red apples", "8 - 10 donuts"])
def test_a_dash_is_no_minus(prompt: str) -> None:
    read_prompt(prompt, lambda note: None)


def test_a_folder_that_cannot_be_written_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = run(capsys, "two cats", "--out", str(tmp_path / "file" / "below"))
    assert code == 1 and "file" in err and "Traceback" not in err


def test_strict_turns_an_inexact_picture_into_exit_code_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, "cats on grass", "--out", str(tmp_path), "--strict")
    assert code == 3 and err


def test_a_seed_that_is_no_number_is_a_usage_error() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "countgen.cli", "generate", "two cats", "--seed", "abc"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "abc" in done.stderr and "Traceback" not in done.stderr


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["generate", "--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0 and "seven red apples" in out and "--num-images" in out


def test_a_long_or_hostile_prompt_is_read_without_an_exception() -> None:
    notes: list[str] = []
    for text in (
        "two cats " + "x" * 50_000,
        "two cats \x00\u202e [bold]",
        "<script>two cats</script>",
    ):
        read_prompt(text, notes.append)
    assert notes
    with pytest.raises(UsageError):
        read_prompt("\n\t", notes.append)
