"""Runs that are killed over and over come to what an undisturbed run comes to."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.evaluation import compared


def row(prompt: str, outcome: str = "exact") -> dict:
    return {"method": "none", "id": prompt, "image": 0, "outcome": outcome}


def test_rows_that_are_lost_double_or_other_are_counted() -> None:
    wanted = [row("a"), row("b"), row("c")]
    found = compared([row("a"), row("a"), row("b", "close call"), row("x")], wanted)
    assert (found["lost"], found["double"], found["foreign"]) == (1, 1, 1)
    assert (found["outcome_differs"], found["anything_differs"]) == (1, 1)
    assert compared(wanted, wanted) == dict.fromkeys(found, 0) | {"rows": 3}


@pytest.mark.slow
def test_a_run_that_is_killed_loses_and_doubles_nothing() -> None:
    part = [*("--json", "--parts", "kills"), *("--group", "3", "--alone", "2", "--prompts", "6")]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.evaluation", *part],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        check=True,
    )
    found = json.loads(done.stdout)["kills"]
    assert found["rows"] == found["wanted"] == found["pictures"] == found["summed"] == 24
    assert found["lost"] == found["double"] == found["foreign"] == found["partial_files"] == 0
    assert found["outcome_differs"] == 0
