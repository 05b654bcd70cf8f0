"""The labelled pictures and their plan."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import benchmarks
from benchmarks.pocket_labels import load, plan, score
from countgen.pocket import unknown_words
from countgen.pocket.train import counted
from countgen.pocket.world import MAX_OBJECTS, NAMES, SIZE

RESULTS = Path(benchmarks.__file__).parent / "results"


def test_the_plan_spreads_over_counts_and_kinds_and_does_not_change() -> None:
    rows = plan()
    assert rows == plan() and len(rows) >= 300
    assert len({row["id"] for row in rows}) == len({row["seed"] for row in rows}) == len(rows)
    assert Counter(row["kinds"] for row in rows) == {1: 200, 2: 70, 3: 50}
    single = Counter(sum(row["asked"].values()) for row in rows if row["kinds"] == 1)
    assert single == {n: 10 for n in range(1, 21)}
    for row in rows:
        assert sum(row["asked"].values()) <= MAX_OBJECTS and not unknown_words(row["prompt"])


def test_every_planned_picture_is_labelled_kind_by_kind() -> None:
    rows, pictures = load()
    planned = plan()
    assert len(rows) == len(planned) == len(pictures)
    for row, asked in zip(rows, planned, strict=True):
        assert {key: row[key] for key in asked} == asked
        assert row["counts"].keys() == row["asked"].keys()
        assert all(n is None or 0 <= n <= 40 for n in row["counts"].values())
    assert pictures.std((1, 2, 3)).min() > 0.01


def test_the_committed_scores_are_those_of_the_committed_counters() -> None:
    committed = json.loads((RESULTS / "pocket_labels.json").read_text())
    found = score()
    assert found["sayable"] == committed["sayable"]
    for name, old in committed["counters"].items():
        new = found["counters"][name]
        # Rounding on another processor may flip a picture or two, not more.
        assert new["agrees"]["share"] == pytest.approx(old["agrees"]["share"], abs=0.015)
        assert new["sensitivity"]["of"] == old["sensitivity"]["of"]


def test_no_picture_has_both_shaped_and_measured_a_counter() -> None:
    """Nor has one shaped both the judge and what it judges."""
    sets = [load(), *(counted.load(counted.FOLDER / name) for name in ("judge", "search"))]
    seeds = [{row["seed"] for row in rows} for rows, _ in sets]
    assert [len(s) for s in seeds] == [len(rows) for rows, _ in sets]
    assert not (seeds[0] & seeds[1] or seeds[0] & seeds[2] or seeds[1] & seeds[2])
    for rows, pictures in sets[1:]:
        assert len(pictures) == len(rows) == len(counted.sayable(rows))
        assert pictures.shape[1:] == (3, SIZE, SIZE) and pictures.std((1, 2, 3)).min() > 0.01
        assert all(set(row["counts"]) <= set(NAMES) for row in rows)


def test_atlases_give_back_what_was_put_on_them(tmp_path: Path) -> None:
    across, down = counted.ATLAS
    shades = np.random.default_rng(0).integers(0, 256, (across * down + 3, SIZE, SIZE, 3), np.uint8)
    counted.write_atlases(tmp_path, [Image.fromarray(shade) for shade in shades])
    rows = [{"prompt": "", "seed": i, "counts": {"cat": None if i == 1 else 1}} for i in range(43)]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, pictures = counted.load(tmp_path)
    assert found == rows and counted.sayable(found) == [0, *range(2, 43)]
    assert torch.equal(
        (pictures * 255).round().byte().permute(0, 2, 3, 1), torch.from_numpy(shades)
    )
