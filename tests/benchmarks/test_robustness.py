"""The fuzz: its cases are the same each time, damage one thing, and faults are told from what is handled."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

import pytest

from benchmarks import robustness
from benchmarks.damage import damage
from countgen.errors import UsageError
from countgen.pocket import FOLDER


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_damage_is_to_one_file_and_the_same_each_time(tmp_path: Path) -> None:
    whole = contents(FOLDER / "density")
    kinds = set()
    for index in range(60):
        found = []
        for name in ("a", "b"):
            shutil.rmtree(tmp_path / name, ignore_errors=True)
            shutil.copytree(FOLDER / "density", tmp_path / name)
            what = damage(Random(index), tmp_path / name)
            found.append((what, contents(tmp_path / name)))
        assert found[0] == found[1]
        changed = {name for name in whole if found[0][1].get(name) != whole[name]}
        assert len(changed) <= 1 and set(found[0][1]) <= set(whole)
        kinds.add(what.partition(" ")[2].partition(" ")[0])
    assert {"deleted", "cut", "holds", "has", "is"} <= kinds


def test_every_kind_has_its_share_however_short_the_run() -> None:
    order = robustness.schedule(list(robustness.KINDS), 56)
    assert len(set(order)) == 56
    for kind, (_, share) in robustness.KINDS.items():
        assert sum(name == kind for name, _ in order) == 2 * share
    assert {kind for kind, _ in order[:14]} == set(robustness.KINDS)


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (UsageError("one sentence"), ""),
        (UsageError("two\nlines"), "2 lines"),
        (KeyError("x"), "KeyError"),
    ],
)
def test_an_error_without_a_sentence_is_a_fault(error: Exception, word: str) -> None:
    def load() -> None:
        raise error

    problem = robustness._handled(load, lambda _: None, "case")
    assert word in problem and bool(problem) == bool(word)


def test_a_changed_setting_is_a_fault() -> None:
    import torch

    assert "random state" in robustness._handled(lambda: torch.rand(1), lambda _: None, "case")
    assert not robustness._handled(lambda: 1, lambda _: None, "case")


def test_a_short_run_reports_what_it_tried(capsys: pytest.CaptureFixture[str]) -> None:
    assert robustness.main(["--json", "--kinds", "commands", "--cases", "12", "--seed", "5"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert report["tried"] == 12 and report["faults"] == 0, report
    assert report["kinds"]["commands"]["handled"] == 12
