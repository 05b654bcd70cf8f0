"""``countgen generate`` as a user starts it: pictures, JSON, exit codes, one sentence for every mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from countgen.cli import main
from countgen.drawing import OUTCOMES, Artist, generate, read_prompt
from countgen.errors import UsageError
from countgen.pocket import ROLES
from countgen.prompts import parse_prompt


@pytest.fixture(scope="module")
def artist() -> Artist:
    return Artist.pocket()


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
        generate("three stars", tmp_path / folder, seed=5, draws=2)
    generate("three stars", tmp_path / "c", seed=6, draws=2)
    a, b, c = ((tmp_path / name / "000.png").read_bytes() for name in "abc")
    assert a == b != c


def test_verified_means_that_two_different_counters_agree_with_the_prompt(artist: Artist) -> None:
    assert artist.critic.card.family != artist.verifier.card.family
    assert artist.critic.card.name != ROLES["judge"] != artist.verifier.card.name
    drawing = artist.draw(parse_prompt("two oranges on a table"), seed=1, draws=32)
    assert drawing.verified and drawing.outcome == "exact" and drawing.draws <= 32
    assert set(map(str, drawing.counts.values())) == {"{'orange': 2}"}


def test_an_unreached_count_is_reported_as_such(artist: Artist) -> None:
    prompt = parse_prompt("nineteen dogs", targets=[("dog", 20), ("car", 19)])
    drawing = artist.draw(prompt, draws=2)
    assert not drawing.verified and drawing.outcome == "budget spent" and drawing.draws == 2


def test_a_prompt_without_a_count_gives_a_plain_picture_and_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "cats on grass", "--out", str(tmp_path), "--json")
    row = json.loads(out)["images"][0]
    assert code == 0 and row["outcome"] == "no count in the prompt" and not row["verified"]
    assert "names no count" in err


def test_unknown_words_are_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, _, err = run(capsys, "two cats by moonlight", "--out", str(tmp_path), "--draws", "1")
    assert "reads as <unk>: by, moonlight" in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["two unicorns"], 2, "cannot see 'unicorn'"),
        (["four apples"], 2, "the nearest are red apple, green apple"),
        ([" "], 2, "the prompt is empty"),
        (["200 cats"], 2, "200 objects are more than"),
        (["two cats", "--num-images", "0"], 2, "must be at least 1"),
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
