"""Prompts as people write them, each with the targets that are right; see data/README.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from countgen.prompts import parse_prompt

DATA = Path(__file__).parent / "data"


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def found(prompt: str) -> list[dict[str, Any]]:
    return [{"noun": t.noun, "count": t.count} for t in parse_prompt(prompt).targets]


@pytest.mark.parametrize("row", rows("cases.jsonl"), ids=lambda row: row["text"])
def test_cases(row: dict[str, Any]) -> None:
    assert found(row["text"]) == row["targets"]


def test_there_are_300_different_captions() -> None:
    assert len({row["text"] for row in rows("captions.jsonl")}) == 300


def test_at_least_95_percent_of_captions_are_right() -> None:
    missed = [
        f"{row['text']}: found {found(row['text'])}, right is {row['targets']}"
        for row in rows("captions.jsonl")
        if found(row["text"]) != row["targets"]
    ]
    assert len(missed) <= 15, "\n".join(missed)
