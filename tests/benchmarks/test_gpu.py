"""The prepared GPU script, as small as may be, on a CPU: its rows, and what a run cut short leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu

SCRIPT = Path(gpu.__file__).with_suffix(".sh")
TINY = ["--size", "tiny", "--device", "cpu"]


@pytest.mark.slow
def test_every_row_is_measured_and_saved(tmp_path: Path) -> None:
    """All but the one that compiles, which takes minutes wherever a compiler is found."""
    rows = [name for name in gpu.ROWS if name != "compiled"]
    out = tmp_path / "gpu.json"
    assert gpu.main([*TINY, "--out", str(out), "--rows", *rows]) == 0
    document = json.loads(out.read_text())
    assert document["device"] == "cpu" and document["not_reached"] == []
    assert list(document["rows"]) == rows
    for name, row in document["rows"].items():
        for found in row["found"].get("by_batch", {}).values():
            assert found["ratio_to_floor"] > 0 and found["seconds_50"] > 0, name
    assert document["rows"]["looks"]["found"]["pipeline"] == "sdxl-turbo"
    assert document["rows"]["sd3.5-medium"]["found"]["memory"] == "balanced"


def test_the_script_runs_and_names_what_it_did_not_reach(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    command = [str(SCRIPT), *TINY, "--minutes", "0", "--out", str(out)]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(out.read_text())
    assert json.loads(out.read_text())["not_reached"] == list(gpu.ROWS)


def test_a_row_that_fails_or_lasts_too_long_costs_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(at: gpu.Setting) -> dict[str, object]:
        raise RuntimeError("no kernel")

    def lasts(at: gpu.Setting) -> dict[str, object]:
        while True:
            pass

    rows = {"a": fails, "b": lambda at: {"x": 1}, "c": lasts, "d": fails}
    monkeypatch.setattr(gpu, "ROWS", rows)
    saved: list[list[str]] = []
    report = gpu.run(
        list(rows), gpu.Setting("tiny", "cpu", None), 0.1, lambda r: saved.append([*r["rows"]])
    )
    assert report["rows"]["a"]["error"] == "RuntimeError: no kernel"
    assert report["rows"]["b"]["found"] == {"x": 1}
    assert report["not_reached"] == ["c", "d"]
    assert saved == [[], ["a"], ["a", "b"]]
