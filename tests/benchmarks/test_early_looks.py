"""The benchmark of early looks: its figures by hand, and a run of one prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import early_looks

PRICES = {"denoiser": 0.8, "look": 0.2}


def drawn(prompt: str, early: int, end: int) -> dict[str, Any]:
    return {"id": prompt, "image": 0, "wanted": [4], "seen": {"50": [early], "100": [end]}}


def test_early_counts_are_compared_with_the_finished_ones() -> None:
    rows = [drawn("a", 4, 4), drawn("a", 5, 4), drawn("b", 4, 6), drawn("b", 6, 6)]
    (found,) = early_looks.agreement(rows, PRICES).values()
    assert found["same"]["share"] == 0.5 and found["same"]["of"] == 4
    assert found["within_one"]["share"] == 0.75 and found["within_one"]["ci95"] == [0.5, 1.0]
    assert found["exact_look_exact"]["share"] == found["others_look_exact"]["share"] == 0.5
    # Four early looks, two pictures finished, of which one is exact; without them two of four are.
    assert found["price_per_exact_over_without"]["ratio"] == pytest.approx(3.6 / 2)
    assert early_looks.agreement(rows[:2], PRICES)["50"]["others_look_exact"] is None


def test_a_run_goes_on_where_it_was_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--json", "--steps", "20", "--shares", "0.5", "--every", "99", "--looks", "2"]
    arguments += ["--budget", "3", "--run", str(tmp_path)]
    assert early_looks.main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["agreement"]) == [str(share) for share in range(10, 100, 10)]
    for base, several in found["cost"].items():
        assert list(several) == [base, f"{base}-early-50"]
        assert several[base]["abandoned"] == 0
        assert several[f"{base}-early-50"]["par2_over_without"]["ratio"] > 0
    again = len((tmp_path / "rows.jsonl").read_text().splitlines())
    assert early_looks.main(arguments) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == again == 4
