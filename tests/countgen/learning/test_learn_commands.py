"""countgen learn lora|screening|noise: what they write, and one sentence for what cannot be done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from countgen.cli import main

LORA = ["learn", "lora", "--steps", "2", "--batch", "2", "--rank", "2", "--grad-steps", "1"]
LORA += ["--samples", "0"]


def told(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> str:
    assert main(arguments) == code
    out = capsys.readouterr()
    return out.out if code == 0 else " ".join(out.err.split())


def test_a_lora_from_scenes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "lora"
    document = json.loads(told([*LORA, "--out", str(out), "--json"], capsys))
    assert Path(document["path"]).is_file()
    assert (document["rank"], document["train"]["steps"], document["count_batch"]) == (2, 2, 2)
    again = [*LORA, "--out", str(out), "--lr", "0.5"]
    assert "learning_rate 0.001, now 0.5" in told(again, capsys, 2)


def test_screening_from_a_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, prompts = tmp_path / "screening", tmp_path / "prompts.txt"
    prompts.write_text("two cats\nthree dogs and a cup\n")
    arguments = ["learn", "screening", "--out", str(out), "--prompts", str(prompts)]
    arguments += ["--draws", "20", "--steps", "2"]
    path = told(arguments, capsys).strip()
    assert Path(path).is_file() and len((out / "draws.jsonl").read_text().splitlines()) == 20
    before = (out / "draws.jsonl").read_bytes()
    assert "draws 20, now 24" in told([*arguments, "--draws", "24"], capsys, 2)
    assert "seed 0, now 1" in told([*arguments, "--seed", "1"], capsys, 2)
    assert (out / "draws.jsonl").read_bytes() == before


@pytest.mark.parametrize("kind", ["noise", "token-network"])
def test_other_prompts_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    first, second, unknown = (tmp_path / name for name in ("a.txt", "b.txt", "c.txt"))
    first.write_text("two cats\n")
    second.write_text("three dogs\n")
    unknown.write_text("two cats\nthree zebras\n")
    asked = ["learn", kind, "--steps", "1", "--batch", "1", "--out", str(tmp_path / "out")]
    assert "cannot see 'zebra'" in told([*asked, "--prompts", str(unknown)], capsys, 2)
    assert not (tmp_path / "out").exists()
    told([*asked, "--prompts", str(first)], capsys)
    assert "prompts " in told([*asked, "--prompts", str(second)], capsys, 2)


def test_a_caption_that_the_critic_cannot_see_is_told_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (
        '{"file_name": "a.png", "text": "two cats"}\n{"file_name": "b.png", "text": "two zebras"}\n'
    )
    (tmp_path / "metadata.jsonl").write_text(lines)
    asked = [*LORA, "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    assert "cannot see 'zebra'" in told(asked, capsys, 2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["lora", "--data", "nowhere"], "there is no folder nowhere"),
        (["lora", "--steps", "0"], "at least 1"),
        (["lora", "--objective", "best"], "no counting loss 'best'"),
        (["lora", "--critic", "pocket-density"], "gives density"),
        (["noise", "--model", "sd-turbo"], "name a list of prompts for sd-turbo"),
        (["noise", "--rank", "0"], "rank and bound must be positive"),
        (["screening", "--draws", "0"], "draws and batch must be at least 1"),
        (["screening", "--draws", "10"], "take at least 20"),
        (["screening", "--critic", "pocket-density"], "take a detector"),
        (["noise", "--lr", "inf"], "learning rate must be positive and finite, not inf"),
        (["counter", "--family", "hmode", "--learning-rate", "-1"], "positive and finite, not -1"),
        (["clip", "--learning-rate", "0"], "positive and finite, not 0"),
        (["token-network", "--seed", "-1"], "seed of a training must be from 0"),
    ],
)
def test_what_cannot_be_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    asked = ["learn", *arguments, "--out", str(tmp_path / "out")]
    assert words in told(asked, capsys, 2)
    assert not (tmp_path / "out").exists()


def test_captions_without_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = '{"file_name": "a.png", "text": "cats on grass"}\n'
    (tmp_path / "metadata.jsonl").write_text(line)
    asked = [*LORA, "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    assert "has a number" in told(asked, capsys, 2)
