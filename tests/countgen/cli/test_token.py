"""``countgen token fit|apply`` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from countgen.cli import main


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["token", *arguments])
    out, err = capsys.readouterr()
    return code, out, " ".join(err.split())


def test_a_token_is_fitted_and_drawn_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "seven.safetensors"
    fit = ("fit", "seven cats", "--out", str(file), "--steps", "2", "--num-images", "1", "--json")
    code, out, _ = run(capsys, *fit)
    assert code == 0 and file.is_file()
    assert json.loads(out)["prompts"] == ["seven cats"] and json.loads(out)["token"] == "<count>"
    pictures = tmp_path / "pictures"
    apply = ("apply", str(file), "seven dogs", "--out", str(pictures), "--method", "none", "--json")
    code, out, _ = run(capsys, *apply)
    (row,) = json.loads(out)["images"]
    assert (
        code == 0 and (pictures / "000.png").is_file() and set(row["counts"]["critic"]) == {"dog"}
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("fit", "cats", "--out", "x.safetensors"), "ask for a number"),
        (("fit", "two cats", "--out", "nowhere/x.safetensors"), "no folder nowhere"),
        (("fit", "two cats", "--out", "."), "is a folder; name a file in it"),
        (("fit", "two cats", "--out", "x.safetensors", "--steps", "0"), "at least 1"),
        (("apply", "missing.safetensors", "two cats"), "token file"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, *arguments)
    assert code == 2 and said in err and not out and "Traceback" not in err
