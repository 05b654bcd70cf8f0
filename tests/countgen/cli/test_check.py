"""``countgen check``: what it finds, and what it says of what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_pipelines import sd_folder

from countgen.cli import main


def checked(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict]:
    code = main(["check", *arguments, "--device", "cpu", "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_pocket_works(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = checked(capsys)
    assert code == 0 and found["works"] and found["license_weights"] == "Apache-2.0"
    assert set(found["parts"]) == {"generator", "critic", "verifier"}
    assert all(word.startswith("ok") for word in found["parts"].values())
    assert found["plans"]["fast"]["seconds"] > 0 and found["plans"]["fast"]["peak_bytes"] > 0
    assert main(["check", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "memory plan fast:" in out and "everything works" in out


def test_a_folder_of_the_users_own_works_with_any_counter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counters = ("--critic", "pocket-detector-a", "--verifier", "pocket-density")
    code, found = checked(capsys, "--model", str(sd_folder(tmp_path)), *counters, "--memory", "low")
    assert code == 0 and found["works"] and found["family"] == "sd"
    assert list(found["plans"]) == ["low"] and found["license_weights"] == "unknown"


def test_what_is_missing_is_named_with_its_cure(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = checked(capsys, "--model", "sdxl-turbo")
    assert code == 1 and not found["works"] and not found["plans"]
    assert "hf download stabilityai/sdxl-turbo" in found["parts"]["generator"]
    assert "hf download google/owlv2" in found["parts"]["critic"]
    assert main(["check", "--model", "sdxl-turbo", "--device", "cpu"]) == 1
    assert "does not work yet" in capsys.readouterr().out


def test_unknown_names_are_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["--model", "sdxl-turb"], "sdxl-turbo"),
        (["--critic", "owlv3"], "owlv2"),
        (["--model", "pockett"], "did you mean pocket"),
        (["--device", "cuda:99"], "cuda"),
        (["--device", "cdua", "--json"], "cdua"),
        (["--verifier", "pocket-detector-a"], "family"),
    ):
        assert main(["check", *arguments]) == 2
        out, err = capsys.readouterr()
        assert message in err and err.count("\n") == 1 and not out


def test_a_counter_without_boxes_is_checked_with_an_objective_that_it_can_serve(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, found = checked(capsys, "--critic", "pocket-density", "--verifier", "pocket-detector-a")
    assert code == 0 and found["works"]
